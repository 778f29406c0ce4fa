"""What becomes of events: their channels, numbers, order, and what their producers hear."""

import attrs
import msgspec
import pytest

from cryptows.config.load import defaults
from cryptows.model.channel import ChannelTable
from cryptows.model.errors import BadEvent
from cryptows.model.event import Event, EventType
from tests.broker.events import channel, event, market
from tests.broker.publishing import Answer, Desk

SEED = defaults()
THROTTLED = market("prices", throttle=0.1)
DURABLE = channel("fills", durable=True)
PLAIN = channel("news")
BOTH = {
    "fill": EventType("fill", ("fills", "news")),
    "news": EventType("news", ("news",)),
}


def seed_desk(**options) -> Desk:
    return Desk.of(*SEED.channels.classes, types=SEED.types, **options)


# live


def test_an_event_reaches_whoever_subscribed_to_one_of_its_channels():
    desk = seed_desk()
    user, admin, other = (
        desk.listen("user_7_trades"), desk.listen("all_trades"), desk.listen("user_8_trades"),
    )  # fmt: skip

    answer = desk.publish(event("trade_execution", "BTC", user_id="7"))

    assert answer == Answer("k.2", 2)
    assert user.take() == [
        {"type": "trade_execution", "channel": "user_7_trades", "data": {"symbol": "BTC"},
         "timestamp": 1000, "seq": 1, "offset": "k.1"},
    ]  # fmt: skip
    assert admin.takes("channel", "seq", "offset") == [("all_trades", 1, "k.2")]
    assert other.take() == []
    assert desk.counters.deliveries == 2
    assert desk.counters.events_in == 1


def test_events_of_one_pass_reach_an_audience_together_and_in_order():
    desk = Desk.of(PLAIN)
    ann, bob = desk.listen("news"), desk.listen("news")
    for _ in range(3):
        desk.accept(event("news"))

    touched = desk.write()

    assert touched == [ann.audience]
    assert ann.takes("seq", "offset") == bob.takes("seq", "offset") == [
        (1, "k.1"), (2, "k.2"), (3, "k.3"),
    ]  # fmt: skip
    assert desk.write() == []


def test_an_event_that_nobody_wants_is_counted():
    desk = Desk.of(PLAIN)

    assert desk.publish(event("news")) == Answer("k.1", 0)
    assert desk.counters.undeliverable == 1


def test_a_producer_that_wants_no_answers_gets_none():
    desk = Desk.of(PLAIN)

    desk.publisher.accept(event("news"), desk.now, desk.now_ms)

    with pytest.raises(BadEvent, match="nowhere"):
        desk.publisher.accept(event("news", channel="nowhere"), desk.now, desk.now_ms)
    assert desk.counters.events_in == 1


def test_an_event_that_goes_nowhere_is_refused():
    desk = Desk.of(PLAIN)

    assert desk.publish(event("news", channel="nowhere")) == Answer(None, error="unknown_channel")
    assert desk.publish(event("unheard_of")) == Answer(None, error="unknown_type")
    assert desk.counters.events_in == 0


def test_an_event_is_published_whole_or_not_at_all():
    desk = Desk.of(PLAIN, channel("fills"), types=BOTH, max_streams=1)
    listener = desk.listen("news", "fills")

    assert desk.publish(event("fill")) == Answer(None, error="too_many_streams")
    assert listener.take() == []


def test_the_journal_hears_the_producer():
    desk = Desk.of(PLAIN)
    desk.publish(event("news"))

    stream = desk.journal.streams["news", None]

    assert (stream.heard, stream.producer) == (100.0, "bot")


def test_the_daemons_own_events_leave_a_stream_its_producer():
    desk = Desk.of(PLAIN)
    desk.publish(event("news"))
    desk.publisher.producer, desk.now = "", 101.0

    desk.publish(event("news"))

    stream = desk.journal.streams["news", None]
    assert (stream.heard, stream.producer) == (101.0, "bot")


def test_what_was_held_is_its_own_producers_whoever_came_last():
    desk = Desk.of(PLAIN, DURABLE, types=BOTH, store=True)
    desk.accept(event("fill"))
    desk.publisher.producer = "other"

    desk.commit()

    assert {s.producer for s in desk.journal.streams.values()} == {"bot"}


