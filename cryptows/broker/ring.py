"""A ring: the latest records of one channel, bounded in events, bytes and age.

What was dropped leaves a mark, the highest position that is no longer here: a client that comes
back from below it has missed something for good.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Iterator

import attrs

from cryptows.model.channel import History
from cryptows.model.event import Record

SLACK = 1024  # dropped records that a ring may still hold: its list is cut now and then
MARKS = 60  # of a ring: by how much of its age bound a record may be older than that


@attrs.define
class Ring:
    """The latest records of one channel, in order of position."""

    limit: History
    bytes: int = attrs.field(default=0, init=False)
    lost: int = attrs.field(default=0, init=False)  # the highest n that is no longer here
    _records: list[Record] = attrs.field(factory=list, init=False)
    _start: int = attrs.field(default=0, init=False)  # what lies before is dropped, now and then
    # When expire() was called, and up to which n the ring was filled then. Timestamps would not
    # do: they are the producer's, and a recording has those of years ago.
    _marks: deque[tuple[float, int]] = attrs.field(factory=deque, init=False)

    def __len__(self) -> int:
        return len(self._records) - self._start

    def add(self, record: Record) -> None:
        """Append a record and drop what is over the bounds."""
        records, limit = self._records, self.limit
        records.append(record)
        self.bytes += len(record.envelope)
        while self.bytes > limit.bytes or len(records) - self._start > limit.events:
            self._drop()

    def expire(self, now: float) -> None:
        """Drop what is older than the age bound, or soon after; to be called now and then."""
        marks, age = self._marks, self.limit.age
        while marks and (marks[0][0] <= now - age or marks[0][1] <= self.lost):
            _, n = marks.popleft()
            while len(self) and self._records[self._start].n <= n:
                self._drop()
        if len(self) and (not marks or marks[-1][0] <= now - age / MARKS):
            marks.append((now, self._records[-1].n))

    def after(self, n: int, most: int) -> list[Record]:
        """Return the first `most` records after position `n`, oldest first."""
        first = bisect.bisect_right(self._records, n, lo=self._start, key=position)
        return self._records[first : first + most]

    def backwards(self) -> Iterator[Record]:
        """Return the records, newest first; nothing may be added meanwhile."""
        return (self._records[at] for at in range(len(self._records) - 1, self._start - 1, -1))

    def _drop(self) -> None:
        record = self._records[self._start]
        self.bytes -= len(record.envelope)
        self.lost = record.n
        self._start += 1
        if self._start >= SLACK or self._start * 2 > len(self._records):
            del self._records[: self._start]
            self._start = 0


def position(record: Record) -> int:
    """Return where in the journal a record stands."""
    return record.n
