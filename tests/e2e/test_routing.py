"""Who gets which event: the routing table of the contract, read off real clients."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import Any

import attrs
import pytest

from tests.e2e.daemon import Daemon, start
from tests.e2e.watcher import Watcher, watcher

pytestmark = pytest.mark.e2e

FENCE = {"type": "system_status", "data": {"status": "fence"}}
TICK = {"symbol": "BTCUSDT", "price": 50000, "volume": 10}


@attrs.frozen
class Case:
    """A feed line and the channels it goes to."""

    line: dict[str, Any]
    channels: tuple[str, ...]

    @property
    def type(self) -> str:
        return str(self.line["type"])


def case(type_: str, *channels: str, data: dict[str, Any] | None = None, **more: Any) -> Case:
    return Case({"type": type_, "data": data or {"message": "m"}, **more}, channels)


CASES = [
    case("market_data_update", "market_data", "price_updates", data=TICK),
    case("market_data_update", "market_data", data=TICK),  # the same price again
    case("market_data_update", "market_data", "price_updates", data=TICK | {"price": "50001.5"}),
    case("market_data_update", "market_data", data=TICK | {"price": 1}, channel="market_data"),
    case("market_data_update", "market_data", data={"symbol": "BTCUSDT", "volume": 3}),
    case("market_data_update", "price_updates", data=TICK, channel="price_updates"),
    case("trading_signal", "trading_signals", data={"symbol": "ETHUSDT", "confidence": 0.9}),
    case("trade_execution", "user_123_trades", "all_trades", user_id="123"),
    case("trade_execution", "user_456_trades", "all_trades", user_id="456"),
    case("position_update", "user_123_positions", user_id="123"),
    case("user_alert", "user_456_alerts", user_id="456"),
    case("risk_alert", "risk_alerts"),
    case("risk_alert", "risk_alerts", "user_123_alerts", user_id="123"),
    case("grid_update", "user_123_trades", user_id="123"),
    case("system_status", "system_status"),
    case("performance_metrics", "system_metrics"),
    case("performance_metrics", "user_456_positions", user_id="456"),
    case("risk_alert", "admin_alerts", channel="admin_alerts"),
    case("user_alert", "admin_alerts", user_id="123", channel="admin_alerts"),
    case("system_status", "admin_alerts", channel="admin_alerts"),
]

OPEN = {"system_status"}
TOKEN = OPEN | {"market_data", "price_updates", "trading_signals"}
ADMIN = TOKEN | {"admin_alerts", "all_trades", "risk_alerts", "system_metrics"}


def own(user: str) -> set[str]:
    return {f"user_{user}_{what}" for what in ("trades", "positions", "alerts")}


CLIENTS = {
    "anonymous": (None, "user", OPEN),
    "one user": ("123", "user", TOKEN | own("123")),
    "another user": ("456", "user", TOKEN | own("456")),
    "admin": ("9", "admin", ADMIN | own("9")),
    "super admin": ("1", "super_admin", ADMIN | own("1") | own("9") | own("123") | own("456")),
}
ALL = sorted(ADMIN | own("123") | own("456") | own("9") | own("1"))


def test_every_type_reaches_exactly_the_channels_and_the_clients_of_the_contract(tmp_path):
    with (
        start(tmp_path, ["channels.market_data.throttle=0s"]) as daemon,
        contextlib.ExitStack() as stack,
    ):
        clients: dict[str, Watcher] = {}
        for name, (user, role, allowed) in CLIENTS.items():
            client = clients[name] = stack.enter_context(watcher(daemon, user, role))
            answer = client.ask("subscribe", channels=ALL)
            assert set(answer["data"]["channels"]) == allowed, name
            denied = {d["channel"]: d["code"] for d in answer["data"]["denied"]}
            assert denied == dict.fromkeys(set(ALL) - allowed, "forbidden"), name

        answers = daemon.publish(c.line for c in CASES)
        daemon.publish([FENCE])  # apart: it would not wait for the commit of the durable ones

        for found, answer in zip(CASES, answers, strict=True):
            getting = [a for _, _, a in CLIENTS.values() for c in found.channels if c in a]
            assert (answer["ok"], answer["delivered_to"]) == (True, len(getting)), found.line
        for name, (_, _, allowed) in CLIENTS.items():
            client = clients[name]
            client.take(lambda m: m.get("data") == FENCE["data"])
            got = Counter((m["channel"], m["type"]) for m in client.events()[:-1])
            wanted = Counter((c, x.type) for x in CASES for c in x.channels if c in allowed)
            assert got == wanted, name
            assert client.problems == [], name


def test_what_a_client_may_have_is_told_with_its_first_message(tmp_path):
    with start(tmp_path) as daemon:
        for user, role, allowed in CLIENTS.values():
            with watcher(daemon, user, role) as client:
                told = set(client.connection["data"]["channels"])
                assert told == {c for c in allowed if not c.startswith("user_")} | (
                    own(user) if user else set()
                )


def test_data_is_forwarded_byte_for_byte(tmp_path):
    data = '{ "symbol":"BTCUSDT","price": 5.0e4 ,"bigint":12345678901234567890,"é":"\\u00e9 é"}'
    with start(tmp_path) as daemon, watcher(daemon, "123") as client:
        client.subscribe("market_data")

        daemon.publish([f'{{"type":"market_data_update","data":{data},"timestamp":1700000000001}}'])

        client.until("market_data_update")
        epoch = client.connection["data"]["epoch"]
        assert client.last.decode() == (
            f'{{"type":"market_data_update","channel":"market_data","data":{data},'
            f'"timestamp":1700000000001,"seq":1,"offset":"{epoch}.1"}}'
        )


def prices(daemon: Daemon, client: Watcher, *ticks: tuple[str, Any]) -> list[dict[str, Any]]:
    before = len(client.events("price_updates"))
    daemon.publish(
        {"type": "market_data_update", "data": {"symbol": symbol, "price": price}}
        for symbol, price in ticks
    )
    client.caught_up()
    return [m["data"] for m in client.events("price_updates")[before:]]


def test_a_price_update_tells_the_previous_price_and_the_change_of_that_symbol(tmp_path):
    with start(tmp_path) as daemon, watcher(daemon, "123") as client:
        client.subscribe("price_updates")

        first = prices(daemon, client, ("BTC", 100), ("ETH", "20.5"), ("BTC", 100.0))
        more = prices(daemon, client, ("ETH", 20.5), ("BTC", 100.3), ("ETH", 0), ("ETH", 1))

        none = {"previousPrice": None, "change": None, "changePercent": None}
        assert first == [
            {"symbol": "BTC", "price": 100, **none},
            {"symbol": "ETH", "price": 20.5, **none},
        ]
        assert more == [
            {"symbol": "BTC", "price": 100.3, "previousPrice": 100, "change": 0.3,
             "changePercent": 0.3},
            {"symbol": "ETH", "price": 0, "previousPrice": 20.5, "change": -20.5,
             "changePercent": -100},
            {"symbol": "ETH", "price": 1, "previousPrice": 0, "change": 1, "changePercent": None},
        ]  # fmt: skip
        assert client.problems == []


def test_a_channel_takes_only_the_types_it_may_carry(tmp_path):
    with start(tmp_path) as daemon:
        answers = daemon.publish([
            {"type": "trade_execution", "user_id": "1", "data": {}, "channel": "market_data"},
            {"type": "trade_execution", "user_id": "1", "data": {}, "channel": "user_2_trades"},
            {"type": "system_status", "data": {}, "channel": "nowhere"},
            {"type": "user_alert", "data": {}},
            {"type": "bogus", "data": {}},
        ])  # fmt: skip

        assert [a["error"]["code"] for a in answers] == [
            "invalid_event", "invalid_event", "unknown_channel", "invalid_event", "unknown_type",
        ]  # fmt: skip
        assert daemon.metrics()["cryptows_events_received_total"] == 0


OPERATORS = """
[channels.liquidations]
access = "authenticated"
lane = "market"
symbols = true
snapshot = true

