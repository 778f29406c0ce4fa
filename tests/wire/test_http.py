"""HTTP requests from bytes, and answers as bytes; h11 and wsproto stand in for the other side."""

from __future__ import annotations

import itertools
from urllib.parse import quote, quote_plus, urlencode

import attrs
import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection
from wsproto.events import Request as Handshake

from cryptows.wire.http import (
    CONTINUE,
    DRAIN,
    MAX_CHUNKS,
    HttpConnection,
    HttpError,
    Request,
    ends_connection,
    response,
    upgrade_head,
    upgrade_headers,
    upgrade_problem,
)

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
MAX_HEAD, MAX_BODY = 4096, 1000


def connection(
    data: bytes = b"", max_head: int = MAX_HEAD, max_body: int = MAX_BODY
) -> HttpConnection:
    new = HttpConnection(max_head, max_body)
    new.feed(data)
    return new


def read(data: bytes) -> Request:
    request = connection(data).next()
    assert request is not None
    return request


def get(target: str = "/", *lines: str, version: str = "1.1", method: str = "GET") -> bytes:
    head = [f"{method} {target} HTTP/{version}", "Host: example.com", *lines, "", ""]
    return "\r\n".join(head).encode("latin-1")


def post(body: bytes, *lines: str, length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    return get("/p", f"Content-Length: {length}", *lines, method="POST") + body


def chunked(*chunks: bytes) -> bytes:
    head = get("/p", "Transfer-Encoding: chunked", method="POST")
    return head + b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"


def handshake(*, without: str = "", target: str = "/ws", **changed: str) -> bytes:
    lines = {
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-key": KEY.decode(),
        "sec-websocket-version": "13",
    }
    lines |= {name.replace("_", "-"): value for name, value in changed.items()}
    lines.pop(without, None)
    return get(target, *(f"{name}: {value}" for name, value in lines.items()))


def shape(request: Request) -> dict[str, object]:
    """A request as plain values, to be compared whole."""
    return attrs.asdict(request)


# Reading


def test_a_request_has_method_path_query_and_headers():
    request = read(get("/socket.io/?EIO=4&transport=polling&EIO=3", "X-Two: a", "x-two: b"))

    assert request.method == "GET"
    assert request.path == "/socket.io/"
    assert request.query == {"EIO": "4", "transport": "polling"}
    assert request.headers == [(b"host", b"example.com"), (b"x-two", b"a"), (b"x-two", b"b")]
    assert request.header("X-Two") == "a, b"
    assert request.headers_all("x-two") == ["a", "b"]
    assert request.header("x-three") is None
    assert request.body == b""
    assert request.keep_alive
    assert not request.is_websocket


def test_a_header_list_is_split_and_stripped():
    request = read(get("/", "Sec-WebSocket-Protocol: a, b,,", "Sec-WebSocket-Protocol: c"))

    assert request.tokens("sec-websocket-protocol") == ["a", "b", "c"]


def test_nothing_that_may_hold_a_token_is_shown():
    request = read(post(b"s3cret", "Authorization: Bearer s3cret").replace(b"/p", b"/p?t=s3cret"))

    assert "s3cret" not in repr(request)


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/a%20b", "/a b", {}),
        ("/%e2%82%ac?x=%e2%82%ac", "/€", {"x": "€"}),
        ("/?a=b+c%2B&d", "/", {"a": "b c+", "d": ""}),
        ("/?a=b=c&&=x", "/", {"a": "b=c", "": "x"}),
        ("/?", "/", {}),
        ("/?a=/?b", "/", {"a": "/?b"}),
        ("http://example.com/ws?a=1", "/ws", {"a": "1"}),
        ("HTTPS://example.com", "/", {}),
        ("http://example.com?a=1", "/", {"a": "1"}),
        ("//evil.example/x", "//evil.example/x", {}),
        ("*", "*", {}),
    ],
)
def test_a_target_is_decoded(target, path, query):
    request = read(get(target, method="OPTIONS"))

    assert (request.path, request.query) == (path, query)


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=9)


