"""Origins: which pages may connect, and what browsers are told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptows.broker.origins import Origins, normalize
from cryptows.config.settings import Cors
from cryptows.model.errors import ConfigError
from cryptows.wire.http import response
from cryptows.wire.request import Request


def origins(*entries: str, credentials: bool = True) -> Origins:
    return Origins(Cors(origins=entries, credentials=credentials))


@pytest.mark.parametrize(
    ("entry", "origin"),
    [
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://localhost:3000/", "http://localhost:3000"),
        ("https://Example.com", "https://example.COM"),
        ("HTTPS://example.com", "https://example.com"),
        ("https://example.com:443", "https://example.com"),
        ("https://example.com", "https://example.com:443"),
        ("http://example.com", "http://example.com:80"),
        ("http://example.com:0080", "http://example.com"),
        ("http://[2001:DB8::1]:8080", "http://[2001:db8::1]:8080"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ("https://*.example.com", "https://a.example.com"),
        ("https://*.example.com", "https://a.b.Example.com"),
        ("https://*.example.com:443", "https://a.example.com"),
        ("https://*.example.com:8443", "https://a.example.com:8443"),
        ("null", "null"),
        ("*", "https://anything.example"),
        ("*", "null"),
        ("*", "no origin at all"),
    ],
)
def test_a_listed_origin_is_allowed(entry, origin):
    assert origins(entry).allows(origin)
    assert origins("https://other.example", entry).allows(origin)


@pytest.mark.parametrize(
    ("entry", "origin"),
    [
        ("https://example.com", "http://example.com"),
        ("https://example.com", "https://example.com:444"),
        ("https://example.com", "https://example.com.evil.example"),
        ("https://example.com", "https://evilexample.com"),
        ("https://example.com", "https://www.example.com"),
        ("https://example.com", "https://example.com/"),
        ("https://example.com", "https://user@example.com"),
        ("https://example.com", "https://example.com, https://example.com"),
        ("https://example.com", "https://example.com\n"),
        ("https://example.com", "example.com"),
        ("https://example.com", "null"),
        ("https://example.com", ""),
        ("https://example.com", "https://"),
        ("https://example.com", "https://example.com:"),
        ("https://example.com", "https://example.com:99999999"),
        ("https://*.example.com", "https://example.com"),
        ("https://*.example.com", "https://.example.com"),
        ("https://*.example.com", "https://evilexample.com"),
        ("https://*.example.com", "http://a.example.com"),
        ("https://*.example.com", "https://a.example.com:8443"),
        ("https://*.example.com", "https://a.example.com.evil.example"),
        ("https://*.example.com", "https://evil.example/.example.com"),
        ("https://*.example.com", "https://evil.example?.example.com"),
        ("https://*.example.com", "https://*.example.com"),
    ],
)
def test_any_other_origin_is_not(entry, origin):
    assert not origins(entry).allows(origin)
    assert not origins().allows(origin)


def test_a_program_that_sends_no_origin_is_allowed():
    assert origins().allows(None)


@pytest.mark.parametrize(
    "entry",
    ["", "localhost", "localhost:3000", "http://", "http://a/b", "http://a b", "https://*", "*.a.b",
     "https://*.*.a", "http://a:port", "https://*./"],
)  # fmt: skip
def test_an_entry_that_can_match_nothing_stops_the_start(entry):
    with pytest.raises(ConfigError) as caught:
        origins("https://fine.example", entry)

    assert caught.value.problems == (
        f'cors.origins: "{entry}" is no origin; '
        "expected scheme://host[:port], scheme://*.host, null or *",
    )


@given(
    scheme=st.sampled_from(["http", "https"]),
    host=st.from_regex(r"[a-z0-9]{1,9}(\.[a-z0-9]{1,9}){0,2}", fullmatch=True),
    port=st.one_of(st.none(), st.integers(1, 65535)),
    other=st.from_regex(r"(http|https)://[a-z0-9.]{1,9}(:[0-9]{1,5})?", fullmatch=True),
)
def test_an_origin_is_allowed_if_and_only_if_it_is_the_listed_one(scheme, host, port, other):
    listed = f"{scheme}://{host}" + (f":{port}" if port else "")
    allowed = origins(listed)

    assert allowed.allows(listed)
    assert allowed.allows(listed.upper())
    assert allowed.allows(other) == (normalize(other) == normalize(listed))


@given(st.text())
def test_any_text_at_all_is_decided(text):
    assert not origins("https://example.com", "https://*.example.com").allows(text) or normalize(
        text
    )


# What browsers are told


def test_an_allowed_origin_is_echoed_as_it_came():
    assert origins("https://example.com").headers("https://EXAMPLE.com") == [
        (b"Vary", b"Origin"),
        (b"Access-Control-Allow-Origin", b"https://EXAMPLE.com"),
        (b"Access-Control-Allow-Credentials", b"true"),
    ]


def test_it_is_echoed_also_where_all_are_allowed():
    assert origins("*", credentials=False).headers("https://a.example") == [
        (b"Vary", b"Origin"),
        (b"Access-Control-Allow-Origin", b"https://a.example"),
    ]


@pytest.mark.parametrize("origin", [None, "https://foreign.example", "null", ""])
def test_other_answers_only_say_that_they_vary(origin):
    assert origins("https://example.com").headers(origin) == [(b"Vary", b"Origin")]


# Preflight


def preflight(origin: str | None, wanted: bytes | None = None) -> Request:
    headers = [(b"host", b"a"), (b"access-control-request-method", b"POST")]
    if origin is not None:
        headers.append((b"origin", origin.encode()))
    if wanted is not None:
        headers.append((b"access-control-request-headers", wanted))
    return Request("OPTIONS", "/socket.io/", {}, headers, keep_alive=True)


def test_a_preflight_is_answered_with_what_is_allowed():
    status, headers = origins("https://example.com").preflight(
        preflight("https://example.com", b"authorization, x-a")
    )

    assert status == 204
    assert headers == [
        (b"Vary", b"Origin, Access-Control-Request-Headers"),
        (b"Access-Control-Allow-Origin", b"https://example.com"),
        (b"Access-Control-Allow-Credentials", b"true"),
        (b"Access-Control-Allow-Methods", b"GET,HEAD,POST,OPTIONS"),
        (b"Access-Control-Allow-Headers", b"authorization, x-a"),
        (b"Access-Control-Max-Age", b"600"),
    ]


def test_a_preflight_of_a_foreign_page_is_refused():
    answer = origins("https://example.com").preflight(preflight("https://foreign.example"))

    assert answer == (403, [(b"Vary", b"Origin, Access-Control-Request-Headers")])


def test_a_preflight_without_origin_gets_no_permission():
    status, headers = origins("https://example.com").preflight(preflight(None))

    assert status == 204
    assert b"Access-Control-Allow-Origin" not in dict(headers)


@pytest.mark.parametrize("wanted", [None, b"", b"a\x01b", b"a: b", b"x" * 1025, b"\xe4"])
def test_only_names_of_headers_are_echoed(wanted):
    request = preflight("https://example.com", wanted)

    status, headers = origins("https://example.com").preflight(request)

    assert b"Access-Control-Allow-Headers" not in dict(headers)
    assert response(request, status, headers=headers).startswith(b"HTTP/1.1 204 No Content\r\n")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:3000", "192.0.2.7:80", "[::1]:3000", "[::1]", "localhost:3000"]
)
def test_the_address_that_a_client_connected_to_is_not_foreign(host):
    assert origins().allows(f"http://{host}", host)
    assert not origins().allows(f"http://{host}")
    assert not origins().allows(f"http://{host}", "192.0.2.8:3000")
    assert not origins().allows(f"https://{host}", host)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:3000", "127.0.0.1.evil.example", "x:y", "", "[", "::1:x"]
)
def test_a_name_may_point_anywhere_so_it_does_not_count(host):
    assert not origins().allows(f"http://{host}", host)
