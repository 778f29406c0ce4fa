"""The echo application of the official protocol suites, on the daemon's own engine.

    python -m tests.e2e.echo_app [PORT]

Everything below the application is what the daemon runs: acceptor, outbox, WebSocket, Engine.IO and
Socket.IO, mounted here at two paths with the short deadlines that the suites want. Socket.IO at
`/socket.io/` has the namespaces `/` and `/custom`; `/engine.io/` is Engine.IO alone. `/echo` is a
WebSocket that sends everything back, for Autobahn's fuzzing client.
"""

from __future__ import annotations

import socket
import sys
from functools import partial

import attrs
import trio

from cryptows.broker.auth import ANONYMOUS
from cryptows.broker.journal import Journal
from cryptows.broker.session import Session
from cryptows.config.load import defaults
from cryptows.config.settings import Cors, Limits, Settings
from cryptows.model.errors import Refusal
from cryptows.tasks.acceptor import Acceptor, prepare
from cryptows.tasks.client import Client
from cryptows.tasks.connection import Connection, Site, Takeover
from cryptows.tasks.endpoint import new_client_id
from cryptows.tasks.engineclient import EngineClient
from cryptows.tasks.hub import Hub
from cryptows.tasks.polling import Mount
from cryptows.tasks.sending import GOODBYE
from cryptows.tasks.socketio import SocketIoClient
from cryptows.tasks.websocket import WebSocket
from cryptows.wire.engineio import Timing
from cryptows.wire.envelope import SOCKETIO_WEBSOCKET, Packet
from cryptows.wire.http import Request, upgrade_head
from cryptows.wire.socketsession import Connect, Event

TIMING = Timing(ping_interval=0.3, ping_timeout=0.2, max_payload=1_000_000)
AUTOBAHN_MESSAGE = 16 << 20  # its largest case


class EchoEngine(EngineClient):
    """Engine.IO alone: every message goes back as it came."""

    __slots__ = ()

    async def heard(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            self.packet(Packet(message, binary=True))
        else:
            self.packet(Packet(b"4" + message.encode()))


class EchoSocket(SocketIoClient):
    """The application that the Socket.IO suite expects."""

    __slots__ = ()

    namespaces = frozenset(("/", "/custom"))
    connect_timeout = 1.5

    async def connecting(self, wish: Connect) -> None:
        self.accept(wish.namespace, new_client_id())
        self.emit(wish.namespace, "auth", wish.auth or {})

    async def happened(self, event: Event) -> None:
        if event.namespace != "/":
            return
        if event.name == "message":
            self.emit("/", "message-back", *event.arguments)
        elif event.name == "message-with-ack" and event.id is not None:
            self.ack(event, *event.arguments)


class EchoWebSocket(Client):
    """A plain WebSocket that sends everything back, through the outbox like all else."""

    __slots__ = ("_ws",)

    def __init__(self, hub: Hub, connection: Connection) -> None:
        session = Session(new_client_id(), ANONYMOUS, connection.address)
        seat = hub.seats.acquire(connection.address)
        super().__init__(hub, session, seat, connection.socket, SOCKETIO_WEBSOCKET)
        self._ws: WebSocket

    async def serve(self, head: bytes) -> None:
        assert self._socket is not None
        self._ws = WebSocket(self._socket, head, self, AUTOBAHN_MESSAGE)
        try:
            await self._ws.serve()
        finally:
            self.gone(1000)
            self._ws.close_socket()

    def opened(self) -> None:
        pass

    async def received(self, message: str | bytes) -> None:
        binary = isinstance(message, bytes)
        self.packet(Packet(message if isinstance(message, bytes) else message.encode(), binary))

    def ponged(self) -> None:
        pass

    def too_long(self, limit: int) -> None:
        self.end(Refusal(1009, f"message over {limit} bytes", come_back=True))

    async def say_goodbye(self, refusal: Refusal) -> None:
        with trio.move_on_after(GOODBYE):
            await self._ws.aclose(refusal.code, refusal.reason)
        self._ws.close_socket()

    def broken(self) -> None:
        self._ws.close_socket()


@attrs.define
class EchoSite:
    """The site of `/echo`."""

    hub: Hub

    async def answer(self, connection: Connection, request: Request) -> Takeover | None:
        client = EchoWebSocket(self.hub, connection)
        return partial(client.serve, upgrade_head(request, None) + connection.trailing)


def settings() -> Settings:
    """Settings that let a suite, which comes from one address, do what it likes."""
    limits = Limits(message=TIMING.max_payload, connections_per_address=10_000, accept_rate=100_000)
    delivery = attrs.evolve(defaults().delivery, outbox=64 << 20, max_lag=60.0)
    return attrs.evolve(defaults(), limits=limits, cors=Cors(origins=("*",)), delivery=delivery)


def sites(hub: Hub) -> dict[str, Site]:
    """Mount the application."""
    socketio = Mount(hub, EchoSocket, TIMING)
    engineio = Mount(hub, EchoEngine, TIMING)
    return {
        "/socket.io": socketio,
        "/socket.io/": socketio,
        "/engine.io": engineio,
        "/engine.io/": engineio,
        "/echo": EchoSite(hub),
    }


async def serve(listener: socket.socket) -> None:
    """Serve until cancelled."""
    async with trio.open_nursery() as nursery:
        hub = Hub(settings(), (b"x" * 32,), nursery, Journal("echo", 1000))
        prepare(listener, hub.settings.delivery.kernel_buffer, 60)
        nursery.start_soon(hub.reaper.run)
        await Acceptor(hub, sites(hub).get).run(listener)


def main() -> None:
    """Listen on the port that the suites are written for, or on another."""
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    print(f"echoing on port {port}", flush=True)
    trio.run(serve, listener)


if __name__ == "__main__":
    main()
