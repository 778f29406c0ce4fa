"""Who gets what: subscriptions, indexed so that an event finds its clients at once.

Clients that subscribe to the same things on the same wire form an `Audience`: an event is noted
once for the audience, and its members share the joined bytes. An audience stands in the index under
each of its patterns, except those that a whole channel beside them covers. Who covers a stream is
remembered until somebody comes to its channel or goes, so that globs cost nothing in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import attrs

from cryptows.model.channel import Pattern
from cryptows.model.event import Record
from cryptows.wire.envelope import Wire

NOTHING: frozenset[Pattern] = frozenset()


class Member(Protocol):
    """What the routes keep of a client."""

    audience: Audience


@attrs.define(eq=False)
class Audience:
    """Clients of one wire with the same subscriptions."""

    wire: Wire
    patterns: frozenset[Pattern]
    members: dict[Member, None] = attrs.field(factory=dict)  # a dict keeps the order of joining
    records: list[Record] = attrs.field(factory=list)  # of the pass that is being decided


@attrs.define
class Routes:
    """The index from streams to audiences; empty parts are removed at once."""

    _audiences: dict[tuple[str, frozenset[Pattern]], Audience] = attrs.field(factory=dict)
    _whole: dict[str, dict[Audience, None]] = attrs.field(factory=dict)
    _symbols: dict[tuple[str, str], dict[Audience, None]] = attrs.field(factory=dict)
    _globs: dict[str, dict[Pattern, dict[Audience, None]]] = attrs.field(factory=dict)
    # Bounded by the streams that exist; only where there are globs to go through.
    _found: dict[str, dict[str, list[Audience]]] = attrs.field(factory=dict)

    def join(self, member: Member, wire: Wire, patterns: frozenset[Pattern]) -> Audience:
        """Add a client; its `audience` is set to the one returned."""
        key = (wire.name, patterns)
        audience = self._audiences.get(key)
        if audience is None:
            audience = self._audiences[key] = Audience(wire, patterns)
            for pattern in _needed(patterns):
                self._place(pattern)[audience] = None
                self._found.pop(pattern.channel, None)
        audience.members[member] = None
        member.audience = audience
        return audience

    def leave(self, member: Member) -> None:
        """Remove a client from its audience; once more does nothing."""
        audience = member.audience
        if member not in audience.members:
            return
        del audience.members[member]
        if not audience.members:
            del self._audiences[audience.wire.name, audience.patterns]
            for pattern in _needed(audience.patterns):
                del self._place(pattern)[audience]
                self._found.pop(pattern.channel, None)
                self._prune(pattern)

    def move(self, member: Member, patterns: frozenset[Pattern], wire: Wire | None = None) -> None:
        """Change what a client subscribes to (or its wire)."""
        wire = wire or member.audience.wire
        self.leave(member)
        self.join(member, wire, patterns)

    def audiences(self, channel: str, symbol: str | None) -> list[Audience]:
        """Return each audience that covers an event, once."""
        found: list[Audience] = []
        whole = self._whole.get(channel)
        if whole:
            found += whole
        if symbol is not None:
            globs = self._globs.get(channel)
            if globs:
                return self._among_globs(channel, symbol)
            exact = self._symbols.get((channel, symbol))
            if exact:
                found += exact
        return found

    def _among_globs(self, channel: str, symbol: str) -> list[Audience]:
        known = self._found.setdefault(channel, {})
        found = known.get(symbol)
        if found is None:
            covering: dict[Audience, None] = dict(self._whole.get(channel, {}))
            covering |= self._symbols.get((channel, symbol), {})
            for pattern, audiences in self._globs[channel].items():
                if pattern.matches(symbol):
                    covering |= audiences
            found = known[symbol] = list(covering)
        return found

    def __iter__(self) -> Iterator[Audience]:
        return iter(self._audiences.values())

    def counts(self) -> dict[str, int]:
        """The number of subscribed clients of each channel that has any."""
        counts: dict[str, int] = {}
        for audience in self._audiences.values():
            for channel in {p.channel for p in audience.patterns}:
                counts[channel] = counts.get(channel, 0) + len(audience.members)
        return counts

    def _place(self, pattern: Pattern) -> dict[Audience, None]:
        if pattern.symbol is None:
            return self._whole.setdefault(pattern.channel, {})
        if pattern.is_glob:
            return self._globs.setdefault(pattern.channel, {}).setdefault(pattern, {})
        return self._symbols.setdefault((pattern.channel, pattern.symbol), {})

    def _prune(self, pattern: Pattern) -> None:
        if self._place(pattern):
            return
        if pattern.symbol is None:
            del self._whole[pattern.channel]
        elif pattern.is_glob:
            del self._globs[pattern.channel][pattern]
            if not self._globs[pattern.channel]:
                del self._globs[pattern.channel]
        else:
            del self._symbols[pattern.channel, pattern.symbol]


def _needed(patterns: Iterable[Pattern]) -> list[Pattern]:
    """Leave out symbols and globs of channels that are subscribed as a whole."""
    whole = {p.channel for p in patterns if p.symbol is None}
    return [p for p in patterns if p.symbol is None or p.channel not in whole]
