"""The event types of the seed system: where their events go and what their `data` may hold.

The routes are those of protocol section 1; `price_updates` is not among them, since the dispatcher
derives it when a price changed. Nothing inside `data` is required and unknown fields pass: a field
is declared only where its meaning is certain, so that a bot with other habits is not shut out. Left
free for that reason: ids (numbers on some exchanges), `fee` (an object in ccxt), `cpu` and `memory`
(objects in Node). The config may add types and fields.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from cryptows.model.event import EventType, Field, FieldKind, UserField

# The least positive float: as a `min` it means "above 0", since `min` itself is allowed.
ABOVE_ZERO = math.ulp(0.0)

NUMBER = Field(FieldKind.NUMBER)
NOT_NEGATIVE = Field(FieldKind.NUMBER, min=0)
POSITIVE = Field(FieldKind.NUMBER, min=ABOVE_ZERO)
RATIO = Field(FieldKind.NUMBER, min=0, max=1)
COUNT = Field(FieldKind.INTEGER, min=0)
TEXT = Field(FieldKind.STRING)
LIST = Field(FieldKind.ARRAY)

TRADE_SIDE = Field(FieldKind.STRING, choices=("buy", "sell"))
TICK_SIDE = Field(FieldKind.STRING, choices=("buy", "sell", "bid", "ask", "unknown"))
POSITION_SIDE = Field(
    FieldKind.STRING,
    # the last five: how exchanges name one-way mode, no position, and a position by its orders
    choices=("long", "short", "flat", "both", "net", "none", "buy", "sell"),
)
DIRECTION = Field(
    FieldKind.STRING,
    choices=("long", "short", "neutral", "flat", "buy", "sell", "hold", "close", "exit"),
)


def _fields(
    *,
    symbol: bool = True,
    text: Iterable[str] = (),
    number: Iterable[str] = (),
    not_negative: Iterable[str] = (),
    positive: Iterable[str] = (),
    **others: Field,
) -> dict[str, Field]:
    """Put a type's fields together from the names of each kind."""
    kinds = ((TEXT, text), (NUMBER, number), (NOT_NEGATIVE, not_negative), (POSITIVE, positive))
    fields = {"symbol": TEXT} if symbol else {}
    fields.update((name, field) for field, names in kinds for name in names)
    return fields | others


_ALERT_TEXTS = ("level", "severity", "title", "message", "category")

_TYPES = (
    EventType(
        "market_data_update",
        ("market_data",),
        fields=_fields(
            text=("exchange",),
            number=("change24h", "changePercent24h"),
            not_negative=(
                "price",
                "bid",
                "ask",
                "high24h",
                "low24h",
                "open24h",
                "markPrice",
                "indexPrice",
                "volume",
                "volume24h",
                "size",
                "bidSize",
                "askSize",
            ),
            side=TICK_SIDE,
        ),
    ),
    EventType(
        "trading_signal",
        ("trading_signals",),
        fields=_fields(
            text=("exchange", "action", "strategy", "reason"),
            not_negative=("price", "entry", "entryPrice", "stopLoss", "takeProfit", "targetPrice"),
            direction=DIRECTION,
            side=DIRECTION,
            confidence=RATIO,
        ),
    ),
    EventType(
        "trade_execution",
        ("user_{id}_trades", "all_trades"),
        user=UserField.REQUIRED,
        fields=_fields(
            text=("exchange", "strategy"),
            number=("pnl", "realizedPnl"),
            positive=("price", "quantity", "amount", "size"),
            side=TRADE_SIDE,
        ),
    ),
    EventType(
        "position_update",
        ("user_{id}_positions",),
        user=UserField.REQUIRED,
        fields=_fields(
            text=("exchange", "strategy"),
            # one-way positions carry their direction in the sign of the size
            number=("size", "quantity", "pnl", "unrealizedPnl", "realizedPnl", "pnlPercent"),
            not_negative=(
                "price",
                "entryPrice",
                "markPrice",
                "currentPrice",
                "liquidationPrice",
                "leverage",
                "margin",
            ),
            side=POSITION_SIDE,
        ),
    ),
    EventType(
        "user_alert",
        ("user_{id}_alerts",),
        user=UserField.REQUIRED,
        fields=_fields(text=_ALERT_TEXTS, not_negative=("price",)),
    ),
    EventType(
        "risk_alert",
        ("risk_alerts",),
        user=UserField.OPTIONAL,
        user_channels=("risk_alerts", "user_{id}_alerts"),
        fields=_fields(text=_ALERT_TEXTS, number=("threshold", "exposure", "drawdown")),
    ),
    EventType(
        "grid_update",
        ("user_{id}_trades",),
        user=UserField.REQUIRED,
        fields=_fields(
            text=("exchange",),
            number=("pnl", "realizedPnl", "unrealizedPnl", "totalProfit"),
            not_negative=("price", "upperPrice", "lowerPrice", "upper", "lower", "spacing"),
            levels=LIST,
            gridCount=COUNT,
            filledLevels=COUNT,
        ),
    ),
    EventType(
        "system_status",
        ("system_status",),
        fields=_fields(
            text=("status", "message", "component", "service", "version"), not_negative=("uptime",)
        ),
    ),
    EventType(
        "performance_metrics",
        ("system_metrics",),
        user=UserField.OPTIONAL,
        user_channels=("user_{id}_positions",),
        fields=_fields(
            text=("strategy", "period"),
            number=(
                "pnl",
                "totalPnl",
                "realizedPnl",
                "unrealizedPnl",
                "sharpeRatio",
                "sortinoRatio",
                "profitFactor",
                "maxDrawdown",
                "drawdown",
                "roi",
            ),
            not_negative=("latencyMs", "eventsPerSecond", "uptime"),
            # a ratio for some, a percentage for others
            winRate=Field(FieldKind.NUMBER, min=0, max=100),
            totalTrades=COUNT,
        ),
    ),
)

SEED_TYPES: dict[str, EventType] = {kind.name: kind for kind in _TYPES}
