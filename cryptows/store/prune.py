"""Forgetting: events beyond their age or count, old ids, and what is known of dead streams.

In small steps, each a transaction of its own, because the appends of live events wait meanwhile.
Counts are of what was swept (schema.py), so a sweep comes first.
Before an event goes its stream's marks are raised, so that a client whose `since` lies before it is
told that something is missing instead of being shown a gap as if it were the whole.
"""

from __future__ import annotations

import sqlite3

import attrs

from cryptows.config.settings import Settings
from cryptows.store.rows import NEWER_MARKS
from cryptows.store.schema import number, transaction

STEP = 500  # rows; a few milliseconds


@attrs.frozen
class Keep:
    """How much is kept. Ages are in milliseconds."""

    age: int
    events: int  # of each channel
    ids_age: int
    ids: int
    streams: int  # streams that are remembered without events, and cursors

    @classmethod
    def of(cls, settings: Settings) -> Keep:
        """The part of the settings that says so."""
        return cls(
            age=int(settings.store.keep * 1000),
            events=settings.store.keep_events,
            ids_age=int(settings.feed.dedup * 1000),
            ids=settings.feed.dedup_ids,
            streams=settings.limits.streams,
        )

    @property
    def slack(self) -> int:
        """How many events more a channel may have before it is looked at again."""
        return self.events // 16


def prune_old(connection: sqlite3.Connection, before_ms: int, step: int = STEP) -> int:
    """Forget events that were stored before; return how many.

    By when they were stored, not by their timestamp: that is the producer's, and a replay's is
    years old. Positions grow with time, so the oldest rows come first and nothing is scanned.
    """
    with transaction(connection):
        (chosen,) = connection.execute(
            "SELECT json_group_array(n) FROM (SELECT n, stored_at FROM events ORDER BY n LIMIT ?)"
            " WHERE stored_at < ?",
            (step, before_ms),
        ).fetchone()
        return forget(connection, chosen)


def channels_of(connection: sqlite3.Connection) -> list[str]:
    """Return every channel that has events."""
    return [row[0] for row in connection.execute("SELECT DISTINCT channel FROM places")]


def last_excess(connection: sqlite3.Connection, channel: str, keep: int) -> int:
    """Return the newest position of a channel beyond those it keeps; 0 if it has no more."""
    return number(
        connection,
        "SELECT n FROM places WHERE channel = ? ORDER BY n DESC LIMIT 1 OFFSET ?",
        channel,
        keep,
    )


def prune_channel(
    connection: sqlite3.Connection, channel: str, up_to: int, step: int = STEP
) -> int:
    """Forget the oldest events of a channel up to a position; return how many."""
    with transaction(connection):
        (chosen,) = connection.execute(
            "SELECT json_group_array(n) FROM"
            " (SELECT n FROM places WHERE channel = ? AND n <= ? ORDER BY n LIMIT ?)",
            (channel, up_to, step),
        ).fetchone()
        return forget(connection, chosen)


def forget(connection: sqlite3.Connection, chosen: str) -> int:
    """Delete the events of a JSON array of positions, their streams marked; return how many."""
    these = "WHERE n IN (SELECT value FROM json_each(?))"
    connection.execute(
        "INSERT INTO streams(channel, symbol, seq, gone) SELECT channel, symbol, max(seq), max(n)"
        f" FROM events {these} GROUP BY channel, symbol {NEWER_MARKS}",
        (chosen,),
    )
    connection.execute(
        f"DELETE FROM places WHERE (channel, n) IN (SELECT channel, n FROM events {these})",
        (chosen,),
    )
    return connection.execute(f"DELETE FROM events {these}", (chosen,)).rowcount


def prune_ids(connection: sqlite3.Connection, before_ms: int, keep: int, step: int = STEP) -> int:
    """Forget ids that were seen before, and the oldest beyond a count; return how many."""
    with transaction(connection):
        last = number(connection, "SELECT max(k) FROM ids")
        return connection.execute(
            "DELETE FROM ids WHERE k IN (SELECT k FROM ids ORDER BY k LIMIT ?)"
            " AND (seen_at < ? OR k <= ?)",
            (step, before_ms, last - keep),
        ).rowcount


def prune_streams(connection: sqlite3.Connection, keep: int, step: int = STEP) -> int:
    """Forget the marks of the longest dead streams beyond a count; return how many.

    What is no longer known of one stream is then said of all: their floor is raised.
    """
    excess = number(connection, "SELECT count(*) FROM streams") - keep
    if excess <= 0:
        return 0
    with transaction(connection):
        oldest = (
            "SELECT channel, symbol, gone FROM streams"
            " WHERE NOT EXISTS (SELECT 1 FROM places WHERE places.channel = streams.channel)"
            " ORDER BY gone, channel, symbol LIMIT ?"
        )
        size = min(excess, step)
        connection.execute(
            f"UPDATE meta SET value = max(value, (SELECT ifnull(max(gone), 0) FROM ({oldest})))"
            " WHERE key = 'floor'",
            (size,),
        )
        return connection.execute(
            "DELETE FROM streams WHERE (channel, symbol) IN"
            f" (SELECT channel, symbol FROM ({oldest}))",
            (size,),
        ).rowcount


def prune_cursors(connection: sqlite3.Connection, keep: int, step: int = STEP) -> int:
    """Forget the cursors that are furthest behind beyond a count; return how many."""
    excess = number(connection, "SELECT count(*) FROM cursors") - keep
    if excess <= 0:
        return 0
    with transaction(connection):
        return connection.execute(
            "DELETE FROM cursors WHERE user_id IN"
            " (SELECT user_id FROM cursors ORDER BY n, user_id LIMIT ?)",
            (min(excess, step),),
        ).rowcount
