"""Reading what is kept, beside the writer.

One thread, one read at a time: SQLite answers a page in about a millisecond, and more threads would
only fight for the interpreter. When many clients come back at once they ask for the same pages, so
full pages are remembered: what lies between two positions is never added to any more.
"""

from __future__ import annotations

import functools
import sqlite3
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import attrs
import trio

from cryptows.store.jobs import StoreError
from cryptows.store.rows import StoredEvent
from cryptows.store.sqlite import Database

PAGES = 8 << 20  # bytes of envelopes that are remembered
OVERHEAD = 200  # bytes that an event costs beside its envelope, about

T = TypeVar("T")
Hop = Callable[[Callable[[], T], trio.CapacityLimiter], Awaitable[T]]
Key = tuple[tuple[str, ...], int, int]  # channels, since, limit


async def in_thread(call: Callable[[], T], limiter: trio.CapacityLimiter) -> T:
    """Call in a thread. If cancelled the thread is left behind and keeps its place in limiter."""
    return await trio.to_thread.run_sync(call, limiter=limiter, abandon_on_cancel=True)


@attrs.define
class Pages:
    """The pages that were read last, bounded in bytes."""

    _pages: OrderedDict[Key, tuple[int, list[StoredEvent]]] = attrs.field(factory=OrderedDict)
    _size: int = 0

    def get(self, key: Key) -> list[StoredEvent] | None:
        """Return a page, or None."""
        found = self._pages.get(key)
        if found is None:
            return None
        self._pages.move_to_end(key)
        return found[1]

    def put(self, key: Key, page: list[StoredEvent]) -> None:
        """Remember a page; the ones not asked for longest make room."""
        size = sum(len(event.envelope) + OVERHEAD for event in page)
        self._size += size - self._pages.pop(key, (0, page))[0]
        self._pages[key] = (size, page)
        while self._size > PAGES:
            self._size -= self._pages.popitem(last=False)[1][0]


class Reader:
    """Asks the database in a thread of its own."""

    def __init__(
        self,
        database: Database,
        timeout: float,
        hop: Callable[..., Awaitable[object]],
        on_error: Callable[[sqlite3.Error], None],
    ) -> None:
        self._database, self._timeout, self._hop = database, timeout, hop
        self._on_error = on_error
        self._turn = trio.Lock()
        self._limiter = trio.CapacityLimiter(1)
        self._pages = Pages()
        self.reads = 0

    async def read(
        self, channels: Sequence[str], since: int, limit: int, until: int | None, newest: bool
    ) -> Sequence[StoredEvent]:
        """See StoreTask.read."""
        key = (tuple(channels), since, limit)
        async with self._turn:  # whoever waited for the same page finds it remembered
            page = None if newest else self._pages.get(key)
            if page is None or (until is not None and page[-1].n > until):
                page = await self._ask(
                    functools.partial(self._database.read, channels, since, limit, until, newest)
                )
                if len(page) == limit and not newest:
                    self._pages.put(key, page)
        return page

    async def floor(self, channels: Sequence[str]) -> int:
        """See StoreTask.floor."""
        async with self._turn:
            return await self._ask(functools.partial(self._database.floor, channels))

    async def cursor(self, user_id: str) -> int | None:
        """See StoreTask.cursor."""
        async with self._turn:
            return await self._ask(functools.partial(self._database.cursor, user_id))

    async def _ask(self, call: Callable[[], T]) -> T:
        if self._limiter.borrowed_tokens:  # a thread that was left behind: the disk hangs
            raise StoreError("the store does not answer")
        self.reads += 1
        # Shielded, so that a client who leaves does not leave a thread behind: only a disk does.
        with trio.CancelScope(shield=True, deadline=trio.current_time() + self._timeout):
            try:
                return await self._hop(call, self._limiter)  # type: ignore[return-value]
            except sqlite3.Error as error:
                self._on_error(error)
                raise StoreError(f"the store cannot be read: {error}") from error
        raise StoreError(f"the store did not answer within {self._timeout:g} s")
