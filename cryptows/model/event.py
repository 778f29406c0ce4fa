"""Events: what a producer reports, and the numbered record that clients get of it.

`EventType` says where events of a type go and what their `data` must look like; the seed's are in
`types.py`, the config may add more. An `Event` is one accepted feed line. A `Record` is that event
on one channel, numbered and encoded: what the journal keeps, outboxes queue and sockets send.
Protocol sections 1 and 2.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import attrs
import msgspec

from cryptows.model.channel import Lane


class FieldKind(enum.StrEnum):
    """The type of one field of `data`. A number may also be a decimal string."""

    NUMBER = "number"
    INTEGER = "integer"
    STRING = "string"
    BOOLEAN = "boolean"
    OBJECT = "object"
    ARRAY = "array"


@attrs.frozen
class Field:
    """What one field of `data` may hold; null and absence are always allowed."""

    kind: FieldKind
    min: float | None = None
    max: float | None = None
    choices: tuple[str, ...] = ()  # compared without regard to case


class UserField(enum.StrEnum):
    """Whether an event of a type names a user."""

    NONE = "none"
    OPTIONAL = "optional"
    REQUIRED = "required"


@attrs.frozen
class EventType:
    """One type of event: its default channels (names or families with `{id}`) and its schema."""

    name: str
    channels: tuple[str, ...]
    user: UserField = UserField.NONE
    user_channels: tuple[str, ...] | None = None  # taken instead when an optional user is named
    fields: Mapping[str, Field] = attrs.Factory(dict)


class Event(msgspec.Struct, gc=False):  # no cycles; a struct costs half of an attrs class here
    """One accepted event, as fed."""

    type: str
    data: bytes  # the JSON object exactly as the producer wrote it
    timestamp: int  # Unix ms
    symbol: str | None = None  # data.symbol
    price: float | None = None  # data.price
    volume: float | None = None  # data.volume, else data.size
    channel: str | None = None  # the producer's override of the default routes
    user_id: str | None = None
    id: str | None = None


class Record(msgspec.Struct, gc=False, eq=False):
    """An event on one channel: numbered, encoded once, shared by everyone who gets it."""

    n: int  # the daemon-wide position; `offset` is "<epoch>.<n>"
    seq: int  # counts per stream (channel, symbol)
    channel: str
    symbol: str | None
    lane: Lane
    timestamp: int
    envelope: bytes  # the JSON text of protocol section 2
    offset: bytes  # "<epoch>.<n>"
    frame: bytes | None = None  # the native WebSocket text frame, made on first need
    packet: bytes | None = None  # the Socket.IO packet as Engine.IO text (polling), on first need
    packet_frame: bytes | None = None  # the same as a WebSocket text frame, on first need

    @property
    def stream(self) -> tuple[str, str | None]:
        """What `seq` counts and conflation goes by."""
        return (self.channel, self.symbol)