@pytest.mark.parametrize("item", ["a=%zz", "a=%", "a=%ff", "a=%ed%a0%80", "a%0d%0a=1"])
def test_what_cannot_be_decoded_in_a_query_is_left_as_it_is(item):
    request = read(get(f"/x?{item}&b=%21"))

    name, _, value = item.partition("=")
    assert request.query == {name: value, "b": "!"}


@given(query=st.dictionaries(TEXTS, TEXTS, max_size=5), plus=st.booleans())
def test_every_query_that_was_encoded_is_decoded(query, plus):
    encoded = urlencode(query, quote_via=quote_plus if plus else quote)

    request = read(get("/?" + encoded))

    assert request.query == query


HTTP_ERRORS = {
    b"GET / HTTP/1.1\r\n\r\n": (400, "Host header missing"),
    b"GET /\r\n\r\n": (400, "malformed request line; this port speaks plain HTTP/1.1"),
    b"\x16\x03\x01": (400, "malformed request line; this port speaks plain HTTP/1.1"),
    b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n": (
        400,
        "malformed request line; this port speaks plain HTTP/1.1",
    ),
    get("/", "Host: b"): (400, "more than one Host header"),
    get("/", "no colon"): (400, "malformed header line"),
    get("/", "spaced : a"): (400, "malformed header line"),
    get("/", "null: \0"): (400, "malformed header line"),
    b"GET / HTTP/1.1\r\n folded: a\r\n\r\n": (400, "malformed header line"),
    get("/", version="2.0"): (505, "HTTP version not supported; use HTTP/1.1"),
    get("/", version="0.9"): (505, "HTTP version not supported; use HTTP/1.1"),
    get("/", "Content-Length: x"): (400, "malformed Content-Length"),
    get("/", "Content-Length: -1"): (400, "malformed Content-Length"),
    get("/", "Content-Length: 1, 2"): (400, "conflicting Content-Length headers"),
    get("/", "Content-Length: 1", "Content-Length: 2"): (400, "conflicting Content-Length headers"),
    get("/", "Transfer-Encoding: gzip"): (501, "Transfer-Encoding must be chunked"),
    get("/", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"): (
        501,
        "more than one Transfer-Encoding header",
    ),
    get("/", "Transfer-Encoding: chunked", "Content-Length: 1"): (
        400,
        "Transfer-Encoding together with Content-Length or HTTP/1.0",
    ),
    get("/", "Transfer-Encoding: chunked", version="1.0"): (
        400,
        "Transfer-Encoding together with Content-Length or HTTP/1.0",
    ),
    get("/", "Transfer-Encoding: chunked") + b"x\r\n": (400, "malformed chunk"),
    get("/", "Transfer-Encoding: chunked") + b"1\r\nabc": (400, "malformed chunk"),
    get("/", "Transfer-Encoding: chunked") + b"0\r\na b\r\n\r\n": (400, "malformed header line"),
    get("ws"): (400, "request target must be a path"),
    get("ftp://a/"): (400, "request target must be a path"),
    get("a.example:443", method="CONNECT"): (400, "request target must be a path"),
    get("/#a"): (400, 'request target holds "#"'),
    get("/?#a"): (400, 'request target holds "#"'),
    get("/%"): (400, "malformed percent-encoding in the request target"),
    get("/%4"): (400, "malformed percent-encoding in the request target"),
    get("/%zz"): (400, "malformed percent-encoding in the request target"),
    get("/%ff"): (400, "request target is not UTF-8"),
    get("/%ed%a0%80"): (400, "request target is not UTF-8"),
    get("/%00"): (400, "control character in the request target"),
    get("/%0d%0a"): (400, "control character in the request target"),
}


@pytest.mark.parametrize(("data", "status", "message"), [(d, *e) for d, e in HTTP_ERRORS.items()])
def test_what_is_no_request_is_refused_with_the_reason_and_nothing_after_it_is_read(
    data, status, message
):
    conn = connection(data)

    with pytest.raises(HttpError) as caught:
        conn.next()

    assert (caught.value.status, caught.value.message) == (status, message)
    assert caught.value.close
    conn.feed(get())
    assert conn.next() is None


