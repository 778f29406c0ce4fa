"""The feed: a line becomes an event, or the producer hears exactly what is wrong with it.

Almost every line is one good event, so it costs one decode of its fields, one of its `data` by the
schema of its type, and look-ups in what was found good before. Only a line that the first decode
stumbles over is read field by field, by `feedfields`, for the sake of what a bot may reasonably
write otherwise (`1.7e12`) and of the words of the error. `data` itself is copied out as it came.

A line without `type` is one of the three others: hello, keepalive or batch. Protocol section 1.
"""

from __future__ import annotations

import attrs
import msgspec

from cryptows.config.settings import Settings
from cryptows.model.channel import USER_ID
from cryptows.model.errors import BadEvent
from cryptows.model.event import Event, EventType, UserField
from cryptows.model.schema import Schema, bad_value, check_symbol
from cryptows.wire import feedfields
from cryptows.wire.feedfields import MAX_DEPTH, MAX_ID, NOT_DECODED, Hello, Line

MAX_BATCH = 1000  # events of one line: they are decoded in one go, and others wait meanwhile
MAX_KEEPALIVE = 1000  # streams of one keepalive line, for the same reason
REMEMBERED = 16_384  # names that were found good; beyond it the memory starts anew


@attrs.frozen
class Keepalive:
    """`{"keepalive":["market_data:BTCUSDT"]}`: these streams are quiet, not dead."""

    streams: tuple[str, ...]


Decoded = Event | list[Event] | Hello | Keepalive

_line = msgspec.json.Decoder(Line).decode
_encode = msgspec.json.Encoder().encode


@attrs.define
class _Kind:
    """An event type as the decoder uses it."""

    type: EventType
    schema: Schema
    needs_user: bool
    # Channels it was found to be allowed on, each with the user in its name.
    channels: dict[str, str | None] = attrs.field(factory=dict)


