"""The store task on a clock of its own, with disks that fail, hang and recover."""

from __future__ import annotations

import functools

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked

from cryptows.store import house, jobs
from cryptows.store.jobs import Batch, StoreError
from cryptows.store.keeping import CLOSE_GAP, RESERVE
from cryptows.store.sqlite import Database
from cryptows.store.writer import StoreTask

from .stores import CORRUPT, FULL, IOERR, READONLY, Answers, Disk, Hop, record, settings_for


class Bench:
    """A store task with its disk, its thread, and what it said."""

    def __init__(self, folder, **store):
        settings = settings_for(
            folder, **{"failures": 2, "retry": 1, "retry_max": 8, "timeout": 2, **store}
        )
        self.disk, self.hop, self.answers = Disk(), Hop(), Answers()
        self.states: list[tuple[str, str, str]] = []
        self.task = StoreTask(
            settings, Database(settings, connect=self.disk.connect),
            on_state=lambda *change: self.states.append(change), hop=self.hop,
        )  # fmt: skip

    async def start(self, nursery) -> None:
        await nursery.start(self.task.run)

    def put(self, *numbers: int, **more) -> bool:
        return self.task.put(self.answers.append(*numbers, **more))

    @property
    def given(self) -> list[tuple[int, bool]]:
        return self.answers.given

    async def kept(self, *channels: str) -> list[int]:
        return [e.n for e in await self.task.read(channels or ("user_1_trades",), 0, 10_000)]


@pytest.fixture
async def bench(tmp_path, nursery):
    bench = Bench(tmp_path)
    await bench.start(nursery)
    yield bench
    bench.disk.writes = bench.disk.reads = None
    await bench.task.aclose()


async def test_appends_are_committed_together_and_answered_in_order(autojump_clock, bench):
    bench.hop.takes = 0.1
    bench.put(1)
    await trio.sleep(0.05)
    for n in (2, 3, 4):
        bench.put(n, id_=f"t-{n}")
    assert bench.task.waiting == 4

    await trio.sleep(0.06)
    assert bench.given == [(1, True)]
    await trio.sleep(0.1)

    assert bench.given == [(1, True), (2, True), (3, True), (4, True)]
    assert await bench.kept() == [1, 2, 3, 4]
    counters = bench.task.counters
    assert (counters.commits, counters.stored, bench.task.waiting) == (2, 4, 0)
    assert counters.slowest_commit == pytest.approx(0.1)


async def test_nothing_is_answered_from_inside_put(autojump_clock, bench):
    bench.put(1)
    assert bench.given == []

    await wait_all_tasks_blocked()
    assert bench.given == [(1, True)]


async def test_an_error_or_two_are_survived_without_losing_anything(autojump_clock, bench):
    bench.disk.writes = IOERR
    bench.put(1)
    await trio.sleep(0.01)
    bench.disk.writes = None
    await trio.sleep(0.1)

    assert bench.given == [(1, True)]
    assert (bench.states, bench.task.state) == ([], "closed")
    assert bench.task.counters.failures == 1


@pytest.mark.parametrize("fault", [FULL, READONLY, IOERR])
async def test_while_the_disk_fails_everything_goes_out_at_once_and_unstored(
    autojump_clock, bench, fault
):
    bench.put(1)
    await wait_all_tasks_blocked()
    bench.disk.writes = fault
    bench.put(2)
    bench.put(3)
    await trio.sleep(0.5)

    assert bench.given == [(1, True), (2, False), (3, False)]
    assert bench.task.state == "open"
    assert not bench.task.is_taking
    assert [bench.put(4), bench.put(5)] == [False, False]
    assert await bench.kept() == [1]  # what is kept can still be read

    await trio.sleep(4)
    assert bench.task.state == "open"
    bench.disk.writes = None
    await trio.sleep(4)
    bench.put(6)
    await wait_all_tasks_blocked()

    assert bench.given[3:] == [(6, True)]
    assert await bench.kept() == [1, 6]
    assert await bench.task.floor(["user_1_trades"]) == 5
    changes = [(old, new) for old, new, _ in bench.states]
    trials = [("open", "half_open"), ("half_open", "open")] * 2
    assert changes == [("closed", "open"), *trials, ("open", "half_open"), ("half_open", "closed")]
    assert bench.states[0][2] == fault[1]


async def test_trials_come_after_pauses_that_double(autojump_clock, bench):
    bench.disk.writes = FULL
    bench.put(1)
    times = []
    bench.task._ledger.on_state = lambda old, new, reason: times.append((new, trio.current_time()))

    await trio.sleep(40)

    opened = [t for new, t in times if new == "open"]
    tried = [t for new, t in times if new == "half_open"]
    assert [round(b - a, 2) for a, b in zip(opened, tried, strict=False)][:5] == [1, 2, 4, 8, 8]


