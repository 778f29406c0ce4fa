"""What is written and read, as few SQLite calls as can be.

Python's sqlite3 gives up the interpreter lock around every row it steps over, and takes it back
after. Beside a busy Trio thread each time costs up to the switch interval of 5 ms: `executemany`
with 100 rows then took 1.2 s, one INSERT of the same 100 rows 1 ms. So rows are written with
INSERTs of many rows, and pages are read as two aggregates that are taken apart here.
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Iterable, Mapping, Sequence

import attrs
import msgspec

from cryptows.model.event import Record
from cryptows.store.schema import number

MAX_ROWS = 512  # of one INSERT: 7 columns of these stay far below SQLite's 32766 variables
FIRST_PAGE = 64  # rows; the pages after are as long as their bytes allow
MAX_PAGE = 1000  # rows
MAX_READ = 4 << 20  # bytes of envelopes that one read returns, or a little more

Stream = tuple[str, str]  # channel and symbol; no symbol is ""
Marks = tuple[int, int]  # of a stream: its last seq, and its last n that is not kept


class StoredEvent(msgspec.Struct, gc=False, frozen=True):
    """An event that was kept: what recovery and history send again."""

    n: int
    channel: str
    symbol: str | None
    seq: int
    timestamp: int
    envelope: bytes


@attrs.frozen
class Table:
    """How to insert into one table."""

    columns: str
    width: int
    conflict: str

    def insert(self, connection: sqlite3.Connection, flat: Sequence[object]) -> None:
        """Insert rows, given as all their values one after the other."""
        at, rows = 0, len(flat) // self.width
        while rows:
            size = min(MAX_ROWS, 1 << (rows.bit_length() - 1))  # few sizes: statements are cached
            end = at + size * self.width
            connection.execute(insert_statement(self, size), flat[at:end])
            at, rows = end, rows - size


@functools.cache
def insert_statement(table: Table, rows: int) -> str:
    """The INSERT of so many rows; there are as many as powers of two up to MAX_ROWS."""
    row = f"({','.join('?' * table.width)})"
    return f"INSERT INTO {table.columns} VALUES {','.join([row] * rows)} {table.conflict}"


# DO NOTHING: a commit that failed late may have been kept after all, and is then tried again.
EVENTS = Table(
    "events(n, channel, symbol, seq, timestamp, stored_at, envelope)", 7, "ON CONFLICT DO NOTHING"
)
IDS = Table("ids(id, n, seen_at)", 3, "")
CURSORS = Table(
    "cursors(user_id, n)", 2, "ON CONFLICT(user_id) DO UPDATE SET n = max(n, excluded.n)"
)
NEWER_MARKS = (
    "ON CONFLICT(channel, symbol) DO UPDATE"
    " SET seq = max(seq, excluded.seq), gone = max(gone, excluded.gone)"
)
STREAMS = Table("streams(channel, symbol, seq, gone)", 4, NEWER_MARKS)


def insert_events(connection: sqlite3.Connection, records: Iterable[Record], now_ms: int) -> None:
    """Keep events."""
    flat: list[object] = []
    for r in records:
        flat += (r.n, r.channel, r.symbol or "", r.seq, r.timestamp, now_ms, r.envelope)
    EVENTS.insert(connection, flat)


def insert_ids(connection: sqlite3.Connection, ids: Iterable[tuple[str, int]], now_ms: int) -> None:
    """Note the ids of events and their positions."""
    IDS.insert(connection, [value for id_, n in ids for value in (id_, n, now_ms)])


def insert_cursors(connection: sqlite3.Connection, cursors: Mapping[str, int]) -> None:
    """Move users' cursors; never backward."""
    CURSORS.insert(connection, [value for item in cursors.items() for value in item])


def insert_streams(connection: sqlite3.Connection, streams: Mapping[Stream, Marks]) -> None:
    """Note what is known of streams beyond their kept events."""
    STREAMS.insert(connection, [v for stream, marks in streams.items() for v in (*stream, *marks)])


