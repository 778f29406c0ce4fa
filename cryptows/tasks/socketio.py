"""Socket.IO on Engine.IO, up to the application: namespaces, events, acks, goodbyes.

A subclass is an application: it decides on CONNECTs and takes events. Packets that make no sense
raise ProtocolError in `wire/socketsession`, which ends their sender and nobody else.
"""

from __future__ import annotations

import math
import socket
from typing import TYPE_CHECKING, Any, ClassVar

import trio

from cryptows.model.errors import Refusal
from cryptows.tasks.engineclient import EngineClient
from cryptows.wire import socketio
from cryptows.wire.envelope import Packet
from cryptows.wire.socketsession import (
    CONNECT_TIMEOUT,
    Ack,
    Connect,
    Event,
    Leave,
    SocketSession,
    Unknown,
)

if TYPE_CHECKING:
    from cryptows.broker.admission import Seat
    from cryptows.tasks.polling import Mount
    from cryptows.wire.enginesession import EngineSession

NOT_JOINED = Refusal(1008, "joined no namespace in time", come_back=True)


class SocketIoClient(EngineClient):
    """A client that speaks Socket.IO. `namespaces` are those that exist."""

    __slots__ = ("socketio",)

    namespaces: ClassVar[frozenset[str]] = frozenset("/")
    connect_timeout: ClassVar[float] = CONNECT_TIMEOUT

    def __init__(
        self,
        mount: Mount,
        engine: EngineSession,
        seat: Seat,
        sock: socket.socket | None,
        *,
        base64: bool = False,
    ) -> None:
        super().__init__(mount, engine, seat, sock, base64=base64)
        self.socketio = SocketSession(
            self.namespaces, engine.opened, mount.timing.max_payload, self.connect_timeout
        )

    # for the application

    async def connecting(self, wish: Connect) -> None:
        """Decide on a CONNECT: `accept` or `refuse` it."""
        raise NotImplementedError

    def astray(self, answer: Packet) -> None:
        """Answer a CONNECT to a namespace that does not exist."""
        self.packet(answer)

    async def happened(self, event: Event) -> None:
        """Take an event; `ack` it if it has an id."""
        raise NotImplementedError

    async def acked(self, ack: Ack) -> None:
        """Take the answer to an event of ours."""

    async def left(self, namespace: str) -> None:
        """Note that the client has left a namespace."""

    @property
    def joined(self) -> bool:
        """Whether the client has joined anything."""
        return bool(self.socketio.joined)

    # what an application says

    def accept(self, namespace: str, sid: str, pid: str | None = None) -> None:
        """Let the client in."""
        self.packet(self.socketio.accept(namespace, sid, pid))

    def refuse(self, namespace: str, message: str, data: dict[str, Any] | None = None) -> None:
        """Keep the client out; the official one then stays away by itself."""
        self.packet(self.socketio.refuse(namespace, message, data))

    def emit(self, namespace: str, name: str, *arguments: Any, call: Any = None) -> None:
        """Send an event; `call` comes back with its ack."""
        self.packets(self.socketio.event(namespace, name, list(arguments), call))

    def ack(self, event: Event, *arguments: Any) -> None:
        """Answer an event, once."""
        self.packets(self.socketio.ack(event, list(arguments)))

    # Engine.IO

    async def heard(self, message: str | bytes) -> None:
        match self.socketio.receive(message):
            case Connect() as wish:
                await self.connecting(wish)
            case Unknown(answer):
                self.astray(answer)
            case Event() as event:
                await self.happened(event)
            case Ack() as ack:
                await self.acked(ack)
            case Leave(namespace):
                self.socketio.leave(namespace, trio.current_time())
                self.tick_soon(self.socketio.deadline())
                await self.left(namespace)

    def dismissal(self) -> list[Packet]:
        return [socketio.disconnected(namespace) for namespace in self.socketio.joined]

    def due(self, now: float) -> float:
        deadline = self.socketio.deadline()
        if now >= deadline:
            self.end(NOT_JOINED)
            return math.inf
        return deadline
