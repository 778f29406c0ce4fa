"""The HTTP side of Engine.IO: a mount answers openings, polls, posts and upgrades under its path.

A mount knows its clients by their secret engine sid. It is the same for every application: which
kind of client it makes, and all deadlines, are parameters. What a request wants, or why not, is
decided by `wire/enginehttp`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from cryptows.broker.admission import Full
from cryptows.tasks.probe import Probe
from cryptows.wire import engineio
from cryptows.wire.enginehttp import (
    BAD_CONTENT,
    HTML,
    TEXT,
    UNKNOWN_SID,
    Answer,
    Known,
    Rejected,
    Wish,
    bare,
    forbidden,
    wish,
)
from cryptows.wire.engineio import ProtocolError, Timing
from cryptows.wire.enginesession import EngineSession, PollAnswer, State
from cryptows.wire.http import Request, upgrade_head, upgrade_headers, upgrade_problem

if TYPE_CHECKING:
    import socket

    from cryptows.broker.admission import Seat
    from cryptows.tasks.connection import Connection, Release, Takeover
    from cryptows.tasks.engineclient import EngineClient
    from cryptows.tasks.hub import Hub

NO_STORE = (b"Cache-Control", b"no-store")
STOPPING = forbidden("the daemon is stopping", 503, (("Retry-After", "1"),))
FORBIDDEN = forbidden()
FAILED = Answer(500)

NewClient = Callable[..., "EngineClient"]


@attrs.define(eq=False)
class Mount:
    """The site of one Engine.IO path; `new_client` makes the clients of an application."""

    hub: Hub
    new_client: NewClient
    timing: Timing
    clients: dict[str, EngineClient] = attrs.field(factory=dict, init=False)  # each has a seat

    async def answer(self, connection: Connection, request: Request) -> Takeover | None:
        """Answer a request, or turn an upgrade into what takes the connection over."""
        hub = self.hub
        hub.counters.http_requests += not request.wants_websocket
        if request.method == "OPTIONS" and request.header("origin") is not None:
            status, headers = hub.origins.preflight(request)
            await connection.respond(request, status, headers=headers)
            return None
        client = self._find(request.query.get("sid"))
        # Who is banned for what he did here is still to be told so by his next poll.
        if client is None and await connection.turned_away(request, None):
            return None
        try:
            wanted = wish(
                request.method,
                request.query,
                upgrade=request.wants_websocket,
                known=Known.UNKNOWN if client is None else client.engine.known,
                origin=request.header("origin"),
                refusal=self._refusal(request),
            )
            return await self._do(wanted, client, connection, request)
        except Rejected as rejected:
            hub.counters.refused("engineio")
            reply = bare(rejected.answer) if request.wants_websocket else rejected.answer
            await self._respond(connection, request, reply)
            return None

    def coming(self, request: Request) -> Release | None:
        """Note that a POST is coming in, so that another one meanwhile is noticed."""
        client = self._find(request.query.get("sid"))
        if client is None or request.method != "POST" or client.engine.posting:
            return None
        try:
            client.engine.start_post()
        except Rejected:
            return None
        return partial(self._came, client)

    def _came(self, client: EngineClient, whole: bool) -> None:
        client.engine.finish_post()
        if not whole:
            client.fail(ProtocolError("a post broke off"))

    def add(self, client: EngineClient) -> None:
        """Take in a client whose session begins."""
        self.clients[client.engine.sid] = client
        client.tick_soon()

    def _find(self, sid: str | None) -> EngineClient | None:
        """Return the client of a session, after doing what its deadlines demand by now."""
        client = self.clients.get(sid) if sid else None
        if client is not None:
            client.look(trio.current_time())
        return client

    def _refusal(self, request: Request) -> Answer | None:
        if not self.hub.origins.allows(request.header("origin"), request.header("host")):
            return FORBIDDEN
        if self.hub.draining and not request.query.get("sid"):
            return STOPPING
        return None

    async def _do(
        self, wanted: Wish, client: EngineClient | None, connection: Connection, request: Request
    ) -> Takeover | None:
        match wanted:
            case Wish.OPEN_POLLING:
                await self._open_polling(connection, request)
            case Wish.OPEN_WEBSOCKET:
                return await self._open_websocket(connection, request)
            case _ if client is None:
                raise AssertionError("a wish about a session that is not known")
            case Wish.PROBE:
                return await self._probe(client, connection, request)
            case Wish.POLL:
                await self._poll(client, connection, request)
            case Wish.POST:
                await self._post(client, connection, request)
        return None

    # openings

    async def _open_polling(self, connection: Connection, request: Request) -> None:
        client = await self._admit(connection, request, None)
        if client is None:
            return
        self.add(client)
        packet = engineio.open_packet(client.engine.sid, ["websocket"], self.timing)
        try:
            await self._respond(connection, request, Answer(200, packet, TEXT))
        except trio.BrokenResourceError:
            client.poll_broke()
            raise

    async def _open_websocket(self, connection: Connection, request: Request) -> Takeover | None:
        if not await self._upgradable(connection, request):
            return None
        client = await self._admit(connection, request, connection.socket)
        if client is None:
            return None
        return partial(client.serve, upgrade_head(request, None) + connection.trailing)

    async def _admit(
        self, connection: Connection, request: Request, sock: socket.socket | None
    ) -> EngineClient | None:
        try:
            seat: Seat = self.hub.seats.acquire(connection.address)
        except Full as full:
            await connection.no_room(request, full)
            return None
        state = State.POLLING if sock is None else State.WEBSOCKET
        engine = EngineSession(secrets.token_urlsafe(15), self.timing, trio.current_time(), state)
        return self.new_client(self, engine, seat, sock, base64="b64" in request.query)

    async def _upgradable(self, connection: Connection, request: Request) -> bool:
        """Whether a request is a correct WebSocket handshake; if not, it is answered."""
        problem = upgrade_problem(request)
        if problem is None:
            return True
        self.hub.counters.refused("handshake")
        body = f"{problem.message}\n".encode()
        headers = upgrade_headers(problem.status)
        await connection.respond(request, problem.status, body, headers=headers)
        return False

    # sessions

    async def _probe(
        self, client: EngineClient, connection: Connection, request: Request
    ) -> Takeover | None:
        if not await self._upgradable(connection, request):
            return None
        probe = Probe(client, connection.socket)
        return partial(probe.serve, upgrade_head(request, None) + connection.trailing)

    async def _poll(self, client: EngineClient, connection: Connection, request: Request) -> None:
        try:
            waits = client.engine.polling
            client.engine.start_poll(given_up=waits and connection.is_closed())
        except Rejected:
            client.fail(ProtocolError("a second poll while one waits"))
            raise
        done = None
        try:
            answer = await client.poll_answer(connection)
            if answer is None:
                raise trio.BrokenResourceError("the client gave up its poll")
            if answer is PollAnswer.GONE:
                reply = UNKNOWN_SID
            else:
                reply = Answer(200, client.poll_body(answer), TEXT)
            await self._respond(connection, request, reply)
            done = answer
        finally:
            if done is None:
                client.poll_broke()
            else:
                client.poll_done(done)

    async def _post(self, client: EngineClient, connection: Connection, request: Request) -> None:
        content_type = (request.header("content-type") or "").partition(";")[0].strip().lower()
        if content_type == "application/octet-stream":
            client.fail(ProtocolError("binary is sent as base64 in text/plain"))
            raise Rejected(BAD_CONTENT)
        try:
            if not connection.announced:
                client.engine.start_post()
        except Rejected:
            client.fail(ProtocolError("a second post while one is being read"))
            raise
        try:
            await client.post(request.body)
        except Exception as error:
            client.failed(error)
            raise Rejected(FAILED) from None
        finally:
            if not connection.announced:
                client.engine.finish_post()
        await self._respond(connection, request, Answer(200, engineio.OK, HTML))

    async def _respond(self, connection: Connection, request: Request, answer: Answer) -> None:
        headers = [NO_STORE, *self.hub.origins.headers(request.header("origin"))]
        headers += [(name.encode(), value.encode()) for name, value in answer.headers]
        await connection.respond(request, answer.status, answer.body, answer.content_type, headers)
