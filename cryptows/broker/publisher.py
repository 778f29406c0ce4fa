"""What becomes of an accepted event: which channels, which numbers, which clients.

Everything here is decided at once, without I/O. Events come in as producers sent them; what goes
out stands in `touched`: the audiences to write to, each with its records in order. The dispatcher
writes and then calls `start_pass` for the next ones.

Durable events make a detour: they wait in `held` until the store has committed them, so that no
client is shown what a crash would forget. Later events of the channels they are on their way to
wait behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs
import msgspec

from cryptows.broker.counters import Counters
from cryptows.broker.dedup import Dedup
from cryptows.broker.journal import Journal, Stream
from cryptows.broker.routes import Audience, Routes
from cryptows.broker.throttle import Conflated, Throttle
from cryptows.model.channel import ChannelClass, ChannelTable
from cryptows.model.errors import BadEvent
from cryptows.model.event import Event, EventType, Record

PRICE_UPDATES = "price_updates"
PRICED_TYPE = "market_data_update"

MAX_REMEMBERED = 10_000  # overriding channels whose targets are kept; beyond it they are sought


@attrs.frozen
class Targets:
    """Class and name of each channel that an event goes to."""

    channels: tuple[tuple[ChannelClass, str], ...]
    durable: bool

    @classmethod
    def of(cls, channels: Iterable[tuple[ChannelClass, str]]) -> Targets:
        """Return the targets; `durable` if any of them is."""
        channels = tuple(channels)
        return cls(channels, any(rules.durable for rules, _ in channels))


Done = Callable[[bytes | None, int, BadEvent | None, bool], None]
"""Called once for an event: its offset, how many clients get it, what went wrong, a duplicate?"""


def _nobody(
    offset: bytes | None, delivered_to: int, error: BadEvent | None, duplicate: bool
) -> None:
    """The answer of a producer that wants none."""


@attrs.define
class Held:
    """A durable event on its way through the store."""

    event: Event
    targets: Targets
    done: Done
    records: list[tuple[Stream, Record]] = attrs.field(factory=list)
    repeats: list[Done] = attrs.field(factory=list)  # the same id again, before the commit


@attrs.define
class Publisher:
    """The deciding half of the dispatcher."""

    table: ChannelTable
    types: dict[str, EventType]
    journal: Journal
    routes: Routes
    counters: Counters
    dedup: Dedup
    store: bool = False  # whether durable events go through the store
    producer: str = ""  # who sent the events that are being accepted
    touched: list[Audience] = attrs.field(factory=list, init=False)
    held: list[Held] = attrs.field(factory=list, init=False)
    _throttles: dict[str, Throttle] = attrs.field(factory=dict, init=False)
    _holding: dict[str, int] = attrs.field(factory=dict, init=False)  # channel: events held
    _held_ids: dict[str, Held] = attrs.field(factory=dict, init=False)
    _targets: dict[str, Targets] = attrs.field(factory=dict, init=False)
    _overrides: dict[str, Targets] = attrs.field(factory=dict, init=False)

    def start_pass(self) -> list[Audience]:
        """Return the audiences to write to, and begin a new pass."""
        touched, self.touched = self.touched, []
        return touched

    def reconfigure(self, table: ChannelTable, types: dict[str, EventType]) -> None:
        """Take over channels and types after a reload; what waits in throttles is kept."""
        self.table, self.types = table, types
        self._targets.clear()
        self._overrides.clear()
        for stream_key, stream in self.journal.streams.items():
            found = table.find(stream_key[0])
            if found is not None:
                stream.rules = found[0]
        for name, throttle in self._throttles.items():
            found = table.find(name)
            throttle.interval = found[0].throttle if found is not None else 0.0

    def accept(self, event: Event, now: float, now_ms: int, done: Done | None = None) -> None:
        """Route one event; `done` is called now, or after the commit of a durable one.

        Without `done` (the producer wants no acknowledgement) BadEvent is raised instead.
        """
        if event.id is not None and self._repeated(event.id, now_ms, done or _nobody):
            return
        try:
            targets = self.targets(event)
            if self.store and (targets.durable or self._is_behind_held(targets)):
                self._hold(event, targets, done or _nobody)
                return
            offset, delivered = self._publish(event, targets, now)
        except BadEvent as error:
            if done is None:
                raise
            done(None, 0, error, False)
            return
        if event.id is not None:
            self.dedup.add(event.id, offset, now_ms)
        self.counters.events_in += 1
        if not delivered:
            self.counters.undeliverable += 1
        if done is not None:
            done(offset or self.journal.offset, delivered, None, False)

    def targets(self, event: Event) -> Targets:
        """Return where an event goes (protocol section 1); BadEvent if there is no such channel."""
        if event.channel is not None:
            return self._override(event.channel)
        type_ = self.types[event.type]
        if event.user_id is None:
            targets = self._targets.get(event.type)
            if targets is None:
                targets = self._targets[event.type] = self._find(type_.channels, None)
            return targets
        names = type_.channels if type_.user_channels is None else type_.user_channels
        return self._find(names, event.user_id)

    def _override(self, channel: str) -> Targets:
        targets = self._overrides.get(channel)
        if targets is None:
            found = self.table.find(channel)
            if found is None:
                raise BadEvent("unknown_channel", f"channel {channel!r} does not exist")
            targets = Targets.of([(found[0], channel)])
            if len(self._overrides) < MAX_REMEMBERED:
                self._overrides[channel] = targets
        return targets

    def _find(self, names: Iterable[str], user_id: str | None) -> Targets:
        targets = []
        for name in names:
            if "{id}" in name:
                if user_id is None:
                    continue
                name = name.replace("{id}", user_id)
            found = self.table.find(name)
            if found is not None:
                targets.append((found[0], name))
        return Targets.of(targets)

    def _repeated(self, id_: str, now_ms: int, done: Done) -> bool:
        held = self._held_ids.get(id_)
        if held is not None:
            self.counters.duplicates += 1
            held.repeats.append(done)
            return True
        seen = self.dedup.find(id_, now_ms)
        if seen is None:
            return False
        self.counters.duplicates += 1
        done(seen[0], 0, None, True)
        return True

    # live

    def _publish(self, event: Event, targets: Targets, now: float) -> tuple[bytes | None, int]:
        """Number an event on its channels and note it for their clients."""
        offset, delivered = None, 0
        streams = self.journal.streams
        for rules, channel in targets.channels:
            stream = streams.get((channel, event.symbol))
            if stream is None:
                stream = self.journal.stream(rules, channel, event.symbol)
            stream.heard, stream.producer = now, self.producer
            conflated = None
            if rules.throttle:
                key = (channel, event.symbol)
                passes, conflated = self._throttle(rules).offer(key, event, now)
                if not passes:
                    self.counters.throttled += 1
                    continue
            record = self._record(stream, channel, event, conflated)
            offset = record.offset
            delivered += self.spread(stream, record)
        if event.type == PRICED_TYPE and event.channel is None and event.price is not None:
            delivered += self._publish_price(event, event.price, now)
        return offset, delivered

    def _record(
        self, stream: Stream, channel: str, event: Event, conflated: Conflated | None = None
    ) -> Record:
        if conflated is not None and stream.rules.keep_extremes:
            self.counters.conflated += 1
            extra = conflated.document()
            return self.journal.number(stream, channel, event, self.journal.n + 1, extra)
        return self.journal.number(stream, channel, event, self.journal.n + 1)

    def _publish_price(self, event: Event, price: float, now: float) -> int:
        """Derive `price_updates`: what changed, from what, by how much."""
        found = self.table.find(PRICE_UPDATES)
        if found is None:
            return 0
        stream = self.journal.stream(found[0], PRICE_UPDATES, event.symbol)
        before, stream.price = stream.price, price
        if before == price:
            return 0
        data = _price_change(event.symbol, price, before)
        derived = Event(event.type, data, event.timestamp, event.symbol, price)
        return self._publish_on(stream, found[0], derived, now)

    def _publish_on(self, stream: Stream, rules: ChannelClass, event: Event, now: float) -> int:
        stream.heard, stream.producer = now, self.producer
        conflated = None
        if rules.throttle:
            key = (rules.name, event.symbol)
            passes, conflated = self._throttle(rules).offer(key, event, now)
            if not passes:
                return 0
        return self.spread(stream, self._record(stream, rules.name, event, conflated))

    def spread(self, stream: Stream, record: Record) -> int:
        """Journal a record and note it for everybody subscribed; return how many that is."""
        self.journal.append(stream, record)
        delivered = 0
        for audience in self.routes.audiences(record.channel, record.symbol):
            if not audience.records:
                self.touched.append(audience)
            audience.records.append(record)
            delivered += len(audience.members)
        self.counters.deliveries += delivered
        return delivered

    # throttled

    def _throttle(self, rules: ChannelClass) -> Throttle:
        throttle = self._throttles.get(rules.name)
        if throttle is None:
            throttle = self._throttles[rules.name] = Throttle(rules.throttle)
        return throttle

    def release(self, now: float) -> None:
        """Publish the throttled events whose time has come."""
        for throttle in self._throttles.values():
            for (channel, symbol), event, conflated in throttle.release(now):
                stream = self.journal.streams[channel, symbol]
                self.spread(stream, self._record(stream, channel, event, conflated))

    @property
    def next_due(self) -> float:
        """When `release` has something to do."""
        return min((t.next_due for t in self._throttles.values()), default=float("inf"))

    @property
    def throttlers(self) -> tuple[int, int]:
        """How many streams are throttled, and how many events are kept for later."""
        each = self._throttles.values()
        return sum(t.active for t in each), sum(t.kept for t in each)

    # durable

    def _is_behind_held(self, targets: Targets) -> bool:
        """Whether an event of one of these channels is on its way through the store."""
        holding = self._holding
        return bool(holding) and any(channel in holding for _, channel in targets.channels)

    def _hold(self, event: Event, targets: Targets, done: Done) -> None:
        for rules, channel in targets.channels:  # raises while nothing has been noted yet
            self.journal.stream(rules, channel, event.symbol)
        held = Held(event, targets, done)
        self.held.append(held)
        if event.id is not None:
            self._held_ids[event.id] = held
        for _, channel in targets.channels:
            self._holding[channel] = self._holding.get(channel, 0) + 1

    def number_held(self) -> list[Held]:
        """Give the held events their numbers and hand them over, to be committed as one."""
        batch, self.held = self.held, []
        n = self.journal.reserve()
        for held in batch:
            for rules, channel in held.targets.channels:
                stream = self.journal.stream(rules, channel, held.event.symbol)
                held.records.append((stream, self.journal.number(stream, channel, held.event, n)))
                n += 1
        return batch

    def settle(self, batch: list[Held], stored: bool, now: float, now_ms: int) -> None:
        """Deliver what was committed (or could not be: live all the same, but refused)."""
        self.journal.settle()
        for held in batch:
            event, offset, delivered = held.event, None, 0
            for stream, record in held.records:
                stream.heard = now
                offset = record.offset
                delivered += self.spread(stream, record)
            for _, channel in held.targets.channels:
                self._holding[channel] -= 1
                if not self._holding[channel]:
                    del self._holding[channel]
            if event.id is not None:
                del self._held_ids[event.id]
            self.counters.events_in += 1
            error = None if stored else _NOT_STORED
            if stored and event.id is not None:
                self.dedup.add(event.id, offset, now_ms)
            held.done(offset, delivered, error, False)
            for repeat in held.repeats:
                repeat(offset, 0, error, True)


_NOT_STORED = BadEvent(
    "not_stored", "delivered to who is connected, but not stored; send it again later"
)


class PriceChange(msgspec.Struct):
    """The `data` of a price update."""

    symbol: str | None
    price: float
    previousPrice: float | None = None  # noqa: N815 - the names of the contract
    change: float | None = None
    changePercent: float | None = None  # noqa: N815


_encode = msgspec.json.Encoder().encode


def _price_change(symbol: str | None, price: float, before: float | None) -> bytes:
    if before is None:
        return _encode(PriceChange(symbol, price))
    change = round(price - before, 12)  # without the noise of binary fractions
    percent = round(change / before * 100, 6) if before else None
    return _encode(PriceChange(symbol, price, before, change, percent))
