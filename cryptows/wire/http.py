"""HTTP/1.1 without I/O: bytes in, requests out, and the bytes of answers.

One port serves health checks, metrics, long-polling and every WebSocket, so each connection's
first bytes are an HTTP head. h11 parses it, because a parser that disagrees with the proxy in
front is how requests get smuggled. A request takes a fresh `h11.Connection`: h11's sending side
and its `start_next_cycle` cost more than a new object, and answers here are never streamed, so
`response` writes them whole.

Bounded: a head by `max_head`, a body by `max_body`. A body somewhat above it is read and thrown
away, so that its sender sees the 413 rather than a reset. What follows an upgrade stays in
`trailing` for the WebSocket. Deadlines and sockets belong to the task that feeds this.
"""

from __future__ import annotations

import functools
import http
import re
from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

import attrs
import h11

from cryptows.model.errors import CryptowsError

Headers = list[tuple[bytes, bytes]]

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
TEXT = "text/plain; charset=utf-8"
# RFC 6455 4.1: the key is the base64 of 16 bytes.
WEBSOCKET_KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")
BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
HANDSHAKE = frozenset({b"upgrade", b"connection", b"sec-websocket-key", b"sec-websocket-version"})
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# How far beyond max_body a body is read and thrown away before the connection is cut instead.
DRAIN = 1 << 20
NO_BODY = frozenset({204, 304})

# h11's complaints quote the offending bytes, which may hold a token; these are said instead.
COMPLAINTS = {
    "illegal request line": "malformed request line; this port speaks plain HTTP/1.1",
    "no request line received": "empty line in place of a request line",
    "illegal header line": "malformed header line",
    "continuation line at start of headers": "malformed header line",
    "Missing mandatory Host": "Host header missing",
    "Found multiple Host": "more than one Host header",
    "bad Content-Length": "malformed Content-Length",
    "conflicting Content-Length headers": "conflicting Content-Length headers",
    "multiple Transfer-Encoding headers": "more than one Transfer-Encoding header",
    "Only Transfer-Encoding": "Transfer-Encoding must be chunked",
    "illegal chunk header": "malformed chunk",
    "malformed chunk footer": "malformed chunk",
}


