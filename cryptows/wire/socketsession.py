"""The state of one Socket.IO connection: which namespaces it has joined, and what is under way.

It sits on an Engine.IO session and says what each message means: a CONNECT to decide on, an event,
an ack, a goodbye. An application decides and answers with the packets made here. A message that
makes no sense in this state raises ProtocolError, which ends this connection only. Time is an
argument.
"""

from __future__ import annotations

import math
from typing import Any

import attrs

from cryptows.wire import socketio
from cryptows.wire.engineio import ProtocolError
from cryptows.wire.envelope import Packet
from cryptows.wire.socketio import SocketPacket, Type

CONNECT_TIMEOUT = 45.0  # the reference's
MAX_CALLS = 64  # events of ours whose acks are outstanding; one more forgets the oldest


@attrs.frozen
class Connect:
    """A client wants to join a namespace: `accept` or `refuse` it."""

    namespace: str
    auth: dict[str, Any] | None = attrs.field(repr=False)


@attrs.frozen
class Unknown:
    """A client wants to join what does not exist: send the answer."""

    answer: Packet


@attrs.frozen
class Event:
    """An event. With an id the client awaits an ack, once."""

    namespace: str
    name: str | int | float
    arguments: list[Any] = attrs.field(repr=False)
    id: int | None = None


@attrs.frozen
class Ack:
    """The answer to an event of ours: what was passed as `call` comes back with it."""

    call: Any
    arguments: list[Any]


@attrs.frozen
class Leave:
    """The client has left a namespace; its transport stays."""

    namespace: str


Meaning = Connect | Unknown | Event | Ack | Leave


@attrs.define
class _Partial:
    """A packet whose attachments have not all come."""

    packet: SocketPacket
    attachments: list[bytes] = attrs.field(factory=list)
    size: int = 0


@attrs.define
class SocketSession:
    """One connection. `namespaces` are those that exist; `max_bytes` bounds the attachments."""

    namespaces: frozenset[str]
    opened: float
    max_bytes: int = 1_000_000
    connect_timeout: float = CONNECT_TIMEOUT
    # Tuples: a client joins one or two, and an empty set would take 216 bytes of each.
    joined: tuple[str, ...] = attrs.field(default=(), init=False)
    _asked: tuple[str, ...] = attrs.field(default=(), init=False)  # CONNECTs not decided yet
    _join_by: float = attrs.field(init=False)
    _partial: _Partial | None = attrs.field(default=None, init=False)
    _calls: dict[tuple[str, int], Any] | None = attrs.field(default=None, init=False)
    _next_id: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._join_by = self.opened + self.connect_timeout

    def deadline(self) -> float:
        """When a connection that has joined nothing, and is not about to, must be closed."""
        return math.inf if self.joined or self._asked else self._join_by

    def receive(self, message: str | bytes) -> Meaning | None:
        """Return what a message means, or None if more must come first; raise ProtocolError."""
        partial = self._partial
        if isinstance(message, bytes):
            if partial is None:
                raise ProtocolError("binary data that no packet announced")
            return self._attach(partial, message)
        if partial is not None:
            raise ProtocolError("text while attachments are due")
        packet = socketio.decode(message)
        if packet.attachments:
            self._check_joined(packet)
            self._partial = _Partial(packet)
            return None
        return self._meaning(packet)

    def _attach(self, partial: _Partial, data: bytes) -> Meaning | None:
        partial.attachments.append(data)
        partial.size += len(data)
        if partial.size > self.max_bytes:
            raise ProtocolError(f"attachments of more than {self.max_bytes} bytes")
        if len(partial.attachments) < partial.packet.attachments:
            return None
        self._partial = None
        whole = socketio.assemble(partial.packet.data, partial.attachments)
        return self._meaning(attrs.evolve(partial.packet, data=whole))

    def _check_joined(self, packet: SocketPacket) -> None:
        if packet.namespace not in self.joined:
            raise ProtocolError(f"{packet.type.name} for a namespace that was not joined")

    def _meaning(self, packet: SocketPacket) -> Meaning | None:
        if packet.type is Type.CONNECT:
            return self._connect(packet)
        self._check_joined(packet)
        match packet.type:
            case Type.EVENT:
                name, *arguments = packet.data
                return Event(packet.namespace, name, arguments, packet.id)
            case Type.ACK:
                return self._ack(packet)
            case _:
                return Leave(packet.namespace)

    def _connect(self, packet: SocketPacket) -> Meaning:
        namespace = packet.namespace
        if namespace in self.joined or namespace in self._asked:
            raise ProtocolError("a second CONNECT to the same namespace")
        if namespace not in self.namespaces:
            return Unknown(socketio.refused(namespace, "Invalid namespace"))
        self._asked = (*self._asked, namespace)
        return Connect(namespace, packet.data)

    def _ack(self, packet: SocketPacket) -> Ack | None:
        assert packet.id is not None
        key = (packet.namespace, packet.id)
        if self._calls is None or key not in self._calls:
            return None  # answered already, forgotten, or made up: the reference ignores it too
        return Ack(self._calls.pop(key), packet.data)

    # What the application decides

    def accept(self, namespace: str, sid: str, pid: str | None = None) -> Packet:
        """Let the client in; `sid` is public and must not be the engine's."""
        self._asked = _without(self._asked, namespace)
        self.joined = (*self.joined, namespace)
        return socketio.connected(namespace, sid, pid)

    def refuse(self, namespace: str, message: str, data: dict[str, Any] | None = None) -> Packet:
        """Keep the client out; it may try again until the connect timeout."""
        self._asked = _without(self._asked, namespace)
        return socketio.refused(namespace, message, data)

    def leave(self, namespace: str, now: float) -> None:
        """Note that the client has left (or was sent a DISCONNECT)."""
        self.joined = _without(self.joined, namespace)
        if self._calls:
            self._calls = {key: call for key, call in self._calls.items() if key[0] != namespace}
        if not self.joined:
            # The reference has no timer for a transport that is left idle like this.
            self._join_by = now + self.connect_timeout

    def event(
        self, namespace: str, name: str, arguments: list[Any], call: Any = None
    ) -> list[Packet]:
        """Return an event of ours; with `call` the client is asked for an ack."""
        if call is None:
            return socketio.encode(Type.EVENT, namespace, None, [name, *arguments])
        if self._calls is None:
            self._calls = {}
        while len(self._calls) >= MAX_CALLS:
            del self._calls[next(iter(self._calls))]
        id_, self._next_id = self._next_id, self._next_id + 1
        self._calls[namespace, id_] = call
        return socketio.encode(Type.EVENT, namespace, id_, [name, *arguments])

    @staticmethod
    def ack(event: Event, arguments: list[Any]) -> list[Packet]:
        """Return the answer to an event that has an id; answer each once."""
        assert event.id is not None
        return socketio.encode(Type.ACK, event.namespace, event.id, arguments)


def _without(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(each for each in names if each != name)
