"""Rows in and out, whatever their number and size."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptows.model.channel import Lane
from cryptows.model.event import Record
from cryptows.store import rows
from cryptows.store.keeping import found
from cryptows.store.rows import StoredEvent, insert_events, read_events
from cryptows.store.schema import prepare

from .stores import record


@contextlib.contextmanager
def database():
    connection = sqlite3.connect(":memory:", isolation_level=None)
    prepare(connection)
    found(connection, "e", ceiling=0, floor=0)
    try:
        yield connection
    finally:
        connection.close()


def stored(r: Record) -> StoredEvent:
    return StoredEvent(r.n, r.channel, r.symbol, r.seq, r.timestamp, r.envelope)


@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 511, 512, 513, 1500, 2111])
def test_any_number_of_rows_is_written_and_read_back(count):
    records = [record(n, symbol=None if n % 3 else "BTC") for n in range(1, count + 1)]

    with database() as connection:
        insert_events(connection, records, 0)
        events = read_events(connection, ["user_1_trades"], 0, None, 10_000, False)

    assert events == [stored(r) for r in records]


def test_a_row_that_is_there_already_is_left_alone():
    with database() as connection:
        insert_events(connection, [record(1, seq=5), record(2)], 0)
        insert_events(connection, [record(1, seq=6), record(3)], 0)
        events = read_events(connection, ["user_1_trades"], 0, None, 10, False)

    assert [(e.n, e.seq) for e in events] == [(1, 5), (2, 2), (3, 3)]


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(
    envelopes=st.lists(st.binary(min_size=1).filter(lambda b: 0 not in b) | texts.map(str.encode)),
    names=st.lists(texts, min_size=1, max_size=3),
)
def test_envelopes_and_names_come_back_byte_for_byte(envelopes, names):
    made = [
        Record(n, n, names[n % len(names)], names[0] or None, Lane.PRIVATE, n, envelope, b"")
        for n, envelope in enumerate(envelopes, 1)
    ]

    with database() as connection:
        insert_events(connection, made, 0)
        events = read_events(connection, names, 0, None, 1000, False)

    assert events == [stored(r) for r in made]


def test_a_read_ends_when_it_is_large_and_the_next_goes_on(monkeypatch):
    monkeypatch.setattr(rows, "MAX_READ", 1 << 16)
    big = [Record(n, n, "c", None, Lane.PRIVATE, n, b"x" * (1 << 12), b"") for n in range(1, 201)]

    with database() as connection:
        insert_events(connection, big, 0)
        forward, since = [], 0
        while part := read_events(connection, ["c"], since, None, 1000, False):
            assert sum(len(e.envelope) for e in part) <= rows.FIRST_PAGE << 12
            forward += part
            since = part[-1].n
        backward, until = [], None
        while part := read_events(connection, ["c"], 0, until, 1000, True):
            backward += part
            until = part[-1].n - 1

    assert forward == [stored(r) for r in big]
    assert backward == forward[::-1]


def test_reading_takes_the_index_and_scans_nothing():
    with database() as connection:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {rows.FORWARD}", ('["c"]', 0, 9, 9))
        steps = [row[3] for row in plan]

    assert "SEARCH places USING PRIMARY KEY (channel=? AND n>? AND n<?)" in steps
    assert "SEARCH events USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)" in steps
    assert not any(s.startswith(("SCAN events", "SCAN places")) for s in steps)


@given(sweeps=st.lists(st.integers(1, 9), max_size=6), since=st.integers(0, 40))
def test_what_is_read_does_not_depend_on_what_was_swept(sweeps, since):
    made = [record(n, f"c{n % 3}") for n in range(1, 41)]

    with database() as connection:
        insert_events(connection, made, 0)
        swept = [rows.sweep(connection, most) for most in sweeps]
        events = read_events(connection, ["c0", "c2"], since, 38, 20, False)
        newest = read_events(connection, ["c0", "c2"], since, 38, 20, True)

    expected = [stored(r) for r in made if r.n % 3 != 1 and since < r.n <= 38]
    assert swept == [min(n, max(0, 40 - sum(sweeps[:i]))) for i, n in enumerate(sweeps)]
    assert events == expected[:20]
    assert newest == expected[::-1][:20]