def test_a_batch_line_goes_where_there_is_room_for_all_of_it():
    desk = Desk.of(PLAIN, market("prices"), max_streams=3)
    desk.publish(event("prices", "A"))

    desk.publisher.check([event("prices", s) for s in ("A", "B", "C", "B")])
    with pytest.raises(BadEvent, match="3 streams more than the 1 that exist") as caught:
        desk.publisher.check([event("prices", s) for s in "BCD"])

    assert caught.value.code == "too_many_streams"
    assert len(desk.journal.streams) == 1


def test_price_updates_are_counted_among_the_streams_of_a_batch_line():
    desk = seed_desk(max_streams=3)

    desk.publisher.check([event("market_data_update", "A")])
    with pytest.raises(BadEvent, match="4 streams more"):
        desk.publisher.check([event("market_data_update", s) for s in "AB"])


# price updates


def prices(desk: Desk, *given: float | None, symbol: str = "BTC") -> list[dict]:
    listener = desk.listen("price_updates")
    for price in given:
        desk.publish(event("market_data_update", symbol, price=price))
    return [envelope["data"] for envelope in listener.take()]


def test_price_updates_come_only_when_the_price_changed():
    desk = seed_desk()

    assert prices(desk, 50000.0, 50000.0, None, 50500.0) == [
        {"symbol": "BTC", "price": 50000.0, "previousPrice": None, "change": None,
         "changePercent": None},
        {"symbol": "BTC", "price": 50500.0, "previousPrice": 50000.0, "change": 500.0,
         "changePercent": 1.0},
    ]  # fmt: skip
    assert prices(desk, 1.0, symbol="ETH") == [
        {"symbol": "ETH", "price": 1.0, "previousPrice": None, "change": None,
         "changePercent": None},
    ]  # fmt: skip


def test_an_overridden_route_derives_no_price_update():
    desk = seed_desk()
    listener = desk.listen("price_updates", "market_data")

    desk.publish(event("market_data_update", "BTC", price=5.0, channel="market_data"))

    assert listener.takes("channel") == [("market_data",)]


def test_a_price_update_comes_at_once_even_while_its_event_is_throttled():
    desk = seed_desk()
    listener = desk.listen("price_updates")
    desk.publish(event("market_data_update", "BTC", price=5.0))

    answer = desk.publish(event("market_data_update", "BTC", price=6.0))

    assert answer == Answer("k.3", 1)
    assert listener.takes("seq", "offset", "timestamp") == [(1, "k.2", 1000), (2, "k.3", 1000)]


def test_price_updates_may_be_throttled_too():
    table = [
        attrs.evolve(c, throttle=0.1) if c.name == "price_updates" else c
        for c in SEED.channels.classes
    ]
    desk = Desk.of(*table, types=SEED.types)
    listener = desk.listen("price_updates")
    for price in (5.0, 6.0, 7.0):
        desk.publish(event("market_data_update", "BTC", price=price))

    desk.now += 0.1
    desk.write()

    assert [(e["data"]["price"], e["data"]["previousPrice"]) for e in listener.take()] == [
        (5.0, None), (7.0, 6.0),
    ]  # fmt: skip


def test_without_the_channel_no_price_updates_are_derived():
    types = {"market_data_update": EventType("market_data_update", ("market_data",))}
    desk = Desk.of(market("market_data"), types=types)
    listener = desk.listen("market_data")

    assert desk.publish(event("market_data_update", "BTC", price=5.0)) == Answer("k.1", 1)
    assert listener.takes("seq") == [(1,)]


# throttled


def test_a_throttled_event_is_acknowledged_with_where_the_journal_stands():
    desk = Desk.of(THROTTLED)
    listener = desk.listen("prices")
    desk.publish(event("prices", "BTC", price=1.0))

    assert desk.publish(event("prices", "BTC", price=2.0)) == Answer("k.1", 0)

    assert listener.takes("seq") == [(1,)]
    assert (desk.counters.throttled, desk.counters.undeliverable) == (1, 0)
    assert desk.publisher.throttled(desk.now) == (1, 1)
    assert desk.publisher.next_due == pytest.approx(100.1)


