"""The journal: every event on a channel gets a number, and the latest ones are kept.

`n` is the position in the daemon as a whole, which clients recover by; `seq` counts within a stream
(channel and symbol) and shows gaps. Each channel keeps a ring bounded in events, bytes and age,
each stream its last value for snapshots. What must survive a restart is the store's.

Numbers only grow in the order of delivery. Records on their way to the disk are delivered after
their commit, so they take numbers from a reserved range ahead, and what is delivered meanwhile
stays below it: a client that has seen `n` has been sent everything up to `n`.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from cryptows.broker.ring import Ring, position
from cryptows.model.channel import ChannelClass, ChannelTable, Pattern, glob
from cryptows.model.errors import BadEvent
from cryptows.model.event import Event, Record
from cryptows.wire import envelope

# Numbers left for undurable records while one commit is under way: about what comes in during the
# longest one (60 000 events a second for 2 s, each on two channels). When they run short, the feed
# waits. 2**53 would be reached after ten years at 100 commits a second.
GAP = 1 << 18
# More than one pass of the dispatcher takes of them: 256 events on a few channels each. What it
# releases from throttles comes on top, at most one record for each stream.
PASS = 1 << 14


def _covered(records: list[Record], patterns: Mapping[Pattern, int]) -> list[Record]:
    """Return the records of one channel that any of its patterns covers after its position."""
    if len(patterns) == 1 and next(iter(patterns)).symbol is None:
        return records  # which were asked for after its position
    symbols: dict[str | None, int] = {}
    others = []
    for pattern, n in patterns.items():
        if pattern.symbol is None or pattern.is_glob:
            others.append((pattern, n))
        else:
            symbols[pattern.symbol] = n
    return [
        r for r in records
        if r.n > symbols.get(r.symbol, r.n)
        or any(r.n > n and pattern.matches(r.symbol) for pattern, n in others)
    ]  # fmt: skip


@attrs.define(eq=False)
class Shelf:
    """What is kept of one channel. Made at its first event, like its streams."""

    rules: ChannelClass
    ring: Ring
    streams: dict[str | None, Stream] = attrs.field(factory=dict)
    heard: float = -math.inf  # the latest of its streams


@attrs.define(eq=False)
class Stream:
    """One stream of a channel: its counter and its last record."""

    channel: str
    symbol: str | None
    shelf: Shelf
    seq: int = 0
    delivered: int = 0  # the `seq` of its last record that was; more are on their way to the disk
    last: Record | None = None
    price: float | None = None  # the last one seen, on `price_updates`
    heard: float = -math.inf  # when its last event came in, on the dispatcher's clock
    producer: str = ""  # who sent it
    head: bytes = b""  # of the envelopes of its events of type `head_of`
    head_of: str = ""

    def hear(self, now: float, producer: str) -> None:
        """Note a sign of life; without a producer it is the daemon's own."""
        self.heard = self.shelf.heard = now
        if producer:
            self.producer = producer


