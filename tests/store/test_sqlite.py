"""The database over restarts, crashes and damage, and as a whole against a dict."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from cryptows.config.settings import Feed
from cryptows.model.errors import StartError
from cryptows.store import keeping
from cryptows.store.jobs import Batch
from cryptows.store.keeping import CLOSE_GAP, RESERVE
from cryptows.store.sqlite import PROBE, Database, DisplacedError, Unstorable

from .stores import CORRUPT, FULL, IOERR, Disk, crash, record, settings_for, statements

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def settings(tmp_path):
    return settings_for(tmp_path)


def batch(*numbers, **more):
    return Batch([record(n) for n in numbers], **more)


def kept(database, *channels, **more):
    return [e.n for e in database.read(channels or ["user_1_trades"], 0, 10_000, **more)]


def test_what_was_written_is_there_after_a_restart(settings):
    first = Database(settings)
    first.write(batch(1, 2, ids=[("t-1", 1)], cursors={"u": 1}))
    events = first.read(["user_1_trades"], 0, 10)
    first.close(position=2)

    again = Database(settings)

    assert again.read(["user_1_trades"], 0, 10) == events
    assert [(id_, n) for id_, n, _ in again.ids()] == [("t-1", 1)]
    assert again.cursor("u") == 1
    assert again.cursor("v") is None
    assert again.streams() == {("user_1_trades", "BTC"): 2}
    assert (again.file.epoch, again.file.position) == (first.file.epoch, 2 + CLOSE_GAP)
    again.close()


def test_an_epoch_is_short_and_made_once(tmp_path):
    databases = [Database(settings_for(tmp_path / str(n))) for n in range(20)]
    epochs = {database.file.epoch for database in databases}

    for database in databases:
        database.close()

    assert len(epochs) == 20
    assert all(re.fullmatch("[a-z0-9]{1,8}", epoch) for epoch in epochs)


def test_no_position_is_handed_out_twice(settings):
    database = Database(settings)
    handed_out = database.file.position + 1234  # to events that are not durable
    crash(database)

    database = Database(settings)
    assert database.file.position >= handed_out
    assert database.file.ceiling >= database.file.position + RESERVE

    database.file.top = handed_out = database.file.position + 7
    database.close(position=handed_out)
    database = Database(settings)
    assert database.file.position == handed_out + CLOSE_GAP  # told how far it went
    database.close()


def test_a_ceiling_is_raised_when_it_is_passed(settings):
    database = Database(settings)
    beyond = database.file.ceiling + 5

    database.write(batch(beyond))
    assert database.file.ceiling == beyond + RESERVE
    database.file.top = beyond + 7
    database.file.reserve()
    crash(database)

    again = Database(settings)
    assert again.file.position == beyond + 7 + RESERVE
    again.close()


def test_streams_are_known_after_a_crash_whether_swept_or_not(settings):
    database = Database(settings)
    database.write(Batch([record(1, "a", None, seq=5), record(2, "b", "X", seq=9)]))
    database.sweep()
    database.write(Batch([record(3, "a", None, seq=6), record(4, "c", None, seq=1)]))
    crash(database)

    again = Database(settings)

    assert again.streams() == {("a", None): 6, ("b", "X"): 9, ("c", None): 1}
    again.close()


def test_the_floor_of_a_channel_is_what_was_lost_of_it(settings):
    database = Database(settings)
    database.write(batch(3, lost={("user_1_trades", ""): (1, 2), ("other", "X"): (5, 9)}))

    assert database.floor(["user_1_trades"]) == 2
    assert database.floor(["user_1_trades", "other"]) == 9
    assert database.floor(["quiet"]) == 0
    assert database.streams()["other", "X"] == 5
    database.close()


def test_ids_are_forgotten_by_age_and_by_count(tmp_path):
    clock = [1000.0]
    settings = settings_for(tmp_path, feed=Feed(dedup=60, dedup_ids=3))
    database = Database(settings, now=lambda: clock[0])
    database.write(batch(ids=[("old", 1)]))
    clock[0] += 30
    database.write(batch(ids=[("a", 2), ("b", 3), ("c", 4)]))

    assert [id_ for id_, _, _ in database.ids()] == ["a", "b", "c"]
    clock[0] += 31
    database.write(batch(ids=[("d", 5)]))
    assert database.ids() == [("b", 3, 1_030_000), ("c", 4, 1_030_000), ("d", 5, 1_061_000)]
    database.close()


def test_a_read_may_end_at_a_position_and_begin_at_the_newest(settings):
    database = Database(settings)
    database.write(batch(*range(1, 11)))

    assert kept(database, until=4) == [1, 2, 3, 4]
    assert [e.n for e in database.read(["user_1_trades"], 2, 3)] == [3, 4, 5]
    assert [e.n for e in database.read(["user_1_trades"], 2, 3, newest=True)] == [10, 9, 8]
    assert kept(database, "nobody") == []
    database.close()


@pytest.mark.parametrize(
    "poison",
    [
        {"timestamp": 1 << 63},
        {"symbol": "\ud800"},
        {"envelope": object()},
        {"seq": None},
    ],
)
def test_what_sqlite_cannot_hold_costs_its_batch_and_no_connection(tmp_path, poison):
    disk = Disk()
    database = Database(settings_for(tmp_path), connect=disk.connect)
    bad = record(2)
    for name, value in poison.items():
        setattr(bad, name, value)

    with pytest.raises(Unstorable):
        database.write(Batch([record(1), bad]))
    database.write(batch(3))

    assert kept(database) == [3]
    database.close()


def test_an_error_rolls_back_and_the_next_write_has_a_new_connection(tmp_path):
    disk = Disk()
    database = Database(settings_for(tmp_path), connect=disk.connect)
    opened = disk.opened

    disk.writes = FULL
    with pytest.raises(sqlite3.OperationalError, match="full"):
        database.write(batch(1))
    with pytest.raises(sqlite3.OperationalError, match="full"):
        database.sweep()
    disk.writes = None
    database.write(batch(1))

    assert kept(database) == [1]
    assert disk.opened > opened
    database.close()


def test_a_sweep_that_failed_is_made_up_for(tmp_path):
    disk = Disk()
    database = Database(settings_for(tmp_path), connect=disk.connect)
    database.write(batch(1))
    disk.writes = IOERR
    with pytest.raises(sqlite3.OperationalError):
        database.sweep()
    disk.writes = None

    database.write(batch(2))
    database.sweep()

    query = "SELECT channel, symbol, seq FROM streams"
    assert statements(tmp_path, query) == [("user_1_trades", "BTC", 2)]
    database.close()


def test_a_disk_that_fails_at_the_end_costs_only_numbers(tmp_path):
    disk = Disk()
    database = Database(settings_for(tmp_path), connect=disk.connect)
    database.write(batch(1))
    disk.writes = FULL

    with capture_logs() as logs:
        database.close(position=1)

    assert [entry["event"] for entry in logs] == ["store closed without its last position"]
    again = Database(settings_for(tmp_path))
    assert again.file.position == RESERVE
    assert kept(again) == [1]
    again.close()


# -- damage ---------------------------------------------------------------------------------


def overwrite(path, at, data):
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def damage_header(path):
    overwrite(path, 0, b"this is no database")


def damage_pages(path):
    overwrite(path, 4096, os.urandom(path.stat().st_size - 4096))


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def leave_a_stump(path):
    os.truncate(path, 100)


def put_another_program_s(path):
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE music(title)")
    connection.commit()
    connection.close()


def drop(what):
    def damage(path):
        connection = sqlite3.connect(path)
        connection.execute(what)
        connection.commit()
        connection.close()

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        damage_header,
        damage_pages,
        truncate,
        leave_a_stump,
        put_another_program_s,
        pytest.param(drop("DROP TABLE events"), id="no events"),
        pytest.param(drop("DROP TABLE meta"), id="no meta"),
        pytest.param(drop("DELETE FROM meta WHERE key = 'epoch'"), id="no epoch"),
    ],
)
def test_a_damaged_or_foreign_file_is_set_aside_and_the_daemon_starts(settings, tmp_path, damage):
    before = Database(settings)
    before.write(batch(*range(1, 500)))
    before.close(position=500)
    damage(tmp_path / "cryptows.db")
    damaged = (tmp_path / "cryptows.db").read_bytes()

    with capture_logs() as logs:
        database = Database(settings)

    (aside,) = [p for p in tmp_path.iterdir() if "corrupt" in p.name and "Z-" not in p.name]
    assert re.fullmatch(r"cryptows\.db\.corrupt-\d{8}T\d{6}Z", aside.name)
    assert aside.read_bytes()[:50] == damaged[:50]
    assert [(e["event"], e.get("file")) for e in logs] == [
        ("store set aside", str(aside)),
        ("store created", str(tmp_path / "cryptows.db")),
    ]
    assert database.file.epoch != before.file.epoch
    assert kept(database) == []
    assert 0 < database.floor(["any"]) <= database.file.position  # "from the start" is not whole
    database.write(batch(2))
    assert kept(database) == [2]
    database.close()


def test_an_empty_file_is_a_new_store(settings, tmp_path):
    (tmp_path / "cryptows.db").touch()

    database = Database(settings)

    assert [p.name for p in tmp_path.iterdir() if "corrupt" in p.name] == []
    assert database.floor(["any"]) == database.file.position == 0
    database.close()


def test_a_torn_wal_costs_nothing_that_was_committed_before(settings, tmp_path):
    database = Database(settings)
    database.write(batch(1))
    database._checkpoint()
    database.write(batch(2))
    file, wal = tmp_path / "cryptows.db", tmp_path / "cryptows.db-wal"
    found = file.read_bytes(), wal.read_bytes()
    crash(database)  # which moves the WAL into the file
    file.write_bytes(found[0])
    wal.write_bytes(found[1][:40] + b"torn" + found[1][44:])  # its first frame

    again = Database(settings)

    assert kept(again) == [1]
    assert again.file.epoch == database.file.epoch
    again.close()


def test_a_large_file_is_not_read_whole_at_the_start(settings, tmp_path, monkeypatch):
    database = Database(settings)
    database.write(batch(*range(1, 2000)))
    database.close(position=2000)
    size = (tmp_path / "cryptows.db").stat().st_size
    overwrite(tmp_path / "cryptows.db", size // 2, os.urandom(4096))
    monkeypatch.setattr(keeping, "QUICK_CHECK", 1 << 16)

    again = Database(settings)
    with pytest.raises(sqlite3.DatabaseError) as caught:
        kept(again)

    assert again.file.condemn(caught.value)
    again.close()


def test_damage_found_while_running_costs_the_history_but_not_the_epoch(tmp_path):
    disk = Disk()
    database = Database(settings_for(tmp_path), connect=disk.connect)
    epoch, ceiling = database.file.epoch, database.file.ceiling
    database.write(batch(1, 2))
    database.file.top = 90  # others are not durable
    disk.writes = CORRUPT
    with pytest.raises(sqlite3.DatabaseError) as caught:
        database.write(batch(91))
    disk.writes = None

    assert database.file.condemn(caught.value)
    assert not database.file.condemn(sqlite3.OperationalError("database or disk is full"))
    database.probe(batch(92))

    assert kept(database) == [92]
    assert (database.file.epoch, database.floor(["user_1_trades"])) == (epoch, 91)
    assert len([p for p in tmp_path.iterdir() if "corrupt" in p.name]) > 0
    crash(database)
    again = Database(settings_for(tmp_path))
    assert (again.file.epoch, kept(again), again.file.position) == (epoch, [92], ceiling)
    again.close()


@pytest.mark.parametrize("replacement", [None, b"", b"something else"])
def test_a_file_that_was_removed_or_replaced_is_noticed(settings, tmp_path, replacement):
    database = Database(settings)
    database.write(batch(1))
    for name in ("cryptows.db", "cryptows.db-wal", "cryptows.db-shm"):
        (tmp_path / name).unlink()
    if replacement is not None:
        (tmp_path / "new").write_bytes(replacement)
        (tmp_path / "new").rename(tmp_path / "cryptows.db")

    with pytest.raises(DisplacedError):
        database.inspect()
    database.probe(batch(2))

    assert kept(database) == [2]
    assert database.floor([]) == 1
    assert database.inspect() > 0
    database.close()


def test_a_probe_writes_more_than_a_page_and_leaves_nothing(settings, tmp_path):
    database = Database(settings)
    before = database.file.place.size("-wal")

    database.probe(batch(1))

    assert database.file.place.size("-wal") - before > PROBE
    assert statements(tmp_path, "SELECT count(*) FROM meta WHERE key = 'probe'") == [(0,)]
    database.close()


# -- starting -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "told"),
    [(FULL, "database or disk is full"), (IOERR, "disk I/O error")],
)
def test_a_disk_that_fails_at_the_start_is_a_clear_line(tmp_path, fault, told):
    with pytest.raises(StartError) as caught:
        Database(settings_for(tmp_path), connect=Disk(writes=fault).connect)

    assert str(caught.value) == (
        f'server.state_dir "{tmp_path}" cannot be used: {told}; '
        "expected a folder that this user may write to, with room left"
    )
    Database(settings_for(tmp_path)).close()  # the folder was given up


def test_a_newer_store_is_left_alone(tmp_path):
    database = Database(settings_for(tmp_path))
    database.close()
    drop("PRAGMA user_version = 99")(tmp_path / "cryptows.db")

    with pytest.raises(StartError, match="has schema 99, written by a newer cryptows"):
        Database(settings_for(tmp_path))

    assert statements(tmp_path, "PRAGMA user_version") == [(99,)]


def test_a_file_system_without_shared_memory_is_a_clear_line(tmp_path):
    def connect(path, patience):
        return sqlite3.connect(
            f"{path.as_uri()}?vfs=unix-none", uri=True, isolation_level=None,
            check_same_thread=False,
        )  # fmt: skip

    with pytest.raises(StartError, match=r"does not support SQLite's WAL"):
        Database(settings_for(tmp_path), connect=connect)


# -- kill -9 --------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
import structlog
from cryptows.store.jobs import Batch
from cryptows.store.sqlite import Database
from tests.store.stores import record, settings_for
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
database = Database(settings_for(Path(sys.argv[1])))
n = database.file.position
print(database.file.epoch, n, flush=True)
while True:
    numbers = range(n + 1, n + 8)
    database.write(Batch([record(i) for i in numbers], ids=[(f"t-{n}", n)]))
    n += 7
    print(n, flush=True)
"""


def test_every_acknowledged_row_survives_kill_9_and_no_number_comes_again(tmp_path):
    acknowledged, epochs = 0, set()
    expected: set[int] = set()
    for lines in (1, 7, 40):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert writer.stdout is not None
        epoch, position = writer.stdout.readline().split()
        assert int(position) >= acknowledged
        epochs.add(epoch)
        for _ in range(lines):
            acknowledged = int(writer.stdout.readline())
        writer.kill()
        for line in writer.stdout.read().splitlines():
            acknowledged = int(line)
        writer.wait()
        writer.stdout.close()
        expected |= set(range(int(position) + 1, acknowledged + 1))

    database = Database(settings_for(tmp_path))
    found = kept(database)
    database.close()

    assert len(epochs) == 1
    assert expected <= set(found)
    assert len(set(found)) == len(found)
    assert len(found) - len(expected) <= 3 * 7  # committed, and killed before it could say so
