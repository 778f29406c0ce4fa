"""Limits on requests and bans, each against a naive model that keeps everything for ever."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptows.broker.limits import (
    ALLOW,
    BAN,
    Bans,
    Decision,
    RequestLimiter,
    Verdict,
    client_key,
)

# Rules


def test_the_hundredth_request_passes_and_the_next_one_waits_for_the_first():
    limiter = RequestLimiter(100, 60.0, 3)

    passed = [limiter.check("a", float(n) / 10) for n in range(100)]
    refused = limiter.check("a", 10.0)

    assert passed == [ALLOW] * 100
    assert refused == Decision(Verdict.REFUSE, retry_after=50.0)
    assert refused.retry_after_ms == 50_000


def test_a_request_passes_exactly_when_the_oldest_leaves_the_window():
    limiter = RequestLimiter(2, 60.0, 3)
    for now in (0.0, 30.0):
        limiter.check("a", now)

    before = limiter.check("a", 59.75)
    at = limiter.check("a", 60.0)
    after = limiter.check("a", 60.0)

    assert before == Decision(Verdict.REFUSE, 0.25)
    assert at == ALLOW
    assert after == Decision(Verdict.REFUSE, 30.0)


def test_waiting_is_told_in_whole_milliseconds_rounded_up():
    assert Decision(Verdict.REFUSE, 0.0001).retry_after_ms == 1
    assert Decision(Verdict.REFUSE, 1.2345).retry_after_ms == 1235


def test_refused_requests_do_not_lengthen_the_wait():
    limiter = RequestLimiter(1, 60.0, 10)
    limiter.check("a", 0.0)

    waits = [limiter.check("a", now).retry_after for now in (10.0, 20.0, 30.0)]

    assert waits == [50.0, 40.0, 30.0]
    assert limiter.check("a", 60.0) == ALLOW


def test_the_refusal_after_the_last_strike_is_a_ban():
    limiter = RequestLimiter(1, 60.0, 3)

    verdicts = [limiter.check("a", 0.0).verdict for _ in range(5)]

    assert verdicts == [
        Verdict.ALLOW,
        Verdict.REFUSE,
        Verdict.REFUSE,
        Verdict.REFUSE,
        Verdict.BAN,
    ]


def test_a_strike_is_forgiven_after_a_window():
    limiter = RequestLimiter(1, 60.0, 1)
    limiter.check("a", 0.0)
    first = limiter.check("a", 59.0)
    limiter.check("a", 60.0)

    second = limiter.check("a", 119.0)
    third = limiter.check("a", 119.5)

    assert [d.verdict for d in (first, second, third)] == [
        Verdict.REFUSE,
        Verdict.REFUSE,
        Verdict.BAN,
    ]


def test_after_a_ban_the_record_is_clean():
    limiter = RequestLimiter(1, 60.0, 1)

    verdicts = [limiter.check("a", 0.0) for _ in range(4)]

    assert verdicts[2] is BAN
    assert verdicts[3] is ALLOW


def test_clients_do_not_count_for_each_other():
    limiter = RequestLimiter(1, 60.0, 3)

    assert limiter.check("a", 0.0) == ALLOW
    assert limiter.check("b", 0.0) == ALLOW
    assert limiter.check("a", 0.0).verdict is Verdict.REFUSE


def test_a_user_is_one_client_whatever_his_address_and_looks_like_none():
    assert client_key("7", "192.0.2.1") == client_key("7", "192.0.2.2")
    assert client_key("192.0.2.1", "192.0.2.9") != client_key(None, "192.0.2.1")
    assert client_key(None, "2001:db8::1") == client_key(None, "2001:db8::2")


def test_other_limits_begin_anew_and_the_same_ones_do_not():
    limiter = RequestLimiter(1, 60.0, 3)
    limiter.check("a", 0.0)

    limiter.configure(1, 60.0, 3)
    unchanged = limiter.check("a", 0.0)
    limiter.configure(2, 60.0, 3)
    changed = [limiter.check("a", 0.0).verdict for _ in range(3)]

    assert unchanged.verdict is Verdict.REFUSE
    assert changed == [Verdict.ALLOW, Verdict.ALLOW, Verdict.REFUSE]


class NaiveLimiter:
    """Keeps every request and every refusal for ever."""

    def __init__(self, requests: int, window: float, strikes: int) -> None:
        self.rules = requests, window, strikes
        self.passed: dict[str, list[float]] = {}
        self.refused: dict[str, list[float]] = {}

    def check(self, key: str, now: float) -> Decision:
        requests, window, strikes = self.rules
        passed = [t for t in self.passed.setdefault(key, []) if now < t + window]
        refused = [t for t in self.refused.setdefault(key, []) if now < t + window]
        if len(passed) < requests:
            self.passed[key].append(now)
            return ALLOW
        if len(refused) >= strikes:
            self.passed[key] = []
            self.refused[key] = []
            return BAN
        self.refused[key].append(now)
        return Decision(Verdict.REFUSE, passed[-requests] + window - now)


STEPS = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from([0, 0, 0, 1, 2, 5, 9, 10, 11, 30])),
    max_size=80,
)


@given(
    steps=STEPS,
    requests=st.integers(1, 6),
    strikes=st.integers(1, 4),
    pruned=st.booleans(),
)
def test_the_limiter_decides_as_one_that_keeps_everything(steps, requests, strikes, pruned):
    limiter = RequestLimiter(requests, 10, strikes)
    naive = NaiveLimiter(requests, 10, strikes)
    now = 0.0

    for key, pause in steps:
        now += pause
        if pruned:
            limiter.prune(now)
        assert limiter.check(key, now) == naive.check(key, now)


@given(times=st.lists(st.floats(0, 1e9), max_size=60).map(sorted), requests=st.integers(1, 5))
def test_no_window_holds_more_than_the_limit(times, requests):
    limiter = RequestLimiter(requests, 60.0, 1000)
    passed: list[float] = []

    for now in times:
        decision = limiter.check("a", now)
        if decision is ALLOW:
            passed.append(now)
        else:
            assert 0 < decision.retry_after <= 60.0

    for first, last in zip(passed, passed[requests:], strict=False):
        assert last >= first + 60.0


# Memory


def test_a_client_is_forgotten_a_window_after_its_last_request():
    limiter = RequestLimiter(5, 60.0, 3)
    limiter.check("a", 0.0)
    limiter.check("b", 1.0)
    limiter.check("a", 2.0)

    sizes = []
    for now in (60.9, 61.0, 61.9, 62.0):
        limiter.prune(now)
        sizes.append(len(limiter))

    assert sizes == [2, 1, 1, 0]


def test_beyond_the_capacity_the_quietest_is_forgotten():
    limiter = RequestLimiter(1, 60.0, 3, capacity=2)
    for key in ("a", "b", "a", "c"):
        limiter.check(key, 0.0)

    assert len(limiter) == 2
    assert limiter.check("a", 0.0).verdict is Verdict.REFUSE
    assert limiter.check("b", 0.0) == ALLOW
    assert limiter.check("c", 0.0) == ALLOW  # b took its place


def test_those_whose_window_has_passed_make_room_first():
    limiter = RequestLimiter(1, 60.0, 3, capacity=3)
    for key, now in (("a", 0.0), ("b", 1.0), ("c", 50.0), ("d", 61.0)):
        limiter.check(key, now)

    assert len(limiter) == 2


# Bans


def test_a_ban_holds_for_the_user_and_for_the_address():
    bans = Bans(300.0)

    until = bans.ban("7", "192.0.2.1", 100.0)

    assert until == 400.0
    assert bans.until("7", "192.0.2.9", 100.0) == 400.0
    assert bans.until("8", "192.0.2.1", 100.0) == 400.0
    assert bans.until(None, "192.0.2.1", 100.0) == 400.0
    assert bans.until("8", "192.0.2.9", 100.0) is None
    assert bans.until("192.0.2.1", "192.0.2.9", 100.0) is None


def test_a_ban_ends_to_the_moment():
    bans = Bans(300.0)
    bans.ban(None, "192.0.2.1", 0.0)

    assert bans.until(None, "192.0.2.1", 299.9) == 300.0
    assert bans.until(None, "192.0.2.1", 300.0) is None


@pytest.mark.parametrize(("now", "seconds"), [(0.0, 300), (0.1, 300), (299.0, 1), (299.9, 1)])
def test_what_is_left_of_a_ban_is_told_in_whole_seconds_rounded_up(now, seconds):
    bans = Bans(300.0)
    bans.ban("7", "192.0.2.1", 0.0)

    assert bans.retry_after("7", "192.0.2.9", now) == seconds
    assert bans.retry_after("8", "192.0.2.9", now) is None


def test_the_later_of_two_bans_counts():
    bans = Bans(300.0)
    bans.ban(None, "192.0.2.1", 0.0)
    bans.ban("7", "192.0.2.2", 100.0)

    assert bans.until("7", "192.0.2.1", 150.0) == 400.0
    assert bans.until(None, "192.0.2.1", 150.0) == 300.0


def test_another_length_counts_for_further_bans():
    bans = Bans(300.0)
    bans.ban("7", "192.0.2.1", 0.0)

    bans.configure(10.0)
    bans.ban("8", "192.0.2.2", 0.0)

    assert bans.until("7", "-", 0.0) == 300.0
    assert bans.until("8", "-", 0.0) == 10.0


@pytest.mark.parametrize(
    ("user", "address", "left"),
    [
        ("7", None, (None, 300.0)),
        (None, "192.0.2.1", (300.0, None)),
        ("7", "192.0.2.1", (None, None)),
    ],
)
def test_a_ban_can_be_lifted_early(user, address, left):
    bans = Bans(300.0)
    bans.ban("7", "192.0.2.1", 0.0)

    assert bans.lift(user, address)
    assert not bans.lift(user, address)
    assert (bans.until("7", "-", 0.0), bans.until(None, "192.0.2.1", 0.0)) == left


def test_bans_that_have_ended_are_forgotten():
    bans = Bans(300.0)
    bans.ban("7", "192.0.2.1", 0.0)
    bans.ban(None, "192.0.2.2", 1.0)

    sizes = [len(bans)]
    for now in (299.0, 300.0, 301.0):
        bans.prune(now)
        sizes.append(len(bans))

    assert sizes == [3, 3, 1, 0]


def test_beyond_the_capacity_the_oldest_ban_is_lifted():
    bans = Bans(300.0, capacity=2)
    for now, address in enumerate(("a", "b", "a", "c")):
        bans.ban(None, address, float(now))

    assert [bans.until(None, address, 4.0) for address in "abc"] == [302.0, None, 303.0]


def test_bans_that_have_ended_make_room_first():
    bans = Bans(10.0, capacity=2)
    bans.ban("1", "a", 0.0)

    bans.ban(None, "b", 10.0)

    assert len(bans) == 1


@given(
    steps=st.lists(
        st.tuples(
            st.booleans(),
            st.sampled_from([None, "1", "2"]),
            st.sampled_from("xyz"),
            st.integers(0, 12),
        ),
        max_size=40,
    )
)
def test_bans_hold_as_in_a_list_of_all_of_them(steps):
    bans = Bans(10.0)
    every: list[tuple[str | None, str, float]] = []
    now = 0.0

    for banned, user, address, pause in steps:
        now += pause
        if banned:
            bans.ban(user, address, now)
            every.append((user, address, now + 10.0))
        ends = [
            end
            for banned_user, banned_address, end in every
            if address == banned_address or (user is not None and user == banned_user)
        ]
        expected = max(ends, default=0.0)
        assert bans.until(user, address, now) == (expected if expected > now else None)