[channels."user_{id}_orders"]
access = "user"
durable = true

[channels.audit]
access = "admin"
types = ["order"]

[types.liquidation]
channels = ["liquidations"]
[types.liquidation.fields]
symbol = "string"
price = {type = "number", above = 0}
side = {type = "string", choices = ["long", "short"]}

[types.order]
channels = ["user_{id}_orders"]
user = "required"
[types.order.fields]
quantity = {type = "number", min = 1, max = 1000}
"""


def test_operators_add_channels_types_and_schemas_in_the_config(tmp_path):
    with (
        start(tmp_path, config=OPERATORS) as daemon,
        watcher(daemon, "5") as user,
        watcher(daemon, "6") as other,
        watcher(daemon, "9", "admin") as admin,
        watcher(daemon) as anonymous,
    ):
        assert {"liquidations", "user_5_orders"} <= set(user.connection["data"]["channels"])
        user.subscribe("liquidations:BTC*", "user_5_orders")
        assert user.ask("subscribe", channels=["audit"])["data"]["code"] == "forbidden"
        assert other.ask("subscribe", channels=["user_5_orders"])["data"]["code"] == "forbidden"
        assert anonymous.ask("subscribe", channels=["liquidations"])["data"]["code"] == "forbidden"
        admin.subscribe("audit", "liquidations")

        order = {"type": "order", "user_id": "5", "data": {"quantity": 7}}
        answers = daemon.publish([
            {"type": "liquidation", "data": {"symbol": "BTCUSDT", "price": 1, "side": "long"}},
            {"type": "liquidation", "data": {"symbol": "ETHUSDT", "price": 1, "side": "SHORT"}},
            {"type": "liquidation", "data": {"symbol": "BTCUSDT", "price": 0}},
            {"type": "liquidation", "data": {"symbol": "BTCUSDT", "side": "up"}},
            order,
            order | {"channel": "audit"},
            order | {"data": {"quantity": 1001}},
            {"type": "order", "data": {"quantity": 7}},
        ])  # fmt: skip

        wrong = "invalid_event"
        assert [a["delivered_to"] if a["ok"] else a["error"]["code"] for a in answers] == [
            2, 1, wrong, wrong, 1, 1, wrong, wrong,
        ]  # fmt: skip
        for client, wanted in (
            (user, ["liquidations", "user_5_orders"]),
            (admin, ["liquidations", "liquidations", "audit"]),
            (other, []),
            (anonymous, []),
        ):
            client.caught_up()
            assert [m["channel"] for m in client.events()] == wanted
            assert client.problems == []
