"""Events and records as the tests of the broker need them."""

from __future__ import annotations

import msgspec

from cryptows.model.channel import Access, ChannelClass, History, Lane
from cryptows.model.event import Event, Record

EPOCH = "k"


def channel(name: str, *, lane: Lane = Lane.PRIVATE, **rules: object) -> ChannelClass:
    """Return the class of a channel that everybody may read."""
    access = Access.USER if "{id}" in name else Access.PUBLIC
    return ChannelClass(name, access, lane, frozenset(), **rules)  # type: ignore[arg-type]


def market(name: str, **rules: object) -> ChannelClass:
    """Return a channel of market data."""
    return channel(name, lane=Lane.MARKET, symbols=True, **rules)


def keeping(**limits: float) -> History:
    """Return bounds that only these limits narrow."""
    return History(**{"events": 10_000, "bytes": 1 << 30, "age": 1e9, **limits})  # type: ignore[arg-type]


def event(type_: str = "tick", symbol: str | None = None, **fields: object) -> Event:
    """Return an event whose data has its symbol and price."""
    known = {"symbol": symbol, "price": fields.get("price")}
    data = msgspec.json.encode({name: value for name, value in known.items() if value is not None})
    return Event(type_, data, 1000, symbol, **fields)  # type: ignore[arg-type]


def record(
    n: int, channel: str = "c", symbol: str | None = None, *, size: int = 60,
    lane: Lane = Lane.PRIVATE, seq: int = 0,
) -> Record:  # fmt: skip
    """Return a record whose envelope has so many bytes."""
    envelope = b'{"n":%d}' % n
    envelope = envelope[:-1] + b" " * (size - len(envelope)) + b"}"
    offset = f"{EPOCH}.{n}".encode()
    return Record(n, seq or n, channel, symbol, lane, 1000, envelope, offset)
