"""Freshness: streams that fell silent are called stale, so that nobody trades on an old price.

A stream is stale when its last event, or its producer's last keepalive for it, is older than the
`max_age` of its channel. Its subscribers are told once, with whether its producer is still
connected (a quiet market) or gone (a dead feed), again if it goes later, and once more when the
stream speaks again. A client tells its own lag from all these by its heartbeat.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable
from typing import Any

import attrs

from cryptows.broker.journal import Journal, Stream
from cryptows.model.channel import Pattern
from cryptows.wire import envelope


@attrs.define
class Freshness:
    """Which streams are stale; no more than the journal has. Times on the dispatcher's clock."""

    journal: Journal
    _stale: dict[Stream, dict[str, Any]] = attrs.field(factory=dict, init=False)

    def keep_alive(self, texts: Iterable[str], producer: str, now: float) -> None:
        """Note a producer's keepalive for streams (`market_data:BTCUSDT`, or a whole channel)."""
        for text in texts:
            for stream in self.journal.covered(Pattern.parse(text)):
                stream.hear(now, producer)

    def watched(self) -> list[Stream]:
        """Return the streams to look at: those that may become stale, and those that are."""
        return list(dict.fromkeys([*self.journal.watched(), *self._stale]))

    def check(
        self, streams: Iterable[Stream], connected: Container[str], now: float, now_ms: int
    ) -> list[tuple[Stream, bytes]]:
        """Look at some streams; return those that changed, each with what its subscribers get."""
        changed = []
        for stream in streams:
            max_age, silent = stream.shelf.rules.max_age, now - stream.heard
            known = self._stale.get(stream)
            data = known
            if max_age and max_age < silent < math.inf:  # infinity: it has had no event yet
                since = now_ms - int(silent * 1000) if known is None else known["since"]
                data = _data(stream, "stale", since)
                data["producer"] = "quiet" if stream.producer in connected else "no_producer"
                if known is not None and known["producer"] == "no_producer":
                    data = known  # what was gone stays so until it speaks again
                self._stale[stream] = data
            elif known is not None:
                del self._stale[stream]
                data = _data(stream, "fresh", now_ms)
            if data is not None and data != known:
                changed.append((stream, envelope.message("system_status", data, now_ms)))
        return changed

    def notices(self, patterns: Iterable[Pattern], now_ms: int) -> list[bytes]:
        """Return what a new subscriber has to know of the streams he will see."""
        if not self._stale:
            return []
        wanted = list(patterns)
        return [
            envelope.message("system_status", data, now_ms)
            for stream, data in self._stale.items()
            if any(p.channel == stream.channel and p.matches(stream.symbol) for p in wanted)
        ]

    def __len__(self) -> int:
        return len(self._stale)


def _data(stream: Stream, status: str, since: int) -> dict[str, Any]:
    return {"status": status, "channel": stream.channel, "symbol": stream.symbol, "since": since}
