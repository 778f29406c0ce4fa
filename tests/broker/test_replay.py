"""From where each subscription is made up for, and what is said of what is gone."""

import msgspec
import pytest

from cryptows.broker.journal import Journal
from cryptows.broker.replay import (
    DEFAULT_HISTORY,
    LARGE,
    MAX_HISTORY,
    Query,
    Recover,
    confirmation,
    is_large,
    marked,
    read_offset,
    read_query,
    snapshot_of,
    start_positions,
)
from cryptows.model.channel import ChannelTable, Pattern
from cryptows.model.errors import RequestError
from cryptows.model.event import Record
from cryptows.wire.requests import Request
from tests.broker.events import channel, event, keeping, market, record

BRIEF = channel("brief", history=keeping(events=2))
PRICES = market("prices", snapshot=True)
PLAIN = channel("plain")
TABLE = ChannelTable((BRIEF, PRICES, PLAIN))


def journal_with(*streams: tuple[str, str | None], n: int = 0) -> Journal:
    """Return a journal with an event on each of these streams, in order."""
    kept = Journal("k", 100, n)
    for name, symbol in streams:
        found = TABLE.find(name)
        assert found is not None
        stream = kept.stream(found[0], name, symbol)
        kept.append(stream, kept.number(stream, event(symbol=symbol), kept.n + 1))
    return kept


def plan(*granted: str, since: int | None = 0, known: bool = True) -> Recover:
    patterns = tuple(map(Pattern.parse, granted))
    denied = ({"channel": "x", "code": "c", "message": "m"},)
    request = Request("subscribe", id=4)
    return Recover(request, frozenset(patterns), patterns, denied, since, known)


def starts(
    kept: Journal, wanted: Recover, *old: str, **floors: int
) -> tuple[dict[str, int], list[dict]]:
    before = frozenset(map(Pattern.parse, old))
    found, missing = start_positions(wanted, before, wanted.since, floors, kept)
    return {str(pattern): n for pattern, n in found.items()}, missing


def lost(name: str, offset: str) -> dict:
    return {"channel": name, "recovered": False, "from": offset}


# offsets and queries


def test_an_offset_is_a_position_of_this_history():
    kept = Journal("k", 9, 50)

    assert read_offset("k.50", kept) == 50
    assert read_offset("k.0", kept) == 0
    assert read_offset("k.007", kept) == 7
    assert read_offset("j.51", kept) is None
    assert read_offset("a.k.7", kept) is None


def test_what_is_wrong_with_an_offset_is_said_of_its_field():
    with pytest.raises(RequestError) as caught:
        read_offset("seven", Journal("k", 9), "offset")

    assert caught.value.message == 'offset: expected "<epoch>.<n>", got "seven"'


def test_a_history_request_is_read():
    kept, pattern = Journal("k", 9, 50), Pattern("prices")

    def read(**fields) -> tuple[int, int, bool]:
        query = read_query(Request("history", channel="prices", **fields), pattern, kept)
        assert isinstance(query, Query)
        return query.since, query.limit, query.newest

    assert read() == (0, DEFAULT_HISTORY, False)
    assert read(since="k.7", limit=1, order="newest") == (7, 1, True)
    assert read(since="old.7", limit=MAX_HISTORY, order="oldest") == (0, MAX_HISTORY, False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"limit": 0}, "limit: expected 1 to 1000, got 0"),
        ({"limit": 1001}, "limit: expected 1 to 1000, got 1001"),
        ({"order": "x" * 90}, 'order: expected oldest or newest, got "' + "x" * 40 + '"'),
        ({"since": "k.51"}, "since: k.51 is ahead of the daemon"),
    ],
)
def test_a_history_request_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(RequestError) as caught:
        read_query(Request("history", **fields), Pattern("prices"), Journal("k", 9, 50))

    assert (caught.value.code, caught.value.message) == ("bad_request", message)


# where to begin


def test_what_is_kept_is_made_up_for_from_where_the_client_was():
    kept = journal_with(("plain", None), ("plain", None), ("prices", "A"))

    assert starts(kept, plan("plain", "prices:A", since=1)) == ({"plain": 1, "prices:A": 1}, [])