def test_a_complaint_does_not_repeat_what_was_sent():
    conn = connection(get("/", "Authorization Bearer s3cret"))

    with pytest.raises(HttpError) as caught:
        conn.next()

    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None


# Limits, on both sides


def head_of(size: int) -> bytes:
    return get("/", "X: " + "a" * (size - len(get("/", "X: "))))


def test_a_head_of_just_the_limit_is_read():
    assert connection(head_of(MAX_HEAD)).next() is not None


@pytest.mark.parametrize("behind", [b"", get()])
def test_a_longer_head_is_refused_though_it_came_whole(behind):
    with pytest.raises(HttpError) as caught:
        connection(head_of(MAX_HEAD + 1) + behind).next()

    assert (caught.value.status, caught.value.message) == (431, "request head over 4096 bytes")


def feed_until_error(conn: HttpConnection, piece: bytes) -> tuple[int, HttpError]:
    """Feed a piece again and again; return how many times and what it came to."""
    for times in itertools.count(1):
        conn.feed(piece)
        try:
            assert conn.next() is None
        except HttpError as error:
            return times, error
    raise AssertionError


def test_a_head_without_end_is_refused_at_the_limit():
    times, error = feed_until_error(connection(), b"a")

    assert times == MAX_HEAD + 1
    assert (error.status, error.close) == (431, True)


def test_what_follows_a_short_head_does_not_count_as_head():
    conn = connection(get() + get("/2") * 200)

    assert conn.next() is not None


@pytest.mark.parametrize("data", [post(b"x" * MAX_BODY), chunked(b"x" * (MAX_BODY - 9), b"x" * 9)])
def test_a_body_of_just_the_limit_is_read(data):
    assert len(read(data).body) == MAX_BODY


@pytest.mark.parametrize(
    "data", [post(b"x" * (MAX_BODY + 1)), chunked(b"x" * MAX_BODY, b"x", b"y" * 70_000)]
)
def test_a_body_over_the_limit_is_thrown_away_and_the_connection_lives(data):
    conn = connection(data + get("/next"))

    with pytest.raises(HttpError) as caught:
        conn.next()

    assert (caught.value.status, caught.value.message) == (413, "body over 1000 bytes")
    assert not caught.value.close
    assert caught.value.request is not None
    assert caught.value.request.path == "/p"
    follower = conn.next()
    assert follower is not None
    assert follower.path == "/next"


def test_the_413_waits_until_the_body_was_read():
    conn = connection(post(b"x" * MAX_BODY, length=MAX_BODY + 1))

    assert conn.next() is None
    conn.feed(b"x")
    with pytest.raises(HttpError):
        conn.next()


def test_a_body_far_over_the_limit_is_refused_unread():
    with pytest.raises(HttpError) as caught:
        connection(post(b"", length=MAX_BODY + DRAIN + 1)).next()

    assert (caught.value.status, caught.value.close) == (413, True)


def test_a_chunked_body_far_over_the_limit_is_cut():
    conn = connection(get("/p", "Transfer-Encoding: chunked", method="POST"))

    times, error = feed_until_error(conn, b"10000\r\n" + b"x" * 0x10000 + b"\r\n")

    assert times == (MAX_BODY + DRAIN) // 0x10000 + 1
    assert (error.status, error.close) == (413, True)


def test_a_body_of_too_many_chunks_is_refused():
    conn = HttpConnection(MAX_HEAD, 10_000)
    conn.feed(chunked(*[b"x"] * MAX_CHUNKS))
    most = conn.next()
    conn.feed(chunked(*[b"x"] * (MAX_CHUNKS + 1)))

    with pytest.raises(HttpError) as caught:
        conn.next()

    assert most is not None
    assert len(most.body) == MAX_CHUNKS
    assert (caught.value.status, caught.value.message) == (400, "body in more than 1024 chunks")
    assert caught.value.request is not None


