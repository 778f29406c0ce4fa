"""The store's chores, a little at a time between the commits: checkpoints, sweeps, pruning.

Chores that write take turns with the commits by a lock that is fair, so each waits for one step of
the other at most. A chore that fails is a failure of the store like any other.
"""

from __future__ import annotations

import functools
import itertools
import sqlite3
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from cryptows.store import prune
from cryptows.store.jobs import StoreCounters
from cryptows.store.keeping import RESERVE
from cryptows.store.sqlite import SWEEP, Database

TICK = 0.2  # seconds between two rounds of small chores; more at once would be felt as a pause
PRUNE_TICKS = 50  # rounds between two prunings
MAX_STEPS = 50  # of one chore in a round; between two of them waits at most one commit

T = TypeVar("T")


class House:
    """Keeps one database in order."""

    def __init__(
        self,
        database: Database,
        counters: StoreCounters,
        hop: Callable[..., Awaitable[object]],
        on_error: Callable[[Exception], None],
    ) -> None:
        self._database, self._counters = database, counters
        self._hop, self._on_error = hop, on_error
        self.turn = trio.Lock()  # whoever writes has it
        self.writer, self._keeper = trio.CapacityLimiter(1), trio.CapacityLimiter(1)

    async def run(self, before: Callable[[], bool]) -> None:
        """Do the chores for ever, in those rounds that `before` says are worth it."""
        for tick in itertools.count(1):
            await trio.sleep(TICK)
            if before():
                await self._small_chores()
            if tick % PRUNE_TICKS == 0 and before():
                await self._prune()

    async def write(self, call: Callable[[], T]) -> T:
        """Make a blocking call that writes, in its turn."""
        async with self.turn:
            return await self._hop(call, self.writer)  # type: ignore[return-value]

    async def _beside(self, call: Callable[[], T]) -> T:
        return await self._hop(call, self._keeper)  # type: ignore[return-value]

    async def _small_chores(self) -> None:
        await self._in_steps(self._database.sweep, SWEEP)
        file = self._database.file
        if file.top > file.ceiling - RESERVE // 2:
            await self._chore(self.write(file.reserve))
        size = await self._chore(self._beside(self._database.inspect))
        self._counters.size = size or self._counters.size

    async def _prune(self) -> None:
        steps = await self._chore(self._beside(self._database.prunable))
        for step in steps or ():
            call = functools.partial(self._database.prune, step)
            self._counters.pruned += await self._in_steps(call, prune.STEP)

    async def _in_steps(self, step: Callable[[], int], full: int) -> int:
        """Repeat a step until it did less than a full one; return how much was done.

        Not for ever, as events may come in faster: the other chores must have their turn.
        """
        total = 0
        for _ in range(MAX_STEPS):
            done = await self._chore(self.write(step)) or 0
            total += done
            if done < full:
                break
        return total

    async def _chore(self, chore: Awaitable[T]) -> T | None:
        try:
            return await chore
        except sqlite3.Error as error:
            self._on_error(error)
            return None
