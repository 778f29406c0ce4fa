"""One task for every deadline of every client: pings, missing pongs, ends of tokens, idleness.

A heap holds when to look at whom next; the client says what is due and when to come again. So ten
thousand clients need one timer, and a client that has gone simply is not put back.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from typing import Protocol

import attrs
import trio

SLICE = 0.001  # seconds of ticking before the other tasks get their turn
LEAST = 0.001  # seconds between two ticks of the same


class Watched(Protocol):
    """Something with deadlines."""

    def tick(self, now: float) -> float | None:
        """Do what is due; return when to come again, or None to be forgotten."""
        ...

    def failed(self, error: Exception) -> None:
        """Note that `tick` raised; it is not called again."""
        ...

    @property
    def over(self) -> bool:
        """Whether it needs no further tick."""
        ...


@attrs.define(eq=False)
class Reaper:
    """The deadlines, on Trio's clock."""

    _heap: list[tuple[float, int, Watched]] = attrs.field(factory=list, init=False)
    _order: Callable[[], int] = attrs.field(factory=lambda: itertools.count().__next__, init=False)
    _sleep: trio.CancelScope | None = attrs.field(default=None, init=False)
    _over: int = attrs.field(default=0, init=False)  # about how many in the heap are

    def watch(self, watched: Watched, at: float) -> None:
        """Tick something from `at` on, as often as it asks for."""
        heapq.heappush(self._heap, (at, self._order(), watched))
        if self._sleep is not None and at < self._sleep.deadline:
            self._sleep.deadline = at

    def let_go(self) -> None:
        """Note that something watched is over, so that its memory does not wait for its time."""
        self._over += 1
        if self._over > len(self._heap) // 2:  # so that each costs but a few steps
            self._heap = [entry for entry in self._heap if not entry[2].over]
            heapq.heapify(self._heap)
            self._over = 0

    async def run(self) -> None:
        """Tick whatever is due. Ends only when cancelled; what raises is not ticked again."""
        while True:
            due = self._heap[0][0] if self._heap else math.inf
            with trio.CancelScope(deadline=due) as self._sleep:
                await trio.sleep_forever()
            self._sleep = None
            await self._tick()

    async def _tick(self) -> None:
        now = trio.current_time()
        pause_at = now + SLICE
        while self._heap and self._heap[0][0] <= now:
            _, _, watched = heapq.heappop(self._heap)
            again = self._look(watched, now)
            if again is not None:
                # Somebody who wants no pause at all must not keep the others waiting.
                again = max(again, now + LEAST)
                heapq.heappush(self._heap, (again, self._order(), watched))
            if trio.current_time() > pause_at:
                await trio.lowlevel.checkpoint()
                pause_at = trio.current_time() + SLICE

    def _look(self, watched: Watched, now: float) -> float | None:
        try:
            return watched.tick(now)
        except Exception as error:
            watched.failed(error)
            return None

    def __len__(self) -> int:
        return len(self._heap)
