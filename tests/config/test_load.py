from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptows.config.layers import Document
from cryptows.config.load import defaults, load
from cryptows.model.channel import Lane
from cryptows.model.errors import ConfigError
from tests.config.loading import comparable, load_text, problems_of, reader

SECRET = "0123456789abcdef0123456789abcdef"


def origins(loaded: Any) -> dict[str, str]:
    return {key: origin for key, origin in loaded.origins.items() if origin != "default"}


def test_the_defaults_need_no_file_and_warn_of_nothing():
    loaded = load(None)

    assert comparable(loaded.settings) == comparable(defaults())
    assert loaded.warnings == []
    assert loaded.files == []
    assert set(loaded.origins.values()) == {"default"}


def test_settings_cannot_be_changed():
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        defaults().server.drain = 1  # type: ignore[misc]


def test_a_secret_does_not_show_when_settings_are_printed():
    settings = load(None, [f"auth.secret={SECRET}"]).settings

    assert SECRET not in repr(settings)
    assert "algorithms=('HS256',)" in repr(settings)


def test_later_layers_win():
    main = "[limits]\nrequests = 1\nstrikes = 1\nconnections = 1\nsubscriptions = 1\n"
    drop_in = "limits.strikes = 2\nlimits.connections = 2\nlimits.subscriptions = 2"
    environ = {"CRYPTOWS_LIMITS__CONNECTIONS": "3", "CRYPTOWS_LIMITS__SUBSCRIPTIONS": "3"}

    loaded = load_text(main, drop_in, environ=environ, sets=["limits.subscriptions=4"])

    limits = loaded.settings.limits
    given = (limits.requests, limits.strikes, limits.connections, limits.subscriptions)
    assert given == (1, 2, 3, 4)
    assert loaded.files == ["cryptows.toml", "conf.d/10.toml"]
    assert origins(loaded) == {
        "limits.requests": "cryptows.toml:2",
        "limits.strikes": "conf.d/10.toml:1",
        "limits.connections": "environment CRYPTOWS_LIMITS__CONNECTIONS",
        "limits.subscriptions": "--set",
    }


def test_the_last_of_equal_flags_wins():
    assert load(None, ["limits.requests=1", "limits.requests=2"]).settings.limits.requests == 2


def test_the_variables_of_the_seed_system_are_understood():
    environ = {"JWT_SECRET": f'"{SECRET}"', "FRONTEND_URL": "http://a:1, http://b/"}

    loaded = load(None, environ=environ)

    assert loaded.settings.auth.secret == f'"{SECRET}"'  # never read as TOML
    assert loaded.settings.cors.origins == ("http://a:1", "http://b")
    assert origins(loaded) == {
        "auth.secret": "environment JWT_SECRET",
        "cors.origins": "environment FRONTEND_URL",
    }


def test_a_variable_of_our_own_is_stronger_than_the_seed_systems():
    environ = {"FRONTEND_URL": "http://a", "CRYPTOWS_CORS__ORIGINS": "http://b"}

    assert load(None, environ=environ).settings.cors.origins == ("http://b",)


def test_empty_variables_of_the_seed_system_count_as_absent():
    loaded = load(None, environ={"JWT_SECRET": "", "FRONTEND_URL": ""})

    assert comparable(loaded.settings) == comparable(defaults())


def test_other_variables_are_not_looked_at():
    environ = {"PATH": "/bin", "XCRYPTOWS_A": "1", "CRYPTOWS_TOKEN": "x", "CRYPTOWS_VENV": "y"}

    loaded = load(None, environ=environ)

    assert comparable(loaded.settings) == comparable(defaults())