def test_the_newest_event_passes_when_the_interval_ends_and_tells_what_it_replaced():
    desk = Desk.of(THROTTLED)
    listener = desk.listen("prices")
    for price in (1.0, 9.0, 2.0, 3.0):
        desk.publish(event("prices", "BTC", price=price))

    desk.now += 0.1
    desk.write()

    assert listener.takes("seq", "data", "conflated") == [
        (1, {"symbol": "BTC", "price": 1.0}, None),
        (2, {"symbol": "BTC", "price": 3.0},
         {"count": 2, "high": 9.0, "low": 2.0, "volume": 0.0}),
    ]  # fmt: skip
    assert desk.counters.conflated == 1
    assert desk.publisher.next_due == float("inf")


def test_without_extremes_only_the_newest_is_told():
    desk = Desk.of(attrs.evolve(THROTTLED, keep_extremes=False))
    listener = desk.listen("prices")
    for price in (1.0, 9.0, 2.0):
        desk.publish(event("prices", "BTC", price=price))

    desk.now += 0.1
    desk.write()

    assert listener.takes("seq", "conflated") == [(1, None), (2, None)]
    assert desk.counters.conflated == 0


def test_a_reload_that_ends_throttling_turns_no_price_back():
    desk = Desk.of(THROTTLED)
    listener = desk.listen("prices")
    for price in (1.0, 2.0):
        desk.publish(event("prices", "BTC", price=price))

    types = desk.publisher.finder.types
    desk.publisher.reconfigure(ChannelTable((market("prices"),)), types)
    desk.accept(event("prices", "BTC", price=3.0))
    desk.accept(event("prices", "BTC", price=4.0))
    desk.now += 1
    desk.write()

    assert [e["data"]["price"] for e in listener.take()] == [1.0, 3.0, 4.0]


def test_a_reload_changes_the_interval_also_of_families_and_new_channels():
    family = market("ticks_{id}", throttle=10)
    desk = Desk.of(family, types={"tick": EventType("tick", ("ticks_{id}",))})
    listener = desk.listen("ticks_7", "prices")
    for _ in range(2):
        desk.publish(event("tick", user_id="7"))

    table = ChannelTable((attrs.evolve(family, throttle=1), THROTTLED))
    types = {**desk.publisher.finder.types, "prices": EventType("prices", ("prices",))}
    desk.publisher.reconfigure(table, types)
    for _ in range(2):
        desk.publish(event("prices", "BTC"))
    desk.now += 1
    desk.write()

    assert listener.takes("channel", "seq") == [
        ("ticks_7", 1), ("prices", 1), ("ticks_7", 2), ("prices", 2),
    ]  # fmt: skip


def test_a_kept_event_survives_the_end_of_its_channel_class():
    desk = Desk.of(THROTTLED)
    listener = desk.listen("prices")
    for _ in range(2):
        desk.publish(event("prices", "BTC"))

    desk.publisher.reconfigure(ChannelTable(()), {})
    desk.write()

    assert listener.takes("seq") == [(1,), (2,)]
    assert desk.publish(event("prices", "BTC")) == Answer(None, error="unknown_type")


# ids


def test_an_id_is_acknowledged_again_and_not_sent_again():
    desk = Desk.of(PLAIN)
    listener = desk.listen("news")

    assert desk.publish(event("news", id="t-1")) == Answer("k.1", 1)
    assert desk.publish(event("news", id="t-1")) == Answer("k.1", 0, duplicate=True)
    assert desk.publish(event("news", id="t-2")) == Answer("k.2", 1)

    assert listener.takes("seq") == [(1,), (2,)]
    assert desk.counters.duplicates == 1


def test_a_refused_event_may_be_sent_again():
    desk = Desk.of(PLAIN)

    desk.publish(event("news", id="t-1", channel="nowhere"))

    assert desk.publish(event("news", id="t-1")) == Answer("k.1", 0)


def test_a_throttled_id_is_known_too():
    desk = Desk.of(THROTTLED)
    desk.publish(event("prices", "BTC"))
    desk.publish(event("prices", "BTC", id="t-1"))

    assert desk.publish(event("prices", "BTC", id="t-1")) == Answer("k.1", 0, duplicate=True)


def test_an_id_is_new_again_after_the_window():
    desk = Desk.of(PLAIN)
    desk.publish(event("news", id="t-1"))

    desk.now += 60

    assert desk.publish(event("news", id="t-1")) == Answer("k.2", 0)


# durable