class HttpError(CryptowsError):
    """A request that is answered with an error status.

    `request` is known once its head was read. With `close` nothing further can be read.
    """

    def __init__(
        self, status: int, message: str, request: Request | None = None, *, close: bool = True
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.request = request
        self.close = close


@attrs.frozen(eq=False)
class Request:
    """One request. `path` and `query` are percent-decoded; header names are lower-case."""

    method: str
    path: str
    # Not shown: these may hold a token.
    query: dict[str, str] = attrs.field(repr=False)  # the first value of each name
    headers: Headers = attrs.field(repr=False)
    keep_alive: bool  # whether the client can send another request after this one
    version: str = "1.1"
    body: bytes = attrs.field(default=b"", repr=False)

    def header(self, name: str) -> str | None:
        """Return a header's value, several joined by ", ", or None if it was not sent."""
        values = self.headers_all(name)
        return ", ".join(values) if values else None

    def headers_all(self, name: str) -> list[str]:
        """Return every value of a header, in order."""
        wanted = name.lower().encode("latin-1")
        return [value.decode("latin-1") for found, value in self.headers if found == wanted]

    def tokens(self, name: str) -> list[str]:
        """Return the items of a comma-separated header, without blanks and empty ones."""
        return [t for v in self.headers_all(name) for t in map(str.strip, v.split(",")) if t]

    @property
    def wants_websocket(self) -> bool:
        """Whether it asks for a WebSocket, rightly or not."""
        return any(n == b"upgrade" and _lists(v, b"websocket") for n, v in self.headers)

    @property
    def is_websocket(self) -> bool:
        """Whether it is a correct WebSocket handshake of version 13."""
        return upgrade_problem(self) is None


class HttpConnection:
    """The requests of one connection, in order. Not usable after an error with `close`."""

    def __init__(self, max_head: int, max_body: int) -> None:
        self._max_head = max_head
        self._max_body = max_body
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=max_head)
        self._buffered = 0  # bytes fed to _h11 since it began; only meaningful in a head
        self._request: Request | None = None  # read but for its body
        self._body = bytearray()
        self._body_read = 0  # also counts what was thrown away
        self._done = False  # a request was returned; what follows it is still in _h11
        self._failed = False

    def feed(self, data: bytes) -> None:
        """Add received bytes; again only after `next` has returned None, which bounds memory."""
        # An end of file is the task's matter; h11 would take b"" for one.
        if data and not self._failed:
            self._buffered += len(data)
            self._h11.receive_data(data)

    def next(self) -> Request | None:
        """Return the next whole request, or None if more bytes are needed.

        Raises HttpError: answer it, and go on reading unless it says `close`.
        """
        if self._failed:
            return None
        try:
            return self._read()
        except h11.RemoteProtocolError as error:
            self._failed = True
            status = error.error_status_hint
            raise HttpError(status, self._complaint(error, status), self._request) from None
        except HttpError as error:
            self._failed = error.close
            raise

    @property
    def idle(self) -> bool:
        """Whether nothing of a further request has arrived yet (keep-alive)."""
        return self._request is None and not (self.trailing if self._done else self._buffered)

    @property
    def trailing(self) -> bytes:
        """What arrived after the last request; an upgrade's first frames."""
        return self._h11.trailing_data[0]

    def interim(self) -> bytes:
        """Return what must be sent before the client goes on: `100 Continue`, once, or nothing."""
        if self._request is None or not self._h11.they_are_waiting_for_100_continue:
            return b""
        self._h11.send(h11.InformationalResponse(status_code=100, headers=[]))
        return CONTINUE

    def _read(self) -> Request | None:
        if self._done:
            self._start_over()
        if self._request is None:
            event = self._h11.next_event()
            if type(event) is not h11.Request:
                return None
            self._check_head_size()
            request, has_body = _read_head(event)
            if not has_body:
                self._done = True
                return request
            self._request = request
            self._check_announced_size(request)
        return self._read_body(self._request)

    def _read_body(self, request: Request) -> Request | None:
        while True:
            event = self._h11.next_event()
            if type(event) is h11.Data:
                self._keep(request, event.data)
            elif type(event) is h11.EndOfMessage:
                body, size = bytes(self._body), self._body_read
                self._start_over()
                if size > self._max_body:
                    raise self._too_large(request, close=False)
                return attrs.evolve(request, body=body)
            else:
                return None

    def _keep(self, request: Request, data: bytes | bytearray) -> None:
        self._body_read += len(data)
        if self._body_read > self._max_body + DRAIN:
            raise self._too_large(request, close=True)
        if self._body_read > self._max_body:
            self._body.clear()
        else:
            self._body += data

    def _start_over(self) -> None:
        """Make ready for the request that follows, which may have arrived already."""
        trailing = self.trailing
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=self._max_head)
        if trailing:
            self._h11.receive_data(trailing)
        self._buffered = len(trailing)
        self._request = None
        self._done = False
        self._body.clear()
        self._body_read = 0

    def _check_head_size(self) -> None:
        # h11 bounds only what is incomplete; a head that came in one piece is measured here.
        if self._buffered > self._max_head:
            size = self._buffered - len(self.trailing)
            if size > self._max_head:
                raise HttpError(431, f"request head over {self._max_head} bytes")

    def _check_announced_size(self, request: Request) -> None:
        length = int(request.header("content-length") or 0)
        # A client that waits for "100 Continue" would send nothing to throw away.
        drain = 0 if self._h11.they_are_waiting_for_100_continue else DRAIN
        if length > self._max_body + drain:
            raise self._too_large(request, close=True)

    def _too_large(self, request: Request, *, close: bool) -> HttpError:
        return HttpError(413, f"body over {self._max_body} bytes", request, close=close)

    def _complaint(self, error: h11.RemoteProtocolError, status: int) -> str:
        if status == 431:
            return f"request head over {self._max_head} bytes"
        return COMPLAINTS.get(str(error).partition(":")[0], "malformed request")


def _read_head(event: h11.Request) -> tuple[Request, bool]:
    """Turn h11's event into a Request, and say whether a body follows."""
    headers = list(event.headers)
    version = event.http_version
    if version not in (b"1.1", b"1.0"):
        raise HttpError(505, "HTTP version not supported; use HTTP/1.1")
    keep_alive, has_length, chunked = version == b"1.1", False, False
    for name, value in headers:
        if name == b"connection":
            keep_alive = keep_alive and not _lists(value, b"close")
        elif name == b"content-length":
            has_length = True
        elif name == b"transfer-encoding":
            chunked = True
    if chunked and (has_length or version == b"1.0"):
        # RFC 9112 6.1: the mark of request smuggling.
        raise HttpError(400, "Transfer-Encoding together with Content-Length or HTTP/1.0")
    path, query = _read_target(event.target.decode("ascii"))
    method = event.method.decode("ascii")
    request = Request(method, path, query, headers, keep_alive, version.decode("ascii"))
    return request, has_length or chunked


def _read_target(target: str) -> tuple[str, dict[str, str]]:
    if target[0] != "/" and target != "*":
        # RFC 9112 3.2.2: the absolute form must be understood too.
        match = re.match(r"https?://[^/?#]+", target, re.IGNORECASE)
        if match is None:
            raise HttpError(400, "request target must be a path")
        target = "/" + target[match.end() :].removeprefix("/")
    path, _, query = target.partition("?")
    if "#" in target:
        raise HttpError(400, 'request target holds "#"')
    if "%" in path:
        path = _decode(path)
    return path, _read_query(query) if query else {}


