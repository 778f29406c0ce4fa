"""The one envelope of everything a client sees, and its forms on the three wires.

`data` of an event is never decoded and encoded again: the producer's bytes are spliced in. A record
is encoded once for each wire, on first need, and all clients share the bytes. Answers and other
messages for one client are encoded from values. Protocol section 2.
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from cryptows.model.event import Record
from cryptows.wire.frames import binary_frame, text_frame

_encode = msgspec.json.Encoder().encode


class Packet(msgspec.Struct, gc=False, eq=False):
    """A message for one client, as its dialect says it, before the framing of its transport."""

    payload: bytes
    binary: bool = False


class Wire(Protocol):
    """How records and packets of one dialect look on one transport."""

    @property
    def name(self) -> str:
        """`websocket`, `socketio_websocket` or `socketio_polling`: a bounded label."""
        ...

    def record(self, record: Record) -> bytes:
        """Return the bytes of a record, shared by all clients of this wire."""
        ...

    def message(self, envelope: bytes, offset: bytes | None = None) -> Packet:
        """Return the packet that carries an envelope to one client."""
        ...

    def packet(self, packet: Packet) -> bytes:
        """Return the bytes of a packet on this transport."""
        ...


class NativeWire:
    """Plain WebSocket: the envelope is the message."""

    name = "websocket"

    def record(self, record: Record) -> bytes:
        frame = record.frame
        if frame is None:
            frame = record.frame = text_frame(record.envelope)
        return frame

    def message(self, envelope: bytes, offset: bytes | None = None) -> Packet:
        return Packet(envelope)

    def packet(self, packet: Packet) -> bytes:
        return text_frame(packet.payload)


def socketio_event(envelope: bytes, offset: bytes | None) -> bytes:
    """Return an envelope as Engine.IO message `4` with the Socket.IO event `message`.

    The offset, repeated as the last argument, is what the official client keeps for recovery.
    """
    if offset is None:
        return b'42["message",%b]' % envelope
    return b'42["message",%b,"%b"]' % (envelope, offset)


class SocketIoPolling:
    """Socket.IO over long-polling: bare packets, which the poll's answer joins with 0x1e."""

    name = "socketio_polling"

    def record(self, record: Record) -> bytes:
        packet = record.packet
        if packet is None:
            packet = record.packet = socketio_event(record.envelope, record.offset)
        return packet

    def message(self, envelope: bytes, offset: bytes | None = None) -> Packet:
        return Packet(socketio_event(envelope, offset))

    def packet(self, packet: Packet) -> bytes:
        if packet.binary:
            # Engine.IO: binary in a polling payload is `b` and base64, without a type digit.
            return b"b" + binascii.b2a_base64(packet.payload, newline=False)
        return packet.payload


class SocketIoWebSocket(SocketIoPolling):
    """Socket.IO over WebSocket: one packet a frame."""

    name = "socketio_websocket"

    def record(self, record: Record) -> bytes:
        frame = record.packet_frame
        if frame is None:
            frame = record.packet_frame = text_frame(socketio_event(record.envelope, record.offset))
        return frame

    def packet(self, packet: Packet) -> bytes:
        return binary_frame(packet.payload) if packet.binary else text_frame(packet.payload)


NATIVE = NativeWire()
SOCKETIO_POLLING = SocketIoPolling()
SOCKETIO_WEBSOCKET = SocketIoWebSocket()
WIRES: tuple[Wire, ...] = (NATIVE, SOCKETIO_WEBSOCKET, SOCKETIO_POLLING)


def head(type_: str, channel: str) -> bytes:
    """Return how the envelopes of events of a type on a channel begin; names need no escaping."""
    return b'{"type":"%b","channel":"%b","data":' % (type_.encode(), channel.encode())


def event(
    head: bytes,
    data: bytes,
    timestamp: int,
    seq: int,
    offset: bytes,
    conflated: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the envelope of an event; `head` as above, `timestamp` in Unix ms."""
    text = b'%b%b,"timestamp":%d,"seq":%d,"offset":"%b"' % (head, data, timestamp, seq, offset)
    if conflated is None:
        return text + b"}"
    return b'%b,"conflated":%b}' % (text, _encode(conflated))


def marked(envelope: bytes, mark: str) -> bytes:
    """Return an event's envelope with `"replay":true` or `"snapshot":true` added."""
    return b'%b,"%b":true}' % (envelope[:-1], mark.encode())


def message(
    type_: str, data: Any, now_ms: int, id: Any = None, offset: bytes | None = None
) -> bytes:
    """Return the envelope of a message for one client; `id` echoes a request's."""
    fields: dict[str, Any] = {"type": type_, "data": data, "timestamp": now_ms}
    if id is not None:
        fields["id"] = id
    if offset is not None:
        fields["offset"] = offset.decode()
    return _encode(fields)


def error(
    code: str, text: str, now_ms: int, id: Any = None, extra: Mapping[str, Any] | None = None
) -> bytes:
    """Return an `error` envelope; codes as in protocol section 2."""
    return message("error", {"code": code, "message": text, **(extra or {})}, now_ms, id)


def skipped(
    channel: str, symbol: str | None, first: int, last: int, reason: str, now_ms: int
) -> bytes:
    """Return the envelope that tells a client which `seq` of a stream it was not sent."""
    data = {
        "channel": channel, "symbol": symbol, "count": last - first + 1,
        "fromSeq": first, "toSeq": last, "reason": reason,
    }  # fmt: skip
    return message("skipped", data, now_ms)


def joined(wire: Wire, records: Sequence[Record]) -> bytes:
    """Return the bytes of several records in one piece."""
    if len(records) == 1:
        return wire.record(records[0])
    return b"".join([wire.record(r) for r in records])