def test_a_durable_event_is_shown_and_acknowledged_after_its_commit():
    desk = Desk.of(DURABLE, store=True)
    listener = desk.listen("fills")

    desk.accept(event("fills"))
    desk.write()
    assert (listener.take(), desk.answers) == ([], [])

    desk.commit()

    ((seq, offset),) = listener.takes("seq", "offset")
    assert desk.answers == [Answer(offset, 1)]
    assert seq == 1
    assert desk.counters.events_in == 1
    assert desk.counters.undeliverable == 0


def test_without_a_store_durable_events_go_live():
    desk = Desk.of(DURABLE)

    assert desk.publish(event("fills")) == Answer("k.1", 0)


def test_what_comes_after_a_held_event_waits_behind_it():
    desk = Desk.of(DURABLE, PLAIN, types=BOTH, store=True)
    listener = desk.listen("fills", "news")

    desk.accept(event("fill", id="1"))
    desk.accept(event("news", id="2"))
    desk.write()
    assert (listener.take(), desk.answers) == ([], [])

    desk.commit()

    assert listener.takes("channel", "type", "seq") == [
        ("fills", "fill", 1), ("news", "fill", 1), ("news", "news", 2),
    ]  # fmt: skip
    assert [answer.delivered_to for answer in desk.answers] == [2, 1]
    desk.accept(event("news"))
    desk.write()
    assert listener.takes("seq") == [(3,)]


def test_the_offset_of_an_acknowledged_event_is_the_one_that_the_store_has():
    desk = Desk.of(DURABLE, PLAIN, types=BOTH, store=True)
    listener = desk.listen("fills")

    desk.accept(event("fill"))
    desk.commit()

    assert desk.answers == [Answer(listener.takes("offset")[0][0], 1)]


def test_what_is_published_during_a_commit_has_smaller_numbers():
    desk = Desk.of(DURABLE, PLAIN, store=True)
    listener = desk.listen("fills", "news")
    desk.accept(event("fills"))
    batch = desk.publisher.number_held()

    desk.publish(event("news"))
    desk.accept(event("fills"))
    desk.publisher.settle(batch, True, desk.now, desk.now_ms)
    desk.publish(event("news"))
    desk.commit()

    positions = [int(offset.removeprefix("k.")) for (offset,) in listener.takes("offset")]
    assert len(positions) == 4
    assert positions == sorted(positions)


def test_only_what_is_durable_goes_to_the_store():
    desk = Desk.of(DURABLE, PLAIN, types=BOTH, store=True)
    desk.accept(event("fill"))
    desk.accept(event("news"))

    batch = desk.publisher.number_held()

    assert [[r.channel for _, r in held.records] for held in batch] == [["fills"], []]
    assert [held.event.type for held in batch] == ["fill", "news"]
    assert desk.publisher.held == []


def test_a_throttle_holds_for_what_waited_for_a_commit():
    types = {"fill": EventType("fill", ("fills", "prices"))}
    desk = Desk.of(DURABLE, THROTTLED, types=types, store=True)
    listener = desk.listen("fills", "prices")
    for price in (1.0, 2.0, 3.0):
        desk.accept(event("fill", "BTC", price=price))

    desk.commit()
    desk.now += 0.1
    desk.write()

    assert [(e["channel"], e["seq"], e["data"]["price"]) for e in listener.take()] == [
        ("fills", 1, 1.0), ("fills", 2, 2.0), ("fills", 3, 3.0),
        ("prices", 1, 1.0), ("prices", 2, 3.0),
    ]  # fmt: skip


def test_what_is_released_during_a_commit_comes_before_what_waits_for_it():
    types = {
        "tick": EventType("tick", ("prices",)),
        "fill": EventType("fill", ("fills", "prices")),
    }
    desk = Desk.of(DURABLE, THROTTLED, types=types, store=True)
    listener = desk.listen("prices")
    for price in (1.0, 2.0):
        desk.publish(event("tick", "BTC", price=price))
    desk.accept(event("fill", "BTC", price=3.0))
    batch = desk.publisher.number_held()

    desk.now += 0.1
    desk.write()
    desk.publisher.settle(batch, True, desk.now, desk.now_ms)
    desk.now += 0.1
    desk.write()

    assert [(e["seq"], e["data"]["price"]) for e in listener.take()] == [
        (1, 1.0), (2, 2.0), (3, 3.0),
    ]  # fmt: skip


