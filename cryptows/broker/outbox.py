"""What waits for one client that is behind, in two lanes, never more than its bounds.

A client that keeps up has no outbox: the dispatcher writes to its socket and that is all. Once a
write comes back short, the rest waits here. The *private* lane (user channels, answers) loses
nothing. In the *market* lane a newer event of a stream replaces the older one, and what was skipped
is told before the next. Control frames overtake both, but never cut into a frame.

A client that is behind for a moment only, or has a burst to read, loses nothing of the market lane
either: for as long as its `patience` events are kept whole. When it is over they replace each other
at once, those that wait already too, and go on doing so until nothing waits any more.

What is sent next is settled in rounds: a round takes all that waits, in the order it came, and goes
out unchanged while newer events gather behind it. So offsets only grow on the wire, which recovery
relies on, and a stream that quotes without pause is not put off for ever by its own next event.
What was skipped is told where the first skipped event would have stood: a client that loses its
connection between there and the next event, and recovers by a later offset, knows of it.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import attrs

from cryptows.model.channel import Lane
from cryptows.model.errors import Refusal
from cryptows.model.event import Record
from cryptows.wire import envelope
from cryptows.wire.envelope import Packet, Wire

TOO_SLOW = 4008
MAX_CONTROL = 8  # frames; RFC 6455 5.5.3: only the latest ping needs an answer


@attrs.define
class _Waiting:
    """A queued record or packet, since when, and how many bytes it takes."""

    order: int
    since: float
    size: int
    item: Record | Packet
    first_skipped: int = 0  # the first `seq` that this record replaced; 0: none
    first_order: int = 0  # the place of that one

    @property
    def is_market(self) -> bool:
        return isinstance(self.item, Record) and self.item.lane is Lane.MARKET


@attrs.define
class Outbox:
    """The outbox of one client. Times are seconds of any steady clock."""

    wire: Wire
    max_bytes: int
    max_lag: float
    patience: float = 0.0  # seconds that something may wait before events replace each other
    skipped: int = 0  # events replaced so far, for the client's heartbeat
    size: int = attrs.field(default=0, init=False)
    _order: int = attrs.field(default=0, init=False)
    _writing: bytes = attrs.field(default=b"", init=False)  # the rest of a frame that was begun
    _writing_since: float = attrs.field(default=0.0, init=False)
    _control: deque[bytes] = attrs.field(factory=lambda: deque(maxlen=MAX_CONTROL), init=False)
    _round: deque[_Waiting] = attrs.field(factory=deque, init=False)
    _private: list[_Waiting] = attrs.field(factory=list, init=False)
    _whole: list[_Waiting] = attrs.field(factory=list, init=False)  # market, kept with patience
    _market: dict[tuple[str, str | None], _Waiting] = attrs.field(factory=dict, init=False)
    _replacing: bool = attrs.field(default=False, init=False)  # patience is over
    _last: bytes = attrs.field(default=b"", init=False)  # a close frame

    def __bool__(self) -> bool:
        return bool(self._writing or self._control or self._queued or self._last)

    @property
    def _queued(self) -> bool:
        return bool(self._round or self._gathering)

    @property
    def _gathering(self) -> bool:
        """Whether anything waits behind the round."""
        return bool(self._private or self._whole or self._market)

    # queueing

    def put(self, item: Record | Packet, now: float) -> None:
        """Queue a record or a packet; raise Refusal(4008) when too much waits."""
        self._queue(item, now)
        self._check_size()

    def put_all(self, items: Iterable[Record | Packet], now: float) -> None:
        """Queue several; raises like `put`."""
        for item in items:
            self._queue(item, now)
            if self.size > self.max_bytes:
                break
        self._check_size()

    def _queue(self, item: Record | Packet, now: float) -> None:
        self._order += 1
        waiting = _Waiting(self._order, now, len(self._bytes(item)), item)
        self.size += waiting.size
        if not waiting.is_market:
            self._private.append(waiting)
        elif self._is_patient(now):
            self._whole.append(waiting)
        else:
            self._replace(waiting)

    def _replace(self, waiting: _Waiting) -> None:
        """Queue a market event in place of an older one of its stream."""
        assert isinstance(waiting.item, Record)
        older = self._market.pop(waiting.item.stream, None)
        if older is not None:
            assert isinstance(older.item, Record)
            self.skipped += 1
            self.size -= older.size
            waiting.first_skipped = older.first_skipped or older.item.seq
            waiting.first_order = older.first_order or older.order
        self._market[waiting.item.stream] = waiting  # at the end: the dict is in order

    def _is_patient(self, now: float) -> bool:
        """Whether market events are still kept whole."""
        if self._replacing and not (self._writing or self._queued):
            self._replacing = False
        if not self._replacing:
            patience, size = self.patience, self.size
            if patience and self.lag(now) <= patience and size <= self.max_bytes // 2:
                return True
            self._lose_patience()
        return False

    def _lose_patience(self) -> None:
        """Let all market events that wait replace each other."""
        self._replacing = True
        settled, kept = [*self._round], self._whole
        self._round.clear()
        self._whole = []
        self._private[:0] = [waiting for waiting in settled if not waiting.is_market]
        for waiting in itertools.chain(settled, kept):
            if waiting.is_market:
                self._replace(waiting)

    def put_control(self, frame: bytes) -> None:
        """Queue a whole control frame ahead of everything but the frame that was begun."""
        self._control.append(frame)

    def put_last(self, frame: bytes) -> None:
        """Queue a close frame behind all that waits; nothing may be queued after it."""
        self._last = frame

    def put_rest(self, items: Sequence[Record | Packet], sent: int, now: float) -> None:
        """Queue what a short write of these items in one piece left over; raises like `put`."""
        rest = iter(items)
        for item in rest:
            data = self._bytes(item)
            if sent < len(data):
                if sent:
                    self._begin(data[sent:], now)
                else:
                    self.put(item, now)
                break
            sent -= len(data)
        self.put_all(rest, now)

    def put_bytes(self, rest: bytes, now: float) -> None:
        """Queue the end of a frame whose beginning the socket has."""
        self._begin(rest, now)

    def _begin(self, rest: bytes, since: float) -> None:
        assert not self._writing
        self._writing, self._writing_since = rest, since
        self.size += len(rest)

    # bounds

    def _check_size(self) -> None:
        if self.size > self.max_bytes:
            raise _too_slow(f"{self.size / (1 << 20):.1f} MiB")

    def check(self, now: float) -> None:
        """Raise Refusal(4008) when what waits is too old; to be called now and then."""
        lag = self.lag(now)
        if lag > self.max_lag:
            raise _too_slow(f"{lag:.1f} s")
        self._is_patient(now)  # events that nothing came after are no less old

    def lag(self, now: float) -> float:
        """The age in seconds of the oldest byte that waits."""
        if self._writing:
            return now - self._writing_since
        if self._round:
            return now - self._round[0].since
        # Each is in the order in which its items came.
        market = itertools.islice(self._market.values(), 1)
        oldest = [*self._private[:1], *self._whole[:1], *market]
        return now - min((waiting.since for waiting in oldest), default=now)

    # writing to a socket

    def next_bytes(self, limit: int, now: float, now_ms: int) -> bytes:
        """Return what to write next, about `limit` bytes.

        `wrote` says, before anything else happens, how much of it went out.
        """
        parts = [self._writing, *self._control]
        if not self._writing:
            self._writing_since = now  # of control frames; what else is begun has its own time
        size, at = sum(map(len, parts)), 0
        while size < limit and (at < len(self._round) or self._open_round(now_ms)):
            for waiting in itertools.islice(self._round, at, None):
                at += 1
                parts.append(self._bytes(waiting.item))
                size += len(parts[-1])
                if size >= limit:
                    break
        if self._last and at == len(self._round) and not self._gathering:
            parts.append(self._last)
        return b"".join(parts)

    def wrote(self, count: int) -> None:
        """Note that the socket took the first `count` bytes of what `next_bytes` returned."""
        rest = self._writing
        self._writing = rest[count:]
        self.size -= min(count, len(rest))
        count -= len(rest)
        while count > 0:
            data = self._next_frame()
            if count < len(data):
                self._begin(data[count:], self._writing_since)
            count -= len(data)

    def _next_frame(self) -> bytes:
        """Take the frame that is written next."""
        if self._control:
            return self._control.popleft()
        if self._round:
            waiting = self._round.popleft()
            self._writing_since = waiting.since
            self.size -= waiting.size
            return self._bytes(waiting.item)
        frame, self._last = self._last, b""
        return frame

    def drop_queued(self) -> None:
        """Forget all but the frame that was begun and a close: the client is leaving."""
        self._control.clear()
        self._round.clear()
        self._private.clear()
        self._whole.clear()
        self._market.clear()
        self.size = len(self._writing)

    # polling

    def next_packets(self, limit: int, most: int, now_ms: int) -> list[bytes]:
        """Return up to `most` whole packets of about `limit` bytes, and forget them."""
        taken = [*self._control]
        self._control.clear()
        size = 0
        while size < limit and len(taken) < most and (self._round or self._open_round(now_ms)):
            taken.append(self._next_frame())
            size += len(taken[-1])
        return taken

    def rewire(self, wire: Wire, frame: Callable[[bytes], bytes]) -> None:
        """Go on over another wire (an upgrade from polling); `frame` makes a control frame there.

        Sizes stay those of the old wire, which differ by a few bytes of framing.
        """
        assert not self._writing, "whole packets only: the other transport has part of one"
        self.wire = wire
        self._control.extend([frame(self._control.popleft()) for _ in range(len(self._control))])

    # rounds

    def _bytes(self, item: Record | Packet) -> bytes:
        return self.wire.record(item) if isinstance(item, Record) else self.wire.packet(item)

    def _open_round(self, now_ms: int) -> bool:
        """Settle all that waits, in the order it came, as what is sent next; False if nothing."""
        told = [self._skipped(w, now_ms) for w in self._market.values() if w.first_skipped]
        waiting = [*self._private, *self._whole, *self._market.values(), *told]
        waiting.sort(key=lambda w: w.order)
        since = math.inf
        for one in reversed(waiting):  # what is told is as old as what comes after it
            one.since = since = min(one.since, since)
        self._round.extend(waiting)
        self._private.clear()
        self._whole.clear()
        self._market.clear()
        return bool(waiting)

    def _skipped(self, waiting: _Waiting, now_ms: int) -> _Waiting:
        """Return what tells the client of the events that this one replaced."""
        record = waiting.item
        assert isinstance(record, Record)
        text = envelope.skipped(
            record.channel, record.symbol, waiting.first_skipped, record.seq - 1, "slow", now_ms
        )
        packet = self.wire.message(text)
        size = len(self.wire.packet(packet))
        self.size += size
        return _Waiting(waiting.first_order, math.inf, size, packet)


def _too_slow(behind: str) -> Refusal:
    return Refusal(TOO_SLOW, f"too slow, {behind} behind; come back", come_back=True)
