"""What the demo's clients see: for each channel the last message, its rate and its latency.

Latency is from the bot's hands to the client's: `data.sentAt` against the arrival, on one clock.
Every client also checks what the contract promises, that `seq` has no gap that nobody told of.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import attrs
import msgspec

from cryptows.cli.listening import Message

WINDOW = 5.0  # seconds over which a rate is taken
KEPT = 1000  # latencies
RATED = 10_000  # arrivals within the window


@attrs.define
class View:
    """What came on one channel."""

    channel: str
    client: str
    count: int = 0
    last: str = ""
    _latencies: deque[float] = attrs.field(factory=lambda: deque(maxlen=KEPT), init=False)
    _arrivals: deque[float] = attrs.field(factory=lambda: deque(maxlen=RATED), init=False)

    def take(self, kind: str, data: dict[str, Any], timestamp: int, now_ms: float) -> None:
        """Take note of an event that arrived at this Unix time."""
        self.count += 1
        self.last = brief(kind, data)
        sent = data.get("sentAt")
        self._latencies.append(now_ms - (sent if isinstance(sent, int | float) else timestamp))
        self._arrivals.append(now_ms)

    def rate(self, now_ms: float, since_ms: float) -> float:
        """Return the events a second, lately; the demo began at `since_ms`."""
        span = min(WINDOW * 1000, max(now_ms - since_ms, 1.0))
        while self._arrivals and self._arrivals[0] <= now_ms - span:
            self._arrivals.popleft()
        return len(self._arrivals) / span * 1000

    def latency(self, part: float) -> float | None:
        """Return the latency in ms that so large a part of the events did not exceed."""
        if not self._latencies:
            return None
        ordered = sorted(self._latencies)
        return ordered[min(int(part * len(ordered)), len(ordered) - 1)]


@attrs.define
class Watcher:
    """One client's view of its channels. Give `take` to a Listener."""

    name: str
    views: dict[str, View]
    clock_ms: Callable[[], float]
    on_confirmed: Callable[[], None]
    lost: int = attrs.field(default=0, init=False)
    skipped: int = attrs.field(default=0, init=False)
    _seqs: dict[tuple[str, str | None], int] = attrs.field(factory=dict, init=False)

    @classmethod
    def of(
        cls,
        name: str,
        channels: tuple[str, ...],
        clock_ms: Callable[[], float],
        on_confirmed: Callable[[], None],
    ) -> Watcher:
        """Return a watcher of these channels."""
        views = {channel: View(channel, name) for channel in channels}
        return cls(name, views, clock_ms, on_confirmed)

    def take(self, text: str, message: Message) -> bool:
        """Take note of a message; never has enough."""
        now_ms = self.clock_ms()
        if message.type == "subscription_confirmed":
            self.on_confirmed()
        data = msgspec.json.decode(message.data)
        if message.type == "skipped":
            self._note_skipped(data)
        elif message.channel in self.views:
            if not message.snapshot and message.seq is not None:
                self._check(message.channel, data.get("symbol"), message.seq)
            self.views[message.channel].take(message.type, data, message.timestamp, now_ms)
        return False

    def _note_skipped(self, data: dict[str, Any]) -> None:
        """Go on after the gap; where it is not told in numbers, begin anew."""
        stream = (data["channel"], data["symbol"])
        self.skipped += data["count"] or 0
        if data["toSeq"] is None:
            self._seqs.pop(stream, None)
        else:
            self._seqs[stream] = data["toSeq"]

    def _check(self, channel: str, symbol: str | None, seq: int) -> None:
        expected = self._seqs.get((channel, symbol), seq - 1) + 1
        self.lost += seq - expected
        self._seqs[channel, symbol] = seq


def brief(kind: str, data: dict[str, Any]) -> str:
    """Return an event in a few words."""
    get = data.get
    match kind:
        case "market_data_update" if "previousPrice" in data:
            return f"{get('symbol')} {get('price')}, before {get('previousPrice')}"
        case "market_data_update":
            return f"{get('symbol')} {get('price')} ({get('change24h', 0):+.2f} %)"
        case "trading_signal":
            return f"{get('symbol')} {get('direction')}, confidence {get('confidence')}"
        case "trade_execution":
            return f"{get('side')} {get('quantity')} {get('symbol')} at {get('price')}"
        case "position_update":
            held = f"{get('symbol')} {get('side')} {get('size')}"
            return f"{held}, P&L {get('unrealizedPnl', 0) + get('realizedPnl', 0):+.2f}"
        case "grid_update":
            filled = f"{get('filledLevels')} of {get('gridCount')} levels filled"
            return f"grid {get('symbol')}: {filled}, profit {get('totalProfit')}"
        case "user_alert" | "risk_alert":
            return f"{get('level')}: {get('message')}"
        case "system_status":
            return f"{get('component', 'system')}: {get('status', get('message'))}"
        case "performance_metrics":
            if "totalPnl" in data:
                return f"P&L {get('totalPnl'):+.2f} in {get('totalTrades')} trades"
            return f"{get('eventsPerSecond')} ticks/s, {get('totalTrades')} trades"
        case _:
            return msgspec.json.encode(data).decode()
