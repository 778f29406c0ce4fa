"""The database: what is kept of the durable channels, asked and told synchronously.

Without Trio, and without an opinion on when: `writer.py` decides that. Methods block and may be
called from any thread, those that write from one at a time. sqlite3.Error comes as it is.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from cryptows.config.settings import Settings
from cryptows.store import prune, rows
from cryptows.store.jobs import Batch
from cryptows.store.keeping import RESERVE, StoreFile, set_ceiling
from cryptows.store.link import WAL_LIMIT, Connect, connect
from cryptows.store.rows import Marks, StoredEvent, Stream
from cryptows.store.schema import transaction

Step = Callable[[sqlite3.Connection], int]

CHECKPOINT_AT = 4 << 20  # bytes of WAL that are worth moving into the database
SWEEP = 1000  # events; a few milliseconds
ROW = 100  # bytes that a row costs beside its envelope, about
PROBE = 64 << 10  # bytes that a trial writes: a disk with room for a row may have none for a batch


class Unstorable(Exception):
    """A value that SQLite cannot hold; costs its job, and says nothing about the disk."""


class DisplacedError(sqlite3.DatabaseError):
    """Somebody removed or replaced the file; the next trial makes a new one."""


UNSTORABLE = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    OverflowError,
    UnicodeError,
)


class Database:
    """The events, ids, streams and cursors in the store's file."""

    def __init__(
        self,
        settings: Settings,
        *,
        connect: Connect = connect,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Open the file; StartError if that cannot be."""
        self._now = now
        self.keep = prune.Keep.of(settings)
        self.file = StoreFile(settings, connect)
        self._unsaved = 0  # bytes since the last checkpoint
        self._seqs: dict[Stream, int] = {}  # of events since the last sweep
        self._grown: dict[str, int] = {}  # channel: events since it was last looked at
        self._look_at_all()

    def _look_at_all(self) -> None:
        unswept = (
            "SELECT channel, symbol, max(seq) FROM events"
            " WHERE n > (SELECT value FROM meta WHERE key = 'swept') GROUP BY channel, symbol"
        )
        with self.file.reader.use() as connection:
            self._seqs = {(c, s): seq for c, s, seq in connection.execute(unswept)}
            channels = prune.channels_of(connection)
        self._grown = dict.fromkeys(channels, self.keep.slack + 1)

    # -- writing: one thread at a time ---------------------------------------------------------

    def write(self, batch: Batch) -> None:
        """Commit a batch, whole or not at all; Unstorable if a value of it cannot be stored."""
        file = self.file
        now_ms = int(self._now() * 1000)
        file.top = max([file.top, *(record.n for record in batch.records)])
        ceiling = file.ceiling if file.top <= file.ceiling else file.top + RESERVE
        try:
            with file.writer.use() as connection, transaction(connection):
                rows.insert_events(connection, batch.records, now_ms)
                rows.insert_ids(connection, batch.ids, now_ms)
                rows.insert_cursors(connection, batch.cursors)
                rows.insert_streams(connection, batch.lost)
                if ceiling != file.ceiling:
                    set_ceiling(connection, ceiling)
        except UNSTORABLE as error:
            raise Unstorable(str(error)) from error
        file.ceiling = ceiling
        for r in batch.records:
            self._seqs[r.channel, r.symbol or ""] = r.seq
            self._grown[r.channel] = self._grown.get(r.channel, 0) + 1
            self._unsaved += len(r.envelope) + ROW

    def probe(self, batch: Batch) -> None:
        """Try a commit on a new connection, to a new file if the old one is damaged."""
        self.file.writer.close()
        with self.file.writer.use() as connection:
            ballast = "INSERT OR REPLACE INTO meta VALUES('probe', zeroblob(?))"
            connection.execute(ballast, (PROBE,))
            connection.execute("DELETE FROM meta WHERE key = 'probe'")
        self.write(batch)

    def sweep(self) -> int:
        """Put the oldest new events in their places; return how many, at most SWEEP.

        Also notes the last seq of every stream that had events since the last sweep.
        """
        seqs, self._seqs = self._seqs, {}
        try:
            with self.file.writer.use() as connection, transaction(connection):
                rows.insert_streams(connection, {s: (seq, 0) for s, seq in seqs.items()})
                return rows.sweep(connection, SWEEP)
        except sqlite3.Error:
            self._seqs = seqs | self._seqs
            raise

    def prune(self, step: Step) -> int:
        """Do one step of pruning; return how many rows went. See prunable()."""
        with self.file.writer.use() as connection:
            return step(connection)

    # -- beside the writer -----------------------------------------------------------------------

    def prunable(self) -> list[Step]:
        """Return the steps of pruning, each to be done until it returns less than prune.STEP."""
        now_ms = int(self._now() * 1000)
        keep = self.keep
        steps: list[Step] = [
            partial(prune.prune_old, before_ms=now_ms - keep.age),
            partial(prune.prune_ids, before_ms=now_ms - keep.ids_age, keep=keep.ids),
            partial(prune.prune_streams, keep=keep.streams),
            partial(prune.prune_cursors, keep=keep.streams),
        ]
        due = [name for name, more in list(self._grown.items()) if more > keep.slack]
        with self.file.keeper.use() as connection:
            for name in due:
                up_to = prune.last_excess(connection, name, keep.events)
                self._grown.pop(name, None)
                if up_to:
                    steps.append(partial(prune.prune_channel, channel=name, up_to=up_to))
        return steps

    def inspect(self) -> int:
        """Move the WAL into the database if it is worth it; return the bytes on disk.

        Raises DisplacedError when the file that is written to is not the one that others see.
        """
        if self.file.is_displaced():
            raise DisplacedError("the file was removed or replaced")
        if self._unsaved >= CHECKPOINT_AT:
            self._unsaved = 0
            self._checkpoint()
        return self.file.place.size()

    def _checkpoint(self) -> None:
        with self.file.keeper.use() as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            if self.file.place.size("-wal") > WAL_LIMIT:
                # Commits without a pause never let the WAL start again. Make them wait for it,
                # which is short now that nearly all of it was moved.
                connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()

    def read(
        self,
        channels: Sequence[str],
        since: int,
        limit: int,
        until: int | None = None,
        newest: bool = False,
    ) -> list[StoredEvent]:
        """Return kept events with since < n <= until, as rows.read_events does."""
        with self.file.reader.use() as connection:
            return rows.read_events(connection, channels, since, until, limit, newest)

    def floor(self, channels: Sequence[str]) -> int:
        """Return the position above which nothing of these channels is missing."""
        with self.file.reader.use() as connection:
            return rows.read_floor(connection, channels)

    def cursor(self, user_id: str) -> int | None:
        """Return how far a user acknowledged; None if he never did."""
        with self.file.reader.use() as connection:
            query = "SELECT n FROM cursors WHERE user_id = ?"
            found = connection.execute(query, (user_id,)).fetchone()
        return None if found is None else int(found[0])

    def ids(self) -> list[tuple[str, int, int]]:
        """Return the ids that still count: id, position, when it was seen (ms); oldest first."""
        oldest = int(self._now() * 1000) - self.keep.ids_age
        query = "SELECT id, n, seen_at FROM ids WHERE seen_at >= ? ORDER BY k DESC LIMIT ?"
        with self.file.reader.use() as connection:
            return connection.execute(query, (oldest, self.keep.ids)).fetchall()[::-1]

    def streams(self) -> dict[tuple[str, str | None], int]:
        """Return the last seq of every stream that is known, by channel and symbol."""
        with self.file.reader.use() as connection:
            known = connection.execute("SELECT channel, symbol, seq FROM streams").fetchall()
        seqs: dict[Stream, int] = {(channel, symbol): seq for channel, symbol, seq in known}
        for stream, seq in self._seqs.items():
            seqs[stream] = max(seq, seqs.get(stream, 0))
        return {(channel, symbol or None): seq for (channel, symbol), seq in seqs.items()}

    def close(
        self, position: int | None = None, lost: Mapping[Stream, Marks] | None = None
    ) -> None:
        """Close the file; `position` is the last number handed out. Never raises.

        `lost`: the events that are not kept and not written down, as of when it is closed.
        """
        try:
            while self.sweep() == SWEEP:
                pass
        except sqlite3.Error:
            pass  # the next start looks at the events since the last one
        self.file.close(position, dict(lost or {}))
