"""Origins: which pages may connect, decided once for HTTP and for every WebSocket.

Browsers let any page open a WebSocket anywhere and only send `Origin` along, so the answer is ours
to give, before the 101. Programs that are no browsers send none, and need a token like everyone.
The allowed origin is echoed, since `*` is not valid with credentials; `Vary` keeps caches from
giving one page another's answer.
"""

from __future__ import annotations

import ipaddress
import re

from cryptows.config.settings import Cors
from cryptows.model.errors import ConfigError
from cryptows.wire.http import Headers, Request

# RFC 6454 6.2: scheme "://" host [":" port]; nothing else.
ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>\d{1,5}))?",
    re.ASCII,
)
DEFAULT_PORTS = {"http": "80", "https": "443", "ws": "80", "wss": "443"}
METHODS = b"GET,HEAD,POST,OPTIONS"
MAX_AGE = b"600"  # seconds; browsers cap it at 600 (Safari) to 86400
HEADER_NAMES = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~, \t-]{1,1024}")


class Origins:
    """The allow-list. Raises ConfigError for an entry that can match nothing."""

    def __init__(self, cors: Cors) -> None:
        self._credentials = cors.credentials
        self._any = False
        self._exact: set[str] = set()
        self._below: list[tuple[str, str]] = []  # "https://" and ".example.com:8443"
        problems = [entry for entry in cors.origins if not self._add(entry)]
        if problems:
            raise ConfigError(
                [
                    f'cors.origins: "{entry}" is no origin; '
                    "expected scheme://host[:port], scheme://*.host, null or *"
                    for entry in problems
                ]
            )

    def allows(self, origin: str | None, host: str | None = None) -> bool:
        """Whether a request with this `Origin` header (None: without one) may be served.

        `host` is its `Host` header. An origin that is the address the client connected to is not
        foreign: websocket-client, and with it python-socketio, names it. It counts only if it is an
        address and no name, which a foreign page could let point here.
        """
        if origin is None or self._any or origin in self._exact:
            return True
        if host is not None and origin == f"http://{host}" and is_address(host):
            return True
        normal = normalize(origin)
        if normal is None:
            return False
        return normal in self._exact or any(
            normal.startswith(scheme)
            and normal.endswith(suffix)
            and len(normal) > len(scheme) + len(suffix)
            for scheme, suffix in self._below
        )

    def headers(self, origin: str | None) -> Headers:
        """Return what goes with every answer, an error's too: else the browser hides its body."""
        headers: Headers = [(b"Vary", b"Origin")]
        if origin is not None and self.allows(origin):
            headers.append((b"Access-Control-Allow-Origin", origin.encode("latin-1")))
            if self._credentials:
                headers.append((b"Access-Control-Allow-Credentials", b"true"))
        return headers

    def preflight(self, request: Request) -> tuple[int, Headers]:
        """Answer an OPTIONS request: status and headers, no body; 403 for a foreign origin."""
        origin = request.header("origin")
        vary = (b"Vary", b"Origin, Access-Control-Request-Headers")
        if not self.allows(origin):
            return 403, [vary]
        headers = [vary, *self.headers(origin)[1:]]
        headers.append((b"Access-Control-Allow-Methods", METHODS))
        wanted = (request.header("access-control-request-headers") or "").encode("latin-1")
        if HEADER_NAMES.fullmatch(wanted):
            headers.append((b"Access-Control-Allow-Headers", wanted))
        headers.append((b"Access-Control-Max-Age", MAX_AGE))
        return 204, headers

    def _add(self, entry: str) -> bool:
        if entry == "*":
            self._any = True
        elif entry == "null":
            self._exact.add(entry)
        elif "://*." in entry:
            normal = normalize(entry.replace("://*.", "://", 1).removesuffix("/"))
            if normal is None:
                return False
            scheme, _, rest = normal.partition("://")
            self._below.append((f"{scheme}://", f".{rest}"))
        else:
            # FRONTEND_URL is often written with a slash at its end.
            normal = normalize(entry.removesuffix("/"))
            if normal is None:
                return False
            self._exact.add(normal)
        return True


def is_address(host: str) -> bool:
    """Whether a `Host` header names an IP address (or localhost), with a port or without."""
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        name, port = host, ""
    if port and not (port.isascii() and port.isdigit()):
        return False
    if name.startswith("["):
        name = name[1:-1]
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost"
    return True


def normalize(origin: str) -> str | None:
    """Return an origin in lower case without its default port, or None if it is none."""
    match = ORIGIN.fullmatch(origin.lower())
    if match is None:
        return None
    scheme, host, port = match["scheme"], match["host"], match["port"]
    if port is None or port.lstrip("0") == DEFAULT_PORTS.get(scheme):
        return f"{scheme}://{host}"
    return f"{scheme}://{host}:{port.lstrip('0') or '0'}"
