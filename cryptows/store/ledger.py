"""What waits for the disk, what the disk is busy with, and who is told what: without waiting.

`writer.py` owns the clock and the threads and reports here. Answers go out in the order of the
appends, whatever happens: there is one queue and one transaction in flight, and when the store
counts as failed everything that waits is answered False at once, in order. While appends are
refused none is waiting, so an event that goes out unstored never overtakes one that still waits.

A commit that is overdue cannot be interrupted. Its appends are answered False while it goes on, and
appends are refused until it ended. Should it succeed after all, its events are kept although their
producer was told otherwise: they hold the numbers they were delivered with, lie before whatever is
stored later, and their ids are known. Nothing is out of order, and a client that recovers has seen
them or is behind them. That is at least once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection

import attrs
import structlog

from cryptows.broker.breaker import Breaker, BreakerState
from cryptows.config.settings import Store
from cryptows.store.jobs import Append, Backlog, Batch, Flight, StoreCounters
from cryptows.store.link import is_damage
from cryptows.store.rows import Marks, Stream
from cryptows.store.sqlite import DisplacedError, Unstorable

log = structlog.get_logger()

OnState = Callable[[str, str, str], None]

MAX_CURSORS = 100_000  # cursors that wait while the store is down; the oldest is dropped


def new_breaker(store: Store) -> Breaker:
    """The store's breaker as the settings want it."""
    return Breaker(store.failures, store.retry, max(store.retry, store.retry_max))


