"""That events were lost is known after a restart, though the database could not be told."""

from __future__ import annotations

import pytest
import trio
from structlog.testing import capture_logs

from cryptows.store.doubt import SIZE, DoubtFile, Lost
from cryptows.store.jobs import Batch
from cryptows.store.keeping import RESERVE, SEQ_GAP
from cryptows.store.sqlite import Database
from cryptows.store.writer import StoreTask

from .stores import FULL, Answers, Disk, Hop, crash, record, settings_for

TRADES = "user_1_trades"
STREAM = (TRADES, "BTC")


@pytest.fixture
def file(tmp_path):
    file = DoubtFile(tmp_path / "cryptows.lost")
    yield file
    file.close()


def test_a_new_file_says_that_nothing_was_lost_and_takes_its_room_at_once(file, tmp_path):
    assert file.read() is None
    assert (tmp_path / "cryptows.lost").stat().st_blocks * 512 >= SIZE


@pytest.mark.parametrize("marks", [None, {}, {STREAM: (7, 9), (TRADES, ""): (1, 10)}])
def test_what_was_written_is_read_until_it_is_cleared(file, tmp_path, marks):
    file.write("epoch", marks)

    again = DoubtFile(tmp_path / "cryptows.lost")
    assert again.read() == Lost("epoch", marks)
    again.clear()
    assert file.read() is None
    again.close()
    assert (tmp_path / "cryptows.lost").stat().st_size == SIZE


def test_more_than_there_is_room_for_is_said_without_numbers(file):
    file.write("epoch", {(TRADES, f"S{n}"): (n, n) for n in range(10_000)})

    assert file.read() == Lost("epoch", None)


@pytest.mark.parametrize("at", [0, 5, 30])
def test_a_file_that_makes_no_sense_says_that_something_was_lost(file, tmp_path, at):
    file.write("epoch", {STREAM: (7, 9)})
    with (tmp_path / "cryptows.lost").open("r+b") as other:
        other.seek(at)
        other.write(b"\xff")

    assert file.read() == Lost(None, None)


def database_with(folder, *, disk: Disk | None = None) -> Database:
    database = Database(settings_for(folder), connect=(disk or Disk()).connect)
    if not database.file.top:
        database.write(Batch([record(1), record(2)], [], {}, {}))
    return database


def test_what_an_orderly_end_could_not_store_is_known_exactly(tmp_path):
    disk = Disk()
    database = database_with(tmp_path, disk=disk)
    disk.writes = FULL
    database.close(9, {STREAM: (8, 9)})

    with capture_logs() as logs:
        again = database_with(tmp_path)

    assert [entry["lost"] for entry in logs] == ["events of 1 streams"]
    assert again.floor([TRADES]) == 9
    assert again.floor(["user_2_trades"]) == 0
    assert again.streams() == {STREAM: 8}
    again.close(again.file.position)
    with capture_logs() as logs:
        database_with(tmp_path).close()
    assert logs == []  # it is said once


@pytest.mark.parametrize("swept", [False, True])
def test_after_a_crash_in_doubt_everything_before_it_may_be_missing(tmp_path, swept):
    database = database_with(tmp_path)
    if swept:
        database.sweep()
    database.file.doubt(True)
    crash(database)

    again = database_with(tmp_path)

    assert again.floor([TRADES]) == again.floor(["user_2_trades"]) == RESERVE
    assert again.file.position == RESERVE
    assert again.streams() == {STREAM: 2 + SEQ_GAP}
    assert [e.n for e in again.read([TRADES], 0, 10)] == [1, 2]
    again.close()


def test_a_doubt_of_another_history_is_none(tmp_path):
    database = database_with(tmp_path)
    database.file.doubt(True)
    crash(database)
    for path in tmp_path.glob("cryptows.db*"):
        path.unlink()

    again = database_with(tmp_path)

    assert again.floor([TRADES]) == 0
    again.close()
    file = DoubtFile(tmp_path / "cryptows.lost")
    assert file.read() is None
    file.close()


def said(folder) -> Lost | None:
    file = DoubtFile(folder / "cryptows.lost")
    try:
        return file.read()
    finally:
        file.close()


def task_on(folder, disk: Disk) -> tuple[StoreTask, Answers]:
    settings = settings_for(folder, failures=2, retry=1, retry_max=8, timeout=2)
    database = Database(settings, connect=disk.connect)
    return StoreTask(settings, database, hop=Hop()), Answers()


async def test_a_running_store_notes_it_at_once_and_takes_it_back(
    tmp_path, autojump_clock, nursery
):
    disk = Disk()
    task, answers = task_on(tmp_path, disk)
    await nursery.start(task.run)
    disk.writes = FULL
    task.put(answers.append(1))
    await trio.sleep(0.1)
    assert answers.given == [(1, False)]
    assert said(tmp_path) == Lost(task.epoch, None)

    disk.writes = None
    await trio.sleep(2)
    assert task.state == "closed"
    assert said(tmp_path) is None
    await task.aclose()


async def test_a_store_that_closes_on_a_full_disk_leaves_what_was_lost(
    tmp_path, autojump_clock, nursery
):
    disk = Disk()
    task, answers = task_on(tmp_path, disk)
    await nursery.start(task.run)
    disk.writes = FULL
    task.put(answers.append(1))
    await trio.sleep(0.1)
    task.put(answers.append(2))
    await task.aclose()

    assert said(tmp_path) == Lost(task.epoch, {STREAM: (2, 2)})


async def test_a_note_that_cannot_be_made_is_said_once(
    tmp_path, autojump_clock, nursery, monkeypatch
):
    disk = Disk()
    task, answers = task_on(tmp_path, disk)

    def fail(lost: bool) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(task.database.file, "doubt", fail)
    await nursery.start(task.run)
    disk.writes = FULL
    with capture_logs() as logs:
        task.put(answers.append(1))
        await trio.sleep(1.5)

    assert sum("could not be noted" in entry["event"] for entry in logs) == 1
    disk.writes = None
    await task.aclose()