async def test_a_commit_that_hangs_holds_nobody_up(autojump_clock, bench):
    bench.hop.takes = 9  # longer than several timeouts
    bench.put(1)
    await trio.sleep(1)
    bench.put(2)

    await trio.sleep(1.1)
    assert bench.given == [(1, False), (2, False)]
    assert trio.current_time() == pytest.approx(2.1)
    assert not bench.put(3)  # it is still under way
    await trio.sleep(2)
    assert bench.task.state == "open"

    bench.hop.takes = 0
    await trio.sleep(10)
    assert bench.task.state == "closed"
    bench.put(4)
    await wait_all_tasks_blocked()

    assert bench.given[2:] == [(4, True)]
    assert await bench.kept() == [1, 4]  # the first was kept after all, in its place
    assert await bench.task.floor(["user_1_trades"]) == 3


async def test_one_slow_commit_does_not_open_the_breaker(autojump_clock, bench):
    bench.hop.takes = 3
    bench.put(1)
    await trio.sleep(2.5)
    bench.hop.takes = 0
    await trio.sleep(1)

    assert bench.put(2)
    await wait_all_tasks_blocked()

    assert bench.given == [(1, False), (2, True)]
    assert bench.states == []


async def test_a_backlog_over_its_bound_counts_as_a_failing_disk(
    autojump_clock, bench, monkeypatch
):
    monkeypatch.setattr(jobs, "FULL_EVENTS", 10)
    bench.hop.takes = 1
    bench.put(1)
    await trio.sleep(0.1)

    for n in range(2, 14):
        assert bench.put(n)
    await wait_all_tasks_blocked()

    assert bench.given == [(n, False) for n in range(1, 14)]
    await trio.sleep(1)
    assert bench.put(14)


async def test_an_event_that_cannot_be_stored_costs_itself_alone(autojump_clock, bench):
    bad = bench.answers.append(2)
    bad.records[0].timestamp = 1 << 70
    with capture_logs() as logs:
        bench.put(1)
        bench.task.put(bad)
        bench.put(3)
        await wait_all_tasks_blocked()

    assert bench.given == [(1, True), (2, False), (3, True)]
    assert bench.task.state == "closed"
    assert {entry["event"] for entry in logs} == {"an event or cursor cannot be stored"}


async def test_damage_is_repaired_by_the_next_trial(autojump_clock, bench, tmp_path):
    bench.put(1)
    await wait_all_tasks_blocked()
    bench.disk.writes = CORRUPT
    bench.task.used(7)
    bench.put(8)
    await wait_all_tasks_blocked()
    assert bench.task.state == "open"

    bench.disk.writes = None
    await trio.sleep(1.1)
    bench.put(9)
    await wait_all_tasks_blocked()

    assert bench.given == [(1, True), (8, False), (9, True)]
    assert await bench.kept() == [9]
    assert await bench.task.floor([]) >= 7
    assert [p.name[:19] for p in tmp_path.iterdir() if p.name.endswith("Z")] == [
        "cryptows.db.corrupt"
    ]


async def test_a_removed_file_is_noticed_without_any_event(autojump_clock, bench, tmp_path):
    bench.put(1)
    await wait_all_tasks_blocked()
    (tmp_path / "cryptows.db").unlink()

    await trio.sleep(2.5)

    assert [new for _, new, _ in bench.states] == ["open", "half_open", "closed"]
    bench.put(2)
    await wait_all_tasks_blocked()
    assert await bench.kept() == [2]


async def test_a_read_of_a_damaged_file_opens_the_breaker_and_other_errors_do_not(
    autojump_clock, bench
):
    bench.put(1)
    await wait_all_tasks_blocked()
    bench.disk.reads = IOERR
    with pytest.raises(StoreError, match="the store cannot be read: disk I/O error"):
        await bench.kept()
    assert bench.task.state == "closed"

    bench.disk.reads = CORRUPT
    with pytest.raises(StoreError, match="malformed"):
        await bench.task.floor(["x"])
    assert bench.task.state == "open"


async def test_a_read_that_hangs_is_given_up_and_those_behind_it_at_once(tmp_path, autojump_clock):
    bench = Bench(tmp_path)
    bench.hop.takes = 9
    with pytest.raises(StoreError, match="did not answer within 2 s"):
        await bench.kept()
    assert trio.current_time() == 2

    stuck = trio.CapacityLimiter(1)
    stuck.acquire_on_behalf_of_nowait("a thread that hangs")
    bench.task._reader._limiter = stuck
    with pytest.raises(StoreError, match="does not answer"):
        await bench.kept()
    assert trio.current_time() == 2
    bench.hop.takes = 0
    await bench.task.aclose()


