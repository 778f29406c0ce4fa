"""Pieces: who reads well gets more at once, and what many are sent is made once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptows.broker.journal import Journal
from cryptows.broker.pieces import (
    FIRST_PIECE,
    LEAST_PIECE,
    MOST_PIECE,
    OVERHEAD,
    QUICK,
    SLOW,
    Copies,
    Pace,
    cut,
)
from cryptows.model.channel import Lane
from cryptows.model.event import Record
from cryptows.store.rows import StoredEvent


def record(n: int, size: int = 100) -> Record:
    text = b'{"n":%d,"x":"' % n + b"x" * size + b'"}'
    return Record(n, n, "news", None, Lane.MARKET, 7, text, b"e.%d" % n)


# --- the pace


def test_a_client_that_reads_is_sent_more_at_once():
    pace = Pace(1 << 20)
    sizes = []

    for _ in range(20):
        sizes.append(pace.size)
        pace.took(0.001)

    assert sizes[0] == FIRST_PIECE
    assert sizes[-1] == MOST_PIECE
    assert sizes == sorted(sizes)
    assert sizes.count(FIRST_PIECE) == sizes.count(2 * FIRST_PIECE) == 4


def test_a_client_that_takes_long_is_sent_less_at_once():
    pace = Pace(1 << 20)
    for _ in range(20):
        pace.took(0)

    for _ in range(20):
        pace.took(SLOW)

    assert pace.size == LEAST_PIECE
    pace.took(QUICK)  # neither quick nor slow
    assert pace.size == LEAST_PIECE


@pytest.mark.parametrize("most", [1000, 10_000, 20_000])
def test_no_piece_is_larger_than_what_may_wait_for_a_client(most):
    pace = Pace(most)

    for _ in range(30):
        assert pace.size <= most
        pace.took(0)


@given(st.lists(st.integers(0, 300)), st.integers(1, 2000))
def test_a_piece_has_at_least_one_event_and_ends_with_the_one_that_fills_it(sizes, most):
    records = [record(n, size) for n, size in enumerate(sizes)]

    count = cut(records, most)

    assert count >= min(1, len(records))
    if count < len(records):
        assert sum(len(r.envelope) for r in records[:count]) >= most
    assert sum(len(r.envelope) for r in records[: count - 1]) < most


# --- the copies


def test_a_copy_is_marked_and_no_newer_event_replaces_it():
    copies = Copies(Journal("e", 9))
    stored = StoredEvent(5, "news", "BTC", 2, 8, b'{"seq":2}')

    with copies.in_use():
        [copy] = copies.of([stored], "replay")

    assert (copy.n, copy.seq, copy.channel, copy.symbol, copy.timestamp) == (5, 2, "news", "BTC", 8)
    assert (copy.envelope, copy.offset) == (b'{"seq":2,"replay":true}', b"e.5")
    assert copy.lane is Lane.PRIVATE


def test_who_comes_back_at_the_same_time_shares_the_copies_of_each_mark():
    copies = Copies(Journal("e", 9))
    with copies.in_use(), copies.in_use():
        first = copies.of([record(1), record(2)], "replay")
        second = copies.of([record(2), record(3)], "replay")
        snapshot = copies.of([record(2)], "snapshot")

        assert first[1] is second[0]
        assert snapshot[0] is not first[1]
        assert snapshot[0].envelope.endswith(b'"snapshot":true}')
        assert len(copies) == 4


def test_copies_are_forgotten_when_nobody_is_coming_back_any_more():
    copies = Copies(Journal("e", 9))
    with copies.in_use():
        with copies.in_use():
            copies.of([record(1)], "replay")
        assert len(copies) == 1

    assert len(copies) == 0


def test_copies_are_bounded_in_bytes_and_the_oldest_go_first():
    size = 3 * len(record(10).envelope + b',"replay":true') + OVERHEAD
    copies = Copies(Journal("e", 9), most=3 * size)
    with copies.in_use():
        first = copies.of([record(n) for n in range(10, 13)], "replay")
        more = copies.of([record(13), record(14)], "replay")

        assert len(copies) == 3
        assert copies.of([record(14)], "replay")[0] is more[1]
        assert copies.of([record(10)], "replay")[0] is not first[0]
        assert len(copies) == 3

        many = copies.of([record(n) for n in range(20, 30)], "replay")

        assert [copy.n for copy in many] == [*range(20, 30)]
        assert len(copies) == 3