# One after another


def test_pipelined_requests_come_in_order():
    conn = connection(get("/1") + post(b"two") + chunked(b"th", b"ree") + get("/4"))

    requests = [conn.next() for _ in range(5)]

    assert [(r.path, r.body) if r else None for r in requests] == [
        ("/1", b""),
        ("/p", b"two"),
        ("/p", b"three"),
        ("/4", b""),
        None,
    ]


def test_empty_lines_before_a_request_are_skipped():
    conn = connection(b"\r\n" + post(b"a") + b"\r\n\r\n")

    first = conn.next()
    second = conn.next()
    conn.feed(b"\r\n")
    conn.feed(get("/3"))
    third = conn.next()

    assert first is not None
    assert second is None
    assert third is not None


def test_a_connection_is_idle_between_requests_only():
    conn = connection()

    states = [conn.idle]
    for piece in (b"POST /p HTTP/1.1\r\nHost: a\r\n", b"Content-Length: 2\r\n\r\na", b"b"):
        conn.feed(piece)
        states.append(conn.idle)
        conn.next()
    states.append(conn.idle)
    conn.feed(get() + b"G")
    conn.next()
    states.append(conn.idle)
    conn.next()
    states.append(conn.idle)

    assert states == [True, False, False, False, True, False, False]


def test_the_end_of_the_stream_is_no_input():
    conn = connection(get()[:-2])
    conn.feed(b"")

    assert conn.next() is None


BODIES = st.binary(max_size=30)
REQUESTS = st.one_of(
    st.sampled_from([get("/a"), get("/b?c=d", "X: y"), get("*", method="OPTIONS"), handshake()]),
    BODIES.map(post),
    st.lists(BODIES.filter(bool), max_size=4).map(lambda chunks: chunked(*chunks)),
)


@st.composite
def pieces_of(draw, whole: bytes) -> list[bytes]:
    cuts = sorted(draw(st.sets(st.integers(0, len(whole)), max_size=8)) | {0, len(whole)})
    return [whole[a:b] for a, b in itertools.pairwise(cuts)]


@given(requests=st.lists(REQUESTS, min_size=1, max_size=5), data=st.data())
def test_requests_do_not_depend_on_how_the_bytes_were_split(requests, data):
    expected = [shape(read(each)) for each in requests]
    conn = connection()

    found = []
    for piece in data.draw(pieces_of(b"".join(requests))):
        conn.feed(piece)
        while (request := conn.next()) is not None:
            found.append(shape(request))

    assert found == expected


SNIPPETS = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n",
        b"POST /%41?a=%C3%A4&b HTTP/1.1\r\n",
        b"Host: a\r\n",
        b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Expect: 100-continue\r\n",
        b"\r\n",
        b"3\r\nabc\r\n",
        b"0\r\n\r\n",
        b"abc",
    ]
)


@given(st.lists(st.one_of(st.binary(max_size=20), SNIPPETS), max_size=12))
@example([b"GET / HTTP/1.1\r\n", b"Host: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"])
def test_any_bytes_at_all_give_requests_or_an_error(pieces):
    conn = connection(max_head=200, max_body=10)
    statuses = set()

    for piece in pieces:
        conn.feed(piece)
        for _ in range(20):
            try:
                request = conn.next()
            except HttpError as error:
                statuses.add(error.status)
                response(error.request, error.status, str(error).encode(), close=error.close)
                continue
            conn.interim()
            if request is None:
                break
            upgrade_problem(request)

    assert statuses <= {400, 413, 431, 501, 505}


# Expect: 100-continue


def test_a_client_that_waits_is_told_to_go_on_once():
    conn = connection(post(b"", "Expect: 100-continue", length=3))

    before = conn.next()
    first, second = conn.interim(), conn.interim()
    conn.feed(b"abc")
    request = conn.next()

    assert before is None
    assert (first, second) == (CONTINUE, b"")
    assert request is not None
    assert request.body == b"abc"
    assert conn.interim() == b""


