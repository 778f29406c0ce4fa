"""Channels: what clients subscribe to, who may, and how each is delivered.

A channel belongs to a `ChannelClass`, which the config declares. A class is either one channel
(`market_data`) or, when its name holds `{id}`, a family of channels with one for each user
(`user_{id}_trades`). A subscription is a `Pattern`: a whole channel, one symbol of it
(`market_data:BTCUSDT`) or a glob over its symbols (`market_data:BTC*`). Protocol section 3.
"""

from __future__ import annotations

import enum
import fnmatch
import functools
import re

import attrs

# A user's id stands inside channel names, so it is as narrow as they are (protocol section 1).
USER_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
NAME = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
MAX_SYMBOL = 64  # characters; long enough for every exchange's instrument names
WILDCARDS = frozenset("*?[")  # of a glob; no event's symbol has one


class Role(enum.StrEnum):
    """What a token says of its bearer; ANONYMOUS is a client without one."""

    ANONYMOUS = "anonymous"
    USER = "user"
    ADMIN = "admin"
    SUPER_ADMIN = "super_admin"


class Access(enum.StrEnum):
    """Who may subscribe."""

    PUBLIC = "public"  # everyone, also without a token
    AUTHENTICATED = "authenticated"  # any valid token
    USER = "user"  # the user named in the channel, and super_admin
    ADMIN = "admin"  # admin and super_admin


class Lane(enum.StrEnum):
    """What happens to a channel's events while a client is behind."""

    PRIVATE = "private"  # lossless up to `delivery.outbox`
    MARKET = "market"  # a newer event of a stream replaces the older one


@attrs.frozen
class History:
    """How much of a channel the journal keeps: events, bytes, seconds. Zero events: nothing."""

    events: int = 1000
    bytes: int = 1 << 20
    age: float = 600.0


@attrs.frozen
class ChannelClass:
    """The rules of one channel, or of one family of channels (a name with `{id}`)."""

    name: str
    access: Access
    lane: Lane
    types: frozenset[str]  # the event types that `"channel": …` may direct here
    throttle: float = 0.0  # seconds between two events of one stream; 0: every event passes
    keep_extremes: bool = True
    history: History = History()
    snapshot: bool = False
    durable: bool = False
    symbols: bool = False  # whether `channel:SYMBOL` and globs may be subscribed
    max_age: float = 0.0  # seconds of silence after which a stream is stale; 0: never

    @property
    def per_user(self) -> bool:
        """Whether this is a family with one channel for each user."""
        return "{id}" in self.name

    def of_user(self, user_id: str) -> str:
        """The name of one user's channel of this family."""
        return self.name.replace("{id}", user_id)


@attrs.frozen
class Pattern:
    """One subscription: a channel, and which of its symbols (None: all of them, and no symbol)."""

    channel: str
    symbol: str | None = None

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read `market_data`, `market_data:BTCUSDT` or `market_data:BTC*`; `:*` means all."""
        channel, colon, symbol = text.partition(":")
        return cls(channel, symbol if colon and symbol != "*" else None)

    @property
    def is_glob(self) -> bool:
        """Whether the symbol holds a wildcard (`*`, `?`, `[`)."""
        return self.symbol is not None and not WILDCARDS.isdisjoint(self.symbol)

    def matches(self, symbol: str | None) -> bool:
        """Whether an event of this channel with that symbol is covered."""
        if self.symbol is None or symbol == self.symbol:
            return True
        if symbol is None or not self.is_glob:
            return False
        return glob(self.symbol).match(symbol) is not None

    def __str__(self) -> str:
        return self.channel if self.symbol is None else f"{self.channel}:{self.symbol}"


@functools.lru_cache(maxsize=4096)  # bounded: globs come from clients
def glob(pattern: str) -> re.Pattern[str]:
    """Compile a symbol glob; the match is case-sensitive."""
    return re.compile(fnmatch.translate(pattern))


class ChannelTable:
    """Every channel the daemon knows: finds the class of a channel name, and the user in it."""

    def __init__(self, classes: tuple[ChannelClass, ...]) -> None:
        self.classes = classes
        self._single = {c.name: c for c in classes if not c.per_user}
        self._families = [
            (c, re.compile(re.escape(c.name).replace(r"\{id\}", f"({USER_ID.pattern})"), re.ASCII))
            for c in classes
            if c.per_user
        ]

    def find(self, name: str) -> tuple[ChannelClass, str | None] | None:
        """Return the class of a channel and the user whose it is, or None if there is no such."""
        single = self._single.get(name)
        if single is not None:
            return single, None
        for family, regex in self._families:
            match = regex.fullmatch(name)
            if match:
                return family, match[1]
        return None
