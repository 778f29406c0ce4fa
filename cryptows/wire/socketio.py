"""Socket.IO v5 packets: `<type>[<attachments>-][/namespace,][id][json]`, and binary after them.

A packet with binary data says how many attachments follow, and its JSON has placeholders where they
belong. Reading is strict and every count bounded: whatever is not a packet raises ProtocolError,
which costs its sender the connection. What may come when is `socketsession`'s.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from cryptows.wire import strictjson
from cryptows.wire.engineio import ProtocolError
from cryptows.wire.envelope import Packet

MAX_ATTACHMENTS = 10  # as in the reference since parser 4.2.6
MAX_ARGUMENTS = 100  # the reference dies of an event with 100 000
MAX_NAMESPACE = 128  # characters
MAX_SAFE_INTEGER = (1 << 53) - 1  # ids are numbers of JavaScript

# Events that a Socket.IO client emits to itself; over the wire they would be forgeries.
RESERVED_EVENTS = frozenset(
    ("connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener")
)


class Type(enum.IntEnum):
    """The type digit of a packet."""

    CONNECT = 0
    DISCONNECT = 1
    EVENT = 2
    ACK = 3
    CONNECT_ERROR = 4
    BINARY_EVENT = 5
    BINARY_ACK = 6


_BINARY = {Type.EVENT: Type.BINARY_EVENT, Type.ACK: Type.BINARY_ACK}
_PLAIN = {binary: plain for plain, binary in _BINARY.items()}

_PACKET = re.compile(
    r"(?P<type>[0-6])"
    r"(?:(?P<attachments>0|[1-9][0-9]{0,2})-)?"
    r"(?:(?P<namespace>/[^,\x00-\x1f\x7f]*)(?:,|\Z))?"
    r"(?P<id>0|[1-9][0-9]{0,15})?"
    r"(?P<json>(?![0-9]).*)?\Z",
    re.ASCII | re.DOTALL,
)


@attrs.frozen
class SocketPacket:
    """A packet whose JSON has been read. Binary types are told by `attachments` alone."""

    type: Type
    namespace: str = "/"
    id: int | None = None
    # CONNECT: an object or None; EVENT and ACK: a list. Not shown, as it may hold a token.
    data: Any = attrs.field(default=None, repr=False)
    attachments: int = 0


def decode(text: str) -> SocketPacket:
    """Read the text part of a packet; raise ProtocolError."""
    match = _PACKET.match(text)
    if match is None:
        raise ProtocolError("not a Socket.IO packet")
    type_ = Type(int(match["type"]))
    namespace = match["namespace"] or "/"
    if len(namespace) > MAX_NAMESPACE:
        raise ProtocolError(f"a namespace of {len(namespace)} characters; {MAX_NAMESPACE} may be")
    id_ = None if match["id"] is None else int(match["id"])
    attachments = _attachments(type_, match["attachments"])
    plain = _PLAIN.get(type_, type_)
    data = _checked(plain, id_, _json(match["json"]))
    return SocketPacket(plain, namespace, id_, data, attachments)


def _attachments(type_: Type, count: str | None) -> int:
    if (count is not None) != (type_ in _PLAIN):
        raise ProtocolError("a count of attachments stands in binary packets, and only there")
    attachments = int(count or 0)
    if attachments > MAX_ATTACHMENTS:
        raise ProtocolError(f"{attachments} attachments; {MAX_ATTACHMENTS} may be")
    return attachments


def _json(text: str | None) -> Any:
    if not text:
        return _ABSENT
    try:
        return strictjson.decode(text)
    except strictjson.BadJson as error:
        raise ProtocolError(f"bad JSON: {error}") from None


_ABSENT = object()


def _checked(type_: Type, id_: int | None, data: Any) -> Any:
    """Return the payload if it is one that a client may send with that type."""
    if id_ is not None and id_ > MAX_SAFE_INTEGER:
        raise ProtocolError(f"id {id_} is over {MAX_SAFE_INTEGER}")
    match type_:
        case Type.CONNECT if id_ is None and (data is _ABSENT or isinstance(data, dict)):
            return None if data is _ABSENT else data
        case Type.DISCONNECT if id_ is None and data is _ABSENT:
            return None
        case Type.EVENT if isinstance(data, list) and data:
            return _bounded(_named(data))
        case Type.ACK if id_ is not None and isinstance(data, list):
            return _bounded(data)
    raise ProtocolError(f"a {type_.name} from a client cannot look like this")


def _named(data: list[Any]) -> list[Any]:
    name = data[0]
    usable = isinstance(name, str | int | float) and not isinstance(name, bool)
    if not usable or name in RESERVED_EVENTS:
        raise ProtocolError(f"{str(name)[:40]!r} cannot be the name of an event")
    return data


def _bounded(data: list[Any]) -> list[Any]:
    if len(data) > MAX_ARGUMENTS + 1:  # the name is no argument
        raise ProtocolError(f"{len(data) - 1} arguments; {MAX_ARGUMENTS} may be")
    return data


# Binary parts


def assemble(data: Any, attachments: Sequence[bytes]) -> Any:
    """Return a payload with its attachments in place; raise ProtocolError.

    Each attachment must have exactly one place: then no packet means more data than it is long.
    """
    unused = dict(enumerate(attachments))
    whole = _placed(data, unused)
    if unused:
        raise ProtocolError(f"no placeholder for attachment {min(unused)}")
    return whole


def _placed(value: Any, unused: dict[int, bytes]) -> Any:
    if isinstance(value, list):
        return [_placed(inner, unused) for inner in value]
    if not isinstance(value, dict):
        return value
    if value.get("_placeholder") is not True:
        return {key: _placed(inner, unused) for key, inner in value.items()}
    number = value.get("num")
    if type(number) is not int or number not in unused:
        raise ProtocolError(f"a placeholder for attachment {str(number)[:20]}, which is not there")
    return unused.pop(number)


def _taken(value: Any, attachments: list[bytes]) -> Any:
    """Return the value with placeholders for the bytes in it, which move to `attachments`."""
    if isinstance(value, bytes):
        attachments.append(value)
        return {"_placeholder": True, "num": len(attachments) - 1}
    if isinstance(value, list):
        return [_taken(inner, attachments) for inner in value]
    if isinstance(value, dict):
        return {key: _taken(inner, attachments) for key, inner in value.items()}
    return value


# What a server sends. All packets of one list belong together, in that order.


def encode(type_: Type, namespace: str, id_: int | None, data: list[Any]) -> list[Packet]:
    """Return an event or an ack, with its attachments, as Engine.IO packets."""
    attachments: list[bytes] = []
    payload = strictjson.encode(_taken(data, attachments))
    count = ""
    if attachments:
        type_, count = _BINARY[type_], f"{len(attachments)}-"
    number = "" if id_ is None else str(id_)
    head = f"4{type_:d}{count}{_prefix(namespace)}{number}".encode()
    return [Packet(head + payload), *(Packet(each, binary=True) for each in attachments)]


def connected(namespace: str, sid: str, pid: str | None = None) -> Packet:
    """Return the answer to a CONNECT that is granted; without recovery `pid` must be absent."""
    data = {"sid": sid} if pid is None else {"sid": sid, "pid": pid}
    return Packet(f"40{_prefix(namespace)}".encode() + strictjson.encode(data))


def refused(namespace: str, message: str, data: Mapping[str, Any] | None = None) -> Packet:
    """Return the answer to a CONNECT that is refused; the client's Error gets `message`."""
    error = {"message": message} if data is None else {"message": message, "data": data}
    return Packet(f"44{_prefix(namespace)}".encode() + strictjson.encode(error))


def disconnected(namespace: str) -> Packet:
    """Return the packet after which the official client stays away."""
    return Packet(f"41{_prefix(namespace)}".encode())


def _prefix(namespace: str) -> str:
    return "" if namespace == "/" else f"{namespace},"
