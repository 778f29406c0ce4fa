"""Where events go: protocol section 1, line by line."""

import attrs
import pytest

from cryptows.broker.journal import Journal
from cryptows.broker.targets import MAX_REMEMBERED, TargetFinder
from cryptows.config.load import defaults
from cryptows.model.channel import ChannelTable
from cryptows.model.errors import BadEvent
from cryptows.model.event import Event, EventType, UserField
from tests.broker.events import channel, event, market

SEED = defaults()


def finder(max_streams: int = 100) -> TargetFinder:
    return TargetFinder(SEED.channels, SEED.types, Journal("k", max_streams))


def names(found: TargetFinder, event: Event) -> list[str]:
    return [name for _, name in found.find(event).channels]


def refusal(found: TargetFinder, event: Event) -> tuple[str, str]:
    with pytest.raises(BadEvent) as caught:
        found.find(event)
    return caught.value.code, caught.value.message


@pytest.mark.parametrize(
    ("type_", "user", "override", "channels"),
    [
        ("market_data_update", None, None, ["market_data"]),
        ("trading_signal", None, None, ["trading_signals"]),
        ("trade_execution", "7", None, ["user_7_trades", "all_trades"]),
        ("position_update", "7", None, ["user_7_positions"]),
        ("user_alert", "7", None, ["user_7_alerts"]),
        ("risk_alert", None, None, ["risk_alerts"]),
        ("risk_alert", "7", None, ["risk_alerts", "user_7_alerts"]),
        ("grid_update", "7", None, ["user_7_trades"]),
        ("system_status", None, None, ["system_status"]),
        ("performance_metrics", None, None, ["system_metrics"]),
        ("performance_metrics", "7", None, ["user_7_positions"]),
        ("risk_alert", None, "admin_alerts", ["admin_alerts"]),
        ("risk_alert", "7", "admin_alerts", ["admin_alerts"]),
        ("user_alert", "7", "user_7_alerts", ["user_7_alerts"]),
        ("market_data_update", None, "price_updates", ["price_updates"]),
    ],
)
def test_each_type_goes_where_the_contract_says(type_, user, override, channels):
    found = finder()

    for _ in range(2):  # sought, and then remembered
        assert (
            names(found, Event(type_, b"{}", 0, None, user_id=user, channel=override)) == channels
        )


def test_a_users_channel_has_the_rules_of_its_family():
    ((rules, name),) = finder().find(event("user_alert", user_id="a.b")).channels

    assert (rules.name, name) == ("user_{id}_alerts", "user_a.b_alerts")
    assert finder().find(event("user_alert", user_id="a.b")).durable
    assert finder().find(event("trade_execution", user_id="1")).durable
    assert not finder().find(event("risk_alert")).durable


def test_prices_are_derived_on_the_default_route_only():
    found = finder()

    assert found.find(event("market_data_update")).priced
    assert not found.find(event("market_data_update", channel="market_data")).priced
    assert not found.find(event("trading_signal")).priced


def test_an_override_that_names_no_channel_is_refused():
    assert refusal(finder(), event("risk_alert", channel="nowhere")) == (
        "unknown_channel", 'channel: "nowhere" does not exist',
    )  # fmt: skip


def test_a_type_that_a_reload_took_away_is_refused():
    found = finder()
    found.find(event("grid_update", user_id="7"))
    found.find(event("system_status"))

    found.reconfigure(SEED.channels, {})

    assert refusal(found, event("grid_update", user_id="7")) == (
        "unknown_type", 'type: "grid_update" is not declared any more',
    )  # fmt: skip
    assert refusal(found, event("system_status"))[0] == "unknown_type"


def test_an_event_that_would_go_nowhere_is_refused():
    types = {
        "lonely": EventType("lonely", ("gone",)),
        "note": EventType("note", ("notes_{id}",), UserField.REQUIRED),
    }
    found = TargetFinder(ChannelTable((channel("notes_{id}"),)), types, Journal("k", 9))

    assert refusal(found, event("lonely")) == (
        "unknown_channel", 'type: "lonely" goes to no channel that exists',
    )  # fmt: skip
    assert refusal(found, event("note")) == (
        "unknown_channel", 'type: "note" goes to no channel that exists',
    )  # fmt: skip
    assert names(found, event("note", user_id="7")) == ["notes_7"]


def test_channels_that_are_missing_cost_only_themselves():
    types = {"tick": EventType("tick", ("gone", "news"))}

    found = TargetFinder(ChannelTable((channel("news"),)), types, Journal("k", 9))

    assert names(found, event("tick")) == ["news"]
    assert found.prices is None


def test_a_reload_changes_where_events_go():
    found = finder()
    found.find(event("system_status"))
    types = {**SEED.types, "system_status": EventType("system_status", ("market_data",))}
    renamed = [attrs.evolve(c, throttle=9.0) for c in SEED.channels.classes]

    found.reconfigure(ChannelTable(tuple(renamed)), types)

    ((rules, name),) = found.find(event("system_status")).channels
    assert (name, rules.throttle) == ("market_data", 9.0)


def test_what_is_remembered_is_bounded():
    found = finder()

    for number in range(MAX_REMEMBERED + 5):
        found.find(event("grid_update", user_id=str(number)))
        found.find(event("grid_update", channel=f"user_{number}_trades"))

    assert len(found._by_user) == len(found._by_channel) == MAX_REMEMBERED
    assert names(found, event("grid_update", user_id="last")) == ["user_last_trades"]


def test_the_streams_of_an_event_are_made_once():
    found = finder()
    targets = found.find(event("trade_execution", "BTC", user_id="7"))

    streams = found.streams(targets, "BTC")

    assert [(s.channel, s.symbol) for s in streams] == [
        ("user_7_trades", "BTC"), ("all_trades", "BTC"),
    ]  # fmt: skip
    assert found.streams(targets, "BTC") is streams
    assert found.streams(targets, None)[0].symbol is None


def test_the_stream_of_derived_prices_is_made_along():
    found = finder()

    found.streams(found.find(event("market_data_update", "BTC")), "BTC")

    assert list(found.journal.streams) == [("market_data", "BTC"), ("price_updates", "BTC")]
    assert found.prices is not None
    assert found.prices.streams.keys() == {"BTC"}


@pytest.mark.parametrize("most", [0, 1])
def test_an_event_has_all_of_its_streams_or_is_refused(most):
    found = finder(max_streams=most)
    targets = found.find(event("market_data_update", "BTC"))

    for _ in range(2):
        with pytest.raises(BadEvent) as caught:
            found.streams(targets, "BTC")
        assert caught.value.code == "too_many_streams"

    assert targets.streams == {}


def test_without_price_updates_none_are_derived():
    types = {"market_data_update": EventType("market_data_update", ("market_data",))}
    table = ChannelTable((market("market_data"),))
    found = TargetFinder(table, types, Journal("k", 9))
    targets = found.find(event("market_data_update", "BTC"))

    assert len(found.streams(targets, "BTC")) == 1
    assert found.prices is None
