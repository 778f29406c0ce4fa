"""What the store's tests share: settings, records, disks that fail on command, threads that do not.

`Disk` makes the connections of a database, so it decides what they answer. `Hop` stands for the
thread: it calls at once and in the loop, after as many seconds of the test's clock as it is told.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import trio

from cryptows.config.settings import Feed, Limits, Server, Settings, Store
from cryptows.model.channel import Lane
from cryptows.model.event import Record
from cryptows.store import link
from cryptows.store.jobs import Append
from cryptows.store.sqlite import Database

FULL = (sqlite3.SQLITE_FULL, "database or disk is full")
READONLY = (sqlite3.SQLITE_READONLY, "attempt to write a readonly database")
CORRUPT = (sqlite3.SQLITE_CORRUPT, "database disk image is malformed")
IOERR = (sqlite3.SQLITE_IOERR, "disk I/O error")


def settings_for(folder: Path, *, feed: Feed | None = None, **store: Any) -> Settings:
    """Settings with a store in a folder."""
    return Settings(
        server=Server(state_dir=str(folder)),
        feed=feed or Feed(),
        limits=Limits(streams=1000),
        store=Store(**store),
    )


def record(n: int, channel: str = "user_1_trades", symbol: str | None = "BTC", seq: int = 0):
    """An event as the journal numbers it."""
    text = b'{"type":"trade_execution","data":{"n":%d,"text":"\xc3\xa9 \\n"}}' % n
    return Record(
        n, seq or n, channel, symbol, Lane.PRIVATE, 1_700_000_000_000 + n, text, b"e.%d" % n
    )


@attrs.define
class Answers:
    """Makes appends and notes how they were answered."""

    given: list[tuple[int, bool]] = attrs.field(factory=list)
    late: list[int] = attrs.field(factory=list)  # those that were kept after all
    then: Callable[[int, bool], None] = lambda n, kept: None

    def append(self, *numbers: int, channel: str = "user_1_trades", id_: str | None = None):
        """An append of records with these numbers; it is known by the first."""
        first = numbers[0]

        def done(kept: bool) -> None:
            self.given.append((first, kept))
            self.then(first, kept)

        ids = () if id_ is None else ((id_, first),)
        records = tuple(record(n, channel) for n in numbers)
        return Append(records, ids, done, lambda: self.late.append(first))


def error_of(code: int, message: str) -> sqlite3.Error:
    """The error that SQLite would raise."""
    damage = code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    error = (sqlite3.DatabaseError if damage else sqlite3.OperationalError)(message)
    error.sqlite_errorcode = code
    return error


@attrs.define
class Disk:
    """Connections that fail while they are told to."""

    writes: tuple[int, str] | None = None  # how every statement that writes fails
    reads: tuple[int, str] | None = None
    opened: int = 0

    def connect(self, path: Path, patience: float) -> sqlite3.Connection:
        """Open a connection on this disk."""
        disk = self
        disk.opened += 1

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
                fault = disk.reads if sql.lstrip().startswith("SELECT") else disk.writes
                if fault is not None and not sql.startswith(("PRAGMA", "ROLLBACK")):
                    raise error_of(*fault)
                return super().execute(sql, *arguments)

        return sqlite3.connect(
            path, timeout=patience, isolation_level=None, check_same_thread=False,
            factory=Connection,
        )  # fmt: skip


@attrs.define
class Hop:
    """A thread that takes as long as it is told, on the clock of the test."""

    takes: float = 0.0

    async def __call__(self, call: Callable[[], Any], limiter: trio.CapacityLimiter) -> Any:
        """Wait, then call: what a slow disk does is done at the end."""
        async with limiter:
            await trio.sleep(self.takes)
            return call()


def crash(database: Database) -> None:
    """End a database as kill -9 does: nothing is written any more."""
    file = database.file
    for connection in (file.reader, file.keeper, file.writer):
        connection.close()
    file.place.leave()


def statements(folder: Path, query: str) -> list[Any]:
    """What a database in a folder answers to somebody else."""
    connection = link.connect(folder / "cryptows.db", 1.0)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()
