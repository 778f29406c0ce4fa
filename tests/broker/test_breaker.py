"""The breaker against a naive model that keeps the whole history, and its promises one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptows.broker.breaker import Breaker, BreakerState

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


class History:
    """The reference: works everything out again from what was reported, each time."""

    def __init__(self, failures: int, retry: float, retry_max: float) -> None:
        self.failures, self.retry, self.retry_max = failures, retry, retry_max
        self.reports: list[tuple[str, float]] = []

    def walk(self) -> tuple[BreakerState, float | None]:
        state, run, opened, until = CLOSED, 0, 0, 0.0
        for what, now in self.reports:
            if state is OPEN:
                if what == "ask" and now >= until:
                    state = HALF_OPEN
                continue
            if what == "success":
                state, run, opened = CLOSED, 0, 0
            elif what in ("failure", "trip"):
                run += 1
                if what == "trip" or state is HALF_OPEN or run >= self.failures:
                    state = OPEN
                    until = now + min(self.retry * 2**opened, self.retry_max)
                    opened += 1
        return state, until if state is OPEN else None

    def allows(self, now: float) -> bool:
        before, _ = self.walk()
        self.reports.append(("ask", now))
        after, _ = self.walk()
        return before is CLOSED or (before is OPEN and after is HALF_OPEN)


steps = st.lists(
    st.tuples(
        st.sampled_from(["ask", "success", "failure", "failure", "trip"]),
        st.integers(0, 40).map(lambda n: n / 4),
    ),
    max_size=60,
)


@given(failures=st.integers(1, 4), retry=st.integers(1, 4), more=st.integers(0, 20), steps=steps)
def test_the_breaker_equals_a_model_that_remembers_everything(failures, retry, more, steps):
    breaker = Breaker(failures, float(retry), float(retry + more))
    model = History(failures, float(retry), float(retry + more))
    now = 0.0

    for what, passed in steps:
        now += passed
        if what == "ask":
            assert breaker.allows(now) == model.allows(now)
        else:
            model.reports.append((what, now))
            if what == "success":
                breaker.succeeded()
            elif what == "failure":
                breaker.failed(now)
            else:
                breaker.trip(now)
        assert (breaker.state, breaker.retry_at) == model.walk()


def test_it_opens_only_after_failures_in_a_row():
    breaker = Breaker(failures=3, retry=1, retry_max=8)

    for _ in range(5):
        breaker.failed(0)
        breaker.failed(0)
        breaker.succeeded()
    assert breaker.state is CLOSED

    for _ in range(3):
        breaker.failed(0)
    assert breaker.state is OPEN


def test_one_trial_passes_after_the_pause_and_only_one():
    breaker = Breaker(failures=1, retry=1, retry_max=8)
    breaker.failed(10)

    assert [breaker.allows(now) for now in (10, 10.9, 11, 11, 99)] == [
        False, False, True, False, False,
    ]  # fmt: skip
    assert breaker.state is HALF_OPEN


def test_pauses_double_up_to_the_longest_and_start_again_after_a_success():
    breaker = Breaker(failures=1, retry=1, retry_max=5)
    now, pauses = 0.0, []
    for _ in range(5):
        breaker.failed(now)
        assert breaker.retry_at is not None
        pauses.append(breaker.retry_at - now)
        now = breaker.retry_at
        assert breaker.allows(now)
    assert pauses == [1, 2, 4, 5, 5]

    breaker.succeeded()
    breaker.failed(now)

    assert breaker.retry_at == now + 1


def test_reports_from_before_it_opened_change_nothing():
    breaker = Breaker(failures=1, retry=1, retry_max=8)
    breaker.trip(0)

    breaker.succeeded()
    breaker.failed(0.5)
    breaker.trip(0.5)

    assert (breaker.state, breaker.retry_at, breaker.failed_in_a_row) == (OPEN, 1, 1)


@pytest.mark.parametrize(("failures", "retry", "retry_max"), [(0, 1, 2), (1, 0, 2), (1, 3, 2)])
def test_numbers_that_make_no_sense_are_refused(failures, retry, retry_max):
    with pytest.raises(ValueError, match=r".+"):
        Breaker(failures, retry, retry_max)
