"""One task for all deadlines: in order, on time, and not undone by one that fails."""

from __future__ import annotations

import attrs
import pytest
import trio

from cryptows.tasks import reaper as module
from cryptows.tasks.reaper import LEAST, Reaper


@attrs.define(eq=False)
class Watched:
    """Something that wants to be looked at every so often, until it is over."""

    every: float = 10.0
    over: bool = False
    ticks: list[float] = attrs.field(factory=list)
    error: Exception | None = None
    fails_at: float = float("inf")

    def tick(self, now: float) -> float | None:
        self.ticks.append(now)
        if now >= self.fails_at:
            raise LookupError("bug")
        return None if self.over else now + self.every

    def failed(self, error: Exception) -> None:
        self.error = error


@pytest.fixture
async def reaper(nursery):
    reaper = Reaper()
    nursery.start_soon(reaper.run)
    return reaper


async def test_each_is_looked_at_when_it_asked_to_be(autojump_clock, reaper):
    often, seldom = Watched(3), Watched(10)
    reaper.watch(often, 1)
    reaper.watch(seldom, 5)
    await trio.sleep(20)

    assert often.ticks == [1, 4, 7, 10, 13, 16, 19]
    assert seldom.ticks == [5, 15]


async def test_what_is_due_sooner_than_all_others_is_not_overslept(autojump_clock, reaper):
    late, soon = Watched(), Watched()
    reaper.watch(late, 100)
    await trio.sleep(10)
    reaper.watch(soon, 12)
    await trio.sleep(95)

    assert soon.ticks[0] == 12
    assert late.ticks == [100]


async def test_what_is_overdue_is_looked_at_now(autojump_clock, reaper):
    await trio.sleep(50)
    watched = Watched()
    reaper.watch(watched, 3)

    assert await first_tick(watched) == 50


async def first_tick(watched: Watched) -> float:
    with trio.fail_after(100):
        while not watched.ticks:  # noqa: ASYNC110 - it is a plain object
            await trio.sleep(0.01)
    return watched.ticks[0]


async def test_what_is_over_is_forgotten(autojump_clock, reaper):
    watched = Watched(over=True)
    reaper.watch(watched, 1)
    await trio.sleep(100)

    assert watched.ticks == [1]
    assert len(reaper) == 0


async def test_what_raises_is_told_so_and_not_looked_at_again(autojump_clock, reaper):
    broken, other = Watched(fails_at=11), Watched()
    reaper.watch(broken, 1)
    reaper.watch(other, 1)
    await trio.sleep(50)

    assert broken.ticks == [1, 11]
    assert isinstance(broken.error, LookupError)
    assert other.ticks == [1, 11, 21, 31, 41]


async def test_who_wants_no_pause_does_not_keep_the_loop(autojump_clock, reaper):
    greedy, other = Watched(every=0), Watched(1)
    reaper.watch(greedy, 1)
    reaper.watch(other, 1)
    await trio.sleep(2.5)

    assert other.ticks == [1, 2]
    assert len(greedy.ticks) <= 1.5 / LEAST + 1


async def test_something_new_may_be_watched_while_it_looks(autojump_clock, reaper):
    child = Watched()

    class Parent(Watched):
        def tick(self, now: float) -> float | None:
            reaper.watch(child, now)
            return None

    reaper.watch(Parent(), 5)
    await trio.sleep(6)

    assert child.ticks == [5]


async def test_what_went_does_not_wait_for_its_time(autojump_clock, reaper):
    many = [Watched() for _ in range(1000)]
    for watched in many:
        reaper.watch(watched, 1_000_000)
    for gone, watched in enumerate(many, 1):
        watched.over = True
        reaper.let_go()
        assert len(reaper) <= 2 * (1000 - gone) + 1

    assert len(reaper) == 0
    assert not any(watched.ticks for watched in many)


async def test_who_stays_is_kept_when_the_others_are_let_go(autojump_clock, reaper):
    stays, goes = [Watched() for _ in range(100)], [Watched() for _ in range(500)]
    for at, watched in enumerate([*stays, *goes]):
        reaper.watch(watched, 10 + at)
    for watched in goes:
        watched.over = True
        reaper.let_go()
    await trio.sleep(200)

    assert all(watched.ticks[0] == 10 + at for at, watched in enumerate(stays))


async def test_a_long_round_lets_the_other_tasks_have_their_turn(
    monkeypatch, autojump_clock, nursery
):
    # Each look takes half a slice of the clock.
    now = 0.0
    monkeypatch.setattr("cryptows.tasks.reaper.trio.current_time", lambda: now)
    reaper, turns = Reaper(), 0

    class Slow(Watched):
        def tick(self, at: float) -> float | None:
            nonlocal now
            now += module.SLICE / 2
            return None

    async def other():
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    for _ in range(30):
        reaper.watch(Slow(), 0.0)
    nursery.start_soon(other)
    await reaper._tick()
    nursery.cancel_scope.cancel()

    assert turns >= 8
