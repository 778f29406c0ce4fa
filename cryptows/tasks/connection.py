"""One connection on the HTTP port: reads requests, hands them to a site, writes the answers.

Everything begins as HTTP: probes, statistics, long-polling and both kinds of WebSocket share the
port. A head must come whole within its deadline and size. A site answers, or takes the connection
over (an upgrade); what HTTP needed is let go before, as the client may stay for days.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Protocol

import attrs
import trio

from cryptows.broker.addresses import client_address, is_proxy
from cryptows.broker.admission import RETRY_AFTER, Full
from cryptows.wire.http import TEXT, HttpConnection, HttpError, Request, ends_connection, response

if TYPE_CHECKING:
    from cryptows.tasks.hub import Hub

RECEIVE = 16 * 1024
WRITE_DEADLINE = 20.0  # seconds a client may take to read an answer
KEEP_ALIVE = 75.0  # seconds between two requests; longer than a heartbeat of a polling client
LINGER = 1.0  # seconds in which a client that still sends may read the refusal

Takeover = Callable[[], Awaitable[None]]


class Site(Protocol):
    """What answers the requests under a path."""

    async def answer(self, connection: Connection, request: Request) -> Takeover | None:
        """Answer through `connection.respond`, or return what takes the connection over."""
        ...


Find = Callable[[str], Site | None]
Release = Callable[[bool], None]
"""Called once with whether a request that was announced came whole."""


@attrs.define(eq=False)
class Connection:
    """A socket with HTTP on it. `peer` is the other end's address, None on a Unix socket."""

    hub: Hub
    socket: socket.socket
    peer: str | None
    address: str = attrs.field(default="", init=False)  # of the client, behind trusted proxies
    _http: HttpConnection = attrs.field(init=False)
    _release: Release | None = attrs.field(default=None, init=False)
    _responded: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        server = self.hub.settings.server
        max_body = self.hub.settings.limits.message
        self._http = HttpConnection(server.max_head, max_body)

    @property
    def proxied(self) -> bool:
        """Whether the other end is a proxy whose word on its clients' addresses is believed."""
        return is_proxy(self.peer, self.hub.settings.server.trusted_proxies)

    @property
    def trailing(self) -> bytes:
        """What the client sent after its request: the first frames after an upgrade."""
        return self._http.trailing

    async def serve(self, find: Find) -> Takeover | None:
        """Answer requests until the connection ends (None) or is taken over."""
        idle = self.hub.settings.server.handshake_timeout
        while True:
            whole = False
            try:
                request = await self._read(find, idle)
                if request is None:
                    return None
                whole = True
                takeover = await self._answer(find, request)
            except HttpError as error:
                whole = not error.close
                await self._refuse(error)
                if error.close:
                    return None
                continue
            finally:
                self._let_go(whole)
            if takeover is not None:
                return takeover
            if ends_connection(request) or self.hub.draining:
                return None
            idle = KEEP_ALIVE

    @property
    def announced(self) -> bool:
        """Whether the request that is answered was announced to its site when its head came."""
        return self._release is not None

    def _announce(self, find: Find) -> None:
        """Tell a site that wants to know what is coming in while the body is on its way."""
        coming = self._http.coming
        if coming is None or self._release is not None:
            return
        announce = getattr(find(coming.path), "coming", None)
        if announce is not None:
            self._release = announce(coming)

    def _let_go(self, whole: bool) -> None:
        release, self._release = self._release, None
        if release is not None:
            release(whole)

    async def respond(
        self,
        request: Request | None,
        status: int,
        body: bytes = b"",
        content_type: str = TEXT,
        headers: Iterable[tuple[bytes, bytes]] = (),
        *,
        close: bool = False,
    ) -> None:
        """Write a whole answer. With `close`, or without keep-alive, the connection then ends."""
        close = close or self.hub.draining
        await self.write(response(request, status, body, content_type, headers, close))

    async def write(self, data: bytes) -> None:
        """Write everything; raises BrokenResourceError when the client is gone or does not read."""
        view = memoryview(data)
        with trio.move_on_after(WRITE_DEADLINE) as scope:
            while view:
                try:
                    view = view[self.socket.send(view) :]
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self.socket)
                except OSError as error:
                    raise trio.BrokenResourceError from error
        if scope.cancelled_caught:
            raise trio.BrokenResourceError("the client does not read its answer")

    def is_closed(self) -> bool:
        """Whether the client has closed its side."""
        try:
            return not self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    async def hung_up(self) -> None:
        """Return when the client has closed its side while it waits for an answer."""
        while True:
            await trio.lowlevel.wait_readable(self.socket)
            if self.is_closed():
                return
            # A client that sends the next request before the answer: look again later.
            await trio.sleep(0.05)

    async def _read(self, find: Find, idle: float) -> Request | None:
        """Return the next request, None at the end; raises HttpError 408 when it takes too long.

        It may begin within `idle` seconds, and must then be whole within the handshake's time.
        """
        request = self._http.next()
        with trio.move_on_after(idle) as scope:
            begun = False
            while request is None:
                if not begun and not self._http.idle:
                    begun = True
                    patience = self.hub.settings.server.handshake_timeout
                    scope.deadline = min(scope.deadline, trio.current_time() + patience)
                self._announce(find)
                interim = self._http.interim()
                if interim:
                    await self.write(interim)
                data = await self._receive()
                if not data:
                    return None
                self._http.feed(data)
                request = self._http.next()
        if scope.cancelled_caught:
            if self._http.idle:
                return None
            raise HttpError(408, "the request took too long")
        return request

    async def _receive(self) -> bytes:
        while True:
            try:
                await trio.lowlevel.wait_readable(self.socket)
                return self.socket.recv(RECEIVE)
            except BlockingIOError:
                continue
            except OSError:
                return b""

    async def _answer(self, find: Find, request: Request) -> Takeover | None:
        hub = self.hub
        trusted = hub.settings.server.trusted_proxies
        forwarded = request.headers_all("x-forwarded-for") if trusted or not self.peer else ()
        self.address = client_address(self.peer, forwarded, trusted)
        site = find(request.path)
        if site is None:
            hub.counters.http_requests += 1
            await self.refuse(request, 404, "not found")
            return None
        return await site.answer(self, request)

    async def turned_away(self, request: Request, user_id: str | None) -> bool:
        """Answer 429 if the address or the user is banned; return whether that was so.

        For sites that clients use: whoever shares an address with a banned one may still probe.
        """
        now = trio.current_time()
        wait = self.hub.bans.retry_after(user_id, self.address, now)
        if wait is None:
            return False
        self.hub.counters.refused("banned")
        await self.refuse(request, 429, "banned for breaking the rate limit", wait)
        return True

    async def no_room(self, request: Request, full: Full) -> None:
        """Answer that there are too many connections."""
        self.hub.counters.refused(f"connections_{full.scope.name.lower()}")
        await self.refuse(request, full.status, str(full), RETRY_AFTER)

    async def refuse(
        self,
        request: Request,
        status: int,
        reason: str,
        retry_after: float | None = None,
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        """Answer with an error as text, readable for pages of the allowed origins."""
        headers = [*headers, *self.hub.origins.headers(request.header("origin"))]
        if retry_after is not None:
            headers.append((b"Retry-After", b"%d" % math.ceil(retry_after)))
        await self.respond(request, status, f"{reason}\n".encode(), headers=headers)

    async def _refuse(self, error: HttpError) -> None:
        self.hub.counters.refused("http")
        request = error.request
        headers = () if request is None else self.hub.origins.headers(request.header("origin"))
        # Engine.IO's clients know 413 without a body; the others have their status too.
        body = b"" if error.status == 413 else f"{error.message}\n".encode()
        await self.respond(request, error.status, body, headers=headers, close=error.close)
        if error.close:
            await self._linger()

    async def _linger(self) -> None:
        """Throw away what a refused client still sends: closing at once would reset the answer."""
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            return
        with trio.move_on_after(LINGER):
            while await self._receive():
                pass
