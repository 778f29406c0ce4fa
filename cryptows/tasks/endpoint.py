"""The `/ws` endpoint: who may become a client on plain WebSocket, decided before the 101.

In this order: origin, handshake, token, bans, connection limits. A wrong token is no reason to
refuse the handshake: a browser could not tell why. It is told after the 101, with its close code.
"""

from __future__ import annotations

import secrets
from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from cryptows.broker.admission import Full
from cryptows.broker.auth import ANONYMOUS, Identity, find_token
from cryptows.broker.session import Session
from cryptows.model.errors import Refusal
from cryptows.tasks.clock import now_ms
from cryptows.tasks.nativeclient import NativeClient
from cryptows.wire.http import Request, upgrade_head, upgrade_headers, upgrade_problem

if TYPE_CHECKING:
    from cryptows.tasks.connection import Connection, Takeover
    from cryptows.tasks.hub import Hub


def new_client_id() -> str:
    """Return an id for a client; it appears in messages and logs, and opens nothing."""
    return secrets.token_hex(8)


@attrs.define(eq=False)
class WebSocketSite:
    """The site of `/ws`."""

    hub: Hub

    async def answer(self, connection: Connection, request: Request) -> Takeover | None:
        """Turn a handshake into a client, or answer why not."""
        hub = self.hub
        if not hub.origins.allows(request.header("origin"), request.header("host")):
            hub.counters.refused("origin")
            await connection.refuse(request, 403, "this origin is not in cors.origins")
            return None
        problem = upgrade_problem(request)
        if problem is not None:
            hub.counters.refused("handshake")
            more = upgrade_headers(problem.status)
            await connection.refuse(request, problem.status, problem.message, headers=more)
            return None
        if hub.draining:
            hub.counters.refused("draining")
            await connection.refuse(request, 503, "the daemon is stopping", 1)
            return None
        return await self._admit(connection, request)

    async def _admit(self, connection: Connection, request: Request) -> Takeover | None:
        hub = self.hub
        identity, unwelcome, subprotocol = self._identify(request)
        if await connection.turned_away(request, identity.user_id):
            return None
        try:
            seat = hub.seats.acquire(connection.address, identity.user_id)
        except Full as full:
            await connection.no_room(request, full)
            return None
        session = Session(new_client_id(), identity, connection.address, since=trio.current_time())
        client = NativeClient(hub, session, seat, connection.socket)
        head = upgrade_head(request, subprotocol) + connection.trailing
        return partial(client.serve, head, unwelcome)

    def _identify(self, request: Request) -> tuple[Identity, Refusal | None, str | None]:
        """Return who it is, why he is not welcome, and the subprotocol to answer with."""
        token, subprotocol = find_token(request, allow_query=self.hub.settings.auth.query_token)
        if token is None:
            return ANONYMOUS, None, subprotocol
        try:
            return self.hub.verifier.verify(token, now_ms() / 1000), None, subprotocol
        except Refusal as refusal:
            return ANONYMOUS, refusal, subprotocol