async def test_a_client_who_leaves_does_not_leave_a_thread_behind(autojump_clock, bench):
    bench.hop.takes = 1
    with trio.move_on_after(0.1):
        await bench.kept()

    assert bench.task._reader._limiter.borrowed_tokens == 0
    bench.hop.takes = 0
    assert await bench.kept() == []


async def test_full_pages_are_read_once_and_the_end_each_time(autojump_clock, bench):
    bench.put(*range(1, 6))
    await wait_all_tasks_blocked()
    before = bench.task._reader.reads

    first = await bench.task.read(["user_1_trades"], 0, 3)
    assert await bench.task.read(["user_1_trades"], 0, 3) is first
    assert bench.task._reader.reads == before + 1
    assert [e.n for e in await bench.task.read(["user_1_trades"], 3, 3)] == [4, 5]
    bench.put(6)
    await wait_all_tasks_blocked()
    assert [e.n for e in await bench.task.read(["user_1_trades"], 3, 3)] == [4, 5, 6]
    newest = functools.partial(bench.task.read, ["user_1_trades"], 0, 2, newest=True)
    assert [e.n for e in await newest()] == [6, 5]
    bench.put(7)
    await wait_all_tasks_blocked()
    assert [e.n for e in await newest()] == [7, 6]
    assert [e.n for e in await bench.task.read(["user_1_trades"], 0, 3, until=2)] == [1, 2]
    assert await bench.task.read(["user_1_trades"], 0, 3, until=3) is first
    assert await bench.task.read(["user_1_trades"], 0, 3, until=4) is first


async def test_remembered_pages_are_bounded(autojump_clock, bench, monkeypatch):
    monkeypatch.setattr("cryptows.store.reader.PAGES", 1000)
    bench.put(*range(1, 20))
    await wait_all_tasks_blocked()

    for since in range(15):
        assert len(await bench.task.read(["user_1_trades"], since, 2)) == 2

    assert 0 < bench.task._reader._pages._size <= 1000
    assert len(bench.task._reader._pages._pages) < 4


async def test_cursors_are_known_at_once_and_written_soon(autojump_clock, bench, tmp_path):
    assert await bench.task.cursor("u") is None
    bench.task.set_cursor("u", 5)
    bench.task.set_cursor("u", 3)
    assert await bench.task.cursor("u") == 5

    await trio.sleep(1.5)
    assert bench.task._ledger.cursors == {}
    assert await bench.task.cursor("u") == 5
    bench.task.set_cursor("u", 0)
    assert await bench.task.cursor("u") == 5


async def test_a_cursor_of_zero_is_one(autojump_clock, bench):
    bench.task.set_cursor("new", 0)
    assert await bench.task.cursor("new") == 0


async def test_pruning_goes_on_in_the_background(tmp_path, autojump_clock, nursery):
    bench = Bench(tmp_path, keep_events=10)
    await bench.start(nursery)
    bench.put(*range(1, 1201))
    await trio.sleep(1)
    assert len(await bench.kept()) == 1200

    await trio.sleep(house.TICK * house.PRUNE_TICKS)

    assert await bench.kept() == list(range(1191, 1201))
    assert bench.task.counters.pruned == 1190
    assert await bench.task.floor(["user_1_trades"]) == 1190
    await bench.task.aclose()


async def test_chores_that_fail_open_the_breaker_and_stop(autojump_clock, bench):
    bench.put(1)
    await wait_all_tasks_blocked()
    bench.disk.writes = FULL

    await trio.sleep(60)
    assert bench.task.state == "open"
    bench.disk.writes = None
    await trio.sleep(10)
    assert bench.task.state == "closed"


