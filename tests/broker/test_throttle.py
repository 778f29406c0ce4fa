"""What passes a throttle, what is said of the rest, held against a model that keeps everything."""

import math
from itertools import pairwise
from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cryptows.broker.throttle import Conflated, Throttle
from cryptows.model.event import Event
from tests.effort import effort


def tick(price: float | None = None, volume: float | None = None) -> Event:
    return Event("market_data_update", b"{}", 0, "BTC", price, volume)


def new(interval: float) -> Throttle[Any]:
    return Throttle(interval)


def test_the_first_event_passes_at_once():
    throttle = new(0.1)

    assert throttle.offer("BTC", tick(1), now=5) == (True, None)
    assert throttle.next_due == math.inf
    assert throttle.release(9) == []


def test_the_newest_event_passes_at_the_end_of_the_interval():
    throttle = new(0.1)
    first, second, third = tick(1), tick(2), tick(3)
    throttle.offer("BTC", first, now=5)

    assert throttle.offer("BTC", second, now=5.02) == (False, None)
    assert throttle.offer("BTC", third, now=5.04) == (False, None)

    assert throttle.next_due == 5.1
    assert throttle.release(5.09) == []
    assert throttle.release(5.1) == [("BTC", third, Conflated(1, high=2, low=2))]
    assert throttle.next_due == math.inf


def test_what_was_released_closes_the_gate_again():
    throttle = new(0.1)
    throttle.offer("BTC", tick(1), now=5)
    throttle.offer("BTC", tick(2), now=5.05)
    throttle.release(5.13)

    assert throttle.offer("BTC", tick(3), now=5.2) == (False, None)
    assert throttle.next_due == 5.13 + 0.1


def test_a_newer_event_passes_in_place_of_one_that_is_late():
    throttle = new(0.1)
    throttle.offer("BTC", tick(1), now=5)
    throttle.offer("BTC", tick(2, volume=7), now=5.05)

    newest = tick(3)

    assert throttle.offer("BTC", newest, now=5.2) == (True, Conflated(1, 2, 2, 7))
    assert throttle.release(9) == []


def test_streams_are_throttled_each_for_itself():
    throttle = new(0.1)

    assert throttle.offer("BTC", tick(1), now=5) == (True, None)
    assert throttle.offer("ETH", tick(1), now=5) == (True, None)


def test_events_that_are_due_at_once_come_in_the_order_of_their_waiting():
    throttle = new(0.1)
    streams = [("c", "BTC"), ("c", None), ("c", "AAA")]  # which cannot be compared
    for stream in streams:
        throttle.offer(stream, tick(), now=5)
    for stream in streams:
        throttle.offer(stream, tick(), now=5)

    assert [stream for stream, _, _ in throttle.release(5.1)] == streams


def test_extremes_are_those_of_what_was_left_out():
    throttle = new(1)
    for price, volume in [(50, 1), (10, 1), (99, None), (None, 3), (60, 4)]:
        throttle.offer("BTC", tick(price, volume), now=5)

    ((_, event, conflated),) = throttle.release(6)

    assert event.price == 60
    assert conflated is not None
    assert conflated.document() == {"count": 3, "high": 99, "low": 10, "volume": 4.0}


def test_events_without_a_price_have_no_extremes():
    conflated = Conflated()
    conflated.add(tick())

    assert conflated.document() == {"count": 1, "high": None, "low": None, "volume": 0.0}


def test_a_shorter_interval_counts_from_the_last_event_that_passed():
    throttle = new(60)
    throttle.offer("BTC", tick(1), now=100)
    throttle.offer("BTC", tick(2), now=110)
    throttle.offer("ETH", tick(1), now=110)

    throttle.configure(20)

    assert throttle.next_due == 120
    assert throttle.offer("ETH", tick(2), now=125) == (False, None)
    assert throttle.next_due == 120
    assert [stream for stream, _, _ in throttle.release(130)] == ["BTC", "ETH"]


def test_once_switched_off_everything_passes_but_nothing_goes_back():
    throttle = new(10)
    throttle.offer("BTC", tick(1), now=100)
    throttle.offer("BTC", tick(2), now=101)
    throttle.offer("ETH", tick(1), now=100)
    throttle.offer("ETH", tick(2), now=101)

    throttle.configure(0)

    assert throttle.offer("BTC", tick(3), now=102) == (True, Conflated(1, 2, 2))
    assert throttle.offer("BTC", tick(4), now=102) == (True, None)
    assert [(stream, event.price) for stream, event, _ in throttle.release(102)] == [("ETH", 2)]


