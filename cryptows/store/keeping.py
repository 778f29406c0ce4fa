"""The store's file over its life: opened, migrated, repaired, replaced, and its numbers.

Three connections, so that reading and checkpoints never hold up a commit. A file that is damaged or
not ours is set aside. At the start that loses the history and makes a new epoch; while running the
positions handed out are still known, so the epoch stays, and the floor says that nothing at or
below it is kept.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
import string
import threading
from pathlib import Path

import structlog

from cryptows.config.settings import Settings
from cryptows.model.errors import StartError
from cryptows.store import link, rows
from cryptows.store.doubt import DoubtFile
from cryptows.store.link import Connect, Link, is_damage
from cryptows.store.place import Place, unusable
from cryptows.store.rows import Marks, Stream
from cryptows.store.schema import ForeignError, check_owner, number, prepare, transaction

log = structlog.get_logger()

EPOCH = 6  # characters of 36: a chance of 1 in 2e9 that a lost history's epoch comes again
# Positions that a crash skips. An offset's number stays below 2**53 for 9e7 crashes, and there are
# hours of events left to number while the disk cannot take a new ceiling.
RESERVE = 100_000_000
# Positions that an orderly end skips: something may still be announced while the store closes.
CLOSE_GAP = 1000
# By how much `seq` goes on when an unknown number of a stream's events was lost before a start.
SEQ_GAP = 1_000_000
QUICK_CHECK = 64 << 20  # bytes; a larger file is not read whole before the daemon starts


class StoreFile:
    """The file and its three connections. Methods block; sqlite3.Error comes as it is.

    `position`: numbering starts above it. `top`: the highest number known to be handed out.
    `ceiling`: after a crash numbering starts above it.
    """

    epoch: str
    position: int
    top: int
    ceiling: int

    def __init__(self, settings: Settings, connect: Connect) -> None:
        """Take the folder and open the file in it; StartError if that cannot be."""
        self._connect = connect
        self._synchronous = settings.store.synchronous
        self._patience = min(1.0, settings.store.timeout / 2)
        self._condemned: str | None = None
        folder = Path(settings.server.state_dir)
        self.place = Place.take(folder)
        self.writer = Link(self._open_writer)
        self.reader = Link(lambda: self._open(cache_kib=4096))
        self.keeper = Link(lambda: self._open(cache_kib=1024))
        self._doubt: DoubtFile | None = None
        self._doubting = threading.Lock()
        self.in_doubt = False  # as the file of doubts says
        try:
            self._start()
            self._heed_doubt()
        except StartError:
            self._give_up()
            raise
        except (sqlite3.Error, OSError) as error:
            self._give_up()
            raise unusable(folder, str(error)) from error

    def _start(self) -> None:
        self._identity = self.place.identity()
        try:
            self._load()
        except (ForeignError, sqlite3.Error) as error:
            if not isinstance(error, ForeignError) and not is_damage(error):
                raise
            self.writer.close()
            self.place.set_aside(str(error))
            self.place.prepare()
            self._identity = self.place.identity()
            self._load()

    def _load(self) -> None:
        # Before the writer, who switches to WAL: another program's file is not to be changed.
        with contextlib.closing(self._connect(self.place.file, self._patience)) as connection:
            check_owner(connection)
        with self.writer.use() as connection:
            before, after = prepare(connection)
            if before == 0:
                # After another one it begins above 0: who acknowledged nothing since, as far as
                # is known, has missed something all the same.
                start = 1 if self.place.copies() else 0
                found(connection, new_epoch(), ceiling=start, floor=start)
                log.info("store created", file=str(self.place.file))
            else:
                if before < after:
                    log.info("store migrated", before=before, after=after)
                if self.place.size() <= QUICK_CHECK:
                    check(connection)
            epoch = connection.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()
            if epoch is None:
                raise ForeignError("the store has no epoch")
            self.epoch = str(epoch[0])
            reserved = number(connection, "SELECT value FROM meta WHERE key = 'reserved'")
            last = number(connection, "SELECT max(n) FROM events")
            self.position = self.top = max(reserved, last)
            set_ceiling(connection, self.top + RESERVE)
            self.ceiling = self.top + RESERVE

    def _heed_doubt(self) -> None:
        """Take note of what the last run lost and could not write into the database."""
        self._doubt = DoubtFile(self.place.doubt)
        lost = self._doubt.read()
        if lost is not None and lost.epoch in (self.epoch, None):
            with self.writer.use() as connection, transaction(connection):
                if lost.marks is not None:
                    rows.insert_streams(connection, lost.marks)
                else:
                    rows.raise_floor(connection, self.position, SEQ_GAP)
            known = "some events" if lost.marks is None else f"events of {len(lost.marks)} streams"
            log.warning("the last run could not store what it delivered", lost=known)
        if lost is not None:
            self._doubt.clear()

    def doubt(self, lost: bool) -> None:
        """Note on disk whether events were lost that the database does not know; OSError.

        May be called beside the writer, who may hang; nothing is done any more after close().
        """
        with self._doubting:
            if self._doubt is None or lost == self.in_doubt:
                return
            if lost:
                self._doubt.write(self.epoch, None)
            else:
                self._doubt.clear()
            self.in_doubt = lost

    def _open(self, cache_kib: int) -> sqlite3.Connection:
        connection = self._connect(self.place.file, self._patience)
        try:
            link.configure(connection, self._synchronous, cache_kib)
        except BaseException:
            connection.close()
            raise
        return connection

    def _open_writer(self) -> sqlite3.Connection:
        if self._condemned is None and self.is_displaced():
            self._condemned = "the file was removed or replaced"
        if self._condemned is not None:
            self._replace(self._condemned)
        return self._open(cache_kib=8192)

    def _replace(self, reason: str) -> None:
        try:
            self.place.set_aside(reason)
            self.place.prepare()
        except OSError as error:
            raise sqlite3.OperationalError(str(error)) from error
        self.reader.expire()
        self.keeper.expire()
        with contextlib.closing(self._open(cache_kib=64)) as connection:
            prepare(connection)
            found(connection, self.epoch, ceiling=self.ceiling, floor=self.top)
        self._identity = self.place.identity()
        self._condemned = None

    def condemn(self, error: BaseException) -> bool:
        """Whether an error means that the file is damaged; the next writer then replaces it."""
        if is_damage(error):
            self._condemned = str(error)
            return True
        return False

    def is_displaced(self) -> bool:
        """Whether somebody removed or replaced the file, so that commits go nowhere."""
        return self.place.identity() != self._identity

    def reserve(self) -> None:
        """Raise the ceiling to RESERVE above the top."""
        ceiling = self.top + RESERVE
        with self.writer.use() as connection:
            set_ceiling(connection, ceiling)
        self.ceiling = ceiling

    def close(self, position: int | None, lost: dict[Stream, Marks]) -> None:
        """Close the file and give up the folder. Never raises.

        `position` is the last number handed out. Without it the next start skips numbers, as it
        does after a crash. `lost`: what the database does not know yet.
        """
        try:
            if position is not None or lost:
                with self.writer.use() as connection, transaction(connection):
                    rows.insert_streams(connection, lost)
                    if position is not None:
                        set_ceiling(connection, max(position, self.top) + CLOSE_GAP)
            lost = {}
        except sqlite3.Error as error:
            log.warning("store closed without its last position", error=str(error))
        self._leave_doubt(lost)
        self._give_up()

    def _leave_doubt(self, lost: dict[Stream, Marks]) -> None:
        with self._doubting:
            file, self._doubt = self._doubt, None
            if file is None:
                return
            try:
                if lost:
                    file.write(self.epoch, lost)
                elif self.in_doubt:
                    file.clear()
            except OSError as error:
                log.warning("what was lost could not be noted", error=str(error))
            file.close()

    def _give_up(self) -> None:
        if self._doubt is not None:
            self._doubt.close()
        for connection in (self.reader, self.keeper, self.writer):  # the last one checkpoints
            connection.close()
        self.place.leave()


def found(connection: sqlite3.Connection, epoch: str, ceiling: int, floor: int) -> None:
    """Begin a history."""
    values = {"epoch": epoch, "reserved": ceiling, "floor": floor, "swept": floor}
    with transaction(connection):
        connection.executemany("INSERT OR REPLACE INTO meta VALUES(?, ?)", values.items())


def set_ceiling(connection: sqlite3.Connection, ceiling: int) -> None:
    """Note that no position above it was handed out."""
    connection.execute("UPDATE meta SET value = ? WHERE key = 'reserved'", (ceiling,))


def check(connection: sqlite3.Connection) -> None:
    """Read the whole file once; ForeignError with what is wrong with it."""
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise ForeignError(verdict)


def new_epoch() -> str:
    """Return the name of a new history."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(EPOCH))
