"""What a client missed: from where each subscription is made up for, and what can no longer be.

A subscribe request with `since` is confirmed, then what the client missed is sent marked `replay`,
and then it is live, with nothing lost or doubled between. Until then it takes no part in the
routes; for its older subscriptions the replay begins where they stopped. Durable channels come from
the store where the journal's ring does not reach back that far. A snapshot that is too much for one
write goes the same way. `tasks/replays.py` does the reading and waiting.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from cryptows.broker.journal import Journal
from cryptows.model.channel import ChannelTable, Pattern
from cryptows.model.errors import RequestError
from cryptows.model.event import Record
from cryptows.wire import envelope
from cryptows.wire.requests import Request

LAST = "last"  # `since`: from what the user acknowledged last
MAX_HISTORY = 1000  # events of one answer to a history request
DEFAULT_HISTORY = 100
LARGE = 16 << 10  # bytes of a snapshot; less is sent with the confirmation

Text = tuple[bytes, bytes]  # an envelope and its offset


@attrs.frozen
class Recover:
    """A subscribe request that asks for what was missed, or whose snapshot takes several writes."""

    request: Request
    patterns: frozenset[Pattern]  # all that the client is subscribed to afterwards
    granted: tuple[Pattern, ...]
    denied: tuple[dict[str, str], ...]
    since: int | None  # None: nothing is made up for; only the snapshot is sent
    known: bool = True  # False: the offset is of a history that was lost
    last: bool = False


@attrs.frozen
class Query:
    """A history request."""

    request: Request
    pattern: Pattern
    since: int
    limit: int
    newest: bool
    known: bool = True  # False: its offset is of a history that was lost


def read_offset(text: str, journal: Journal, name: str = "since") -> int | None:
    """Return the position of an offset, None if it is of another epoch; raise RequestError.

    `name` is the request's field that it stands in.
    """
    epoch, _, number = text.rpartition(".")
    if not epoch or not number.isascii() or not number.isdigit() or len(number) > 18:
        raise RequestError("bad_request", f'{name}: expected "<epoch>.<n>", got "{text[:40]}"')
    if epoch != journal.epoch:
        return None
    n = int(number)
    if n > journal.n:
        raise RequestError("bad_request", f"{name}: {text[:40]} is ahead of the daemon")
    return n


def read_query(request: Request, pattern: Pattern, journal: Journal) -> Query:
    """Check a history request; raise RequestError."""
    limit = DEFAULT_HISTORY if request.limit is None else request.limit
    if not 1 <= limit <= MAX_HISTORY:
        raise RequestError("bad_request", f"limit: expected 1 to {MAX_HISTORY}, got {limit}")
    order = request.order or "oldest"
    if order not in ("oldest", "newest"):
        raise RequestError("bad_request", f'order: expected oldest or newest, got "{order[:40]}"')
    since = 0 if request.since is None else read_offset(request.since, journal)
    # Without a beginning the latest are meant, whichever order they are wanted in.
    return Query(request, pattern, since or 0, limit, order == "newest", since is not None)


def start_positions(
    plan: Recover,
    old: frozenset[Pattern],
    since: int | None,
    floors: Mapping[str, int],
    journal: Journal,
) -> tuple[dict[Pattern, int], list[dict[str, Any]]]:
    """Return after which position each pattern is replayed, and what is no longer kept.

    `old` are the subscriptions that are live so far. `floors`: of each channel that the store has,
    the position above which it has everything. What lies below may still be there in part: then it
    is sent, and what is missing is told all the same.
    """
    starts = dict.fromkeys([*old, *plan.granted], journal.n)
    missing = []
    for pattern in plan.granted if since is not None else ():
        assert since is not None
        complete = lost = journal.lost(pattern.channel)
        starts[pattern] = max(since, lost)
        if pattern.channel in floors:
            complete = min(lost, floors[pattern.channel])
            starts[pattern] = since
        if since < complete or not plan.known:
            first = journal.offset_of(complete).decode()
            missing.append({"channel": str(pattern), "recovered": False, "from": first})
    return starts, missing


def confirmation(
    plan: Recover, since: int | None, missing: Sequence[dict[str, Any]], now_ms: int
) -> bytes:
    """Return the `subscription_confirmed` envelope of a request that is carried out by a plan."""
    data: dict[str, Any] = {"channels": [str(p) for p in plan.granted], "denied": plan.denied}
    if since is not None:
        data["recovered"] = not missing
        data["missing"] = missing
    return envelope.message("subscription_confirmed", data, now_ms, plan.request.id)


def snapshot_of(
    journal: Journal,
    table: ChannelTable,
    patterns: Sequence[Pattern],
    starts: Mapping[Pattern, int],
) -> list[Record]:
    """Return the last values that a replay after `starts` would not bring, in order."""
    wanted = []
    for pattern in patterns:
        found = table.find(pattern.channel)
        if found is not None and found[0].snapshot:
            wanted.append(pattern)
    if not wanted:
        return []
    earliest = min(starts[p] for p in wanted)
    return [r for r in journal.snapshot(wanted) if r.n <= earliest]


def is_large(records: Iterable[Record], most: int) -> bool:
    """Whether these are too much to be sent at once to a client that may wait for `most` bytes."""
    return sum(len(r.envelope) for r in records) > min(LARGE, most // 2)


def marked(records: Iterable[Record], mark: str) -> list[Text]:
    """Return the envelopes of records, marked `replay` or `snapshot`."""
    return [(envelope.marked(r.envelope, mark), r.offset) for r in records]