@attrs.define(eq=False)
class Ledger:
    """The appends between `put` and `done`. Times are of one monotonic clock."""

    breaker: Breaker
    timeout: float
    on_state: OnState
    condemn: Callable[[Exception], bool]  # whether an error means that only a new file helps
    counters: StoreCounters = attrs.field(factory=StoreCounters)
    backlog: Backlog = attrs.field(factory=Backlog)
    flight: Flight | None = None
    cursors: dict[str, int] = attrs.field(factory=dict)  # not written yet
    lost: dict[Stream, Marks] = attrs.field(factory=dict)  # not written; one for each stream
    closing: bool = False  # nothing is taken any more
    muted: bool = False  # nobody is told any more
    _answering: bool = False
    _singly: int = 0  # appends at the head of the backlog, one of which cannot be stored

    @classmethod
    def of(cls, store: Store, on_state: OnState, condemn: Callable[[Exception], bool]) -> Ledger:
        """Return an empty one."""
        return cls(new_breaker(store), store.timeout, on_state, condemn)

    @property
    def is_closed(self) -> bool:
        """Whether the breaker is, so that commits are made."""
        return self.breaker.state is BreakerState.CLOSED

    @property
    def is_taking(self) -> bool:
        """Whether appends are taken now."""
        overdue = self.flight is not None and self.flight.answered
        return self.is_closed and not overdue and not self.closing

    @property
    def waiting(self) -> int:
        """Events that wait for their answer."""
        flying = self.flight.jobs if self.flight and not self.flight.answered else []
        return self.backlog.events + sum(len(job.records) for job in flying)

    def put(self, job: Append) -> bool:
        """Queue an append, or return False: refused, and nothing waits before it."""
        if not self.is_taking and not self._answering:
            self.counters.refused += len(job.records)
            self._lose(job)
            return False
        self.backlog.add(job)
        return True

    def set_cursor(self, user_id: str, position: int) -> None:
        """Take a cursor along with a later commit."""
        position = max(position, self.cursors.pop(user_id, 0))
        if len(self.cursors) >= MAX_CURSORS:
            del self.cursors[next(iter(self.cursors))]
        self.cursors[user_id] = position

    def last_lost(self, channels: Collection[str]) -> int:
        """Return the position of the last event of these channels that is not kept; 0: none is.

        As far as it is not in the file, where that is written as soon as the disk takes it. An
        event whose commit is late is none until that has ended.
        """
        flying = self.flight.jobs if self.flight and self.flight.answered else []
        late = (r.n for job in flying for r in job.records if r.channel in channels)
        lost = (n for (name, _), (_, n) in self.lost.items() if name in channels)
        return max(itertools.chain(late, lost), default=0)

    @property
    def in_doubt(self) -> bool:
        """Whether events went out of which the file may not know that they are not kept."""
        late = self.flight is not None and self.flight.answered and bool(self.flight.jobs)
        return bool(self.lost) or late

    # -- commits -----------------------------------------------------------------------------------

    def begin(self, now: float) -> Batch:
        """Take what waits, and return it as one transaction."""
        if self._singly:
            self._singly -= 1
            jobs = self.backlog.batch(1)
            batch = self._batch(jobs, extras=False)
        else:
            jobs = self.backlog.batch()
            batch = self._batch(jobs)
        self.flight = Flight(jobs, batch, started=now, due=now + self.timeout)
        return batch

    def attempt_failed(self, error: Exception, now: float) -> bool:
        """Report an attempt of the flight; return whether to try the same again."""
        flight = self.flight
        assert flight is not None
        if isinstance(error, Unstorable):
            return False
        if not flight.late:  # else it was counted while it went on
            self.failed(error, now)
        return not flight.answered

    def committed(self, now: float) -> None:
        """Report that the flight's transaction is on disk."""
        flight = self._landed()
        self.counters.count(flight, now)
        self._settle(flight.batch)
        if not flight.late:
            self.breaker.succeeded()
        for job in flight.jobs:
            if not flight.answered:
                self._answer(job, kept=True)
            elif not self.muted:
                job.late()

    def dropped(self, error: Exception) -> None:
        """Report that the flight's transaction was given up."""
        flight = self._landed()
        if flight.answered:
            for job in flight.jobs:
                self._lose(job)
            return
        # Something of it cannot be stored. It must not cost the others, nor open the breaker, for
        # it says nothing about the disk. So the appends are written again, each on its own.
        log.error("an event or cursor cannot be stored", error=str(error))
        extras = bool(flight.batch.cursors or flight.batch.lost)
        if not flight.jobs:
            self._drop_extras()
        elif extras or len(flight.jobs) > 1:
            self.backlog.put_back(flight.jobs)
            self._singly = len(flight.jobs)
        else:
            self._answer(flight.jobs[0], kept=False)

    def begin_trial(self, now: float) -> Batch | None:
        """Return what a trial should write along if the pause is over, else None."""
        if not self.breaker.allows(now):
            return None
        self._changed(BreakerState.OPEN, "the pause is over")
        batch = self._batch([])
        self.flight = Flight([], batch, started=now, due=now + self.timeout, answered=True)
        return batch

    def trial_ended(self, error: Exception | None, now: float) -> None:
        """Report the trial; if it was late it has been counted, and another one follows."""
        flight = self._landed()
        if error is None:
            self._settle(flight.batch)
        elif isinstance(error, Unstorable):
            self._drop_extras()
        if flight.late:
            return
        if error is not None:
            self.failed(error, now)
        else:
            self.breaker.succeeded()
            self._changed(BreakerState.HALF_OPEN, "a trial write succeeded")

    # -- failures ----------------------------------------------------------------------------------

    def failed(self, error: Exception, now: float) -> None:
        """Count a failure of the store; once the breaker is open nobody waits any more."""
        before = self.breaker.state
        self.counters.failures += 1
        if isinstance(error, DisplacedError) or self.condemn(error):
            self.breaker.trip(now)  # only a new file helps, and a trial makes it
        else:
            self.breaker.failed(now)
        run, state = self.breaker.failed_in_a_row, self.breaker.state.value
        log.warning("store failed", error=str(error), in_a_row=run, breaker=state)
        if not self.is_closed:
            self.refuse()
        self._changed(before, str(error))

    def read_failed(self, error: Exception, now: float) -> None:
        """Report a read that failed: only damage says that writing is in vain, too."""
        if is_damage(error):
            self.failed(error, now)
        else:
            log.warning("store cannot be read", error=str(error))

    def overdue(self, reason: str, now: float) -> None:
        """Count what is in flight as failed while it still goes on."""
        if self.flight:
            self.flight.late = True
            self.flight.due = now + self.timeout
        self.failed(TimeoutError(reason), now)
        self.refuse()

    def refuse(self) -> None:
        """Answer everything that waits with False, in order."""
        self._answering = True  # an append that an answer makes lines up behind those that wait
        if self.flight and not self.flight.answered:
            self.flight.answered = True
            for job in self.flight.jobs:  # whether they are lost is known when the commit ends
                self._answer(job, kept=False, lost=False)
        while self.backlog.jobs:
            self._answer(self.backlog.pop(), kept=False)
        self._answering, self._singly = False, 0

    # -- small things ------------------------------------------------------------------------------

    def _landed(self) -> Flight:
        flight, self.flight = self.flight, None
        assert flight is not None
        return flight

    def _drop_extras(self) -> None:
        self.cursors.clear()
        self.lost.clear()

    def _changed(self, before: BreakerState, reason: str) -> None:
        after = self.breaker.state
        if after is before:
            return
        if after is BreakerState.OPEN:
            self.counters.opened += 1
        elif after is BreakerState.CLOSED:
            self.counters.closed += 1
        log.warning("store breaker", old=before.value, new=after.value, reason=reason)
        self.on_state(before.value, after.value, reason)

    def _answer(self, job: Append, *, kept: bool, lost: bool = True) -> None:
        if not kept:
            self.counters.refused += len(job.records)
            if lost:
                self._lose(job)
        if not self.muted:
            job.done(kept)

    def _lose(self, job: Append) -> None:
        """Remember that these events are not kept, so that recovery can say so."""
        for r in job.records:
            stream = (r.channel, r.symbol or "")
            # What was overdue is lost later than what was refused after it.
            self.lost[stream] = max((r.seq, r.n), self.lost.get(stream, (0, 0)))

    def _batch(self, jobs: list[Append], *, extras: bool = True) -> Batch:
        return Batch(
            [record for job in jobs for record in job.records],
            [pair for job in jobs for pair in job.ids],
            dict(self.cursors) if extras else {},
            dict(self.lost) if extras else {},
        )

    def _settle(self, batch: Batch) -> None:
        """Forget what was written along, unless it has changed since."""
        for user_id, position in batch.cursors.items():
            if self.cursors.get(user_id) == position:
                del self.cursors[user_id]
        for stream, marks in batch.lost.items():
            if self.lost.get(stream) == marks:
                del self.lost[stream]
