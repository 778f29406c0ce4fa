"""Where events go: from an event's type, user or `channel` to the streams it is published on.

The routes of protocol section 1 are in the event types; here they are looked up once for each type,
user and overriding channel, and remembered together with the streams. A reload begins anew.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from cryptows.broker.journal import Journal, Stream
from cryptows.model.channel import ChannelClass, ChannelTable
from cryptows.model.errors import BadEvent
from cryptows.model.event import Event, EventType

PRICE_UPDATES = "price_updates"
PRICED_TYPE = "market_data_update"

MAX_REMEMBERED = 10_000  # users and overriding channels; beyond it they are sought every time


@attrs.define(eq=False)
class Targets:
    """The channels that some events go to, each with its class."""

    channels: tuple[tuple[ChannelClass, str], ...]
    priced: bool = False  # whether `price_updates` is derived from these events
    durable: bool = attrs.field(init=False)
    # By symbol: bounded by the streams there are.
    streams: dict[str | None, list[Stream]] = attrs.field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self.durable = any(rules.durable for rules, _ in self.channels)


@attrs.define
class TargetFinder:
    """Finds the targets of events. `prices` are those of derived price updates."""

    table: ChannelTable
    types: dict[str, EventType]
    journal: Journal
    prices: Targets | None = attrs.field(init=False)
    _by_type: dict[str, Targets] = attrs.field(factory=dict, init=False)
    _by_user: dict[tuple[str, str], Targets] = attrs.field(factory=dict, init=False)
    _by_channel: dict[str, Targets] = attrs.field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self.reconfigure(self.table, self.types)

    def reconfigure(self, table: ChannelTable, types: dict[str, EventType]) -> None:
        """Take over channels and types after a reload."""
        self.table, self.types = table, types
        for remembered in (self._by_type, self._by_user, self._by_channel):
            remembered.clear()
        found = table.find(PRICE_UPDATES)
        self.prices = None if found is None else Targets(((found[0], PRICE_UPDATES),))

    def find(self, event: Event) -> Targets:
        """Return where an event goes; BadEvent if it goes nowhere."""
        if event.channel is not None:
            return self._by_channel.get(event.channel) or self._of_channel(event.channel)
        if event.user_id is None:
            return self._by_type.get(event.type) or self._of_type(event.type)
        key = (event.type, event.user_id)
        return self._by_user.get(key) or self._of_user(*key)

    def streams(self, targets: Targets, symbol: str | None) -> list[Stream]:
        """Return the stream of each channel, made if need be; BadEvent if there are too many.

        Also makes that of the price updates, so that an event is published whole or not at all.
        """
        streams = targets.streams.get(symbol)
        if streams is None:
            make = self.journal.stream
            streams = [make(rules, channel, symbol) for rules, channel in targets.channels]
            if targets.priced and self.prices is not None:
                self.streams(self.prices, symbol)
            targets.streams[symbol] = streams
        return streams

    def check(self, events: Iterable[Event]) -> None:
        """Raise BadEvent unless every one of these can go where it is to go, all together."""
        new: set[tuple[str, str | None]] = set()
        for event in events:
            targets = self.find(event)
            if event.symbol not in targets.streams:
                new |= {(channel, event.symbol) for _, channel in targets.channels}
                if targets.priced and self.prices is not None:
                    new.add((PRICE_UPDATES, event.symbol))
        self.journal.check_room(len(new - self.journal.streams.keys()))

    def _of_channel(self, channel: str) -> Targets:
        found = self.table.find(channel)
        if found is None:
            raise BadEvent("unknown_channel", f'channel: "{channel}" does not exist')
        targets = Targets(((found[0], channel),))
        if len(self._by_channel) < MAX_REMEMBERED:
            self._by_channel[channel] = targets
        return targets

    def _of_type(self, name: str) -> Targets:
        type_ = self._type(name)
        targets = self._by_type[name] = self._among(name, type_.channels)
        return targets

    def _of_user(self, name: str, user_id: str) -> Targets:
        type_ = self._type(name)
        families = type_.channels if type_.user_channels is None else type_.user_channels
        channels = tuple(family.replace("{id}", user_id) for family in families)
        targets = self._among(name, channels)
        if len(self._by_user) < MAX_REMEMBERED:
            self._by_user[name, user_id] = targets
        return targets

    def _type(self, name: str) -> EventType:
        type_ = self.types.get(name)
        if type_ is None:  # the event was decoded before a reload that took its type away
            raise BadEvent("unknown_type", f'type: "{name}" is not declared any more')
        return type_

    def _among(self, type_: str, channels: tuple[str, ...]) -> Targets:
        found = [(self.table.find(channel), channel) for channel in channels]
        known = tuple((rules[0], channel) for rules, channel in found if rules is not None)
        if not known:
            raise BadEvent("unknown_channel", f'type: "{type_}" goes to no channel that exists')
        return Targets(known, priced=type_ == PRICED_TYPE)