async def test_the_ceiling_rises_before_it_is_reached(autojump_clock, bench):
    ceiling = bench.task.database.file.ceiling
    bench.task.used(ceiling - RESERVE // 2 + 1)

    await trio.sleep(1.5)

    assert bench.task.database.file.ceiling > ceiling
    assert bench.task.counters.size > 0


async def test_closing_commits_what_waits_and_notes_where_numbering_ended(tmp_path, autojump_clock):
    bench = Bench(tmp_path)
    epoch = bench.task.epoch
    async with trio.open_nursery() as nursery:
        await bench.start(nursery)
        bench.hop.takes = 0.5
        for n in (1, 2, 3):
            bench.put(n)
            await trio.sleep(0.1)
        bench.task.set_cursor("u", 2)
        bench.task.used(42)
        await bench.task.aclose()
        assert not bench.put(4)
        await bench.task.aclose()  # again: nothing happens

    assert bench.given == [(1, True), (2, True), (3, True)]
    again = Database(settings_for(tmp_path))
    assert (again.file.epoch, again.file.position, again.cursor("u")) == (epoch, 42 + CLOSE_GAP, 2)
    again.close()


async def test_closing_a_store_that_hangs_takes_a_bounded_time(tmp_path, autojump_clock, nursery):
    bench = Bench(tmp_path)
    await bench.start(nursery)
    bench.hop.takes = 1000
    bench.put(1)
    await trio.sleep(0.1)
    bench.put(2)

    with capture_logs() as logs:
        await bench.task.aclose()

    assert trio.current_time() < 0.2 + 3 * 2
    assert bench.given == [(1, False), (2, False)]
    assert logs[-1]["event"] == "store left behind, as the disk takes too long"
    bench.task.database.close()


async def test_closing_while_the_breaker_is_open_is_prompt(tmp_path, autojump_clock, nursery):
    bench = Bench(tmp_path)
    await bench.start(nursery)
    bench.disk.writes = FULL
    bench.put(1)
    await trio.sleep(5)

    start = trio.current_time()
    await bench.task.aclose()

    assert trio.current_time() - start < 0.1


async def test_a_task_that_never_ran_can_be_closed(tmp_path):
    bench = Bench(tmp_path)
    bench.task.used(9)
    await bench.task.aclose()

    again = Database(settings_for(tmp_path))
    assert again.file.position == 9 + CLOSE_GAP
    again.close()


async def test_cancelled_it_keeps_what_waits_but_tells_nobody(tmp_path, autojump_clock):
    bench = Bench(tmp_path)
    async with trio.open_nursery() as nursery:
        await bench.start(nursery)
        bench.hop.takes = 0.5
        bench.put(1)
        await trio.sleep(0.1)
        bench.put(2)
        bench.task.used(2)
        nursery.cancel_scope.cancel()

    assert bench.given == []
    again = Database(settings_for(tmp_path))
    assert [e.n for e in again.read(["user_1_trades"], 0, 9)] == [1, 2]
    assert again.file.position == RESERVE  # somebody may have gone on numbering
    again.close()


async def test_a_bug_in_an_answer_ends_the_task_and_closes_the_file(tmp_path, autojump_clock):
    bench = Bench(tmp_path)

    def fail(n: int, kept: bool) -> None:
        raise RuntimeError("a bug")

    bench.answers.then = fail

    async def run():
        async with trio.open_nursery() as nursery:
            await bench.start(nursery)
            bench.put(1)
            await trio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as caught:
        await run()

    assert caught.group_contains(RuntimeError, match="a bug")
    Database(settings_for(tmp_path)).close()


async def test_with_real_threads_reads_go_on_while_events_are_written(tmp_path):
    settings = settings_for(tmp_path)
    task = StoreTask(settings, Database(settings))
    answers = Answers()
    seen: list[int] = []
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(task.run)
            for start in range(1, 2001, 20):
                assert task.put(answers.append(*range(start, start + 20)))
                page = await task.read(["user_1_trades"], len(seen), 500)
                seen += [e.n for e in page]
            while len(seen) < 2000:
                seen += [e.n for e in await task.read(["user_1_trades"], len(seen), 500)]
            await task.aclose()

    assert seen == list(range(1, 2001))
    assert answers.given == [(n, True) for n in range(1, 2001, 20)]
    assert task.counters.commits <= 100


def set_it(event: trio.Event, kept: bool) -> None:
    event.set()


async def test_what_was_answered_can_be_read(tmp_path):
    settings = settings_for(tmp_path)
    task = StoreTask(settings, Database(settings))
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(task.run)
            for n in range(1, 30):
                answered = trio.Event()
                task.put(jobs.Append((record(n),), (), functools.partial(set_it, answered)))
                await answered.wait()
                assert [e.n for e in await task.read(["user_1_trades"], n - 1, 9)] == [n]
            await task.aclose()


async def test_a_probe_carries_what_was_lost(autojump_clock, bench):
    bench.disk.writes = FULL
    bench.put(3)
    await trio.sleep(0.5)
    bench.put(4)
    bench.disk.writes = None
    await trio.sleep(1)

    assert bench.task.state == "closed"
    assert await bench.task.floor(["user_1_trades"]) == 4
    assert bench.task.database.streams() == {("user_1_trades", "BTC"): 4}
    bench.task.database.write(Batch())
