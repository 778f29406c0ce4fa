"""Connections to SQLite: how they are opened, lent, and given up after an error.

A connection that saw the disk fail may not recover with it, so after any error the next use opens
another. `connect` is an argument everywhere: tests pass one whose connections fail on command.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

Connect = Callable[[Path, float], sqlite3.Connection]

WAL_LIMIT = 64 << 20  # bytes; beyond it commits wait until the WAL may start from its beginning
DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


def connect(path: Path, patience: float) -> sqlite3.Connection:
    """Open an existing database; `patience` is how long another process's lock is waited for."""
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=patience,
        isolation_level=None,  # transactions are begun by hand
        check_same_thread=False,  # a Link sees to it that threads take turns
    )


def configure(connection: sqlite3.Connection, synchronous: str, cache_kib: int) -> None:
    """Prepare a new connection for use; sqlite3.Error if the file system cannot do it."""
    if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise sqlite3.OperationalError("the file system does not support SQLite's WAL")
    for pragma in (
        f"synchronous = {synchronous}",
        "wal_autocheckpoint = 0",  # Database.checkpoint() does it, beside the commits
        f"journal_size_limit = {WAL_LIMIT}",
        "secure_delete = OFF",  # some distributions switch it on: twice the writes for a prune
        "trusted_schema = OFF",
        f"cache_size = -{cache_kib}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def is_damage(error: BaseException) -> bool:
    """Whether an error means that the file is damaged, not that the disk will not have it now."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return False
    # "no such table", "no such column": the file says that it has our schema, and has not.
    missing = code == sqlite3.SQLITE_ERROR and "no such" in str(error)
    return code & 0xFF in DAMAGED or missing


class Link:
    """One connection, used by one thread at a time, opened when it is needed."""

    def __init__(self, opener: Callable[[], sqlite3.Connection]) -> None:
        self._opener = opener
        self._connection: sqlite3.Connection | None = None
        self._expired = False
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def use(self) -> Iterator[sqlite3.Connection]:
        """Lend the connection, and give it up if SQLite reports an error; raised as it is."""
        with self._lock:
            if self._expired:
                self._close()
            if self._connection is None:
                self._expired = False
                self._connection = self._opener()
            try:
                yield self._connection
            except sqlite3.Error:
                self._close()
                raise

    def expire(self) -> None:
        """Have the next use open another connection. Does not wait for a thread that uses it."""
        self._expired = True

    def close(self) -> None:
        """Close the connection, after the thread that uses it."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):  # the error that led here says more
                self._connection.close()
            self._connection = None
