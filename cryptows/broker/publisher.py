"""What becomes of an accepted event: which streams, which numbers, which clients.

Everything here is decided at once, without I/O. Events come in as producers sent them; what goes
out stands in `touched`: the audiences to write to, each with its records in order. The dispatcher
writes and then calls `start_pass` for the next ones.

Durable events make a detour: they wait in `held` until the store has committed them, so that no
client is shown what a crash would forget. Later events of the channels they are on their way to
wait behind them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import attrs

from cryptows.broker.counters import Counters
from cryptows.broker.dedup import Dedup
from cryptows.broker.journal import Journal, Stream
from cryptows.broker.prices import price_change
from cryptows.broker.routes import Audience, Routes
from cryptows.broker.targets import TargetFinder, Targets
from cryptows.broker.throttle import Conflated, Throttle
from cryptows.model.channel import ChannelTable
from cryptows.model.errors import BadEvent
from cryptows.model.event import Event, EventType, Record

Done = Callable[[bytes | None, int, BadEvent | None, bool], None]
"""Called once for an event: its offset, how many clients get it, what went wrong, a duplicate?"""


def nobody(
    offset: bytes | None, delivered_to: int, error: BadEvent | None, duplicate: bool
) -> None:
    """The answer of a producer that wants none."""


@attrs.define(eq=False)
class Held:
    """A durable event on its way through the store, or one that waits behind such."""

    event: Event
    priced: bool
    streams: list[Stream]
    done: Done
    producer: str = ""
    records: list[tuple[Stream, Record]] = attrs.field(factory=list)  # of its durable streams
    repeats: list[Done] = attrs.field(factory=list)  # the same id again, before the commit


@attrs.define(eq=False)
class Publisher:
    """The deciding half of the dispatcher."""

    finder: TargetFinder
    journal: Journal
    routes: Routes
    counters: Counters
    dedup: Dedup
    store: bool = False  # whether durable events go through the store
    producer: str = ""  # who sent the events that are being accepted
    touched: list[Audience] = attrs.field(factory=list, init=False)
    held: list[Held] = attrs.field(factory=list, init=False)
    held_bytes: int = attrs.field(default=0, init=False)  # of their `data`
    _throttles: dict[str, Throttle[Stream]] = attrs.field(factory=dict, init=False)  # by class
    _holding: dict[str, int] = attrs.field(factory=dict, init=False)  # channel: events held
    _held_ids: dict[str, Held] = attrs.field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self._configure_throttles()

    def start_pass(self) -> list[Audience]:
        """Return the audiences to write to, and begin a new pass."""
        touched, self.touched = self.touched, []
        return touched

    def reconfigure(self, table: ChannelTable, types: dict[str, EventType]) -> None:
        """Take over channels and types after a reload; what waits in throttles is kept."""
        self.journal.reconfigure(table)
        self.finder.reconfigure(table, types)
        self._configure_throttles()

    def _configure_throttles(self) -> None:
        intervals = {rules.name: rules.throttle for rules in self.finder.table.classes}
        for name, throttle in self._throttles.items():
            throttle.configure(intervals.pop(name, 0.0))
        self._throttles |= {name: Throttle(i) for name, i in intervals.items() if i}

    def check(self, events: Sequence[Event]) -> None:
        """Raise BadEvent unless all events of a batch line can be published."""
        self.finder.check(events)

    def accept(self, event: Event, now: float, now_ms: int, done: Done | None = None) -> None:
        """Route one event; `done` is called now, or after the commit of a durable one.

        Without `done` (the producer wants no acknowledgement) BadEvent is raised instead.
        """
        if event.id is not None and self._repeated(event.id, now_ms, done or nobody):
            return
        try:
            targets = self.finder.find(event)
            streams = targets.streams.get(event.symbol)
            if streams is None:
                streams = self.finder.streams(targets, event.symbol)
        except BadEvent as error:
            if done is None:
                raise
            done(None, 0, error, False)
            return
        self.counters.events_in += 1
        if self.store and (targets.durable or self._is_behind_held(streams)):
            self._hold(event, targets, streams, now, done or nobody)
            return
        offset, delivered = self._publish(event, targets.priced, streams, now)
        offset = self._position(offset, delivered)
        if event.id is not None:
            self.dedup.add(event.id, offset, now_ms)
        if done is not None:
            done(offset, delivered, None, False)

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
        done(seen, 0, None, True)
        return True

    # live

    def _publish(
        self, event: Event, priced: bool, streams: list[Stream], now: float
    ) -> tuple[bytes | None, int]:
        """Number an event on its streams and note it for their clients.

        Returns its offset, None if it waits in a throttle, and how many clients get it.
        """
        offset, delivered = self._publish_on(streams, event, now)
        if priced and event.price is not None:
            price_offset, more = self._publish_price(event, event.price, now)
            return offset or price_offset, delivered + more
        return offset, delivered

    def _position(self, offset: bytes | None, delivered: int) -> bytes:
        """Return what an event is acknowledged with: its offset, or while it waits in a throttle
        where the journal stands."""
        if offset is None:
            return self.journal.offset
        if not delivered:
            self.counters.undeliverable += 1
        return offset

    def _publish_on(
        self, streams: list[Stream], event: Event, now: float
    ) -> tuple[bytes | None, int]:
        offset, delivered = None, 0
        for stream in streams:
            stream.hear(now, self.producer)
            conflated = None
            throttle = self._throttles.get(stream.shelf.rules.name)
            if throttle is not None:
                passes, conflated = throttle.offer(stream, event, now)
                if not passes:
                    self.counters.throttled += 1
                    continue
            record = self._record(stream, event, conflated)
            offset = record.offset
            delivered += self._spread(stream, record)
        return offset, delivered

    def _record(self, stream: Stream, event: Event, conflated: Conflated | None) -> Record:
        journal = self.journal
        if conflated is None or not stream.shelf.rules.keep_extremes:
            return journal.number(stream, event, journal.n + 1)
        self.counters.conflated += 1
        return journal.number(stream, event, journal.n + 1, conflated.document())

    def _publish_price(self, event: Event, price: float, now: float) -> tuple[bytes | None, int]:
        """Derive the event of `price_updates`, if the price changed."""
        prices = self.finder.prices
        streams = None if prices is None else prices.streams.get(event.symbol)
        if prices is None or streams is None:
            return None, 0
        (stream,) = streams
        before, stream.price = stream.price, price
        if before == price:
            stream.hear(now, self.producer)  # it is quiet, not dead
            return None, 0
        data = price_change(event.symbol, price, before)
        derived = Event(event.type, data, event.timestamp, event.symbol, price)
        if self.store and (prices.durable or self._is_behind_held(streams)):
            self._hold(derived, prices, streams, now, nobody)
            return None, 0
        return self._publish_on(streams, derived, now)

    def _spread(self, stream: Stream, record: Record) -> int:
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

    def release(self, now: float) -> None:
        """Publish the throttled events whose time has come."""
        for throttle in self._throttles.values():
            for stream, event, conflated in throttle.release(now):
                self._spread(stream, self._record(stream, event, conflated))

    @property
    def next_due(self) -> float:
        """When `release` has something to do."""
        return min((t.next_due for t in self._throttles.values()), default=math.inf)

    def throttled(self, now: float) -> tuple[int, int]:
        """How many streams are throttled, and how many events are kept for later."""
        each = self._throttles.values()
        return sum(t.active(now) for t in each), sum(t.kept for t in each)

    # durable

    def _is_behind_held(self, streams: list[Stream]) -> bool:
        """Whether an event of one of these channels is on its way through the store."""
        holding = self._holding
        return bool(holding) and any(stream.channel in holding for stream in streams)

    def _hold(
        self, event: Event, targets: Targets, streams: list[Stream], now: float, done: Done
    ) -> None:
        held = Held(event, targets.priced, streams, done, self.producer)
        self.held.append(held)
        self.held_bytes += len(event.data)
        if event.id is not None:
            self._held_ids[event.id] = held
        for stream in streams:
            stream.hear(now, self.producer)
            self._holding[stream.channel] = self._holding.get(stream.channel, 0) + 1

    def number_held(self, most: int | None = None, size: float = math.inf) -> list[Held]:
        """Give the oldest held events their numbers and hand them over, to be committed as one.

        At most `most`, and at most `size` bytes of them or one. They are numbered on durable
        channels only: elsewhere they are published after the commit, like live ones.
        """
        batch = self._take_held(most, size)
        n = self.journal.reserve()
        for held in batch:
            for stream in held.streams:
                if stream.shelf.rules.durable:
                    held.records.append((stream, self.journal.number(stream, held.event, n)))
                    n += 1
        return batch

    def _take_held(self, most: int | None, size: float) -> list[Held]:
        count = taken = 0
        for held in self.held[:most]:
            more = taken + len(held.event.data)
            if count and more > size:
                break
            count, taken = count + 1, more
        batch = self.held[:count]
        del self.held[:count]
        self.held_bytes -= taken
        return batch

    def settle(self, batch: list[Held], stored: bool, now: float, now_ms: int) -> None:
        """Deliver what was committed (or could not be: live all the same, but refused)."""
        self.journal.settle()
        delivered = [self._deliver(held) for held in batch]
        for held, count in zip(batch, delivered, strict=True):
            others = [stream for stream in held.streams if not stream.shelf.rules.durable]
            self.producer = held.producer
            offset, more = self._publish(held.event, held.priced, others, now)
            if held.records:
                offset = held.records[-1][1].offset  # the one that the store knows
            offset = self._position(offset, count + more)
            self._answer(held, offset, count + more, stored or not held.records, now_ms)

    def _deliver(self, held: Held) -> int:
        """Deliver on durable channels, and let later events pass there."""
        for stream in held.streams:
            self._holding[stream.channel] -= 1
            if not self._holding[stream.channel]:
                del self._holding[stream.channel]
        return sum(self._spread(stream, record) for stream, record in held.records)

    def _answer(self, held: Held, offset: bytes, delivered: int, stored: bool, now_ms: int) -> None:
        id_ = held.event.id
        if id_ is not None:
            del self._held_ids[id_]
            if stored:
                self.dedup.add(id_, offset, now_ms)
        error = None if stored else _NOT_STORED
        held.done(offset, delivered, error, False)
        for repeat in held.repeats:
            repeat(offset, 0, error, True)


_NOT_STORED = BadEvent(
    "not_stored", "delivered to who is connected, but not stored; send it again later"
)