def test_channels_are_found_by_variables_and_flags():
    environ = {
        "CRYPTOWS_CHANNELS__MARKET_DATA__THROTTLE": "1s",
        "CRYPTOWS_CHANNELS__USER_ID_ALERTS__DURABLE": "false",
        "CRYPTOWS_CHANNELS__MY_OWN__MAX_AGE": "5s",
        "CRYPTOWS_TYPES__RISK_ALERT__CHANNELS": "risk_alerts,admin_alerts",
    }
    sets = [
        "channels.user_{id}_trades.durable=false",
        'channels."user_{id}_trades".history.age=1h',
        "channels.market_data.history=5",
    ]

    loaded = load_text('[channels."my.own"]\naccess = "public"', environ=environ, sets=sets)

    channels = {channel.name: channel for channel in loaded.settings.channels.classes}
    assert channels["market_data"].throttle == 1
    assert channels["market_data"].history.events == 5
    assert not channels["user_{id}_alerts"].durable
    assert not channels["user_{id}_trades"].durable
    assert channels["user_{id}_trades"].history.age == 3600
    assert channels["user_{id}_positions"].durable
    assert channels["my.own"].max_age == 5
    assert loaded.settings.types["risk_alert"].channels == ("risk_alerts", "admin_alerts")
    assert loaded.origins["channels.user_{id}_trades.durable"] == "--set"


def test_a_flag_may_hold_a_table():
    sets = ['channels.news={access="public", lane="market"}', "limits={requests=7}"]

    settings = load(None, sets).settings

    found = settings.channels.find("news")
    assert found is not None
    assert found[0].lane is Lane.MARKET
    assert settings.limits.requests == 7


@pytest.mark.parametrize(
    ("flag", "problem"),
    [
        ("delivery.outbox=0", 'delivery.outbox is "0"; expected 4KiB to 64MiB (default 1MiB)'),
        ("delivery.outbox", '"delivery.outbox" is not of the form section.key=value'),
        ("Hunter2!", '"***" is not of the form section.key=value'),
        ("=5", '"***" is not of the form section.key=value'),
        ("a..b=5", '"a..b" is not of the form section.key=value'),
        ("a.b.=5", '"a.b." is not of the form section.key=value'),
        ('a."b=5', '"***" is not of the form section.key=value'),
        ('"a"b=5', '"***" is not of the form section.key=value'),
        ("delivery.outbx=5", "unknown setting delivery.outbx; did you mean delivery.outbox?"),
        ("server.outbox=5", "unknown setting server.outbox; did you mean delivery.outbox?"),
        ("server.nothing=5", "unknown setting server.nothing"),
        ("outbox=5", "unknown setting outbox; did you mean delivery.outbox?"),
        ("delivry.outbox=5", "unknown section delivry; did you mean delivery?"),
        ("nothing.at.all=5", "unknown section nothing"),
        ("auth=hunter2", "auth is ***; expected a table (auth.KEY = VALUE)"),
        ("channels=5", 'channels is "5"; expected a table (channels.KEY = VALUE)'),
        ("channels.a=5", 'channels.a is "5"; expected a table (channels.a.KEY = VALUE)'),
        ("types.system_status.fields=5",
         'types.system_status.fields is "5"; '
         "expected a table (types.system_status.fields.KEY = VALUE)"),
        ("delivery.outbox.a=5", "unknown setting delivery.outbox.a; did you mean delivery.outbox?"),
        ("delivery.outbox={a=5}", 'delivery.outbox is {"a": 5}; expected 4KiB to 64MiB '
         "(default 1MiB)"),
        ("delivery.outbox={a=", 'delivery.outbox is "{a="; expected 4KiB to 64MiB (default 1MiB)'),
        ("channels.market_data.trottle=5",
         "unknown setting channels.market_data.trottle; "
         "did you mean channels.market_data.throttle?"),
        ("types.system_status.chanels=5",
         "unknown setting types.system_status.chanels; "
         "did you mean types.system_status.channels?"),
    ],
)  # fmt: skip
def test_what_a_flag_may_not_say(flag, problem):
    assert problems_of(sets=[flag]) == [f"--set: {problem}"]


