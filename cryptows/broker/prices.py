"""What `price_updates` says: the price, what it was before, and by how much it changed."""

from __future__ import annotations

import math

import msgspec

SURE = 15  # decimal digits that a float surely keeps


class PriceChange(msgspec.Struct):
    """The `data` of a price update."""

    symbol: str | None
    price: float
    previousPrice: float | None = None  # noqa: N815 - the names of the contract
    change: float | None = None
    changePercent: float | None = None  # noqa: N815


_encode = msgspec.json.Encoder().encode


def price_change(symbol: str | None, price: float, before: float | None) -> bytes:
    """Return the `data` of an update; `before` is another price, or None for the first one."""
    if before is None:
        return _encode(PriceChange(symbol, price))
    # 50000.1 - 50000 is 0.09999999999854481, of which a reader wants 0.1.
    whole_digits = math.ceil(math.log10(max(abs(price), abs(before))))
    change = round(price - before, max(0, SURE - whole_digits))
    percent = round(change / before * 100, 6) if before else None
    return _encode(PriceChange(symbol, price, before, change, percent))
