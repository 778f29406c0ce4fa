"""What is numbered and what is kept: held against lists of everything."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptows.broker.journal import GAP, PASS, Journal, Stream
from cryptows.model.channel import ChannelTable, Lane, Pattern
from cryptows.model.errors import BadEvent
from cryptows.model.event import Record
from tests.broker.events import channel, event, keeping, market

NEWS = channel("news")
PRICES = market("prices", snapshot=True)


def journal(**fields) -> Journal:
    return Journal("k", **{"max_streams": 100, **fields})


def publish(journal: Journal, stream: Stream) -> Record:
    record = journal.number(stream, event(symbol=stream.symbol), journal.n + 1)
    journal.append(stream, record)
    return record


def positions(records: list[Record]) -> list[int]:
    return [record.n for record in records]


# numbers


def test_a_record_is_numbered_in_the_daemon_and_in_its_stream():
    kept = journal(n=40)
    btc, eth = kept.stream(PRICES, "prices", "BTC"), kept.stream(PRICES, "prices", "ETH")
    publish(kept, btc)
    publish(kept, eth)

    made = publish(kept, btc)

    assert (made.n, made.seq, made.offset) == (43, 2, b"k.43")
    assert (made.channel, made.symbol, made.lane) == ("prices", "BTC", Lane.MARKET)
    assert made.stream == ("prices", "BTC")
    assert msgspec.json.decode(made.envelope) == {
        "type": "tick", "channel": "prices", "data": {"symbol": "BTC"}, "timestamp": 1000,
        "seq": 2, "offset": "k.43",
    }  # fmt: skip
    assert (kept.offset, kept.offset_of(7)) == (b"k.43", b"k.7")


def test_a_record_may_tell_what_it_replaced():
    kept = journal()
    stream = kept.stream(NEWS, "news", None)

    made = kept.number(stream, event(), 1, {"count": 2})

    assert msgspec.json.decode(made.envelope)["conflated"] == {"count": 2}


def test_each_type_on_a_stream_is_called_what_it_is():
    kept = journal()
    stream = kept.stream(NEWS, "news", None)

    types = [
        msgspec.json.decode(kept.number(stream, event(type_), n).envelope)["type"]
        for n, type_ in enumerate(["a", "b", "b", "a"], 1)
    ]

    assert types == ["a", "b", "b", "a"]


def test_a_stream_goes_on_from_the_number_that_the_store_knows():
    kept = journal(known_seqs={("news", None): 12})

    assert publish(kept, kept.stream(NEWS, "news", None)).seq == 13
    assert kept.stream(NEWS, "news", None).seq == 13
    assert publish(kept, kept.stream(NEWS, "news", "A")).seq == 1
    assert kept.known_seqs == {}


def test_there_are_no_more_streams_than_allowed():
    kept = journal(max_streams=2)
    first = kept.stream(PRICES, "prices", "BTC")
    kept.stream(PRICES, "prices", "ETH")

    with pytest.raises(BadEvent) as caught:
        kept.stream(PRICES, "prices", "XRP")

    assert (caught.value.code, caught.value.message) == (
        "too_many_streams", "data.symbol: 2 streams exist, limits.streams allows no more",
    )  # fmt: skip
    assert kept.stream(PRICES, "prices", "BTC") is first


# the reserved range


def test_what_is_delivered_during_a_commit_stays_below_its_numbers():
    kept = journal(n=10)
    stream = kept.stream(NEWS, "news", None)

    first = kept.reserve()

    assert first > 10 + GAP
    assert publish(kept, stream).n == 11
    kept.settle()
    kept.append(stream, kept.number(stream, event(), first))
    assert publish(kept, stream).n == first + 1


def test_it_is_full_while_one_pass_more_still_fits():
    kept = journal(max_streams=1000)
    streams = [kept.stream(PRICES, "prices", str(number)) for number in range(1000)]
    assert not kept.full
    first = kept.reserve()
    assert not kept.full

    kept.n = first - PASS - len(streams) - 1
    assert not kept.full
    kept.n += 1
    assert kept.full

    assert kept.n + PASS + len(streams) <= first
    kept.settle()
    assert not kept.full


def test_there_is_one_commit_at_a_time():
    kept = journal()
    kept.reserve()

    with pytest.raises(AssertionError, match="one commit at a time"):
        kept.reserve()


# snapshots and recovery


def test_a_snapshot_has_the_last_value_of_each_stream_once_and_in_order():
    kept = journal()
    btc, eth = kept.stream(PRICES, "prices", "BTC"), kept.stream(PRICES, "prices", "ETH")
    whole = kept.stream(PRICES, "prices", None)
    last_eth = publish(kept, eth)
    publish(kept, btc)
    last_whole, last_btc = publish(kept, whole), publish(kept, btc)

    def snapshot(*texts: str) -> list[Record]:
        return kept.snapshot(map(Pattern.parse, texts))

    assert snapshot("prices") == [last_eth, last_whole, last_btc]
    assert snapshot("prices:BTC", "prices:ETH", "prices:B*") == [last_eth, last_btc]
    assert snapshot("prices:*T*") == [last_eth, last_btc]
    assert snapshot("prices:XRP") == snapshot("other") == []


def test_channels_without_snapshots_keep_no_last_values():
    kept = journal()
    publish(kept, kept.stream(NEWS, "news", None))

    assert kept.snapshot([Pattern("news")]) == []


def test_what_came_after_is_found_for_each_pattern_from_its_own_position():
    kept = journal()
    btc, eth = kept.stream(PRICES, "prices", "BTC"), kept.stream(PRICES, "prices", "ETH")
    news = kept.stream(NEWS, "news", None)
    for stream in (btc, eth, news, btc, eth, news):
        publish(kept, stream)

    starts = {Pattern("prices", "BTC"): 1, Pattern("prices", "E*"): 0, Pattern("news"): 3,
              Pattern("unknown"): 0}  # fmt: skip

    found, end = kept.after(starts, 100)
    assert (positions(found), end) == ([2, 4, 5, 6], 6)


def test_what_came_after_comes_in_pieces_that_are_complete():
    kept = journal()
    streams = [kept.stream(PRICES, "prices", s) for s in "ABC"] + [kept.stream(NEWS, "news", None)]
    for number in range(40):
        publish(kept, streams[number * 7 % 4])
    patterns = [Pattern("prices", "A"), Pattern("prices", "[BC]"), Pattern("news")]

    whole, at, pieces = kept.after(dict.fromkeys(patterns, 0), 1000)[0], 0, []
    while at < kept.n:
        found, at = kept.after(dict.fromkeys(patterns, at), 3)
        pieces += found

    assert pieces == whole
    assert len(whole) == 40


@given(
    st.lists(st.sampled_from([("prices", "A"), ("prices", "B"), ("news", None)]), max_size=30),
    st.dictionaries(
        st.sampled_from(["prices", "prices:A", "prices:[AB]", "news"]).map(Pattern.parse),
        st.integers(0, 30),
        max_size=4,
    ),
    st.integers(1, 10),
)
def test_what_came_after_is_what_a_walk_over_everything_finds(published, starts, most):
    kept = journal()
    records = [
        publish(kept, kept.stream(NEWS if name == "news" else PRICES, name, symbol))
        for name, symbol in published
    ]
    wanted = [
        r
        for r in records
        if any(
            p.channel == r.channel and p.matches(r.symbol) and r.n > n for p, n in starts.items()
        )
    ]

    found, end = kept.after(starts, most)

    assert found == [r for r in wanted if r.n <= end]
    assert end == kept.n or len(records) > most
    assert end > min(starts.values(), default=0) or not wanted


# history


def test_the_oldest_and_the_newest_of_a_pattern_are_found():
    kept = journal()
    btc, eth = kept.stream(PRICES, "prices", "BTC"), kept.stream(PRICES, "prices", "ETH")
    for stream in (btc, eth, btc, btc, eth, btc):
        publish(kept, stream)
    wanted, whole = Pattern("prices", "B*"), Pattern("prices")

    assert positions(kept.oldest(wanted, 1, 2)) == [3, 4]
    assert positions(kept.oldest(whole, 0, 99)) == [1, 2, 3, 4, 5, 6]
    assert positions(kept.newest(wanted, 0, 2)) == [6, 4]
    assert positions(kept.newest(wanted, 3, 99)) == [6, 4]
    assert positions(kept.newest(whole, 5, 99)) == [6]
    assert kept.oldest(wanted, 6, 9) == kept.newest(wanted, 6, 9) == []
    assert kept.oldest(Pattern("other"), 0, 9) == kept.newest(Pattern("other"), 0, 9) == []


@given(
    st.lists(st.sampled_from("AB"), max_size=30),
    st.sampled_from(["prices", "prices:A", "prices:[AB]", "prices:X"]).map(Pattern.parse),
    st.integers(0, 30),
    st.integers(0, 9),
    st.integers(1, 20),
)
def test_history_is_what_a_walk_over_everything_finds(symbols, pattern, since, most, events):
    kept = journal()
    rules = market("prices", history=keeping(events=events))
    made = [publish(kept, kept.stream(rules, "prices", symbol)) for symbol in symbols]
    wanted = [r for r in made[-events:] if pattern.matches(r.symbol) and r.n > since]

    assert kept.oldest(pattern, since, most) == wanted[:most]
    assert kept.newest(pattern, since, most) == wanted[::-1][:most]


def test_what_is_lost_is_told_for_each_channel():
    kept = journal(n=50)
    brief = channel("brief", history=keeping(events=1))
    stream = kept.stream(brief, "brief", None)
    assert kept.lost("brief") == kept.lost("never heard of") == 50

    publish(kept, stream)
    publish(kept, stream)

    assert kept.lost("brief") == 51


def test_a_channel_without_history_never_says_that_nothing_is_missing():
    kept = journal()
    silent = channel("silent", history=keeping(events=0))

    publish(kept, kept.stream(silent, "silent", None))

    assert kept.lost("silent") == 1


def test_records_over_the_age_bound_are_dropped_everywhere():
    kept = journal()
    brief = channel("brief", history=keeping(age=10))
    publish(kept, kept.stream(brief, "brief", None))
    publish(kept, kept.stream(NEWS, "news", None))
    kept.expire(100)

    kept.expire(110)

    assert (kept.lost("brief"), kept.lost("news")) == (1, 0)


# reload


def test_after_a_reload_the_new_rules_hold_and_streams_go_on():
    kept = journal()
    stream = kept.stream(NEWS, "news", None)
    for _ in range(5):
        publish(kept, stream)

    kept.reconfigure(ChannelTable((channel("news", history=keeping(events=2), snapshot=True),)))
    latest = publish(kept, stream)

    assert latest.seq == 6
    assert kept.lost("news") == 4
    assert kept.snapshot([Pattern("news")]) == [latest]


def test_a_channel_that_a_reload_took_away_keeps_its_rules():
    kept = journal()
    stream = kept.stream(NEWS, "news", None)

    kept.reconfigure(ChannelTable(()))

    assert stream.shelf.rules is NEWS


# signs of life


def test_the_age_of_a_subscription_is_that_of_its_newest_event():
    kept = journal()
    btc, eth = kept.stream(PRICES, "prices", "BTC"), kept.stream(PRICES, "prices", "ETH")
    patterns = [Pattern.parse(f"prices{s}") for s in ("", ":BTC", ":ETH", ":*T*", ":XRP", ":X*")]
    assert [kept.heard(p) for p in patterns] == [None] * 6

    btc.hear(0.0, "bot")
    eth.hear(7.0, "feed")

    assert [kept.heard(p) for p in patterns] == [7.0, 0.0, 7.0, 7.0, None, None]
    assert kept.heard(Pattern("unknown")) is None
    assert (btc.producer, eth.producer) == ("bot", "feed")
    assert kept.stream(PRICES, "prices", "NEW").heard == -math.inf


def test_a_pattern_covers_the_streams_that_it_matches():
    kept = journal()
    whole, btc, eth = (kept.stream(PRICES, "prices", s) for s in (None, "BTC", "ETH"))

    def covered(text: str) -> list[Stream]:
        return kept.covered(Pattern.parse(text))

    assert covered("prices") == [whole, btc, eth]
    assert covered("prices:BTC") == covered("prices:B*") == [btc]
    assert covered("prices:**") == [btc, eth]
    assert covered("prices:XRP") == covered("other") == []


def test_only_channels_with_a_max_age_are_watched():
    kept = journal()
    kept.stream(NEWS, "news", None)
    watched = market("watched", max_age=5)
    streams = [kept.stream(watched, "watched", s) for s in "AB"]

    assert kept.watched() == streams