@pytest.mark.parametrize(
    ("variable", "problem"),
    [
        (
            "CRYPTOWS_DELIVERY__OUTBX",
            "unknown setting delivery.outbx; did you mean delivery.outbox?",
        ),
        (
            "CRYPTOWS_DELIVERY__OUTBOX",
            'delivery.outbox is "1"; expected 4KiB to 64MiB (default 1MiB)',
        ),
    ],
)
def test_what_a_variable_may_not_say(variable, problem):
    assert problems_of(environ={variable: "1"}) == [f"environment {variable}: {problem}"]


@pytest.mark.parametrize("variable", ["CRYPTOWS_DELIVERY_OUTBOX", "CRYPTOWS_DELIVERY", "CRYPTOWS_"])
def test_a_variable_that_names_no_section_is_only_warned_about(variable):
    loaded = load(None, environ={variable: "1"})

    assert loaded.warnings == [
        f"environment {variable}: no setting; expected CRYPTOWS_SECTION__KEY"
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a = " + "[" * 100_000, "1: arrays or tables are nested too deep"),
        ("server = 5", "1: server is 5; expected a table (server.KEY = VALUE)"),
        ("\nlisten = 5", "2: unknown setting listen; did you mean server.listen?"),
        ("[[channels]]\na = 1", "1: channels is a list; expected a table (channels.KEY = VALUE)"),
        ("[channels]\n\nx = 1", "3: channels.x is 1; expected a table (channels.x.KEY = VALUE)"),
        ("auth = 'hunter2'", "1: auth is ***; expected a table (auth.KEY = VALUE)"),
        ("[[auth]]\nsecret = 'x'", "1: auth is a list; expected a table (auth.KEY = VALUE)"),
        ("[delivry]\na = 1\nb = 2", "2: unknown section delivry; did you mean delivery?"),
        ("[[delivery.outbox]]\na = 1", '1: delivery.outbox is [{"a": 1}]; '
         "expected 4KiB to 64MiB (default 1MiB)"),
    ],
)  # fmt: skip
def test_what_is_no_config(text, problem):
    assert problems_of(text) == [f"cryptows.toml:{problem}"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a = 1\n\n[x", 3),
        ("[server]\nlisten = [\n\n\n", 2),
        ("[server]\ndrain = 1\ndrain = 2\n\nlisten = 'x'", 3),
        ("[server]\ndrain =\nlisten = 'x'", 2),
    ],
)
def test_what_is_no_toml_is_refused_with_the_line(text, line):
    [problem] = problems_of(text)  # the words are tomllib's and differ between versions

    assert problem.startswith(f"cryptows.toml:{line}: ")
    assert " (at " not in problem


def test_an_empty_table_is_no_mistake():
    loaded = load_text("[server]\n[channels]\n[channels.market_data]\n[types]\n")

    assert comparable(loaded.settings) == comparable(defaults())


def test_where_a_line_cannot_be_found_the_file_is_named():
    text = f"[x]\ny = {'[' * 150}{']' * 150}\n[server]\ndrain = 'x'\n"

    assert problems_of(text) == [
        'cryptows.toml:1: server.drain is "x"; expected 0s to 10min (default 20s)',
        "cryptows.toml:2: unknown section x",
    ]


def test_a_file_that_is_no_text_is_refused_with_the_line():
    documents = [Document("cryptows.toml", b"a = 1\nb = '\xff'\n")]

    with pytest.raises(ConfigError) as caught:
        load("cryptows.toml", read=lambda path: documents)

    assert caught.value.problems == ("cryptows.toml:2: not UTF-8",)


def test_a_byte_order_mark_and_windows_line_ends_are_tolerated():
    documents = [Document("a.toml", b"\xef\xbb\xbf[server]\r\n\r\ndrain = '3s'\r\n")]

    loaded = load("a.toml", read=lambda path: documents)

    assert loaded.settings.server.drain == 3
    assert origins(loaded) == {"server.drain": "a.toml:3"}


