"""A simulated trading bot: every event type of the seed list, with data as a real one would have.

User 123 runs a grid on Bitcoin, user 456 follows the signals on the other pairs. `step` moves one
pair and returns the events that follow from it, in the order in which a bot would report them; the
first step reports everything once. Time and chance come in as arguments.
"""

from __future__ import annotations

import random
from typing import Any

import attrs

from cryptows.cli.market import COMMON, Account, Grid, Symbol, symbols

Event = dict[str, Any]

STEP = 1 / 32  # seconds: eight pairs, four ticks a second each, slower than market_data's throttle
GRID_USER, SIGNAL_USER = "123", "456"
TREND = 0.0004  # a trend that is worth a signal
SIGNAL_PAUSE = 256  # steps between two signals of a pair
EXPOSURE = 6_000.0  # what one account may hold before it is a risk
VERSION = "demo-1.0"


def every(seconds: float) -> int:
    """Return how many steps that is."""
    return round(seconds / STEP)


@attrs.define
class Bot:
    """The bot. Every event carries `data.sentAt`, Unix ms with decimals, to measure latency by."""

    chance: random.Random
    market: dict[str, Symbol] = attrs.field(factory=lambda: {s.name: s for s in symbols()})
    grid_account: Account = attrs.field(factory=lambda: Account(GRID_USER))
    signal_account: Account = attrs.field(factory=lambda: Account(SIGNAL_USER))
    grid: Grid = attrs.field(init=False)
    steps: int = attrs.field(default=0, init=False)
    _order: list[Symbol] = attrs.field(init=False)
    _common: float = attrs.field(default=0.0, init=False)
    _events: list[Event] = attrs.field(factory=list, init=False)
    _now: float = attrs.field(default=0.0, init=False)  # Unix ms
    _ids: int = attrs.field(default=0, init=False)
    _signalled: dict[str, int] = attrs.field(factory=dict, init=False)  # symbol: step
    _alerted: dict[str, int] = attrs.field(factory=dict, init=False)  # user: step

    def __attrs_post_init__(self) -> None:
        self._order = list(self.market.values())
        self.grid = Grid(self._order[0])

    def step(self, now_ms: float) -> list[Event]:
        """Move one pair; return what is to be reported at this Unix time."""
        self._now, self._events = now_ms, []
        self._common += self.chance.gauss(0, COMMON)
        symbol = self._order[self.steps % len(self._order)]
        symbol.tick(self._common, self.chance)
        self._report_tick(symbol)
        if symbol is self.grid.symbol:
            self._trade_grid()
        else:
            self._look_for_signal(symbol)
        self._report_regularly()
        self.steps += 1
        return self._events

    # -- what happens

    def _trade_grid(self) -> None:
        grid, account = self.grid, self.grid_account
        quantities = grid.crossed() if self.steps else [grid.symbol.unit]
        for quantity in quantities:
            grid.profit += self._fill(account, grid.symbol, quantity, "grid")
        if quantities:
            self._report_grid("filled")
        if grid.left:
            position = account.positions.get(grid.symbol.name)
            if position is not None and position.size:
                grid.profit += self._fill(account, grid.symbol, -position.size, "grid")
            grid.centre()
            self._report_grid("recentred")
            self._alert(account, "info", f"{grid.symbol.name} left the grid; it was laid anew")

    def _look_for_signal(self, symbol: Symbol) -> None:
        since = self.steps - self._signalled.get(symbol.name, -SIGNAL_PAUSE)
        strong = abs(symbol.trend) > TREND and since >= SIGNAL_PAUSE
        if strong or self.steps == 1:
            self._signalled[symbol.name] = self.steps
            self._signal(symbol)

    def _signal(self, symbol: Symbol) -> None:
        long = symbol.trend >= 0
        sign = 1 if long else -1
        confidence = min(0.5 + abs(symbol.trend) * 200, 0.95)
        self._emit("trading_signal", {
            "symbol": symbol.name, "direction": "long" if long else "short",
            "confidence": round(confidence, 2), "price": symbol.price,
            "stopLoss": round(symbol.price * (1 - sign * 0.004), symbol.digits),
            "takeProfit": round(symbol.price * (1 + sign * 0.008), symbol.digits),
            "strategy": "ema-cross",
        })  # fmt: skip
        position = self.signal_account.positions.get(symbol.name)
        quantity = sign * symbol.unit - (position.size if position else 0.0)
        if quantity:
            self._fill(self.signal_account, symbol, round(quantity, 8), "ema-cross")

    def _fill(self, account: Account, symbol: Symbol, quantity: float, strategy: str) -> float:
        profit = account.fill(symbol, quantity)
        self._ids += 1
        self._emit("trade_execution", {
            "symbol": symbol.name, "side": "buy" if quantity > 0 else "sell",
            "quantity": abs(quantity), "price": symbol.price, "realizedPnl": round(profit, 2),
            "orderId": f"o-{self._ids}", "strategy": strategy,
        }, user=account.user, id=f"t-{self._ids}")  # fmt: skip
        self._report_position(account, symbol)
        if profit > 1:
            self._alert(account, "info", f"{symbol.name}: took {profit:.2f} USDT of profit")
        self._check_risk(account)
        return profit

    def _check_risk(self, account: Account) -> None:
        exposure = account.exposure(self.market)
        quiet = self.steps - self._alerted.get(account.user, -every(5)) < every(5)
        if exposure < EXPOSURE or quiet:
            return
        self._alerted[account.user] = self.steps
        self._emit("risk_alert", {
            "level": "warning", "title": "exposure", "message": "open positions exceed the limit",
            "exposure": round(exposure, 2), "threshold": EXPOSURE,
        }, user=account.user)  # fmt: skip

    # -- what is reported

    def _report_tick(self, symbol: Symbol) -> None:
        spread = 10**-symbol.digits
        change = 100 * (symbol.price / symbol.opened - 1)
        self._emit("market_data_update", {
            "symbol": symbol.name, "price": symbol.price, "volume": symbol.volume,
            "change24h": round(change, 3),
            "bid": round(symbol.price - spread, symbol.digits),
            "ask": round(symbol.price + spread, symbol.digits),
        })  # fmt: skip

    def _report_position(self, account: Account, symbol: Symbol) -> None:
        position = account.positions[symbol.name]
        side = "long" if position.size > 0 else "short" if position.size < 0 else "flat"
        self._emit("position_update", {
            "symbol": symbol.name, "side": side, "size": abs(position.size),
            "entryPrice": round(position.entry, symbol.digits), "markPrice": symbol.price,
            "unrealizedPnl": round(position.unrealized(symbol.price), 2),
            "realizedPnl": round(position.realized, 2),
        }, user=account.user)  # fmt: skip

    def _report_grid(self, status: str) -> None:
        grid = self.grid
        levels = [
            {"price": price, "side": "sell" if i in grid.filled else "buy"}
            for i, price in enumerate(grid.levels)
        ]
        self._emit("grid_update", {
            "symbol": grid.symbol.name, "status": status, "price": grid.symbol.price,
            "lowerPrice": grid.levels[0], "upperPrice": grid.levels[-1], "levels": levels,
            "gridCount": grid.count, "filledLevels": len(grid.filled),
            "totalProfit": round(grid.profit, 2),
        }, user=GRID_USER)  # fmt: skip

    def _report_regularly(self) -> None:
        if self.steps % every(1) == 0:
            for account in (self.grid_account, self.signal_account):
                for name in account.positions:
                    self._report_position(account, self.market[name])
        if self.steps % every(2) == 0:
            self._report_system()
        if self.steps % every(5) == 0:
            for account in (self.grid_account, self.signal_account):
                self._report_performance(account)
        if self.steps % every(10) == 0:
            self._alert(self.grid_account, "info", "the grid bot is running")
            self._emit("risk_alert", {
                "level": "info", "title": "risk check", "message": "all accounts were checked",
                "exposure": round(self._exposure(), 2), "threshold": 2 * EXPOSURE,
            })  # fmt: skip
            self._emit("risk_alert", {
                "level": "info", "title": "audit", "message": "risk limits were confirmed",
            }, channel="admin_alerts")  # fmt: skip

    def _report_system(self) -> None:
        self._emit("system_status", {
            "status": "ok", "component": "trading-bot", "version": VERSION,
            "uptime": round(self.steps * STEP, 1),
        })  # fmt: skip
        self._emit("performance_metrics", {
            "eventsPerSecond": round(1 / STEP, 1), "latencyMs": round(self.chance.uniform(3, 9), 2),
            "totalTrades": self.grid_account.trades + self.signal_account.trades,
            "uptime": round(self.steps * STEP, 1),
        })  # fmt: skip

    def _report_performance(self, account: Account) -> None:
        profit = account.profit(self.market)
        account.best = max(account.best, profit)
        self._emit("performance_metrics", {
            "totalPnl": round(profit, 2), "totalTrades": account.trades,
            "winRate": round(account.wins / account.trades, 3) if account.trades else 0,
            "drawdown": round(account.best - profit, 2), "period": "session",
        }, user=account.user)  # fmt: skip

    def _alert(self, account: Account, level: str, text: str) -> None:
        self._emit("user_alert", {"level": level, "message": text}, user=account.user)

    def _exposure(self) -> float:
        accounts = (self.grid_account, self.signal_account)
        return sum(account.exposure(self.market) for account in accounts)

    def _emit(
        self,
        kind: str,
        data: dict[str, Any],
        *,
        user: str | None = None,
        id: str | None = None,
        channel: str | None = None,
    ) -> None:
        names = {"user_id": user, "id": id, "channel": channel}
        event: Event = {"type": kind, **{k: v for k, v in names.items() if v is not None}}
        event["timestamp"] = int(self._now)
        event["data"] = {**data, "sentAt": round(self._now, 3)}
        self._events.append(event)
