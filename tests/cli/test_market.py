import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptows.cli.market import Account, Grid, Position, Symbol, symbols


def a_symbol(price=100.0):
    return Symbol("BTCUSDT", price, 2, 1.0, 1.0)


def test_buying_twice_averages_the_entry():
    position = Position()

    profits = [position.fill(1, 100), position.fill(3, 104)]

    assert profits == [0, 0]
    assert position == Position(size=4, entry=103, realized=0)


def test_selling_a_part_realizes_that_part():
    position = Position(size=4, entry=103)

    assert position.fill(-1, 113) == 10
    assert position == Position(size=3, entry=103, realized=10)


def test_going_through_zero_realizes_all_and_opens_the_rest_anew():
    position = Position(size=2, entry=100)

    assert position.fill(-5, 90) == -20
    assert position == Position(size=-3, entry=90, realized=-20)


def test_a_closed_short_has_no_entry():
    position = Position(size=-2, entry=100)

    assert position.fill(2, 90) == 20
    assert position == Position(size=0, entry=0, realized=20)


fills = st.tuples(st.integers(-5, 5).filter(bool).map(float), st.integers(1, 200).map(float))


@given(st.lists(fills, max_size=30), st.integers(1, 200))
def test_profit_equals_cash_and_value_of_what_is_held(trades, price):
    position = Position()

    for quantity, at in trades:
        position.fill(quantity, at)

    cash = -sum(quantity * at for quantity, at in trades)
    held = sum(quantity for quantity, _ in trades)
    profit = position.realized + position.unrealized(price)
    assert profit == pytest.approx(cash + held * price, abs=1e-6)


def test_an_account_counts_its_trades_and_wins():
    account, symbol = Account("123"), a_symbol()
    account.fill(symbol, 1)
    symbol.price = 110

    account.fill(symbol, -2)

    market = {"BTCUSDT": symbol}
    assert (account.trades, account.wins) == (2, 1)
    assert (account.profit(market), account.exposure(market)) == (10, 110)


def test_a_grid_buys_on_the_way_down_and_sells_each_level_once_on_the_way_up():
    symbol = a_symbol(1000.0)
    grid = Grid(symbol, spacing=0.01, count=5)

    symbol.price = 985.0
    bought = grid.crossed()
    again = grid.crossed()
    symbol.price = 1005.0
    sold = grid.crossed()

    assert grid.levels == [980, 990, 1000, 1010, 1020]
    assert (bought, again, sold) == ([1.0], [], [-1.0])
    assert grid.filled == set()


def test_a_grid_knows_when_the_price_has_left_it():
    symbol = a_symbol(1000.0)
    grid = Grid(symbol, spacing=0.01, count=5)
    symbol.price = 1021.0

    left = grid.left
    grid.centre()

    assert left
    assert not grid.left


def test_pairs_move_together_and_stay_plausible():
    chance = random.Random(7)
    pairs, common = symbols(), 0.0
    begin = [pair.price for pair in pairs]

    for _ in range(5000):
        common += chance.gauss(0, 0.0004)
        for pair in pairs:
            pair.tick(common, chance)

    assert all(0.5 < pair.price / before < 2 for pair, before in zip(pairs, begin, strict=True))
    assert all(pair.price == round(pair.price, pair.digits) for pair in pairs)
    assert all(pair.volume > 0 for pair in pairs)