def test_a_file_that_cannot_be_read_is_one_clear_line():
    def refuse(path: str | None) -> list[Document]:
        raise FileNotFoundError(2, "No such file or directory", "/x/cryptows.toml")

    with pytest.raises(ConfigError) as caught:
        load("/x/cryptows.toml", read=refuse)

    assert caught.value.problems == ("/x/cryptows.toml: cannot be read: No such file or directory",)


def test_without_a_reader_no_file_can_be_named():
    with pytest.raises(ConfigError, match=r"^x\.toml: no files are read here$"):
        load("x.toml")


def test_all_problems_are_reported_at_once_from_the_top_of_each_file():
    main = 'log.level = "loud"\n[channels.mine]\nlane = "market"\n[delivery]\noutbox = "0"\n'
    drop_in = "[limits]\n\nrequest = 5\n"

    problems = problems_of(main, drop_in, environ={"CRYPTOWS_X__Y": "1"}, sets=["a=b"])

    assert problems == [
        'cryptows.toml:1: log.level is "loud"; '
        'expected "debug", "info", "warning" or "error" (default "info")',
        "cryptows.toml:3: channels.mine.access is missing; "
        'expected "public", "authenticated", "user" or "admin"',
        'cryptows.toml:5: delivery.outbox is "0"; expected 4KiB to 64MiB (default 1MiB)',
        "conf.d/10.toml:3: unknown setting limits.request; did you mean limits.requests?",
        "environment CRYPTOWS_X__Y: unknown section x",
        "--set: unknown setting a",
    ]


def test_a_wrong_value_is_reported_though_a_flag_overrides_it():
    assert problems_of("[server]\ndrain = 'x'", sets=["server.drain=1s"]) == [
        'cryptows.toml:2: server.drain is "x"; expected 0s to 10min (default 20s)'
    ]


def test_relative_paths_start_in_the_folder_of_the_main_file():
    main = (
        "server.state_dir = 'state'\nfeed.socket = '/run/feed'\n"
        "auth.secret_file = 'credential:key'\n"
    )
    read = reader(
        main, "[server]\ncontrol_socket = 'c.sock'", names=["/a/m.toml", "/a/conf.d/x.toml"]
    )

    settings = load("/a/m.toml", ["auth.previous_secret_file=old.key"], read=read).settings

    assert settings.server.state_dir == "/a/state"
    assert settings.server.control_socket == "/a/c.sock"
    assert settings.feed.socket == "/run/feed"
    assert settings.auth.secret_file == "credential:key"
    assert settings.auth.previous_secret_file == "old.key"  # a flag means the current folder


def test_a_marker_secret_never_shows_in_problems():
    marker = "hunter2-" * 9
    sets = [
        f"auth.secret={marker}",
        f"auth.secrt={marker}",
        f"auth={marker}",
        f"auth.secret {marker}",
        f"auths.secret={marker}",
        'auth.algorithms=["HS512"]',
        "auth.leeway=x",
    ]

    problems = problems_of(sets=sets, environ={"JWT_SECRET": "hunter2", "CRYPTOWS_AUTH": marker})

    assert len(problems) == 5
    assert "hunter2" not in "\n".join(problems)


texts = st.text(st.characters(codec="utf-8"), max_size=30)
keys = st.sampled_from(
    ["auth.secret", "server.listen", "channels.a", "channels.a.throttle", "types.b.fields.c", "x"]
)


@given(
    text=texts,
    sets=st.lists(st.one_of(texts, st.builds("{}={}".format, keys, texts)), max_size=5),
    environ=st.dictionaries(texts.map("CRYPTOWS_{}".format), texts, max_size=3),
)
def test_whatever_is_given_the_outcome_is_settings_or_problems(text, sets, environ):
    problems = problems_of(text, sets=sets, environ=environ)

    assert all(problem.isprintable() for problem in problems)