def test_streams_are_counted_while_they_may_not_speak():
    throttle = new(0.1)
    throttle.offer("BTC", tick(), now=5)
    throttle.offer("ETH", tick(), now=5)
    throttle.offer("ETH", tick(), now=5.05)

    assert (throttle.active(5.05), throttle.kept) == (2, 1)
    assert (throttle.active(5.2), throttle.kept) == (1, 1)  # due, and not yet released
    throttle.release(5.2)
    assert (throttle.active(5.2), throttle.kept) == (1, 0)
    assert (throttle.active(5.4), throttle.kept) == (0, 0)


def test_streams_that_fell_silent_are_forgotten():
    throttle = new(0.1)
    for number in range(1000):
        throttle.offer(number, tick(), now=5)

    throttle.release(7)

    assert len(throttle._gates) == 0


@attrs.define
class Told:
    """What the model knows of one stream."""

    passed_at: float = -math.inf
    forgotten: bool = False  # perhaps: it was free to speak, then the interval was changed
    waiting: list[Event] = attrs.field(factory=list)


class ThrottleMachine(RuleBasedStateMachine):
    """The model keeps every event that did not pass, and works everything out from them."""

    def __init__(self) -> None:
        super().__init__()
        self.interval, self.now, self.price = 1.0, 0.0, 0.0
        self.throttle: Throttle[str] = Throttle(self.interval)
        self.streams: dict[str, Told] = {}
        self.last: dict[str, float] = {}

    @rule(
        stream=st.sampled_from(["A", "B", "C"]),
        volume=st.sampled_from([None, 0.5, 2.0]),
        step=st.sampled_from([0.0, 0.0, 0.125, 0.5, 1.0, 3.0]),
        priced=st.booleans(),
    )
    def offer(self, stream, volume, step, priced):
        self.now += step
        self.price += 1  # so prices tell the order of events
        told = self.streams.setdefault(stream, Told())
        event = tick(self.price if priced else None, volume)

        passes, conflated = self.throttle.offer(stream, event, self.now)

        assert told.forgotten or passes == (self.now >= told.passed_at + self.interval)
        if passes:
            self.passed(stream, event, conflated, replaced=told.waiting)
        else:
            told.waiting.append(event)

    @rule(step=st.sampled_from([0.0, 0.25, 0.5, 1.0, 5.0]))
    def release(self, step):
        self.now += step
        due = {
            stream
            for stream, told in self.streams.items()
            if told.waiting and self.now >= told.passed_at + self.interval
        }

        released = self.throttle.release(self.now)

        assert {stream for stream, _, _ in released} == due
        assert len(released) == len(due)
        for stream, event, conflated in released:
            *replaced, newest = self.streams[stream].waiting
            assert event is newest
            self.passed(stream, event, conflated, replaced)

    @rule(interval=st.sampled_from([0.0, 0.5, 1.0, 2.0]))
    @precondition(lambda self: self.streams)
    def configure(self, interval):
        for told in self.streams.values():
            told.forgotten |= not told.waiting and self.now >= told.passed_at + self.interval
        self.interval = interval
        self.throttle.configure(interval)

    def passed(self, stream, event, conflated, replaced):
        assert (conflated is None) == (not replaced)
        if conflated is not None:
            prices = [e.price for e in replaced if e.price is not None]
            assert conflated.document() == {
                "count": len(replaced),
                "high": max(prices, default=None),
                "low": min(prices, default=None),
                "volume": sum(e.volume or 0 for e in replaced),
            }
        if event.price is not None:
            assert event.price > self.last.get(stream, 0), "the price turned back"
            self.last[stream] = event.price
        self.streams[stream] = Told(self.now)

    @invariant()
    def it_knows_what_waits(self):
        waiting = {s: t for s, t in self.streams.items() if t.waiting}
        closed = [s for s, t in self.streams.items() if self.now < t.passed_at + self.interval]
        assert self.throttle.kept == len(waiting)
        if not any(told.forgotten for told in self.streams.values()):
            assert self.throttle.active(self.now) == len({*waiting, *closed})
        due = min((t.passed_at + self.interval for t in waiting.values()), default=math.inf)
        assert self.throttle.next_due <= due  # earlier if a newer event passed in the meantime
        if waiting:
            assert self.throttle.next_due < math.inf


TestThrottle = ThrottleMachine.TestCase
TestThrottle.settings = effort(examples=50, steps=30)


@given(st.lists(st.floats(0, 20), min_size=1, max_size=60).map(sorted))
def test_a_stream_never_speaks_more_often_than_its_interval(times):
    throttle, spoke = new(1), []
    for now in times:
        while throttle.next_due <= now:
            at = throttle.next_due
            spoke += [at for _ in throttle.release(at)]
        passes, _ = throttle.offer("BTC", tick(), now)
        spoke += [now] * passes

    spoke += [throttle.next_due for _ in throttle.release(throttle.next_due)]

    assert spoke[0] == times[0]
    assert all(later - earlier >= 1 - 1e-9 for earlier, later in pairwise(spoke))
    assert spoke[-1] >= times[-1]  # the newest came through
