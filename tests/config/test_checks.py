import pytest

from tests.config.loading import load_text, problems_of

SECRET = "0123456789abcdef0123456789abcdef"
LONG = "/" + "x" * 107


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "[delivery]\nbatch = '1s'\nmax_lag = '1s'",
            "2: delivery.batch is 1s; expected less than delivery.max_lag (1s)",
        ),
        (
            "[store]\nretry = '30s'\nretry_max = '10s'",
            "2: store.retry is 30s; expected at most store.retry_max (10s)",
        ),
        (
            f"[feed]\nsocket = '{LONG}'",
            "2: feed.socket has 108 bytes; a socket's path holds at most 107",
        ),
        (
            f"[server]\ncontrol_socket = '{LONG}'",
            "2: server.control_socket has 108 bytes; a socket's path holds at most 107",
        ),
        (
            "[feed]\nsocket = '/a'\n[server]\ncontrol_socket = '/a'",
            '4: server.control_socket has "/a", which feed.socket uses already; '
            "expected another one",
        ),
        (
            "[server]\nlisten = ['a:1', 'a:1']",
            '2: server.listen has "a:1", which server.listen uses already; expected another one',
        ),
        (
            "auth.secret = '***'",
            "1: auth.secret is ***, as `config show` masks it; expected the key itself",
        ),
        (
            "auth.secret_file = 'credential:'",
            '1: auth.secret_file is "credential:"; expected credential:NAME',
        ),
    ],
)
def test_what_does_not_go_together(text, problem):
    assert problems_of(text) == [f"cryptows.toml:{problem}"]


def test_any_number_of_free_ports_may_be_asked_for():
    assert problems_of("server.listen = ['127.0.0.1:0', '127.0.0.1:0']") == []


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (
            f"auth.secret = '{SECRET}'",
            "auth.secret stands in the file and in its backups; better auth.secret_file",
        ),
        (
            "auth.insecure_short_key = true",
            "auth.insecure_short_key is on: a short key can be found by trying",
        ),
        (
            "auth.query_token = true",
            "auth.query_token is on: tokens end up in the logs of proxies and browsers",
        ),
        (
            "cors.origins = '*'",
            'cors.origins has "*" while cors.credentials is on: any page may act for a user',
        ),
        (
            "feed.mode = '0666'",
            "feed.mode is 0666: every user of this machine may feed events",
        ),
        (
            "heartbeat.interval = '2min'",
            "heartbeat.interval is 2min: many proxies cut a connection that is silent for 1min",
        ),
        (
            "heartbeat.interval = '500ms'",
            "heartbeat.interval is 500ms: pings become the main load",
        ),
        (
            "delivery.outbox = '64KiB'",
            "delivery.outbox is 64KiB, less than feed.max_line (1MiB): one long event closes "
            "all its subscribers with 4008",
        ),
    ],
)
def test_what_is_warned_of(text, warning):
    assert load_text(text).warnings == [f"cryptows.toml:1: {warning}"]


@pytest.mark.parametrize(
    "text",
    [
        "cors.origins = '*'\ncors.credentials = false",
        "feed.mode = '0666'\nfeed.allow_users = ['bot']",
        "feed.mode = '0666'\nfeed.allow_groups = ['bots']",
        "heartbeat.interval = '59s'",
        "heartbeat.interval = '1s'",
        "delivery.outbox = '64KiB'\nfeed.max_line = '64KiB'",
    ],
)
def test_what_is_not_warned_of(text):
    assert load_text(text).warnings == []


def test_a_secret_in_a_variable_is_not_warned_of():
    assert load_text("", environ={"JWT_SECRET": SECRET}).warnings == []
