"""What each key takes, from a file (typed) and from a flag (text), and how it is refused."""

from ipaddress import ip_network

import pytest

from cryptows.config.declared import SETTINGS
from cryptows.config.values import Unfit, parse_toml_value, read_text, read_value, shown
from tests.config.loading import problems_of


@pytest.mark.parametrize(
    ("key", "raw", "value"),
    [
        ("delivery.outbox", "64KiB", 65536),
        ("delivery.outbox", 65536, 65536),
        ("server.drain", "20s", 20.0),
        ("server.drain", 0, 0.0),
        ("limits.requests", 5, 5),
        ("auth.anonymous", False, False),
        ("feed.mode", "0600", 0o600),
        ("feed.mode", "0o640", 0o640),
        ("feed.mode", "640", 0o640),
        ("log.level", "DEBUG", "debug"),
        ("auth.algorithms", ["hs512"], ("HS512",)),
        ("server.listen", "unix:/run/x", ("unix:/run/x",)),
        ("server.listen", ["[::1]:0", "localhost:3000"], ("[::1]:0", "localhost:3000")),
        ("server.trusted_proxies", ["10.0.0.0/8"], (ip_network("10.0.0.0/8"),)),
        ("server.trusted_proxies", "::1", (ip_network("::1"),)),
        ("cors.origins", ["HTTPS://Example.com/"], ("https://example.com",)),
        ("cors.origins", ["*", "null"], ("*", "null")),
        ("feed.allow_users", ["bot", 1000], ("bot", "1000")),
        ("auth.secret_file", "", ""),
        ("feed.group", "", ""),
    ],
)  # fmt: skip
def test_what_a_file_may_hold(key, raw, value):
    assert read_value(SETTINGS[key], raw) == value


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("delivery.outbox", "64KiB", 65536),
        ("delivery.outbox", '"64KiB"', 65536),
        ("delivery.outbox", "65536", 65536),
        ("auth.anonymous", "true", True),
        ("log.level", "debug", "debug"),
        ("log.level", '"debug"', "debug"),
        ("auth.audience", "123", "123"),
        ("auth.audience", "true", "true"),
        ("auth.audience", "a=b, c", "a=b, c"),
        ("auth.audience", "", ""),
        ("feed.mode", "0600", 0o600),
        ("cors.origins", "http://a, http://b/", ("http://a", "http://b")),
        ("cors.origins", '["http://a", "http://b"]', ("http://a", "http://b")),
        ("cors.origins", "http://a", ("http://a",)),
        ("cors.origins", "", ()),
        ("server.listen", "[::1]:3000,unix:/run/x", ("[::1]:3000", "unix:/run/x")),
        ("feed.allow_users", "1000", ("1000",)),
    ],
)
def test_what_a_flag_may_hold(key, text, value):
    assert read_text(SETTINGS[key], text) == value


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            'delivery.outbox = "0"',
            'delivery.outbox is "0"; expected 4KiB to 64MiB (default 1MiB)',
        ),
        (
            "delivery.outbox = [1]",
            "delivery.outbox is [1]; expected 4KiB to 64MiB (default 1MiB)",
        ),
        (
            "delivery.outbox = true",
            "delivery.outbox is true; expected 4KiB to 64MiB (default 1MiB)",
        ),
        (
            'delivery.outbox = "64 MB and more"',
            'delivery.outbox is "64 MB and more"; expected 4KiB to 64MiB (default 1MiB)',
        ),
        ('server.drain = "1h"', 'server.drain is "1h"; expected 0s to 10min (default 20s)'),
        ("server.drain = nan", "server.drain is NaN; expected 0s to 10min (default 20s)"),
        ("server.drain = -1", "server.drain is -1; expected 0s to 10min (default 20s)"),
        (
            'limits.requests = "100"',
            'limits.requests is "100"; expected 1 to 1000000 (default 100)',
        ),
        ("limits.requests = 1.5", "limits.requests is 1.5; expected 1 to 1000000 (default 100)"),
        ("limits.requests = true", "limits.requests is true; expected 1 to 1000000 (default 100)"),
        ("auth.anonymous = 1", "auth.anonymous is 1; expected true or false (default true)"),
        (
            'log.level = "loud"',
            'log.level is "loud"; expected "debug", "info", "warning" or "error" (default "info")',
        ),
        ("log.level = 5", 'log.level is 5; expected "debug", "info", "warning" or "error" (default '
        '"info")'),
        (
            "feed.mode = 660",
            'feed.mode is 660; expected octal permissions in quotes such as "0660" (default 0660)',
        ),
        (
            'feed.mode = "0999"',
            'feed.mode is "0999"; expected octal permissions in quotes such as "0660" '
            "(default 0660)",
        ),
        (
            'feed.mode = "7777"',
            'feed.mode is "7777"; expected octal permissions in quotes such as "0660" '
            "(default 0660)",
        ),
        ("feed.group = 5", "feed.group is 5; expected text"),
        ('feed.group = "a\\u0000b"', 'feed.group is "a\\u0000b"; expected text'),
        (
            "feed.socket = ''",
            'feed.socket is ""; expected a path (default "/run/cryptows/feed.sock")',
        ),
        ('feed.allow_users = [""]', 'feed.allow_users is [""]; expected a list of text'),
        ("feed.allow_users = [true]", "feed.allow_users is [true]; expected a list of text"),
        (
            "server.listen = []",
            'server.listen is []; expected a list of "host:port" or "unix:PATH", at least one '
            '(default ["127.0.0.1:3000"])',
        ),
        (
            "server.listen = '3000'",
            'server.listen is "3000"; expected a list of "host:port" or "unix:PATH", at least one '
            '(default ["127.0.0.1:3000"])',
        ),
        (
            "server.listen = ['h:99999']",
            'server.listen is ["h:99999"]; expected a list of "host:port" or "unix:PATH", '
            'at least one (default ["127.0.0.1:3000"])',
        ),
        (
            "server.listen = ['[::zz]:1']",
            'server.listen is ["[::zz]:1"]; expected a list of "host:port" or "unix:PATH", '
            'at least one (default ["127.0.0.1:3000"])',
        ),
        (
            "server.listen = ['[::1::2]:1']",
            'server.listen is ["[::1::2]:1"]; expected a list of "host:port" or "unix:PATH", '
            'at least one (default ["127.0.0.1:3000"])',
        ),
        (
            "server.listen = 'unix:'",
            'server.listen is "unix:"; expected "unix:PATH" with a path of 1 to 107 bytes',
        ),
        (
            "server.trusted_proxies = ['10.0.0.1/8']",
            'server.trusted_proxies is ["10.0.0.1/8"]; expected a network without host bits, '
            'such as "10.0.0.0/8"',
        ),
        (
            "server.trusted_proxies = ['proxy']",
            'server.trusted_proxies is ["proxy"]; expected a list of networks such as "10.0.0.0/8"',
        ),
        (
            "server.trusted_proxies = [10]",
            'server.trusted_proxies is [10]; expected a list of networks such as "10.0.0.0/8"',
        ),
        (
            "cors.origins = ['localhost:3000']",
            'cors.origins is ["localhost:3000"]; expected a list of origins such as '
            '"https://example.com" or "*" (default ["http://localhost:3000"])',
        ),
        (
            "cors.origins = ['http://localhost:3000/app']",
            'cors.origins is ["http://localhost:3000/app"]; expected a list of origins such as '
            '"https://example.com" or "*" (default ["http://localhost:3000"])',
        ),
        (
            "auth.algorithms = ['none']",
            'auth.algorithms is ["none"]; expected a list of "HS256", "HS384" or "HS512", '
            'at least one (default ["HS256"])',
        ),
        ("auth.secret = 5", "auth.secret is ***; expected text"),
    ],
)  # fmt: skip
def test_what_a_file_may_not_hold(line, problem):
    assert problems_of(f"# first\n{line}\n") == [f"cryptows.toml:2: {problem}"]


def test_a_long_value_is_quoted_in_part():
    assert shown(None, "x" * 100) == '"' + "x" * 58 + "…"


def test_a_secret_is_never_quoted():
    assert shown(SETTINGS["auth.secret"], "hunter2") == "***"


@pytest.mark.parametrize("text", ["1\nb = 2", "", "[" * 100_000, "a b"])
def test_what_is_no_value(text):
    with pytest.raises(ValueError, match=r".*"):
        parse_toml_value(text)


def test_a_flag_that_fits_no_way_is_refused():
    with pytest.raises(Unfit, match=r"^0s to 10min \(default 20s\)$"):
        read_text(SETTINGS["server.drain"], "[1]")
