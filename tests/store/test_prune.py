"""What is forgotten, in which steps, and what is remembered of it."""

from __future__ import annotations

import pytest

from cryptows.config.settings import Feed
from cryptows.store import prune
from cryptows.store.jobs import Batch
from cryptows.store.sqlite import Database

from .stores import record, settings_for, statements


def prune_all(database: Database) -> list[int]:
    """Prune until nothing is left to do; return how many rows went in each step."""
    while database.sweep():
        pass
    gone = []
    for step in database.prunable():
        while True:
            gone.append(database.prune(step))
            if gone[-1] < prune.STEP:
                break
    return [n for n in gone if n]


def kept(database, *channels):
    return [e.n for e in database.read(channels, 0, 100_000)]


@pytest.fixture
def clock():
    return [1_000_000.0]


@pytest.fixture
def opened(tmp_path, clock):
    databases = []

    def open_one(*, feed: Feed | None = None, **store) -> Database:
        settings = settings_for(tmp_path, feed=feed, **store)
        databases.append(Database(settings, now=lambda: clock[0]))
        return databases[-1]

    yield open_one
    for database in databases:
        database.close()


def test_events_go_by_when_they_were_stored_not_by_their_timestamp(opened, clock):
    database = opened(keep=100)
    database.write(Batch([record(1), record(2)]))  # their timestamps are of 2023
    clock[0] += 60
    database.write(Batch([record(3)]))

    assert prune_all(database) == []
    clock[0] += 41
    assert prune_all(database) == [2]

    assert kept(database, "user_1_trades") == [3]
    assert database.floor(["user_1_trades"]) == 2
    assert database.streams() == {("user_1_trades", "BTC"): 3}


def test_a_channel_keeps_its_newest_events(opened):
    database = opened(keep_events=10)
    database.write(Batch([record(n, "a") for n in range(1, 26)]))
    database.write(Batch([record(n, "b") for n in range(26, 36)]))

    assert prune_all(database) == [15]

    assert kept(database, "a") == list(range(16, 26))
    assert kept(database, "b") == list(range(26, 36))
    assert (database.floor(["a"]), database.floor(["b"])) == (15, 0)


def test_a_channel_is_looked_at_when_it_has_grown_and_after_a_start(opened, tmp_path):
    database = opened(keep_events=32)
    database.write(Batch([record(n) for n in range(1, 33)]))
    assert prune_all(database) == []
    database.write(Batch([record(33), record(34)]))
    assert prune_all(database) == []  # within the slack
    database.write(Batch([record(35)]))
    assert prune_all(database) == [3]
    database.close()

    assert prune_all(opened(keep_events=5)) == [27]


def test_pruning_goes_in_small_steps(opened, monkeypatch):
    monkeypatch.setattr(prune, "STEP", 500)
    database = opened(keep_events=10)
    database.write(Batch([record(n) for n in range(1, 1211)]))

    assert prune_all(database) == [500, 500, 200]


def test_ids_go_by_age_and_by_count(opened, clock, tmp_path):
    database = opened(feed=Feed(dedup=60, dedup_ids=3))
    database.write(Batch(ids=[("old", 1)]))
    clock[0] += 61
    database.write(Batch(ids=[(name, 2) for name in "abcde"]))

    assert sum(prune_all(database)) == 3

    assert statements(tmp_path, "SELECT id FROM ids ORDER BY k") == [("c",), ("d",), ("e",)]


def test_marks_of_dead_streams_go_and_the_floor_rises_instead(opened, tmp_path):
    database = opened(keep_events=1)
    lost = {(f"c{n}", ""): (1, n) for n in range(1, 1003)}
    database.write(Batch([record(5000, "c1"), record(5001, "c2")], lost=lost))
    database.sweep()

    assert prune_all(database) == [4]  # 1004 streams, 1000 of which may be remembered

    assert database.floor([]) == 6
    left = {channel for channel, _ in database.streams()}
    assert {"c1", "c2", "c7"} <= left  # the first two have events
    assert not {"c3", "c4", "c5", "c6"} & left


def test_cursors_that_are_furthest_behind_go(opened, tmp_path):
    database = opened()
    database.write(Batch(cursors={f"u{n}": n for n in range(1, 1006)}))

    assert prune_all(database) == [5]

    assert [database.cursor(f"u{n}") for n in (1, 5, 6)] == [None, None, 6]
