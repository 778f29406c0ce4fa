"""A simulated market and the accounts that trade on it, for the demo.

Prices are random walks that lean on one common factor, as coins do on Bitcoin, and are pulled back
a little so that they stay plausible for as long as the demo runs. They move faster than real ones:
someone watches for a minute and shall see fills and signals. Nothing here reads a clock.
"""

from __future__ import annotations

import math
import random

import attrs

PULL = 0.0005  # of the way back to where it began, each step
COMMON = 0.00012  # standard deviation of a step of the common factor, as a log return
FAST, SLOW = 0.2, 0.03  # weights of a new price in the two moving averages


@attrs.define
class Symbol:
    """A pair: its price, what it was a day ago, and its moving averages."""

    name: str
    price: float
    digits: int  # of a price
    unit: float  # what one fill trades
    beta: float  # how much of the common factor it takes
    noise: float = 0.0002  # standard deviation of its own part
    opened: float = attrs.field(init=False)
    volume: float = attrs.field(init=False)
    fast: float = attrs.field(init=False)
    slow: float = attrs.field(init=False)
    _anchor: float = attrs.field(init=False)
    _common: float = attrs.field(default=0.0, init=False)  # the factor as it was at the last tick

    def __attrs_post_init__(self) -> None:
        self.opened = self.fast = self.slow = self._anchor = self.price
        self.volume = round(self.unit * 40_000, 3)

    @property
    def trend(self) -> float:
        """How far the fast average is from the slow one, as a part of the price."""
        return (self.fast - self.slow) / self.slow

    def tick(self, common: float, chance: random.Random) -> None:
        """Move the price by what the factor has done since, and by chance."""
        step = self.beta * (common - self._common) + chance.gauss(0, self.noise)
        step -= PULL * math.log(self.price / self._anchor)
        self._common = common
        self.price = round(self.price * math.exp(step), self.digits)
        self.volume = round(self.volume + self.unit * chance.expovariate(0.2), 3)
        self.fast += FAST * (self.price - self.fast)
        self.slow += SLOW * (self.price - self.slow)


def symbols() -> list[Symbol]:
    """Return the pairs of the demo."""
    return [
        Symbol("BTCUSDT", 67_250.0, 1, 0.015, 1.0),
        Symbol("ETHUSDT", 3_480.0, 2, 0.3, 1.2),
        Symbol("SOLUSDT", 172.0, 2, 6.0, 1.6),
        Symbol("BNBUSDT", 604.0, 2, 1.6, 0.9),
        Symbol("XRPUSDT", 0.5275, 4, 1900.0, 1.1),
        Symbol("ADAUSDT", 0.4512, 4, 2200.0, 1.3),
        Symbol("AVAXUSDT", 37.2, 3, 27.0, 1.5),
        Symbol("LINKUSDT", 17.85, 3, 56.0, 1.2),
    ]


@attrs.define
class Position:
    """What an account holds of a symbol; a negative size is short."""

    size: float = 0.0
    entry: float = 0.0  # the average price of what is held
    realized: float = 0.0

    def fill(self, quantity: float, price: float) -> float:
        """Buy (or sell: a negative quantity); return the profit that this realizes."""
        closing = -quantity if abs(quantity) < abs(self.size) else self.size
        profit = closing * (price - self.entry) if quantity * self.size < 0 else 0.0
        size = round(self.size + quantity, 8)
        if size == 0:
            self.entry = 0.0
        elif self.size * quantity >= 0:
            self.entry = (self.entry * self.size + price * quantity) / size
        elif size * self.size < 0:
            self.entry = price  # it went through zero: what is left was opened now
        self.size = size
        self.realized += profit
        return profit

    def unrealized(self, price: float) -> float:
        """Return what closing it at this price would realize."""
        return self.size * (price - self.entry)


@attrs.define
class Account:
    """A user's positions and how trading went."""

    user: str
    positions: dict[str, Position] = attrs.field(factory=dict)
    trades: int = 0
    wins: int = 0
    best: float = 0.0  # the highest profit so far, for the drawdown

    def fill(self, symbol: Symbol, quantity: float) -> float:
        """Trade at the present price; return the realized profit."""
        position = self.positions.setdefault(symbol.name, Position())
        profit = position.fill(quantity, symbol.price)
        self.trades += 1
        self.wins += profit > 0
        return profit

    def profit(self, market: dict[str, Symbol]) -> float:
        """Return realized and unrealized profit together."""
        return sum(
            p.realized + p.unrealized(market[name].price) for name, p in self.positions.items()
        )

    def exposure(self, market: dict[str, Symbol]) -> float:
        """Return the value of all positions, long or short."""
        return sum(abs(p.size) * market[name].price for name, p in self.positions.items())


@attrs.define
class Grid:
    """A grid strategy: buys at a level that the price falls through, sells at the next above."""

    symbol: Symbol
    spacing: float = 0.0006  # as a part of the price
    count: int = 9
    levels: list[float] = attrs.field(init=False)
    profit: float = attrs.field(default=0.0, init=False)
    filled: set[int] = attrs.field(factory=set, init=False)  # levels bought and not yet sold
    _last: float = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.centre()

    def centre(self) -> None:
        """Lay the levels around the present price."""
        half = self.count // 2
        price = self.symbol.price
        self.levels = [
            round(price * (1 + self.spacing * i), self.symbol.digits)
            for i in range(-half, half + 1)
        ]
        self.filled = set()
        self._last = price

    @property
    def left(self) -> bool:
        """Whether the price has left the grid."""
        return not self.levels[0] <= self.symbol.price <= self.levels[-1]

    def crossed(self) -> list[float]:
        """Return the quantities to trade for the levels crossed since the last call."""
        now, before, self._last = self.symbol.price, self._last, self.symbol.price
        quantities = []
        for index, level in enumerate(self.levels):
            if now <= level < before and index not in self.filled:
                self.filled.add(index)
                quantities.append(self.symbol.unit)
            elif before < level <= now and index - 1 in self.filled:
                self.filled.discard(index - 1)
                quantities.append(-self.symbol.unit)
        return quantities
