"""What price updates say, held against exact decimals."""

from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptows.broker.prices import price_change


def change(price: float, before: float | None) -> dict:
    return dict(msgspec.json.decode(price_change("BTC", price, before)))


def test_the_first_price_has_none_before_it():
    assert change(50000.0, None) == {
        "symbol": "BTC", "price": 50000.0,
        "previousPrice": None, "change": None, "changePercent": None,
    }  # fmt: skip


def test_a_change_is_told_in_money_and_in_percent():
    assert change(50500.0, 50000.0) == {
        "symbol": "BTC", "price": 50500.0,
        "previousPrice": 50000.0, "change": 500.0, "changePercent": 1.0,
    }  # fmt: skip


def test_a_market_without_a_symbol_has_prices_too():
    assert msgspec.json.decode(price_change(None, 2.0, 1.0))["symbol"] is None


@pytest.mark.parametrize(
    ("price", "before", "difference", "percent"),
    [
        (50000.1, 50000.0, 0.1, 0.0002),
        (0.3, 0.1, 0.2, 200.0),
        (0.00001234, 0.00001233, 0.00000001, 0.081103),
        (1.1e-13, 1e-13, 1e-14, 10.0),
        (0.0, 2.0, -2.0, -100.0),
        (2.0, 0.0, 2.0, None),
        (-37.63, 1.0, -38.63, -3863.0),  # oil, on a day in April 2020
        (1e300, 1.5e300, -5e299, -33.333333),
        (5e-324, 1.0, -1.0, -100.0),
    ],
)
def test_changes_have_no_binary_noise(price, before, difference, percent):
    told = change(price, before)

    assert (told["change"], told["changePercent"]) == (difference, percent)


@pytest.mark.parametrize(
    ("price", "before"), [(1.7e308, -1.7e308), (1.7e308, 5e-324), (5e-324, 1.7e308)]
)
def test_numbers_out_of_this_world_do_no_harm(price, before):
    assert change(price, before)["price"] == price


quoted = st.integers(1, 10**14)


@given(quoted, quoted, st.integers(0, 14))
def test_a_change_is_the_exact_difference_of_what_was_quoted(ticks, ticks_before, point):
    if ticks == ticks_before:
        return
    price, before = ticks / 10**point, ticks_before / 10**point
    exact = (Decimal(ticks) - Decimal(ticks_before)) / 10**point

    assert change(price, before)["change"] == float(exact)
