"""The plain HTTP answers: `/healthz`, `/readyz`, `/metrics` and `/stats` (protocol section 7).

Probes and metrics tell nothing about users and are open to whoever reaches the port; `/stats` is
for an admin's token, or for the machine itself. Nothing is cached.
"""

from __future__ import annotations

import ipaddress
import json
from typing import TYPE_CHECKING

import attrs

from cryptows.broker.addresses import UNIX
from cryptows.broker.auth import find_token
from cryptows.broker.health import Answer
from cryptows.model.channel import Role
from cryptows.model.errors import Refusal
from cryptows.tasks.clock import now_ms
from cryptows.tasks.metrics import CONTENT_TYPE, Metrics
from cryptows.tasks.stats import Rates, stats_document

if TYPE_CHECKING:
    from cryptows.tasks.connection import Connection, Takeover
    from cryptows.tasks.hub import Hub
    from cryptows.wire.http import Request

PATHS = ("/healthz", "/livez", "/readyz", "/metrics", "/stats")
FORWARDED = ("x-forwarded-for", "forwarded", "x-real-ip")
NO_STORE = (b"Cache-Control", b"no-store")


@attrs.define(eq=False)
class Pages:
    """The site of all these paths."""

    hub: Hub
    metrics: Metrics
    rates: Rates

    async def answer(self, connection: Connection, request: Request) -> Takeover | None:
        """Answer a GET or HEAD; OPTIONS is a browser's preflight."""
        self.hub.counters.http_requests += 1
        if request.method == "OPTIONS":
            status, headers = self.hub.origins.preflight(request)
            await connection.respond(request, status, headers=headers)
            return None
        if request.method not in ("GET", "HEAD"):
            allow = [(b"Allow", b"GET, HEAD, OPTIONS")]
            await connection.refuse(request, 405, "only GET", headers=allow)
            return None
        answer = self._page(connection, request)
        headers = [NO_STORE, *self.hub.origins.headers(request.header("origin"))]
        await connection.respond(
            request, answer.status, answer.body, answer.content_type, headers=headers
        )
        return None

    def _page(self, connection: Connection, request: Request) -> Answer:
        match request.path:
            case "/readyz":
                return self.hub.health.readyz(verbose="verbose" in request.query)
            case "/metrics":
                return Answer(200, self.metrics.render(), CONTENT_TYPE)
            case "/stats":
                return self._stats(connection, request)
            case _:
                return self.hub.health.healthz()

    def _stats(self, connection: Connection, request: Request) -> Answer:
        if not _is_local(connection, request) and not self._is_admin(request):
            body = b'{"error":"an admin\'s token is needed, or ask from the machine itself"}\n'
            return Answer(401, body)
        hub = self.hub
        document = stats_document(hub.gauges(), hub.counters, hub.health, self.rates)
        return Answer(200, json.dumps(document).encode() + b"\n")

    def _is_admin(self, request: Request) -> bool:
        token, _ = find_token(request, allow_query=False)
        if token is None:
            return False
        try:
            identity = self.hub.verifier.verify(token, now_ms() / 1000)
        except Refusal:
            return False
        return identity.role in (Role.ADMIN, Role.SUPER_ADMIN)


def _is_local(connection: Connection, request: Request) -> bool:
    """Whether it is the machine itself that asks."""
    told = [name for name in FORWARDED if request.header(name) is not None]
    if told and not (connection.proxied and FORWARDED[0] in told):
        return False  # passed on by a proxy that is not trusted, or does not say for whom
    if connection.address == UNIX:
        return True  # the file's permissions say who may
    try:
        return ipaddress.ip_address(connection.address).is_loopback
    except ValueError:
        return False