@attrs.define
class Journal:
    """All numbers, rings and last values. `max_streams` bounds what producers can make it hold."""

    epoch: str
    max_streams: int
    n: int = 0  # the position of the last delivered record
    known_seqs: dict[tuple[str, str | None], int] = attrs.field(factory=dict)  # from the store
    started_at: int = attrs.field(init=False)  # nothing before this position is in the rings
    streams: dict[tuple[str, str | None], Stream] = attrs.field(factory=dict, init=False)
    _shelves: dict[str, Shelf] = attrs.field(factory=dict, init=False)
    _ceiling: int | None = attrs.field(default=None, init=False)  # start of the reserved range
    _epoch: bytes = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.started_at = self.n
        self._epoch = self.epoch.encode()

    def stream(self, rules: ChannelClass, channel: str, symbol: str | None) -> Stream:
        """Return a stream, made at its first event; raise BadEvent when there are too many."""
        key = (channel, symbol)
        stream = self.streams.get(key)
        if stream is None:
            self.check_room(1)
            shelf = self._shelves.get(channel)
            if shelf is None:
                shelf = self._shelves[channel] = Shelf(rules, Ring(rules.history))
                shelf.ring.lost = self.started_at
            seq = self.known_seqs.pop(key, 0)
            stream = Stream(channel, symbol, shelf, seq, delivered=seq)
            self.streams[key] = shelf.streams[symbol] = stream
        return stream

    def check_room(self, more: int) -> None:
        """Raise BadEvent when so many streams more would be too many."""
        if more and len(self.streams) + more > self.max_streams:
            text = f"data.symbol: {len(self.streams)} streams exist, limits.streams allows no more"
            if more > 1:
                text = (
                    f"data.symbol: {more} streams more than the {len(self.streams)} that exist,"
                    f" limits.streams allows {self.max_streams}"
                )
            raise BadEvent("too_many_streams", text)

    def reconfigure(self, table: ChannelTable) -> None:
        """Take over the rules after a reload; a channel that is gone keeps its old ones."""
        for channel, shelf in self._shelves.items():
            found = table.find(channel)
            if found is not None:
                shelf.rules = found[0]
                shelf.ring.limit = found[0].history

    @property
    def full(self) -> bool:
        """Whether the numbers below the reserved range run short; `settle` makes room."""
        return self._ceiling is not None and self.n + PASS + len(self.streams) >= self._ceiling

    @property
    def offset(self) -> bytes:
        """The position of the last delivered record as `<epoch>.<n>`."""
        return self.offset_of(self.n)

    def offset_of(self, n: int) -> bytes:
        """A position as clients see it."""
        return b"%b.%d" % (self._epoch, n)

    def number(
        self, stream: Stream, event: Event, n: int, conflated: Mapping[str, Any] | None = None
    ) -> Record:
        """Make the record of an event at position `n`, with the next `seq` of its stream."""
        seq = stream.seq = stream.seq + 1
        offset = b"%b.%d" % (self._epoch, n)
        if stream.head_of != event.type:  # nearly always the same
            stream.head_of, stream.head = event.type, envelope.head(event.type, stream.channel)
        text = envelope.event(stream.head, event.data, event.timestamp, seq, offset, conflated)
        lane = stream.shelf.rules.lane
        return Record(n, seq, stream.channel, stream.symbol, lane, event.timestamp, text, offset)

    def append(self, stream: Stream, record: Record) -> None:
        """Keep a record that is being delivered: in its ring, and as its stream's last value."""
        self.n = record.n
        stream.delivered = record.seq
        shelf = stream.shelf
        if shelf.rules.snapshot:
            stream.last = record
        shelf.ring.add(record)

    def reserve(self) -> int:
        """Set numbers apart for records that are delivered later; returns the first of them."""
        assert self._ceiling is None, "one commit at a time"
        self._ceiling = self.n + GAP + len(self.streams)
        return self._ceiling

    def settle(self) -> None:
        """The reserved numbers are being delivered now."""
        self._ceiling = None

    def snapshot(self, patterns: Iterable[Pattern]) -> list[Record]:
        """Return the last value of each stream that the patterns cover, in order of position."""
        found: dict[int, Record] = {}
        for pattern in patterns:
            for stream in self.covered(pattern):
                if stream.last is not None:
                    found[stream.last.n] = stream.last
        return [found[n] for n in sorted(found)]

    def after(self, starts: Mapping[Pattern, int], most: int) -> tuple[list[Record], int]:
        """Return what the patterns cover after each one's own position, in order, and how far.

        At most about `most` records; what lies up to the position returned is complete.
        """
        by_channel: dict[str, dict[Pattern, int]] = {}
        for pattern, n in starts.items():
            by_channel.setdefault(pattern.channel, {})[pattern] = n
        found = []
        end = self.n
        for channel, patterns in by_channel.items():
            shelf = self._shelves.get(channel)
            if shelf is None:
                continue
            records = shelf.ring.after(min(patterns.values()), most)
            if len(records) == most:
                end = min(end, records[-1].n)
            found.append(_covered(records, patterns))
        if len(found) == 1:
            return found[0], end
        return [r for r in heapq.merge(*found, key=position) if r.n <= end], end

    def newest(self, pattern: Pattern, since: int, most: int) -> list[Record]:
        """Return the last records that a pattern covers after a position, newest first."""
        shelf = self._shelves.get(pattern.channel)
        records = () if shelf is None else shelf.ring.backwards()
        after = itertools.takewhile(lambda record: record.n > since, records)
        return list(itertools.islice((r for r in after if pattern.matches(r.symbol)), most))

    def oldest(self, pattern: Pattern, since: int, most: int | None = None) -> list[Record]:
        """Return the first records that a pattern covers after a position."""
        shelf = self._shelves.get(pattern.channel)
        records = [] if shelf is None else shelf.ring.after(since, len(shelf.ring))
        return list(itertools.islice((r for r in records if pattern.matches(r.symbol)), most))

    def lost(self, channel: str) -> int:
        """The highest position of a channel that is no longer kept."""
        shelf = self._shelves.get(channel)
        return self.started_at if shelf is None else shelf.ring.lost

    def covered(self, pattern: Pattern) -> list[Stream]:
        """Return the streams that a pattern covers."""
        shelf = self._shelves.get(pattern.channel)
        if shelf is None:
            return []
        if pattern.symbol is None:
            return list(shelf.streams.values())
        if not pattern.is_glob:
            stream = shelf.streams.get(pattern.symbol)
            return [] if stream is None else [stream]
        match = glob(pattern.symbol).match
        return [stream for s, stream in shelf.streams.items() if s is not None and match(s)]

    def known(self, pattern: Pattern) -> set[tuple[str, str | None]]:
        """Return the streams that a pattern covers, stored ones that are silent so far included."""
        stored = {
            (channel, symbol) for channel, symbol in self.known_seqs
            if channel == pattern.channel and pattern.matches(symbol)
        }  # fmt: skip
        return stored | {(s.channel, s.symbol) for s in self.covered(pattern)}

    def seqs_at(self, channel: str, n: int) -> dict[str | None, int] | None:
        """Return by symbol the last `seq` of a channel's streams up to a position.

        Of streams that had none since then it is `delivered`. None: the ring does not reach back.
        """
        shelf = self._shelves.get(channel)
        if shelf is None or n < shelf.ring.lost:
            return None
        later = shelf.ring.after(n, len(shelf.ring))
        return {record.symbol: record.seq - 1 for record in reversed(later)}

    def heard(self, pattern: Pattern) -> float | None:
        """When the newest event came in that a pattern covers; None if there was none."""
        shelf = self._shelves.get(pattern.channel)
        if shelf is None:
            return None
        if pattern.symbol is None:
            latest = shelf.heard
        else:
            latest = max((s.heard for s in self.covered(pattern)), default=-math.inf)
        return latest if latest > -math.inf else None

    def watched(self) -> list[Stream]:
        """Return the streams that may become stale."""
        shelves = [s for s in self._shelves.values() if s.rules.max_age]
        return [stream for shelf in shelves for stream in shelf.streams.values()]

    def expire(self, now: float) -> None:
        """Drop records over the age bounds; called now and then, with the steady clock."""
        for shelf in self._shelves.values():
            shelf.ring.expire(now)