def raise_floor(connection: sqlite3.Connection, floor: int, gap: int) -> None:
    """Note that anything up to a position may be missing, and up to `gap` events of each stream."""
    connection.execute("UPDATE meta SET value = max(value, ?) WHERE key = 'floor'", (floor,))
    connection.execute("UPDATE streams SET seq = seq + ?", (gap,))
    connection.execute(
        "INSERT INTO streams SELECT channel, symbol, max(seq) + ?, 0 FROM events"
        " WHERE n > (SELECT value FROM meta WHERE key = 'swept') GROUP BY channel, symbol "
        + NEWER_MARKS,
        (gap,),
    )


def sweep(connection: sqlite3.Connection, most: int) -> int:
    """Put the oldest events that have none in their places; return how many."""
    swept = number(connection, "SELECT value FROM meta WHERE key = 'swept'")
    last = number(
        connection,
        "SELECT max(n) FROM (SELECT n FROM events WHERE n > ? ORDER BY n LIMIT ?)",
        swept,
        most,
    )
    if not last:
        return 0
    new = "SELECT channel, n FROM events WHERE n > ? AND n <= ? ORDER BY channel, n"
    done = connection.execute(f"INSERT INTO places {new}", (swept, last)).rowcount
    connection.execute("UPDATE meta SET value = ? WHERE key = 'swept'", (last,))
    return done


# What was swept is found by its place; the rest is little, at the end of `events`.
PAGE = """
SELECT json_group_array(json_array(n, channel, symbol, seq, timestamp, length(envelope))),
       CAST(group_concat(CAST(envelope AS TEXT), '') AS BLOB)
FROM (
    SELECT * FROM events WHERE n IN (
        SELECT n FROM places
        WHERE channel IN (SELECT value FROM json_each(?1)) AND n > ?2 AND n <= ?3
        UNION ALL
        SELECT n FROM events
        WHERE n > max(?2, (SELECT value FROM meta WHERE key = 'swept')) AND n <= ?3
        AND channel IN (SELECT value FROM json_each(?1))
        ORDER BY n {order} LIMIT ?4
    ) ORDER BY n {order}
)
"""
FORWARD, BACKWARD = PAGE.format(order="ASC"), PAGE.format(order="DESC")
MAX_N = (1 << 63) - 1

decode_page = msgspec.json.Decoder(list[tuple[int, str, str, int, int, int]]).decode


def read_events(
    connection: sqlite3.Connection,
    channels: Sequence[str],
    since: int,
    until: int | None,
    limit: int,
    newest: bool,
) -> list[StoredEvent]:
    """Return events of the channels with since < n <= until: the oldest, or the newest first.

    At most `limit`, and fewer when their bytes reach MAX_READ: only an empty list is the end.
    """
    wanted = msgspec.json.encode(list(channels)).decode()
    low, high = since, MAX_N if until is None else until
    events: list[StoredEvent] = []
    size, step = 0, FIRST_PAGE
    while len(events) < limit and size < MAX_READ:
        step = min(step, limit - len(events))
        page = read_page(connection, BACKWARD if newest else FORWARD, wanted, low, high, step)
        events += page
        if len(page) < step:
            break
        size += sum(len(event.envelope) for event in page)
        step = max(1, min(MAX_PAGE, (MAX_READ - size) * len(events) // (size + 1)))
        if newest:
            high = page[-1].n - 1
        else:
            low = page[-1].n
    return events


def read_page(
    connection: sqlite3.Connection, query: str, channels: str, low: int, high: int, limit: int
) -> list[StoredEvent]:
    """Return one page: its numbers come as one JSON text, its envelopes one after the other."""
    numbers, envelopes = connection.execute(query, (channels, low, high, limit)).fetchone()
    events, at = [], 0
    for n, channel, symbol, seq, timestamp, length in decode_page(numbers):
        end = at + length
        events.append(StoredEvent(n, channel, symbol or None, seq, timestamp, envelopes[at:end]))
        at = end
    return events


def read_floor(connection: sqlite3.Connection, channels: Iterable[str]) -> int:
    """Return the position above which nothing of these channels is missing."""
    floor = number(connection, "SELECT value FROM meta WHERE key = 'floor'")
    for channel in channels:
        gone = number(connection, "SELECT max(gone) FROM streams WHERE channel = ?", channel)
        floor = max(floor, gone)
    return floor
