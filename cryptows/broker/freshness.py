"""Freshness: streams that have fallen silent are called stale, so that nobody trades on an old price.

A stream is stale when its last event, or its producer's last keepalive for it, is older than the
`max_age` of its channel. Its subscribers are told once, with whether its producer is still connected
(a quiet market) or gone (a dead feed), and once more when it speaks again. A client tells its own lag
from both by its heartbeat.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import attrs

from cryptows.broker.journal import Journal
from cryptows.model.channel import Pattern
from cryptows.wire import envelope

Key = tuple[str, str | None]  # channel, symbol


@attrs.define
class Freshness:
    """Which streams are stale; bounded by the journal's streams. Times on the dispatcher's clock."""

    journal: Journal
    _stale: dict[Key, tuple[float, dict[str, Any]]] = attrs.field(factory=dict, init=False)

    def keep_alive(self, texts: Iterable[str], producer: str, now: float) -> None:
        """Note a producer's keepalive for streams (`market_data:BTCUSDT`, globs, channels)."""
        for text in texts:
            pattern = Pattern.parse(text)
            for stream in self.journal.covered(pattern):
                stream.heard, stream.producer = now, producer

    def check(
        self, keys: Iterable[Key], connected: Container[str], now: float, now_ms: int
    ) -> list[tuple[Key, bytes]]:
        """Look at some streams; return those that changed, each with what its subscribers get."""
        changed = []
        for key in keys:
            stream = self.journal.streams[key]
            max_age = stream.rules.max_age
            if not max_age or not stream.heard:
                continue
            known = self._stale.get(key)
            if now - stream.heard > max_age:
                if known is None:
                    data = _data(key, "stale", now_ms - int((now - stream.heard) * 1000))
                    there = stream.producer in connected
                    data["producer"] = "quiet" if there else "no_producer"
                    self._stale[key] = (stream.heard, data)
                    changed.append((key, envelope.message("system_status", data, now_ms)))
            elif known is not None:
                del self._stale[key]
                data = _data(key, "fresh", now_ms)
                changed.append((key, envelope.message("system_status", data, now_ms)))
        return changed

    def notices(self, patterns: Iterable[Pattern], now_ms: int) -> list[bytes]:
        """Return what a new subscriber has to know of the streams he will see."""
        if not self._stale:
            return []
        wanted = list(patterns)
        return [
            envelope.message("system_status", data, now_ms)
            for (channel, symbol), (_, data) in self._stale.items()
            if any(p.channel == channel and p.matches(symbol) for p in wanted)
        ]

    def __len__(self) -> int:
        return len(self._stale)


def _data(key: Key, status: str, since: int) -> dict[str, Any]:
    return {"status": status, "channel": key[0], "symbol": key[1], "since": since}
