"""Engine.IO v4 packets: one type digit and its data, alone in a WebSocket frame or many in a poll.

Text messages carry a digit; binary ones are raw frames on WebSocket and `b` with base64 in a
polling payload. Reading is strict: whatever is not a packet raises ProtocolError, which costs its
sender the session. What a packet means in which state is `enginesession`'s.
"""

from __future__ import annotations

import binascii
import enum
from collections.abc import Iterator

import attrs

from cryptows.model.errors import CryptowsError
from cryptows.wire import strictjson
from cryptows.wire.envelope import Packet

PROTOCOL = "4"
SEPARATOR = b"\x1e"
# python-engineio throws away the whole answer of a poll that holds more packets than this.
MAX_PACKETS_OUT = 16


class ProtocolError(CryptowsError):
    """What a client sent breaks the protocol; ends that client and nobody else."""


class Kind(enum.StrEnum):
    """The type digit of a packet."""

    OPEN = "0"
    CLOSE = "1"
    PING = "2"
    PONG = "3"
    MESSAGE = "4"
    UPGRADE = "5"
    NOOP = "6"


PING = Packet(b"2")
PROBE_ANSWER = Packet(b"3probe")
CLOSE = b"1"
NOOP = b"6"
OK = b"ok"  # the answer to a POST; python-engineio says OK, the reference and its suite ok

_KINDS = {kind.value: kind for kind in Kind}


@attrs.frozen
class Incoming:
    """A packet from a client. Binary data is always a MESSAGE's."""

    kind: Kind
    data: str | bytes = attrs.field(default="", repr=False)  # may hold a token


@attrs.frozen
class Timing:
    """The deadlines of a mount, in seconds, and the largest message it takes, in bytes."""

    ping_interval: float = 25.0
    ping_timeout: float = 20.0
    upgrade_timeout: float = 10.0
    max_payload: int = 1_000_000
    # A poll during an upgrade: the first is answered at once, further ones after this long, which
    # is short enough not to stall the client and long enough not to let it spin.
    noop_delay: float = 0.03
    # How long the last packets and the close wait for a poll that may fetch them.
    linger: float = 30.0


def decode_frame(frame: str | bytes) -> Incoming:
    """Read a WebSocket message; raise ProtocolError."""
    if isinstance(frame, bytes):
        return Incoming(Kind.MESSAGE, frame)
    head = frame[:1]
    if head == "b":
        return Incoming(Kind.MESSAGE, _from_base64(frame[1:]))
    kind = _KINDS.get(head)
    if kind is None:
        raise ProtocolError(f"expected a packet type 0 to 6 or b, found {head!r}")
    return Incoming(kind, frame[1:])


def decode_payload(body: bytes) -> Iterator[Incoming]:
    """Read the body of a POST packet by packet.

    An iterator, because the packets before a bad one count: ProtocolError is raised when it is
    reached. JSON escapes control characters, so the separator never stands inside a packet.
    """
    for part in body.split(SEPARATOR):
        try:
            text = part.decode()
        except UnicodeDecodeError as error:
            raise ProtocolError(f"not UTF-8 at byte {error.start} of a packet") from None
        yield decode_frame(text)


def encode_payload(packets: list[bytes]) -> bytes:
    """Return the body that answers a poll."""
    return SEPARATOR.join(packets)


def base64_packet(packet: Packet) -> Packet:
    """Return a binary packet as base64 text, for clients that asked for it with `b64=1`."""
    if not packet.binary:
        return packet
    return Packet(b"b" + binascii.b2a_base64(packet.payload, newline=False))


def open_packet(sid: str, upgrades: list[str], timing: Timing) -> bytes:
    """Return the first packet of a session, which tells the client all deadlines."""
    return b"0" + strictjson.encode(
        {
            "sid": sid,
            "upgrades": upgrades,
            "pingInterval": round(timing.ping_interval * 1000),
            "pingTimeout": round(timing.ping_timeout * 1000),
            "maxPayload": timing.max_payload,
        }
    )


def _from_base64(text: str) -> bytes:
    try:
        return binascii.a2b_base64(text.encode(), strict_mode=True)
    except (binascii.Error, UnicodeError) as error:
        raise ProtocolError(f"bad base64: {error}") from None