def _read_query(query: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for item in query.split("&"):
        name, _, value = item.partition("=")
        if "%" in item or "+" in item:
            name, value = _decode(name.replace("+", " ")), _decode(value.replace("+", " "))
        if item:
            values.setdefault(name, value)
    return values


def _decode(text: str) -> str:
    if BAD_ESCAPE.search(text):
        raise HttpError(400, "malformed percent-encoding in the request target")
    try:
        decoded = unquote_to_bytes(text).decode("utf-8")
    except UnicodeDecodeError:
        raise HttpError(400, "request target is not UTF-8") from None
    if CONTROL.search(decoded):
        raise HttpError(400, "control character in the request target")
    return decoded


def upgrade_problem(request: Request) -> HttpError | None:
    """What is wrong with a request as a WebSocket handshake (RFC 6455 4.2.1), or None.

    The error's status is 400, 405 or 426; `upgrade_headers` goes with each.
    """
    found: dict[bytes, bytes] = {}
    for name, value in request.headers:
        if name in HANDSHAKE:
            # Lists may be spread over several lines; a second key or version makes them invalid.
            found[name] = found[name] + b"," + value if name in found else value
    version = found.get(b"sec-websocket-version")
    if not _lists(found.get(b"upgrade"), b"websocket"):
        status, text = 426, "this is a WebSocket endpoint"
    elif request.method != "GET":
        status, text = 405, "a WebSocket handshake must be a GET"
    elif request.version != "1.1":
        status, text = 400, "a WebSocket handshake needs HTTP/1.1"
    elif not _lists(found.get(b"connection"), b"upgrade"):
        status, text = 400, "Connection: Upgrade missing"
    elif version is None:
        status, text = 400, "Sec-WebSocket-Version missing"
    elif version != b"13":
        status, text = 426, "Sec-WebSocket-Version must be 13"
    elif b"sec-websocket-key" not in found:
        status, text = 400, "Sec-WebSocket-Key missing"
    elif not WEBSOCKET_KEY.fullmatch(found[b"sec-websocket-key"]):
        status, text = 400, "malformed Sec-WebSocket-Key"
    elif request.body:
        status, text = 400, "a WebSocket handshake has no body"
    else:
        return None
    return HttpError(status, text, request, close=False)


def _lists(value: bytes | None, token: bytes) -> bool:
    """Whether a comma-separated header holds a token, in any case."""
    return value is not None and token in [t.strip() for t in value.lower().split(b",")]


def upgrade_headers(status: int) -> Headers:
    """The headers that an answer to a failed handshake must carry."""
    if status == 405:
        return [(b"Allow", b"GET")]
    if status == 426:  # RFC 9110 15.5.22, RFC 6455 4.4
        return [(b"Upgrade", b"websocket"), (b"Sec-WebSocket-Version", b"13")]
    return []


def upgrade_head(request: Request, subprotocol: str | None) -> bytes:
    """Return a handshake for replay into the WebSocket library: only what it looks at.

    Parsing it again costs less without the other headers; neither target nor host matter there.
    The request must be a correct handshake.
    """
    key = next(value for name, value in request.headers if name == b"sec-websocket-key")
    head = (
        b"GET / HTTP/1.1\r\nHost: -\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key
    )
    if subprotocol is not None:
        head += b"\r\nSec-WebSocket-Protocol: " + subprotocol.encode("ascii")
    return head + b"\r\n\r\n"


def response(
    request: Request | None,
    status: int,
    body: bytes = b"",
    content_type: str = TEXT,
    headers: Iterable[tuple[bytes, bytes]] = (),
    close: bool = False,
) -> bytes:
    """Return a whole answer. `request` is None when none could be read.

    It says `Connection: close` if asked to, or if the client cannot go on; `ends_connection` tells.
    """
    parts = [_status_line(status)]
    if status not in NO_BODY:
        if body:
            parts.append(b"Content-Type: %b\r\n" % content_type.encode("ascii"))
        parts.append(b"Content-Length: %d\r\n" % len(body))
    for name, value in headers:
        if b"\r" in value or b"\n" in value or b"\r" in name or b"\n" in name:
            raise ValueError(f"line break in header {name!r}")
        parts.append(b"%b: %b\r\n" % (name, value))
    if ends_connection(request, close):
        parts.append(b"Connection: close\r\n")
    parts.append(b"\r\n")
    if status not in NO_BODY and (request is None or request.method != "HEAD"):
        parts.append(body)
    return b"".join(parts)


def ends_connection(request: Request | None, close: bool = False) -> bool:
    """Whether the connection ends after the answer to this request."""
    return close or request is None or not request.keep_alive


@functools.cache  # as many as there are statuses
def _status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\n".encode("ascii")
