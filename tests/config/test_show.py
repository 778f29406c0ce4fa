import tomllib

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cryptows.config.declared import CHANNEL_RULES, SETTINGS, Declared
from cryptows.config.load import Loaded, load
from cryptows.config.show import rows, show, toml_key
from cryptows.model.errors import ConfigError
from tests.config.loading import comparable, load_text, problems_of

SECRET = "0123456789abcdef0123456789abcdef"


def drawn_values(declared: Declared) -> st.SearchStrategy[str]:
    """Return flags that set this key to something it may hold."""
    match declared.kind:
        case _ if declared.choices:
            values: st.SearchStrategy[object] = st.sampled_from(declared.choices)
        case "duration":
            values = st.floats(declared.min, declared.max)
        case "size" | "integer":
            values = st.integers(int(declared.min or 0), int(declared.max or 0))
        case "boolean":
            values = st.sampled_from(["true", "false"])
        case "mode":
            values = st.integers(0, 0o777).map("{:04o}".format)
        case "network":
            values = st.sampled_from(["10.0.0.0/8", "::1", "fe80::/10"])
        case "address":
            values = st.sampled_from(["127.0.0.1:0", "[::1]:3000", "unix:/run/a b"])
        case "origin":
            values = st.sampled_from(["https://example.com", "*"])
        case "path":
            values = st.sampled_from(["/run/cryptows/x", "/a b/ä", "credential:key"])
        case _:
            values = st.text("aä\"'\\#=[]{} \n\t1,", min_size=1, max_size=9)
    return values.map(lambda value: f"{declared.key}={toml_text(declared, value)}")


def toml_text(declared: Declared, value: object) -> str:
    if declared.kind in ("text", "path"):
        text = "".join(f"\\u{ord(c):04x}" for c in str(value))
        return f'["{text}"]' if declared.many else f'"{text}"'
    return str(value)


flags = st.lists(
    st.sampled_from([d for d in SETTINGS.values() if not d.secret]).flatmap(drawn_values),
    max_size=6,
)
rules = st.lists(
    st.sampled_from([d for d in CHANNEL_RULES.values() if d.key not in ("types", "access")])
    .flatmap(drawn_values)
    .map("channels.system_metrics.{}".format),
    max_size=3,
)


def again(loaded: Loaded) -> Loaded:
    return load_text(show(loaded))


# A third of the usual number: writing and reading all settings takes its time.
@hypothesis_settings(max_examples=hypothesis_settings().max_examples // 3)
@given(sets=st.builds(list.__add__, flags, rules))
def test_what_is_shown_loads_again(sets):
    try:
        loaded = load(None, sets)
    except ConfigError:  # values that do not go together
        return

    assert comparable(again(loaded).settings) == comparable(loaded.settings)


def test_channels_types_and_schemas_load_again():
    loaded = load_text("""
        [channels."my.news"]
        access = "public"
        history = {events = 5, bytes = 1000, age = 1.5}

        [channels."user_{id}_orders"]
        access = "user"

        [types.headline]
        channels = ["my.news"]
        fields."a b" = {type = "string", choices = ["x", 'y"']}
        fields.n = {type = "number", min = 0.1, max = 5}
    """)

    assert comparable(again(loaded).settings) == comparable(loaded.settings)


def test_each_setting_tells_where_it_came_from():
    loaded = load_text("[server]\ndrain = '30s'\n", sets=["channels.market_data.throttle=1s"])

    lines = show(loaded).splitlines()

    assert lines[:2] == ["[server]", 'listen = ["127.0.0.1:3000"]                   # default']
    assert 'drain = "30s"                                 # cryptows.toml:2' in lines
    assert 'throttle = "1s"                               # --set' in lines
    assert '[channels."user_{id}_trades"]' in lines


def test_every_setting_is_shown():
    loaded = load(None)

    assert {row.key for row in rows(loaded)} == set(loaded.origins)


def test_secrets_are_masked_and_the_mask_is_not_taken_for_a_key():
    shown = show(load(None, environ={"JWT_SECRET": SECRET}))

    assert SECRET not in shown
    assert tomllib.loads(shown)["auth"]["secret"] == "***"
    assert problems_of(shown) == [
        "cryptows.toml:23: auth.secret is ***, as `config show` masks it; expected the key itself"
    ]


def test_names_are_quoted_where_toml_wants_it():
    assert [toml_key(name) for name in ("a-b", "a.b", "user_{id}", "")] == [
        "a-b",
        '"a.b"',
        '"user_{id}"',
        '""',
    ]
