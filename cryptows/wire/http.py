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
from collections.abc import Iterable

import attrs
import h11

from cryptows.wire.request import (
    Headers,
    HttpError,
    Request,
    read_head,
    upgrade_head,
    upgrade_headers,
    upgrade_problem,
)

__all__ = [
    "Headers",
    "HttpConnection",
    "HttpError",
    "Request",
    "ends_connection",
    "response",
    "upgrade_head",
    "upgrade_headers",
    "upgrade_problem",
]

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
TEXT = "text/plain; charset=utf-8"
# How far beyond max_body a body is read and thrown away before the connection is cut instead.
DRAIN = 1 << 20
# h11 takes about 20 us for each chunk, however small; this bounds what one body can cost.
MAX_CHUNKS = 1024
NO_BODY = frozenset({204, 304})

# h11's complaints quote the offending bytes, which may hold a token; these are said instead.
COMPLAINTS = {
    "illegal request line": "malformed request line; this port speaks plain HTTP/1.1",
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
        self._chunks = 0
        self._done = False  # a request was returned; what follows it is still in _h11
        self._failed = False

    def feed(self, data: bytes) -> None:
        """Add received bytes; again only after `next` has returned None, which bounds memory."""
        # An end of file is the task's matter; h11 would take b"" for one.
        if data and not self._failed:
            if self._buffered == 0 and self._request is None and not self._done:
                data = data.lstrip(b"\r\n")  # RFC 9112 2.2: empty lines before a request
            self._buffered += len(data)
            if data:
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
    def coming(self) -> Request | None:
        """The request whose head has been read, but not its body."""
        return self._request

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
            request, has_body = read_head(event)
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
                self._keep(request, event)
            elif type(event) is h11.EndOfMessage:
                body, size = bytes(self._body), self._body_read
                self._start_over()
                if size > self._max_body:
                    raise self._too_large(request, close=False)
                return attrs.evolve(request, body=body)
            else:
                return None

    def _keep(self, request: Request, event: h11.Data) -> None:
        self._body_read += len(event.data)
        self._chunks += event.chunk_start
        if self._chunks > MAX_CHUNKS:
            raise HttpError(400, f"body in more than {MAX_CHUNKS} chunks", request)
        if self._body_read > self._max_body + DRAIN:
            raise self._too_large(request, close=True)
        if self._body_read > self._max_body:
            self._body.clear()
        else:
            self._body += event.data

    def _start_over(self) -> None:
        """Make ready for the request that follows, which may have arrived already."""
        trailing = self.trailing.lstrip(b"\r\n")
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=self._max_head)
        if trailing:
            self._h11.receive_data(trailing)
        self._buffered = len(trailing)
        self._request = None
        self._done = False
        self._body.clear()
        self._body_read = self._chunks = 0

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
