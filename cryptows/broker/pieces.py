"""Pieces: how what was kept goes out again, to many clients at once and to slow ones.

After a restart everybody comes back together and misses the same events, so each is marked and
encoded once for all of them. And nobody is sent more at once than he reads in good time: what waits
for a client must not get as old as `delivery.max_lag`.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import attrs

from cryptows.broker.journal import Journal
from cryptows.model.channel import Lane
from cryptows.model.event import Record
from cryptows.wire import envelope

# Bytes of one write. A client that does not read has to show it on little: at the 5 kB/s of a bad
# mobile connection 64 KiB take 13 s, longer than delivery.max_lag.
LEAST_PIECE, FIRST_PIECE, MOST_PIECE = 4 << 10, 8 << 10, 64 << 10
SHOWN = 4  # pieces taken quickly, after which the next ones may be twice as large
QUICK, SLOW = 0.25, 1.0  # seconds that a piece takes

COPIES = 16 << 20  # bytes of marked records that are kept while somebody is coming back
OVERHEAD = 300  # bytes of a copy beside its texts, about


@attrs.define
class Pace:
    """How many bytes are sent to one client at once: more when it has shown that it reads."""

    most: int  # what may wait for a client, whatever it reads
    size: int = FIRST_PIECE
    _shown: int = 0

    def __attrs_post_init__(self) -> None:
        self.size = min(self.size, self.most)

    def took(self, seconds: float) -> None:
        """Note how long the client took for the last piece."""
        if seconds >= SLOW:
            self._shown, self.size = 0, max(LEAST_PIECE, self.size // 2)
        elif seconds < QUICK:
            self._shown += 1
            if self._shown >= SHOWN and self.size * 2 <= min(self.most, MOST_PIECE):
                self._shown, self.size = 0, self.size * 2


class Kept(Protocol):
    """An event that was numbered: a record of the journal, or one that the store kept."""

    @property
    def n(self) -> int: ...

    @property
    def seq(self) -> int: ...

    @property
    def channel(self) -> str: ...

    @property
    def symbol(self) -> str | None: ...

    @property
    def timestamp(self) -> int: ...

    @property
    def envelope(self) -> bytes: ...


@attrs.define
class Copies:
    """Records marked `replay` or `snapshot`, made and encoded once for all who come back together.

    Bounded in bytes; forgotten when nobody is coming back any more.
    """

    journal: Journal
    most: int = COPIES
    _users: int = attrs.field(default=0, init=False)
    _size: int = attrs.field(default=0, init=False)
    _made: dict[str, OrderedDict[int, Record]] = attrs.field(factory=dict, init=False)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep copies for the time of the block."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._made.clear()
                self._size = 0

    def of(self, events: Iterable[Kept], mark: str) -> list[Record]:
        """Return the events as they are sent again. No newer event replaces one of these."""
        made = self._made.setdefault(mark, OrderedDict())
        found = []
        for event in events:
            copy = made.get(event.n)
            if copy is None:
                copy = made[event.n] = self._copy(event, mark)
                self._size += 3 * len(copy.envelope) + OVERHEAD  # the text, and it as two frames
            found.append(copy)
        while self._size > self.most and made:
            self._size -= 3 * len(made.popitem(last=False)[1].envelope) + OVERHEAD
        return found

    def _copy(self, event: Kept, mark: str) -> Record:
        text = envelope.marked(event.envelope, mark)
        offset = self.journal.offset_of(event.n)
        return Record(
            event.n, event.seq, event.channel, event.symbol, Lane.PRIVATE, event.timestamp,
            text, offset,
        )  # fmt: skip

    def __len__(self) -> int:
        return sum(map(len, self._made.values()))


def cut(events: Sequence[Kept], size: int) -> int:
    """Return how many of the first of these make a piece of about `size` bytes: at least one."""
    for count, event in enumerate(events):
        if size <= 0:
            return count
        size -= len(event.envelope)
    return len(events)
