"""One HTTP request: its parts decoded, and whether it is a WebSocket handshake.

Decoding is strict, because what is read in two ways can be used to get past a check: escapes must
be whole and UTF-8, control characters are refused. Of a repeated query parameter the first counts.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

import attrs
import h11

from cryptows.model.errors import CryptowsError

Headers = list[tuple[bytes, bytes]]

# RFC 6455 4.1: the key is the base64 of 16 bytes.
WEBSOCKET_KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")
BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
HANDSHAKE = frozenset({b"upgrade", b"connection", b"sec-websocket-key", b"sec-websocket-version"})
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


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


def read_head(event: h11.Request) -> tuple[Request, bool]:
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
            try:
                name, value = _decode(name.replace("+", " ")), _decode(value.replace("+", " "))
            except HttpError:
                pass  # the application's, and left as it is: what we read has no use for it
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
