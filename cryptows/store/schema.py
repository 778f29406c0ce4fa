"""The tables of the store, how an older file is brought up to date, and what is not ours.

`PRAGMA application_id` says that a file is a cryptows store, `PRAGMA user_version` how many of
the MIGRATIONS it has seen. All missing ones run in one transaction, so that a crash in the middle
leaves the file as it was. A migration is never edited once released; a change is a new one.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence

from cryptows.model.errors import StartError

APPLICATION_ID = 0x63727077  # "crpw"

Migration = tuple[str, ...]

# Strings instead of NULL for "no symbol": NULLs are distinct from each other in a primary key.
MIGRATIONS: tuple[Migration, ...] = (
    (
        # epoch, reserved (no position above it was handed out), floor (what is at or below it may
        # be missing, on every channel), swept (`places` and `streams` know all up to this event)
        "CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID",
        """CREATE TABLE events(
            n INTEGER PRIMARY KEY,
            channel TEXT NOT NULL,
            symbol TEXT NOT NULL,
            seq INTEGER NOT NULL,
            timestamp INTEGER NOT NULL,
            stored_at INTEGER NOT NULL,
            envelope BLOB NOT NULL
        )""",
        # The index over channel and n, kept by hand: each commit only appends to `events`, and
        # now and then what is new is put in its places, sorted. SQLite's own index would rewrite
        # a page of 4 KiB for each channel of each commit.
        """CREATE TABLE places(
            channel TEXT NOT NULL, n INTEGER NOT NULL, PRIMARY KEY(channel, n)
        ) WITHOUT ROWID""",
        # A log, read whole at the start: whether an id was seen is asked in memory. Without an
        # index of its own it only grows at its end and shrinks at its front.
        """CREATE TABLE ids(
            k INTEGER PRIMARY KEY,
            id TEXT NOT NULL,
            seen_at INTEGER NOT NULL,
            n INTEGER NOT NULL
        )""",
        # What is known of a stream beyond its kept events: its last seq, and its last event that
        # was pruned or never stored. Written now and then, not with each event.
        """CREATE TABLE streams(
            channel TEXT NOT NULL,
            symbol TEXT NOT NULL,
            seq INTEGER NOT NULL,
            gone INTEGER NOT NULL,
            PRIMARY KEY(channel, symbol)
        ) WITHOUT ROWID""",
        "CREATE TABLE cursors(user_id TEXT PRIMARY KEY, n INTEGER NOT NULL) WITHOUT ROWID",
    ),
)


class ForeignError(Exception):
    """The file is no cryptows store, or one that is broken; it can only be set aside."""


def check_owner(connection: sqlite3.Connection) -> None:
    """Raise ForeignError if another program made the file. Changes nothing in it."""
    owner = number(connection, "PRAGMA application_id")
    version = number(connection, "PRAGMA user_version")
    tables = number(connection, "SELECT count(*) FROM sqlite_schema")
    if owner != APPLICATION_ID and (owner or version or tables):
        raise ForeignError(f"application id is {owner:#x}; expected {APPLICATION_ID:#x}")


def prepare(
    connection: sqlite3.Connection, migrations: Sequence[Migration] = MIGRATIONS
) -> tuple[int, int]:
    """Create or migrate the tables; return the schema's version before and after.

    ForeignError: another program's file. StartError: a newer cryptows wrote it, and what this one
    would do to it nobody knows. sqlite3.Error: what SQLite says; the file is as it was.
    """
    check_owner(connection)
    before = number(connection, "PRAGMA user_version")
    if before > len(migrations):
        raise StartError(
            f"the store has schema {before}, written by a newer cryptows; "
            f"this one knows schemas up to {len(migrations)}"
        )
    if before < len(migrations):
        with transaction(connection):
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            for statement in (s for m in migrations[before:] for s in m):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {len(migrations)}")
    return before, len(migrations)


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """BEGIN IMMEDIATE … COMMIT, or ROLLBACK when something is raised.

    IMMEDIATE takes the write lock at once, where waiting for it (busy_timeout) still works.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite rolls back by itself after some errors
            with contextlib.suppress(sqlite3.Error):  # the first error says more
                connection.execute("ROLLBACK")
        raise


def number(connection: sqlite3.Connection, query: str, *arguments: object) -> int:
    """The one integer that a query answers with; 0 for NULL or no row."""
    row = connection.execute(query, arguments).fetchone()
    return int(row[0] or 0) if row else 0