def test_what_a_ring_has_lost_is_said():
    kept = journal_with(*[("brief", None)] * 5)

    assert starts(kept, plan("brief", since=3)) == ({"brief": 3}, [])
    assert starts(kept, plan("brief", since=1)) == ({"brief": 3}, [lost("brief", "k.3")])


def test_what_was_published_before_the_start_is_lost_unless_it_is_stored():
    kept = journal_with(("plain", None), n=100)

    assert starts(kept, plan("plain", since=60)) == ({"plain": 100}, [lost("plain", "k.100")])
    assert starts(kept, plan("plain", since=60), plain=50) == ({"plain": 60}, [])
    assert starts(kept, plan("plain", since=60), plain=80) == (
        {"plain": 60}, [lost("plain", "k.80")],
    )  # fmt: skip


def test_what_the_store_could_not_take_may_still_be_in_the_ring():
    kept = journal_with(*[("plain", None)] * 9)

    assert starts(kept, plan("plain", since=2), plain=8) == ({"plain": 2}, [])


def test_a_history_that_was_lost_is_never_said_to_be_complete():
    kept = journal_with(("plain", None))

    assert starts(kept, plan("plain", known=False)) == ({"plain": 0}, [lost("plain", "k.0")])


def test_older_subscriptions_go_on_from_where_they_are():
    kept = journal_with(*[("plain", None)] * 4)

    assert starts(kept, plan("plain", since=1), "prices", "brief") == (
        {"plain": 1, "prices": 4, "brief": 4}, [],
    )  # fmt: skip
    assert starts(kept, plan("plain", since=1), "plain") == ({"plain": 1}, [])


def test_without_since_everything_begins_now():
    kept = journal_with(*[("plain", None)] * 4)

    assert starts(kept, plan("plain", since=None), "prices") == ({"plain": 4, "prices": 4}, [])


def test_a_recovery_is_confirmed_with_what_is_missing():
    assert msgspec.json.decode(confirmation(plan("plain", "brief"), 0, [], 9)) == {
        "type": "subscription_confirmed", "timestamp": 9, "id": 4,
        "data": {
            "channels": ["plain", "brief"],
            "denied": [{"channel": "x", "code": "c", "message": "m"}],
            "recovered": True, "missing": [],
        },
    }  # fmt: skip
    missing = [lost("brief", "k.3")]
    data = msgspec.json.decode(confirmation(plan("brief"), 0, missing, 9))["data"]
    assert (data["recovered"], data["missing"]) == (False, missing)
    assert "recovered" not in msgspec.json.decode(confirmation(plan("brief"), None, [], 9))["data"]


# last values


def snapshot(kept: Journal, **after: int) -> list[tuple[str, str | None, int]]:
    positions = {Pattern.parse(name.replace("__", ":")): n for name, n in after.items()}
    found = snapshot_of(kept, TABLE, list(positions), positions)
    return [(r.channel, r.symbol, r.n) for r in found]


def test_a_snapshot_has_what_a_replay_would_not_bring():
    kept = journal_with(("prices", "A"), ("prices", "B"), ("plain", None), ("prices", "A"))

    assert snapshot(kept, prices=4) == [("prices", "B", 2), ("prices", "A", 4)]
    assert snapshot(kept, prices=3) == [("prices", "B", 2)]  # A comes with the replay
    assert snapshot(kept, prices__A=4, prices__B=4) == [("prices", "B", 2), ("prices", "A", 4)]
    assert snapshot(kept, plain=4, gone=4) == []


def test_a_snapshot_is_large_when_it_would_fill_the_outbox():
    records = [record(n, size=1000) for n in range(16)]

    assert not is_large(records, 1 << 20)
    assert is_large([*records, *records[:1]], 1 << 20)
    assert is_large(records[:3], 5000)
    assert not is_large([], 0)
    assert LARGE == 16 << 10


def test_records_are_marked_and_keep_their_offsets():
    kept = journal_with(("plain", None))
    records: list[Record] = kept.after({Pattern("plain"): 0}, 9)[0]

    ((text, offset),) = marked(records, "replay")

    assert offset == b"k.1"
    assert msgspec.json.decode(text)["replay"] is True
