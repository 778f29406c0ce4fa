"""The plain counters: what becomes a label stays bounded, and the histogram adds up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cryptows.broker.counters import LATENCY_BOUNDS, MAX_REASONS, Buckets, Counters


def test_close_codes_that_clients_invent_are_counted_together():
    counters = Counters()

    for code in (1000, 4008, 4008, *range(3000, 3100)):
        counters.disconnected(code)

    assert counters.disconnects == {1000: 1, 4008: 2, 0: 100}


def test_reasons_are_counted_and_bounded():
    counters = Counters()

    for n in range(MAX_REASONS + 10):
        counters.refused(f"reason {n}")
    counters.refused("reason 0")
    counters.request_failed("forbidden")
    counters.feed_failed("invalid_json")

    assert len(counters.refusals) == MAX_REASONS + 1
    assert counters.refusals["reason 0"] == 2
    assert counters.refusals["other"] == 10
    assert counters.request_errors == {"forbidden": 1}
    assert counters.feed_errors == {"invalid_json": 1}


def test_a_value_on_a_bound_belongs_to_that_bound():
    buckets = Buckets((1.0, 2.0))

    buckets.add(1.0)
    buckets.add(1.5, times=3)
    buckets.add(9.0)

    assert buckets.counts == [1, 3, 1]
    assert buckets.sum == 1.0 + 4.5 + 9.0
    assert buckets.total == 5


def test_a_quantile_is_the_bound_that_holds_that_share():
    buckets = Buckets((1.0, 2.0))
    buckets.add(0.5, times=90)
    buckets.add(1.5, times=9)

    assert buckets.quantile(0.5) == 1.0
    assert buckets.quantile(0.99) == 2.0
    buckets.add(50.0, times=100)
    assert buckets.quantile(0.99) == 2.0
    assert Buckets().quantile(0.99) == 0.0


@given(st.lists(st.floats(min_value=0, max_value=100)))
def test_every_value_lands_in_exactly_one_bucket(values):
    buckets = Buckets()

    for value in values:
        buckets.add(value)

    assert buckets.total == len(values)
    for n, bound in enumerate(LATENCY_BOUNDS):
        assert sum(buckets.counts[: n + 1]) == sum(value <= bound for value in values)
