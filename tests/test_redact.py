"""Nothing that gives access to anything may pass redaction, however it is wrapped."""

from __future__ import annotations

import base64
import json
import urllib.parse

import attrs
import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptows import redact as redaction
from cryptows.redact import MASK, is_secret, protect, redact, redact_text, redact_trace

MARKER = "hunter2-Marker0123456789"
TOKEN = jwt.encode({"sub": "123", "role": "admin"}, "k" * 32, algorithm="HS256")

SECRET_NAMES = [
    "token", "access_token", "accessToken", "Authorization", "proxy-authorization", "cookie",
    "Set-Cookie", "secret", "auth", "auth.secret", "key", "api_key", "x-api-key", "apikey", "sid",
    "pid", "password", "Sec-WebSocket-Protocol", "previous_secret", "credentials", "session_id",
    "%74oken", "jwt", "bearer", "token[]",
]  # fmt: skip
HARMLESS_NAMES = ["client", "code", "author", "monkey", "path", "secret_file", "token_fingerprint",
                  "authenticated", "reason", "hash", "sidecar", "keyboard"]  # fmt: skip


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_a_secret_name_is_recognised(name):
    assert is_secret(name)


@pytest.mark.parametrize("name", HARMLESS_NAMES)
def test_a_harmless_name_is_left_alone(name):
    assert not is_secret(name)


TEXTS = [
    "/ws?token={m}",
    "/socket.io/?EIO=4&transport=polling&sid={m}&t=abc",
    "/ws?%74oken={m}",
    "/ws?access%5Ftoken={m}",
    "next=%2Fws%3Ftoken%3D{m}",
    "next=%252Fws%253Ftoken%253D{m}",
    "/ws?token[]={m}",
    "https://user:{m}@broker.example/path",
    "Authorization: Bearer {m}",
    "authorization: Basic {m}",
    "GET / HTTP/1.1\r\nCookie: a=1; session={m}; b=2\r\nHost: x",
    "Sec-WebSocket-Protocol: cryptows.v1, bearer.{m}",
    "cryptows.v1, bearer.{m}",
    "{{'token': '{m}'}}",
    '{{"auth": {{"token": "{m}"}}}}',
    '{{"auth": "{m}',
    "[(b'cookie', b'a={m}')]",
    "Auth(secret='{m}', leeway=5.0)",
    'Auth(secret=b"it\'s {m}")',
    r'line "{{\"type\":\"authenticate\",\"token\":\"{m}\"}}"',
    r"'{{\'token\': \'x\\\'y {m}\'}}'",
    "ValueError: bad token '{m}'",
    "invalid token {m}",
    "password => {m}",
    "the key:{m}, and more",
    "auth=({m})",
    "auth=[({m}",
    "token={m}#fragment",
    "x" * 200 + ".token={m}",
]


@pytest.mark.parametrize("template", TEXTS)
def test_a_secret_in_a_text_is_masked(template):
    text = template.format(m=MARKER)

    plain = redact_text(text)

    assert MARKER not in urllib.parse.unquote(urllib.parse.unquote(plain))
    assert MASK in plain


@pytest.mark.parametrize("around", ["{}", "got {}", "/x/{}/y", "'{}'", "a={}", "[{},", "_ {}."])
def test_a_jwt_is_masked_wherever_it_stands(around):
    plain = redact_text(around.format(TOKEN))

    for part in TOKEN.split("."):
        assert part not in plain


def test_a_jwt_that_was_cut_short_is_masked_too():
    assert redact_text(TOKEN[: TOKEN.rindex(".") + 5]) == MASK
    assert redact_text(TOKEN[: TOKEN.index(".") + 5]) == MASK


@pytest.mark.parametrize(
    "text",
    [
        "client refused", "127.0.0.1:3000", "/ws", "too slow, 1.0 MiB behind; come back",
        "token expired", "jwt expired", "/run/cryptows/feed.sock", "no such key",
        "cryptows.toml:41: delivery.outbox is 0; expected 4KiB to 64MiB (default 1MiB)",
        "/stats?verbose=1&x=2", "é ü 漢字", "100%", "wss://stream.example:9443/ws/btcusdt@trade",
    ],
)  # fmt: skip
def test_harmless_text_is_unchanged(text):
    assert redact_text(text) == text