def test_a_client_that_does_not_wait_is_not_told():
    whole = connection(post(b"abc", "Expect: 100-continue", length=4))
    older = connection(
        get("/", "Expect: 100-continue", "Content-Length: 3", version="1.0", method="POST")
    )

    assert whole.next() is None
    assert older.next() is None
    assert whole.interim() == b""
    assert older.interim() == b""


def test_a_client_that_waits_with_too_large_a_body_is_refused_at_once():
    with pytest.raises(HttpError) as caught:
        connection(post(b"", "Expect: 100-continue", length=MAX_BODY + 1)).next()

    assert (caught.value.status, caught.value.close) == (413, True)


# Keep-alive


@pytest.mark.parametrize(
    ("data", "keep_alive"),
    [
        (get(), True),
        (get("/", "Connection: keep-alive"), True),
        (get("/", "Connection: close"), False),
        (get("/", "Connection: x, CLOSE"), False),
        (get("/", "Connection: close", "Connection: x"), False),
        (get(version="1.0"), False),
        (get("/", "Connection: keep-alive", version="1.0"), False),
    ],
)
def test_the_client_says_whether_it_goes_on(data, keep_alive):
    request = read(data)

    assert request.keep_alive is keep_alive
    assert ends_connection(request) is not keep_alive
    assert (b"\r\nConnection: close\r\n" in response(request, 200)) is not keep_alive


# Answers


