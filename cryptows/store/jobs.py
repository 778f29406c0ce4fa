"""What is asked of the store task, and what waits for it.

The backlog is bounded in events and in bytes. Whoever fills it holds the feed back long before the
bound, so reaching it means that the disk stalls: the store counts as failed then. A job that waits
alone says nothing about the disk, however large it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import attrs

from cryptows.model.errors import CryptowsError
from cryptows.model.event import Record
from cryptows.store.rows import Marks, Stream

# One transaction: long enough to pay for its fsync and its thread hop, short enough (10 to 30 ms)
# that the events behind it do not wait long.
BATCH_EVENTS = 1000
BATCH_BYTES = 2 << 20
FULL_EVENTS = 50_000
FULL_BYTES = 64 << 20


class StoreError(CryptowsError):
    """The store cannot be read now; what it keeps is not lost."""


@attrs.frozen(eq=False)
class Append:
    """Events to keep, all or none of them.

    `ids` are those of the feed lines they came from, with the position each was acknowledged with.
    `done` is called on the Trio thread, once, in the order of the appends, with whether the events
    are kept. `late` is called after it when they were said not to be, and are after all.
    """

    records: tuple[Record, ...]
    ids: tuple[tuple[str, int], ...]
    done: Callable[[bool], None]
    late: Callable[[], None] = lambda: None


@attrs.define(eq=False)
class Backlog:
    """The appends that no transaction has taken yet."""

    jobs: deque[Append] = attrs.field(factory=deque)
    events: int = 0
    bytes: int = 0

    def add(self, job: Append) -> None:
        """Queue a job."""
        self.jobs.append(job)
        self.events += len(job.records)
        self.bytes += size_of(job)

    def pop(self) -> Append:
        """Take the oldest job."""
        job = self.jobs.popleft()
        self.events -= len(job.records)
        self.bytes -= size_of(job)
        return job

    def put_back(self, jobs: list[Append]) -> None:
        """Queue jobs again, before all others."""
        waiting = list(self.jobs)
        self.jobs.clear()
        self.events = self.bytes = 0
        for job in jobs + waiting:
            self.add(job)

    def batch(self, most: int = BATCH_EVENTS) -> list[Append]:
        """Take what one transaction should write: at least one job if there is any."""
        taken: list[Append] = []
        events = size = 0
        while self.jobs and events < most and size < BATCH_BYTES:
            job = self.pop()
            events += len(job.records)
            size += size_of(job)
            taken.append(job)
        return taken

    @property
    def is_full(self) -> bool:
        """Whether it holds more than it may, in several jobs."""
        too_much = self.events > FULL_EVENTS or self.bytes > FULL_BYTES
        return too_much and len(self.jobs) > 1


def size_of(job: Append) -> int:
    """Bytes that a job's envelopes hold."""
    return sum(len(record.envelope) for record in job.records)


@attrs.define
class Batch:
    """What one transaction writes."""

    records: list[Record] = attrs.field(factory=list)
    ids: list[tuple[str, int]] = attrs.field(factory=list)
    cursors: dict[str, int] = attrs.field(factory=dict)
    lost: dict[Stream, Marks] = attrs.field(factory=dict)  # streams with events never stored


@attrs.define(eq=False)
class Flight:
    """What the writing thread is busy with: some appends, or none (a trial, a cursor)."""

    jobs: list[Append]
    batch: Batch
    started: float
    due: float  # when it is overdue
    answered: bool = False  # its appends were told False while it still goes on
    late: bool = False  # it was counted as failed while it still goes on


@attrs.define
class StoreCounters:
    """What happened since the start; `tasks/stats.py` reads it."""

    commits: int = 0
    commit_seconds: float = 0.0
    slowest_commit: float = 0.0
    stored: int = 0  # events
    refused: int = 0  # events that went out live and may not be kept
    failures: int = 0  # commits and chores that failed or were overdue
    opened: int = 0  # times the breaker opened
    closed: int = 0  # times it closed again, perhaps on a new file
    pruned: int = 0  # rows
    size: int = 0  # bytes on disk, as of a second ago

    @property
    def losses(self) -> tuple[int, int, int]:
        """Changes whenever something may have gone that a floor told of earlier does not tell."""
        return self.pruned, self.refused, self.closed

    def count(self, flight: Flight, now: float) -> None:
        """Count a commit."""
        seconds = now - flight.started
        self.commits += 1
        self.commit_seconds += seconds
        self.slowest_commit = max(self.slowest_commit, seconds)
        self.stored += sum(len(job.records) for job in flight.jobs)
