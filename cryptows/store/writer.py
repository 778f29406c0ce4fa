"""The store task: the one writer, which gathers, commits in a thread, and answers in order.

Whoever appends has numbered its events, and delivers them when `done` was called. While a commit
runs the next appends gather, so batches grow by themselves under load. Nobody waits for a bad disk:
a commit that fails is tried again until the circuit breaker opens, one that takes longer than
`store.timeout` is overdue, and in both cases everything that waits goes out unstored. What that
means for order is told in `ledger.py`, which decides; here is what takes time.
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Awaitable, Callable, Sequence

import structlog
import trio

from cryptows.config.settings import Settings
from cryptows.store.house import House
from cryptows.store.jobs import Append, StoreCounters
from cryptows.store.ledger import Ledger, OnState
from cryptows.store.reader import Reader, in_thread
from cryptows.store.rows import StoredEvent
from cryptows.store.sqlite import Database, Unstorable

log = structlog.get_logger()

RETRY_PAUSE = 0.05  # seconds before a failed commit is tried again while the breaker is closed


class StoreTask:
    """The store as the rest of the daemon sees it. Methods that are not async never block."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        *,
        on_state: OnState = lambda old, new, reason: None,
        hop: Callable[..., Awaitable[object]] = in_thread,
    ) -> None:
        """`on_state` is told when the breaker changes: old and new state, and why.

        `hop` is how a blocking call is made; tests that own the clock pass their own.
        """
        self.database = database
        self._timeout = settings.store.timeout
        self._ledger = Ledger.of(settings.store, on_state, database.file.condemn)
        self._house = House(database, self.counters, hop, self._failed)
        self._reader = Reader(database, self._timeout, hop, self._read_failed)
        self._used: int | None = None
        self._flush = False  # whether there is something to write though no append waits
        self._work, self._alarm, self._doubt = trio.Event(), trio.Event(), trio.Event()
        self._hop, self._noting = hop, trio.CapacityLimiter(1)
        self._shield = trio.CancelScope(shield=True)
        self._started, self._ended = False, trio.Event()

    # -- what others call --------------------------------------------------------------------------

    @property
    def epoch(self) -> str:
        """The name of the history; it changes only when history was lost."""
        return self.database.file.epoch

    @property
    def position(self) -> int:
        """Numbering starts above it. Fixed for this run."""
        return self.database.file.position

    @property
    def state(self) -> str:
        """The breaker: closed, open or half_open."""
        return self._ledger.breaker.state.value

    @property
    def counters(self) -> StoreCounters:
        """What happened since the start."""
        return self._ledger.counters

    @property
    def waiting(self) -> int:
        """Events that wait for their commit."""
        return self._ledger.waiting

    @property
    def is_taking(self) -> bool:
        """Whether appends are taken now."""
        return self._ledger.is_taking

    def put(self, job: Append) -> bool:
        """Take an append. False: it is refused, nothing waits before it, deliver it at once.

        Then `done` is not called. Otherwise it is, later, and never from inside this call.
        """
        if not self._ledger.put(job):
            self._doubt.set()
            return False
        self._work.set()
        if self._ledger.backlog.is_full:
            self._alarm.set()
        return True

    def used(self, position: int) -> None:
        """Say which position was handed out last, whether or not its event is durable."""
        self._used = self.database.file.top = position

    def set_cursor(self, user_id: str, position: int) -> None:
        """Remember how far a user acknowledged; never goes back. Written within seconds."""
        self._ledger.set_cursor(user_id, position)

    async def cursor(self, user_id: str) -> int | None:
        """Return how far a user acknowledged, None if he never did; StoreError."""
        kept = await self._reader.cursor(user_id)
        unsaved = self._ledger.cursors.get(user_id)
        return max((n for n in (kept, unsaved) if n is not None), default=None)

    async def read(
        self,
        channels: Sequence[str],
        since: int,
        limit: int,
        *,
        until: int | None = None,
        newest: bool = False,
    ) -> Sequence[StoredEvent]:
        """Return kept events with since < n <= until, oldest first, or `newest` first; StoreError.

        At most `limit` and a few megabytes: only an empty answer is the end. Do not change it.
        """
        return await self._reader.read(channels, since, limit, until, newest)

    async def floor(self, channels: Sequence[str]) -> int:
        """Return the position above which nothing of these channels is missing; StoreError.

        Ask after the last read(): what was pruned meanwhile is then told rather than hidden.
        """
        # Before and after: what is lost may be written to the file between.
        before = self._ledger.last_lost(channels)
        kept = await self._reader.floor(channels)
        return max(before, kept, self._ledger.last_lost(channels))

    async def aclose(self) -> None:
        """Refuse new appends, commit and answer those that wait, close the file.

        Takes at most three times `store.timeout`; what a hanging disk did not take is refused.
        """
        self._stop()
        if not self._started:
            self._started = True
            await self._close()
        await self._ended.wait()

    # -- the task ----------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write until closed or cancelled; closes the database. Only bugs escape it.

        Cancelled, it still commits what waits, for at most twice `store.timeout`, but answers
        nobody any more: whom it would answer is being cancelled too.
        """
        self._started = True
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch)
                nursery.start_soon(self._house.run, self._before_chores)
                nursery.start_soon(self._note_doubt)
                task_status.started()
                with self._shield:
                    await self._write()
                nursery.cancel_scope.cancel()
        finally:
            self._ledger.refuse()
            await self._close()

    async def _close(self) -> None:
        """Close the database, unless a thread that hangs holds it."""
        # Cancelled instead of told to stop: somebody may still be handing out positions.
        position = None if self._ledger.muted else self._used
        deadline = trio.current_time() + self._timeout
        with trio.CancelScope(shield=True, deadline=deadline) as patience:
            lost = self._ledger.lost
            await self._house.write(functools.partial(self.database.close, position, lost))
        if patience.cancelled_caught:
            log.error("store left behind, as the disk takes too long")
        self._ended.set()

    def _stop(self) -> None:
        self._ledger.closing = True
        self._before_chores()
        self._shield.deadline = min(self._shield.deadline, trio.current_time() + 2 * self._timeout)
        self._work.set()

    async def _write(self) -> None:
        """Commit what waits; ends when there is nothing left after _stop()."""
        ledger = self._ledger
        while True:
            self._work = trio.Event()
            if not ledger.is_closed:
                if ledger.closing:
                    return
                await self._try_again()
            elif ledger.backlog.jobs or self._flush:
                await self._commit()
            elif ledger.closing:
                return
            else:
                await self._work.wait()

    async def _commit(self) -> None:
        ledger = self._ledger
        batch = ledger.begin(trio.current_time())
        self._flush = False
        while True:
            error = await self._attempt(functools.partial(self.database.write, batch))
            if error is None:
                ledger.committed(trio.current_time())
                return
            if not ledger.attempt_failed(error, trio.current_time()):
                ledger.dropped(error)
                return
            await trio.sleep(RETRY_PAUSE)

    async def _try_again(self) -> None:
        """While open: wait for the end of the pause, then make one trial write."""
        with trio.move_on_at(self._ledger.breaker.retry_at or 0):
            await self._work.wait()  # set by _stop()
        if self._ledger.closing:
            return
        batch = self._ledger.begin_trial(trio.current_time())
        if batch is not None:
            error = await self._attempt(functools.partial(self.database.probe, batch))
            self._ledger.trial_ended(error, trio.current_time())

    async def _attempt(self, call: Callable[[], object]) -> Exception | None:
        """Make one blocking call of the writer; return how it failed."""
        try:
            await self._house.write(call)
        except (sqlite3.Error, OSError, Unstorable) as error:
            self._doubt.set()
            return error
        return None

    async def _watch(self) -> None:
        """Notice a commit that is overdue, a backlog that is full, and a cancellation."""
        ledger = self._ledger
        try:
            while True:
                flight = ledger.flight
                with trio.move_on_at(flight.due if flight else trio.current_time() + self._timeout):
                    await self._alarm.wait()
                self._alarm = trio.Event()
                self._doubt.set()
                now = trio.current_time()
                if ledger.backlog.is_full:
                    ledger.overdue(f"{ledger.backlog.events} events wait for the disk", now)
                elif ledger.flight and now >= ledger.flight.due:
                    ledger.overdue(f"a commit takes longer than {self._timeout:g} s", now)
        except trio.Cancelled:
            ledger.muted = not ledger.closing
            raise
        finally:
            self._stop()

    async def _note_doubt(self) -> None:
        """Keep a note on disk while events went out that the database does not know.

        Beside the writer, who may hang. Once the store closes, close() says what is the case.
        """
        file, failing = self.database.file, False
        while not self._ledger.closing:
            await self._doubt.wait()
            self._doubt = trio.Event()
            lost = self._ledger.in_doubt
            if lost == file.in_doubt:
                continue
            try:
                await self._hop(functools.partial(file.doubt, lost), self._noting)
                failing = False
            except OSError as error:
                if not failing:
                    log.warning("that events were lost could not be noted", error=str(error))
                failing = True

    def _before_chores(self) -> bool:
        """Have cursors written that no append took along; return whether chores are worth it."""
        ledger = self._ledger
        self._doubt.set()
        if ledger.is_closed and (ledger.cursors or ledger.lost):
            self._flush = True
            self._work.set()
        return ledger.is_closed

    def _failed(self, error: Exception) -> None:
        self._ledger.failed(error, trio.current_time())
        self._work.set()
        self._doubt.set()

    def _read_failed(self, error: Exception) -> None:
        self._ledger.read_failed(error, trio.current_time())
        self._work.set()