def answered(data: bytes, method: str = "GET") -> tuple[h11.Response, bytes, bool]:
    """What a client makes of an answer: its head, its body, whether the connection lives."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    head = client.next_event()
    assert isinstance(head, h11.Response)
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    return head, body, client.their_state is h11.DONE and client.trailing_data[0] == b""


def test_an_answer_is_written_whole():
    request = read(get())

    assert response(request, 200, b"ok", headers=[(b"Vary", b"Origin")]) == (
        b"HTTP/1.1 200 OK\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\n"
        b"Content-Length: 2\r\n"
        b"Vary: Origin\r\n"
        b"\r\n"
        b"ok"
    )


def test_an_answer_to_what_was_no_request_ends_the_connection():
    assert response(None, 400, b"{}", "application/json") == (
        b"HTTP/1.1 400 Bad Request\r\n"
        b"Content-Type: application/json\r\n"
        b"Content-Length: 2\r\n"
        b"Connection: close\r\n"
        b"\r\n"
        b"{}"
    )


def test_an_answer_without_content_has_no_length_and_no_body():
    assert response(read(get()), 204, b"ignored") == b"HTTP/1.1 204 No Content\r\n\r\n"


def test_an_empty_answer_has_a_length():
    assert response(read(get()), 404) == (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")


def test_an_answer_to_head_tells_the_length_only():
    data = response(read(get(method="HEAD")), 200, b"12345")

    head, body, alive = answered(data, "HEAD")

    assert dict(head.headers)[b"content-length"] == b"5"
    assert (body, alive) == (b"", True)


@given(
    status=st.sampled_from([200, 204, 400, 404, 413, 429, 503]),
    body=st.binary(max_size=50),
    method=st.sampled_from(["GET", "HEAD", "POST", "OPTIONS"]),
    close=st.booleans(),
)
def test_a_client_understands_every_answer(status, body, method, close):
    request = read(get(method=method))

    head, found, alive = answered(response(request, status, body, close=close), method)

    assert head.status_code == status
    assert found == (b"" if status == 204 or method == "HEAD" else body)
    assert alive is not close
    assert ends_connection(request, close) is close


@pytest.mark.parametrize("header", [(b"A", b"b\r\nc: d"), (b"A\n", b"b"), (b"A", b"\r")])
def test_a_header_cannot_smuggle_another(header):
    with pytest.raises(ValueError, match="line break in header"):
        response(None, 200, headers=[header])


# Upgrades


@pytest.mark.parametrize(
    "data",
    [
        handshake(),
        handshake(upgrade="WebSocket"),
        handshake(connection="keep-alive, Upgrade"),
        handshake(upgrade="h2c, websocket"),
        handshake(without="connection").replace(
            b"\r\n\r\n", b"\r\nConnection: a\r\nConnection: upgrade\r\n\r\n"
        ),
    ],
)
def test_a_correct_handshake_is_recognised(data):
    request = read(data)

    assert request.is_websocket
    assert request.wants_websocket
    assert upgrade_problem(request) is None


PROBLEMS = [
    (get("/ws"), 426, "this is a WebSocket endpoint"),
    (handshake(upgrade="h2c"), 426, "this is a WebSocket endpoint"),
    (handshake().replace(b"GET", b"POST"), 405, "a WebSocket handshake must be a GET"),
    (handshake().replace(b"HTTP/1.1", b"HTTP/1.0"), 400, "a WebSocket handshake needs HTTP/1.1"),
    (handshake(without="connection"), 400, "Connection: Upgrade missing"),
    (handshake(connection="keep-alive"), 400, "Connection: Upgrade missing"),
    (handshake(without="sec-websocket-version"), 400, "Sec-WebSocket-Version missing"),
    (handshake(sec_websocket_version="8"), 426, "Sec-WebSocket-Version must be 13"),
    (handshake(sec_websocket_version="13, 8"), 426, "Sec-WebSocket-Version must be 13"),
    (handshake(without="sec-websocket-key"), 400, "Sec-WebSocket-Key missing"),
    (handshake(sec_websocket_key="short"), 400, "malformed Sec-WebSocket-Key"),
    (handshake(sec_websocket_key="@" * 22 + "=="), 400, "malformed Sec-WebSocket-Key"),
    (
        handshake().replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Key: " + KEY + b"\r\n\r\n"),
        400,
        "malformed Sec-WebSocket-Key",
    ),
    (
        handshake().replace(b"\r\n\r\n", b"\r\nContent-Length: 1\r\n\r\nx"),
        400,
        "a WebSocket handshake has no body",
    ),
]


@pytest.mark.parametrize(("data", "status", "message"), PROBLEMS)
def test_a_wrong_handshake_is_refused_with_the_reason(data, status, message):
    request = read(data)

    problem = upgrade_problem(request)

    assert problem is not None
    assert (problem.status, problem.message, problem.request) == (status, message, request)
    assert not problem.close
    assert not request.is_websocket


def test_a_refused_handshake_tells_what_would_be_right():
    assert upgrade_headers(426) == [(b"Upgrade", b"websocket"), (b"Sec-WebSocket-Version", b"13")]
    assert upgrade_headers(405) == [(b"Allow", b"GET")]
    assert upgrade_headers(400) == []


def test_frames_behind_a_handshake_are_kept():
    conn = connection(handshake() + b"\r\n\x81\x80fram")

    request = conn.next()
    conn.feed(b"e")

    assert request is not None
    assert conn.trailing == b"\r\n\x81\x80frame"


@pytest.mark.parametrize("subprotocol", [None, "cryptows.v1"])
def test_the_replayed_handshake_is_accepted_by_the_library(subprotocol):
    request = read(handshake(cookie="a=b", origin="https://a.example", accept="*/*"))
    server = WSConnection(ConnectionType.SERVER)

    server.receive_data(upgrade_head(request, subprotocol))

    [event] = server.events()
    assert isinstance(event, Handshake)
    assert event.subprotocols == ([subprotocol] if subprotocol else [])
    answer = server.send(AcceptConnection(subprotocol=subprotocol))
    # RFC 6455 1.3: what this key must be answered with.
    assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in answer


def test_the_replayed_handshake_holds_nothing_else():
    request = read(handshake(authorization="Bearer s3cret"))

    assert upgrade_head(request, None) == (
        b"GET / HTTP/1.1\r\n"
        b"Host: -\r\n"
        b"Connection: Upgrade\r\n"
        b"Upgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: " + KEY + b"\r\n\r\n"
    )