class FeedDecoder:
    """Decodes the lines of all producers, by the event types and channels of the settings."""

    def __init__(self, settings: Settings) -> None:
        self._channels = settings.channels
        self._kinds = {
            t.name: _Kind(t, Schema(t), t.user is UserField.REQUIRED)
            for t in settings.types.values()
        }
        self._users: set[str] = set()  # user ids found good

    def decode(self, line: bytes, now_ms: int) -> Decoded:
        """Return what a line says, raise BadEvent if it cannot be used; a batch is a list."""
        try:
            if len(line) > 2 * MAX_DEPTH or not line.isascii():
                feedfields.check_text(line)
            head = _line(line)
        except NOT_DECODED:
            return self._decode_carefully(line, now_ms)
        return self._event(head, now_ms)

    def _event(self, head: Line, now_ms: int) -> Event:
        """Check what the line's fields say, cheapest first."""
        kind = self._kinds.get(head.type)
        if kind is None:
            raise BadEvent(
                "unknown_type", "type: " + feedfields.no_such(head.type, tuple(self._kinds))
            )
        timestamp = head.timestamp
        if timestamp is None:
            timestamp = now_ms
        else:
            feedfields.check_timestamp(timestamp)
        if head.id is not None and not 0 < len(head.id) <= MAX_ID:
            raise bad_value("id", f"1 to {MAX_ID} characters", _encode(head.id))
        user_id = head.user_id
        if kind.needs_user or user_id is not None or head.channel is not None:
            user_id = self._addressee(kind, head.channel, user_id)
        data = bytes(head.data)
        if data[0] != 0x7B:
            raise bad_value("data", "an object", data)
        found = kind.schema.read(data)
        volume = found.volume
        return Event(
            head.type, data, timestamp, found.symbol, found.price,
            found.size if volume is None else volume, head.channel, user_id, head.id,
        )  # fmt: skip

    def _addressee(self, kind: _Kind, channel: str | None, user_id: str | None) -> str | None:
        """Return the user an event belongs to, once channel and user are found to agree."""
        if user_id is not None and user_id not in self._users:
            self._remember_user(user_id)
        if channel is not None:
            if channel not in kind.channels:
                self._remember_channel(kind, channel)
            owner = kind.channels[channel]
            if owner is not None and user_id is not None and owner != user_id:
                text = f'channel: "{channel}" belongs to another user than user_id, "{user_id}"'
                raise BadEvent("invalid_event", text)
            user_id = user_id or owner
        if user_id is None and kind.needs_user:
            raise BadEvent("invalid_event", f"user_id: missing; {kind.type.name} belongs to a user")
        return user_id

    def _remember_user(self, user_id: str) -> None:
        if not USER_ID.fullmatch(user_id):
            expected = 'up to 64 letters, digits, ".", "-" and "_"'
            raise bad_value("user_id", expected, _encode(user_id))
        if len(self._users) >= REMEMBERED:
            self._users.clear()
        self._users.add(user_id)

    def _remember_channel(self, kind: _Kind, channel: str) -> None:
        found = self._channels.find(channel)
        if found is None:
            names = tuple(c.name for c in self._channels.classes)
            raise BadEvent("unknown_channel", "channel: " + feedfields.no_such(channel, names))
        cls, owner = found
        routes = kind.type.channels + (kind.type.user_channels or ())
        if kind.type.name not in cls.types and cls.name not in routes:
            text = f'channel: "{channel}" does not carry {kind.type.name}'
            if cls.types:
                text += ", only " + ", ".join(sorted(cls.types))
            raise BadEvent("invalid_event", text)
        if len(kind.channels) >= REMEMBERED:
            kind.channels.clear()
        kind.channels[channel] = owner

    def _decode_carefully(self, line: bytes, now_ms: int) -> Decoded:
        """Read a line that is no plain event, or say why it cannot be used."""
        feedfields.check_text(line)
        fields = feedfields.object_of(line)
        if "type" not in fields:
            for name, read in (
                ("hello", feedfields.hello),
                ("batch", self._batch),
                ("keepalive", self._keepalive),
            ):
                if name in fields:
                    return read(fields[name], now_ms)
        return self._event(feedfields.head(fields), now_ms)

    def _batch(self, raw: bytes, now_ms: int) -> list[Event]:
        items = feedfields.texts(raw)
        if items is None or not 0 < len(items) <= MAX_BATCH:
            found = raw if items is None else b"%d" % len(items)
            raise bad_value("batch", f"an array of 1 to {MAX_BATCH} events", found)
        return [self._batch_item(item, i, now_ms) for i, item in enumerate(items)]

    def _batch_item(self, item: bytes, i: int, now_ms: int) -> Event:
        if item[:1] != b"{":
            raise bad_value(f"batch[{i}]", "an object", item)
        try:
            try:
                head = _line(item)
            except NOT_DECODED:
                head = feedfields.head(feedfields.object_of(item))
            return self._event(head, now_ms)
        except BadEvent as error:
            raise BadEvent(error.code, f"batch[{i}].{error.message}") from None

    def _keepalive(self, raw: bytes, _now_ms: int) -> Keepalive:
        items = feedfields.texts(raw)
        if items is None or len(items) > MAX_KEEPALIVE:
            found = raw if items is None else b"%d" % len(items)
            raise bad_value("keepalive", f"an array of up to {MAX_KEEPALIVE} streams", found)
        return Keepalive(tuple(self._stream(item, i) for i, item in enumerate(items)))

    def _stream(self, item: bytes, i: int) -> str:
        where = f"keepalive[{i}]"
        name = feedfields.string({where: item}, where)
        if name is None:
            raise bad_value(where, "a string", item)
        channel, colon, symbol = name.partition(":")
        found = self._channels.find(channel)
        if found is None:
            names = tuple(c.name for c in self._channels.classes)
            raise BadEvent("unknown_channel", f"{where}: " + feedfields.no_such(channel, names))
        if colon:
            check_symbol(symbol, where)
        return name
