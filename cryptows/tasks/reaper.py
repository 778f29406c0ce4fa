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


class Watched(Protocol):
    """Something with deadlines."""

    def tick(self, now: float) -> float | None:
        """Do what is due; return when to come again, or None to be forgotten. Must not raise."""
        ...


@attrs.define(eq=False)
class Reaper:
    """The deadlines, on Trio's clock."""

    _heap: list[tuple[float, int, Watched]] = attrs.field(factory=list, init=False)
    _order: Callable[[], int] = attrs.field(factory=lambda: itertools.count().__next__, init=False)
    _sleep: trio.CancelScope | None = attrs.field(default=None, init=False)

    def watch(self, watched: Watched, at: float) -> None:
        """Tick something from `at` on, as often as it asks for."""
        heapq.heappush(self._heap, (at, self._order(), watched))
        if self._sleep is not None and at < self._sleep.deadline:
            self._sleep.deadline = at

    async def run(self) -> None:
        """Tick whatever is due. Ends only when cancelled; an exception from a tick is a bug."""
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
            again = watched.tick(now)
            if again is not None:
                heapq.heappush(self._heap, (max(again, now), self._order(), watched))
            if trio.current_time() > pause_at:
                await trio.lowlevel.checkpoint()
                pause_at = trio.current_time() + SLICE

    def __len__(self) -> int:
        return len(self._heap)