def test_only_the_value_goes():
    assert (
        redact_text("/socket.io/?EIO=4&sid=abc&t=1 then {'token': 'x', 'n': 1}")
        == "/socket.io/?EIO=4&sid=***&t=1 then {'token': ***, 'n': 1}"
    )


@attrs.frozen
class Holder:
    token: str
    n: int = 1


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError


def test_values_become_plain_json():
    value = {
        "n": 7, "ok": True, "none": None, "f": 0.5, b"raw": b"bytes\xff", "set": {1},
        "error": ValueError("bad token 'abc'"), "holder": Holder(MARKER), "broken": Broken(),
        "headers": [(b"Cookie", b"a=b"), ("Host", "x")], "pid": 1234, "sid": "abc",
        "auth": {"user": "x"}, "deep": [[[[["token=abc"]]]]],
    }  # fmt: skip

    plain = redact(value)

    assert plain == {
        "n": 7, "ok": True, "none": None, "f": 0.5, "raw": "bytes\\xff", "set": [1],
        "error": "ValueError: bad token ***", "holder": "Holder(token=***, n=1)",
        "broken": "<Broken>", "headers": [["Cookie", MASK], ["Host", "x"]], "pid": 1234,
        "sid": MASK, "auth": MASK, "deep": [[[["['token=***']"]]]],
    }  # fmt: skip
    json.dumps(plain)


def nested(leaf):
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(st.sampled_from(HARMLESS_NAMES), inner, min_size=1, max_size=2),
            st.tuples(inner),
        ),
        max_leaves=4,
    )


def secret_leaves():
    templates = st.sampled_from(TEXTS).map(lambda template: template.format(m=MARKER))
    named = st.builds(
        lambda name, value: {name: value},
        st.sampled_from(SECRET_NAMES),
        st.sampled_from([MARKER, [MARKER], {"x": MARKER}, MARKER.encode()]),
    )
    errors = templates.map(ValueError)
    return st.one_of(templates, templates.map(str.encode), named, errors, st.just(TOKEN))


@given(nested(secret_leaves()))
def test_no_nesting_lets_a_secret_through(value):
    text = json.dumps(redact(value))

    assert MARKER not in urllib.parse.unquote(urllib.parse.unquote(text))
    assert TOKEN.rpartition(".")[2] not in text


@given(st.text() | st.binary())
def test_any_text_is_survived_and_becomes_valid_utf_8(text):
    plain = redact(text)

    assert isinstance(plain, str)
    plain.encode()


@given(
    st.text(alphabet="a=:,'\"\\[]{}() b&;%\n", max_size=40),
    st.text(alphabet="a=:,'[]{}() b&;%\n", max_size=40),
)
def test_a_named_value_goes_whatever_stands_around_it(before, after):
    text = f"{before} token={MARKER} {after}"

    assert MARKER not in redact_text(text)


def test_long_values_and_containers_are_cut():
    assert redact_text("a" * 5000) == "a" * 4096 + "… (904 more)"
    assert redact(list(range(100))) == [*range(64), "… 36 more"]
    assert redact({n: n for n in range(100)}) == {
        **{str(n): n for n in range(64)},
        "…": "36 more",
    }


def test_a_cut_never_parts_a_secret_from_its_name():
    text = "a" * 4080 + " token=" + MARKER * 3

    assert "hunter" not in redact_text(text)


def test_a_long_traceback_keeps_its_end():
    trace = (
        "Traceback\n" + "".join(f"  line {n} token={MARKER}\n" for n in range(9000)) + "Error: x"
    )

    plain = redact_trace(trace)

    assert plain.endswith("Error: x")
    assert "hunter" not in plain
    assert len(plain) < 17_000


def test_a_huge_hostile_text_costs_little():
    for text in ("a" * 60_000, "token=" * 10_000, "'" * 60_000, "\\" * 60_000, "auth=(" * 10_000):
        redact_trace(text)  # the test's timeout is the check


def test_a_protected_secret_is_masked_in_every_form(monkeypatch):
    monkeypatch.setattr(redaction, "_protected", set())
    secret = b"\x00literal-key?/"

    protect([secret, b"short"])

    for form in (
        secret.decode(),
        repr(secret),
        secret.hex(),
        base64.b64encode(secret).decode(),
        urllib.parse.quote(secret, safe=""),
    ):
        assert "literal" not in redact_text(f"xx{form}xx")
        assert MASK in redact_text(f"xx{form}xx")
    assert redact_text("shortly") == "shortly"
