import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptows.cli.pacing import AtOnce, Recorded, Steady, parse_pace


def test_asap_makes_every_line_due_at_once():
    pace = parse_pace("asap")
    pace.again()

    assert isinstance(pace, AtOnce)
    assert [pace.due(b"{}") for _ in range(3)] == [0.0, 0.0, 0.0]


def test_a_rate_spreads_the_lines_evenly_over_repetitions_too():
    pace = parse_pace("4/s")

    dues = [pace.due(b"{}") for _ in range(3)]
    pace.again()

    assert isinstance(pace, Steady)
    assert [*dues, pace.due(b"{}")] == [0.0, 0.25, 0.5, 0.75]


def test_a_rate_may_be_a_fraction():
    pace = parse_pace("0.5/s")

    assert [pace.due(b"{}"), pace.due(b"{}")] == [0.0, 2.0]


@pytest.mark.parametrize(
    "text", ["", "fast", "0/s", "0.0/s", "-1/s", "10", "1/min", "1e3/s", "٣/s"]
)
def test_what_is_no_pace_is_refused_with_what_would_be(text):
    with pytest.raises(ValueError, match="expected recorded, asap, or a rate as 100/s"):
        parse_pace(text)


def test_recorded_keeps_the_distances_of_ts():
    pace = parse_pace("recorded")

    dues = [pace.due(b'{"ts":%d}' % ts) for ts in (1_626_992_741_062, 1_626_992_741_562)]

    assert isinstance(pace, Recorded)
    assert dues == [0.0, 0.5]


def test_recorded_takes_timestamp_where_there_is_no_ts():
    pace = Recorded()

    assert [pace.due(b'{"timestamp":1000}'), pace.due(b'{"timestamp":9,"ts":3000}')] == [0.0, 2.0]


def test_a_line_without_a_time_is_due_with_the_one_before():
    pace = Recorded()
    lines = [
        b"{}",
        b'{"ts":1000}',
        b'{"ts":"x"}',
        b"not json",
        b'{"ts":1250}',
        b"\xff",
        b'{"ts":null}',
    ]

    assert [pace.due(line) for line in lines] == [0.0, 0.0, 0.0, 0.0, 0.25, 0.25, 0.25]


def test_a_time_that_goes_back_makes_nobody_wait():
    pace = Recorded()

    assert [pace.due(b'{"ts":%d}' % ts) for ts in (5000, 6000, 4000, 6500)] == [0.0, 1.0, 1.0, 1.5]


def test_a_repetition_follows_without_a_pause():
    pace = Recorded()
    first = [pace.due(b'{"ts":%d}' % ts) for ts in (5000, 6000)]

    pace.again()

    assert first == [0.0, 1.0]
    assert [pace.due(b'{"ts":%d}' % ts) for ts in (5000, 6000)] == [1.0, 2.0]


@given(st.lists(st.binary(max_size=30) | st.floats().map(lambda x: f'{{"ts":{x}}}'.encode())))
def test_due_times_never_go_back_and_are_always_finite(lines):
    pace = Recorded()

    dues = [pace.due(line) for line in lines]

    assert dues == sorted(dues)
    assert all(math.isfinite(due) and due >= 0 for due in dues)
