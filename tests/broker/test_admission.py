"""How many connections there may be, and how fast they may come, against naive models."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from cryptows.broker.admission import AcceptRate, ConnectionCounts, Full, Scope, Seat
from cryptows.config.settings import Limits

LIMITS = Limits(connections=5, connections_per_address=3, connections_per_user=2)


def snapshot(counts: ConnectionCounts) -> tuple[int, int, int]:
    return counts.total, counts.addresses, counts.users


def test_a_connection_is_counted_until_its_seat_is_given_back():
    counts = ConnectionCounts(LIMITS)

    with counts.acquire("a", "7") as seat:
        during = snapshot(counts), counts.of_address("a"), counts.of_user("7")
        assert (seat.address, seat.user_id) == ("a", "7")

    assert during == ((1, 1, 1), 1, 1)
    assert snapshot(counts) == (0, 0, 0)


def test_a_seat_may_be_given_back_again():
    counts = ConnectionCounts(LIMITS)
    seat = counts.acquire("a")
    counts.acquire("a")

    seat.release()
    seat.release()
    seat.move("7")

    assert snapshot(counts) == (1, 1, 0)


@pytest.mark.parametrize(
    ("seats", "wanted", "scope", "text", "status"),
    [
        ("abcde", ("f", None), Scope.ALL, "too many connections in all, at most 5", 503),
        ("aaa", ("a", None), Scope.ADDRESS, "too many connections of this address, at most 3", 429),
        ("ab", ("c", "7"), Scope.USER, "too many connections of this user, at most 2", 429),
    ],
)
def test_the_last_one_gets_in_and_the_next_one_does_not(seats, wanted, scope, text, status):
    counts = ConnectionCounts(LIMITS)
    user = "7" if scope is Scope.USER else None
    taken = [counts.acquire(address, user) for address in seats]
    before = snapshot(counts)

    with pytest.raises(Full) as caught:
        counts.acquire(*wanted)

    assert (caught.value.scope, str(caught.value), caught.value.status) == (scope, text, status)
    assert snapshot(counts) == before
    taken[0].release()
    counts.acquire(*wanted)


def test_addresses_of_one_ipv6_subnet_share_a_limit():
    counts = ConnectionCounts(LIMITS)
    for n in range(3):
        counts.acquire(f"2001:db8::{n}")

    with pytest.raises(Full):
        counts.acquire("2001:db8::9")
    counts.acquire("2001:db8:0:1::9")

    assert counts.of_address("2001:db8::") == 3


def test_a_connection_moves_to_the_user_it_turns_out_to_be():
    counts = ConnectionCounts(LIMITS)
    seat = counts.acquire("a")

    seat.move("7")
    seat.move("7")
    as_seven = counts.of_user("7")
    seat.move("8")

    assert as_seven == 1
    assert (counts.of_user("7"), counts.of_user("8"), counts.users) == (0, 1, 1)
    seat.move(None)
    assert snapshot(counts) == (1, 1, 0)


def test_a_move_to_a_user_with_too_many_connections_changes_nothing():
    counts = ConnectionCounts(LIMITS)
    counts.acquire("a", "7")
    counts.acquire("a", "7")
    seat = counts.acquire("a", "8")

    with pytest.raises(Full):
        seat.move("7")

    assert seat.user_id == "8"
    assert (counts.of_user("7"), counts.of_user("8")) == (2, 1)


def test_narrower_limits_keep_new_ones_out_and_nobody_else():
    counts = ConnectionCounts(LIMITS)
    seats = [counts.acquire("a") for _ in range(3)]

    counts.limits = attrs.evolve(LIMITS, connections_per_address=1)

    seats[0].release()
    with pytest.raises(Full):
        counts.acquire("a")
    assert counts.total == 2


class CountsAgainstAList(RuleBasedStateMachine):
    """Whatever comes and goes, the counts are those of the list of who is there."""

    seats = Bundle("seats")

    def __init__(self) -> None:
        super().__init__()
        self.counts = ConnectionCounts(LIMITS)
        self.there: list[Seat] = []

    def _fits(self, address: str | None, user: str | None) -> bool:
        return (
            (address is None or len(self.there) < 5)
            and [s.address for s in self.there].count(address or "") < 3
            and (user is None or [s.user_id for s in self.there].count(user) < 2)
        )

    @rule(
        target=seats,
        address=st.sampled_from("abc"),
        user=st.sampled_from([None, "7", "8"]),
    )
    def acquire(self, address, user):
        fits = self._fits(address, user)
        try:
            seat = self.counts.acquire(address, user)
        except Full:
            assert not fits
            return multiple()
        assert fits
        self.there.append(seat)
        return seat

    @rule(seat=seats, user=st.sampled_from([None, "7", "8"]))
    def move(self, seat, user):
        allowed = seat not in self.there or seat.user_id == user or self._fits(None, user)
        try:
            seat.move(user)
        except Full:
            assert not allowed
        else:
            assert allowed

    @rule(seat=st.one_of(seats, consumes(seats)))
    def release(self, seat):
        seat.release()
        self.there = [other for other in self.there if other is not seat]

    @invariant()
    def the_counts_are_those_of_the_list(self):
        addresses = [s.address for s in self.there]
        users = [s.user_id for s in self.there if s.user_id is not None]
        assert snapshot(self.counts) == (len(addresses), len(set(addresses)), len(set(users)))
        for address in "abc":
            assert self.counts.of_address(address) == addresses.count(address)
        for user in "78":
            assert self.counts.of_user(user) == users.count(user)


CountsAgainstAList.TestCase.settings = settings(max_examples=40, stateful_step_count=30)
TestCountsAgainstAList = CountsAgainstAList.TestCase


# The rate


def accept_times(rate: AcceptRate, arrivals: list[float]) -> list[float]:
    """When each connection is accepted by a task that sleeps as it is told."""
    times: list[float] = []
    now = -1e9
    for arrival in arrivals:
        now = max(now, arrival)
        now += rate.delay(now)
        times.append(now)
    return times


def test_a_slow_rate_spaces_connections_evenly():
    assert accept_times(AcceptRate(10), [0.0] * 4) == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_a_fast_rate_lets_a_short_burst_through():
    times = accept_times(AcceptRate(500), [0.0] * 550)

    assert times[:50] == pytest.approx([0.0] * 50)
    assert times[50] == pytest.approx(0.002)
    assert times[549] == pytest.approx(1.0)


def test_after_a_pause_nothing_waits():
    rate = AcceptRate(10)
    accept_times(rate, [0.0] * 5)

    assert rate.delay(100.0) == 0.0


def test_another_rate_counts_from_now_on():
    rate = AcceptRate(10)
    rate.delay(0.0)

    rate.configure(1)

    assert rate.delay(0.0) == pytest.approx(0.1)
    assert rate.delay(0.1) == pytest.approx(1.0)


@given(
    rate=st.integers(1, 1000),
    pauses=st.lists(st.sampled_from([0.0, 0.0, 0.0, 0.001, 0.05, 2.0]), max_size=60),
)
def test_no_stretch_of_time_holds_more_than_the_rate_and_one_burst(rate, pauses):
    arrivals = [sum(pauses[:n]) for n in range(len(pauses))]

    times = accept_times(AcceptRate(rate), arrivals)

    burst = max(1.0, rate * 0.1)
    for i, first in enumerate(times):
        for j, last in enumerate(times[i:], start=1):
            assert j <= rate * (last - first) + burst + 1e-6
    assert all(t >= a for t, a in zip(times, arrivals, strict=True))
