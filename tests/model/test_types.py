"""The seed's event types: routes as the contract says, and what reasonable bots send."""

from __future__ import annotations

import math

import pytest

from cryptows.model.event import FieldKind, UserField
from cryptows.model.schema import Schema
from cryptows.model.types import ABOVE_ZERO, SEED_TYPES


def test_default_routes_are_those_of_the_contract():
    routes = {t.name: (t.user.value, t.channels, t.user_channels) for t in SEED_TYPES.values()}

    assert routes == {
        "market_data_update": ("none", ("market_data",), None),
        "trading_signal": ("none", ("trading_signals",), None),
        "trade_execution": ("required", ("user_{id}_trades", "all_trades"), None),
        "position_update": ("required", ("user_{id}_positions",), None),
        "user_alert": ("required", ("user_{id}_alerts",), None),
        "risk_alert": ("optional", ("risk_alerts",), ("risk_alerts", "user_{id}_alerts")),
        "grid_update": ("required", ("user_{id}_trades",), None),
        "system_status": ("none", ("system_status",), None),
        "performance_metrics": ("optional", ("system_metrics",), ("user_{id}_positions",)),
    }


def test_every_type_is_found_by_its_own_name():
    assert all(name == type_.name for name, type_ in SEED_TYPES.items())


def test_only_types_that_may_name_a_user_have_routes_for_one():
    for type_ in SEED_TYPES.values():
        assert (type_.user_channels is not None) == (type_.user is UserField.OPTIONAL)


def test_choices_stand_on_texts_and_bounds_on_numbers():
    for type_ in SEED_TYPES.values():
        for field in type_.fields.values():
            assert not field.choices or field.kind is FieldKind.STRING
            assert (field.min is None and field.max is None) or field.kind in (
                FieldKind.NUMBER,
                FieldKind.INTEGER,
            )


def test_above_zero_is_the_least_float_that_is():
    assert math.nextafter(0.0, 1.0) == ABOVE_ZERO


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("market_data_update", '{"symbol":"BTCUSDT","price":50000,"volume":1000,"change24h":2.5}'),
        ("market_data_update", '{"exchange":"x","symbol":"YFI-BTC","size":7e-06,"side":"sell"}'),
        ("market_data_update", '{"symbol":"BTC/USDT:USDT","price":"50000.10","bid":null}'),
        ("trading_signal", '{"symbol":"ETHUSDT","direction":"LONG","confidence":0.87}'),
        ("trading_signal", '{"action":"open_long","confidence":"1","stopLoss":1,"timeframe":15}'),
        ("trade_execution", '{"side":"buy","quantity":0.1,"price":50000,"orderId":981}'),
        ("trade_execution", '{"side":"Sell","amount":1,"fee":{"cost":1,"currency":"USDT"}}'),
        ("position_update", '{"symbol":"BTCUSDT","side":"BOTH","size":-0.5,"leverage":"20"}'),
        ("user_alert", '{"level":"warning","title":"t","message":"m"}'),
        ("risk_alert", '{"severity":"high","message":"margin","threshold":0.8}'),
        ("grid_update", '{"symbol":"BTCUSDT","levels":[{"price":1,"side":"buy"}],"gridCount":10}'),
        ("system_status", '{"status":"ok","uptime":12.5,"services":{"feed":"up"}}'),
        ("performance_metrics", '{"cpu":{"user":1},"memory":{"rss":1},"winRate":0.62}'),
        ("performance_metrics", '{"winRate":62.5,"sharpeRatio":-0.2,"totalTrades":12}'),
    ],
)
def test_what_reasonable_bots_send_passes(name, data):
    Schema(SEED_TYPES[name]).read(data.encode())