def durable_prices(*names: str) -> Desk:
    """The seed's channels, some of them durable and not throttled."""
    table = [
        attrs.evolve(c, durable=True, throttle=0.0) if c.name in names else c
        for c in SEED.channels.classes
    ]
    return Desk.of(*table, types=SEED.types, store=True)


def test_price_updates_of_durable_events_come_after_their_commit():
    desk = durable_prices("market_data")
    listener = desk.listen("market_data", "price_updates")
    for price in (5.0, 6.0):
        desk.accept(event("market_data_update", "BTC", price=price))
    desk.write()
    assert listener.take() == []

    desk.commit()

    assert listener.takes("channel", "seq") == [
        ("market_data", 1), ("market_data", 2), ("price_updates", 1), ("price_updates", 2),
    ]  # fmt: skip
    assert [answer.delivered_to for answer in desk.answers] == [2, 2]


def test_durable_price_updates_are_stored_before_they_are_shown():
    desk = durable_prices("price_updates")
    listener = desk.listen("market_data", "price_updates")

    desk.publish(event("market_data_update", "BTC", price=5.0))
    assert listener.takes("channel") == [("market_data",)]

    desk.commit()
    assert listener.takes("channel", "seq") == [("price_updates", 1)]


def test_a_held_event_outlives_a_reload():
    desk = durable_prices("market_data")
    listener = desk.listen("market_data", "price_updates")
    desk.accept(event("market_data_update", "BTC", price=5.0))
    batch = desk.publisher.number_held()

    desk.publisher.reconfigure(ChannelTable(()), {})
    desk.publisher.settle(batch, True, desk.now, desk.now_ms)
    desk.write()

    assert listener.takes("channel") == [("market_data",)]


def test_an_id_that_comes_again_before_the_commit_is_answered_after_it():
    desk = Desk.of(DURABLE, store=True)
    listener = desk.listen("fills")

    for _ in range(3):
        desk.accept(event("fills", id="t-1"))
    desk.commit()

    ((offset,),) = listener.takes("offset")
    again = Answer(offset, 0, duplicate=True)
    assert desk.answers == [Answer(offset, 1), again, again]
    assert desk.publish(event("fills", id="t-1")) == again
    assert desk.counters.duplicates == 3


def test_what_could_not_be_stored_is_shown_but_refused():
    desk = Desk.of(DURABLE, store=True)
    listener = desk.listen("fills")
    for _ in range(2):
        desk.accept(event("fills", id="t-1"))

    desk.commit(stored=False)

    ((offset,),) = listener.takes("offset")
    assert desk.answers == [
        Answer(offset, 1, "not_stored"), Answer(offset, 0, "not_stored", duplicate=True),
    ]  # fmt: skip


def test_what_was_refused_may_be_sent_again():
    desk = Desk.of(DURABLE, store=True)
    desk.accept(event("fills", id="t-1"))
    desk.commit(stored=False)
    desk.answers.clear()

    desk.accept(event("fills", id="t-1"))
    desk.commit()

    assert [(a.error, a.duplicate) for a in desk.answers] == [(None, False)]


def test_a_failing_store_costs_what_is_not_durable_nothing():
    desk = Desk.of(DURABLE, PLAIN, types=BOTH, store=True)
    desk.accept(event("fill"))
    desk.accept(event("news", id="t-1"))

    desk.commit(stored=False)

    assert [answer.error for answer in desk.answers] == ["not_stored", None]
    assert desk.publish(event("news", id="t-1")).duplicate


def test_a_durable_event_that_nobody_wants_is_counted():
    desk = Desk.of(DURABLE, PLAIN, types=BOTH, store=True)
    desk.accept(event("fill"))
    desk.commit()
    assert desk.counters.undeliverable == 1

    desk.listen("fills")
    desk.accept(event("fill"))
    desk.commit()
    assert desk.counters.undeliverable == 1


def test_the_data_of_an_event_goes_out_as_it_came():
    desk = Desk.of(PLAIN)
    listener = desk.listen("news")
    data = b'{ "x": 1.0e3,\t"y":"\\u00e9",  "z":[ ] }'

    desk.publish(Event("news", data, 5))

    (record,) = listener.records
    assert data in record.envelope
    assert msgspec.json.decode(record.envelope)["timestamp"] == 5
