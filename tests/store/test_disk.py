"""Real disks that are full, read-only or forbidden; most of it needs root for a small tmpfs."""

from __future__ import annotations

import os
import subprocess

import pytest
import trio

from cryptows.model.errors import StartError
from cryptows.store.sqlite import Database
from cryptows.store.writer import StoreTask

from .stores import Answers, settings_for

SIZE = 2 << 20


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this root cannot mount: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path):
    if os.geteuid():
        pytest.skip("a small tmpfs needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder))
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    """Take all the room there is; return the file that does."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                pass
    return ballast


async def until(condition, limit=20.0):
    with trio.fail_after(limit):
        while not condition():  # noqa: ASYNC110  (what it waits for is a disk)
            await trio.sleep(0.01)


class Running:
    """A store task that writes until told otherwise."""

    def __init__(self, folder):
        settings = settings_for(folder, failures=2, retry=0.05, retry_max=0.2, timeout=5)
        self.task = StoreTask(settings, Database(settings))
        self.answers = Answers()
        self.n = self.task.position

    def put(self, count: int) -> bool:
        first, self.n = self.n + 1, self.n + count
        return self.task.put(self.answers.append(*range(first, self.n + 1)))

    async def put_and_wait(self, count: int) -> bool:
        before = len(self.answers.given)
        if not self.put(count):
            return False
        await until(lambda: len(self.answers.given) > before)
        return self.answers.given[-1][1]


async def test_a_disk_that_is_really_full_opens_the_breaker_until_there_is_room(
    small_disk, nursery
):
    store = Running(small_disk)
    await nursery.start(store.task.run)
    assert await store.put_and_wait(10)
    kept = store.n
    ballast = fill(small_disk)

    while await store.put_and_wait(50):  # what SQLite had allocated is used up first
        kept = store.n
    await until(lambda: store.task.state == "open")
    assert not store.put(1)
    read = await store.task.read(["user_1_trades"], 0, 100_000)
    assert read[-1].n == kept
    refused = store.n

    ballast.unlink()
    await until(lambda: store.task.state == "closed")
    assert await store.put_and_wait(10)
    page = await store.task.read(["user_1_trades"], refused, 100)
    assert [e.n for e in page] == list(range(refused + 1, store.n + 1))
    assert await store.task.floor(["user_1_trades"]) == refused
    await store.task.aclose()


async def test_a_disk_that_fills_by_itself_loses_nothing_that_was_acknowledged(small_disk, nursery):
    store = Running(small_disk)
    await nursery.start(store.task.run)

    while await store.put_and_wait(200):
        pass
    await store.task.aclose()
    (small_disk / "cryptows.db").stat()

    database = Database(settings_for(small_disk))
    found, since = [], 0
    while page := database.read(["user_1_trades"], since, 1000):
        found += [e.n for e in page]
        since = page[-1].n
    database.close()

    acknowledged = [n for n, kept in store.answers.given if kept]
    assert set(acknowledged) <= set(found)
    assert found == list(range(1, len(found) + 1))


def test_a_disk_that_is_full_at_the_start_is_a_clear_line(small_disk):
    fill(small_disk)

    with pytest.raises(StartError) as caught:
        Database(settings_for(small_disk))

    assert str(caught.value).startswith(f'server.state_dir "{small_disk}" cannot be used: ')
    assert "with room left" in str(caught.value)


def test_a_read_only_file_system_is_a_clear_line(small_disk):
    mount("-o", "remount,ro", str(small_disk))

    with pytest.raises(StartError) as caught:
        Database(settings_for(small_disk))

    assert str(caught.value) == (
        f'server.state_dir "{small_disk}" cannot be used: Read-only file system; '
        "expected a folder that this user may write to, with room left"
    )


def test_a_read_only_file_system_with_a_store_on_it_is_a_clear_line(small_disk):
    Database(settings_for(small_disk)).close()
    mount("-o", "remount,ro", str(small_disk))

    with pytest.raises(StartError, match="cannot be used: Read-only file system"):
        Database(settings_for(small_disk))


def test_a_folder_of_somebody_else_is_a_clear_line(tmp_path):
    tmp_path.chmod(0o500)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # nobody: root may write everywhere
    try:
        with pytest.raises(StartError, match="cannot be used: Permission denied"):
            Database(settings_for(tmp_path))
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o700)
