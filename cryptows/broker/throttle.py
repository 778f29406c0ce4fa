"""Conflation at the source: how often a stream may speak, and what is said of what it left out.

A busy pair quotes hundreds of times a second; a screen needs a few. Within `interval` the events of
a stream replace each other and the newest passes at its end. What was replaced is counted, with the
extremes of its prices, so that a spike between two frames is never hidden. The dispatcher passes
the time in and asks again at `next_due`.
"""

from __future__ import annotations

import heapq
import math
from typing import Generic, TypeVar

import attrs

from cryptows.model.event import Event

Stream = TypeVar("Stream")  # anything that is equal only to itself


@attrs.define
class Conflated:
    """The events that the next one of a stream replaced: how many, and the range of prices."""

    count: int = 0
    high: float = -math.inf
    low: float = math.inf
    volume: float = 0.0

    def add(self, event: Event) -> None:
        """Count an event that will not be sent."""
        self.count += 1
        if event.price is not None:
            self.high = max(self.high, event.price)
            self.low = min(self.low, event.price)
        self.volume += event.volume or 0.0

    def document(self) -> dict[str, float | int | None]:
        """What the envelope of the passing event carries as `conflated`."""
        priced = self.high >= self.low
        return {
            "count": self.count,
            "high": self.high if priced else None,
            "low": self.low if priced else None,
            "volume": self.volume,
        }


@attrs.define
class _Gate:
    """One stream: when it may speak again, the newest event that waits, and what that replaced."""

    opens_at: float
    kept: Event | None = None
    conflated: Conflated | None = None

    def skip_kept(self) -> Conflated | None:
        """Count the kept event, if any, as replaced; return all that is replaced by now."""
        if self.kept is not None:
            self.conflated = self.conflated or Conflated()
            self.conflated.add(self.kept)
        return self.conflated


@attrs.define
class Throttle(Generic[Stream]):
    """The throttle of one channel class. `interval` is in seconds, and so are all times."""

    interval: float
    _gates: dict[Stream, _Gate] = attrs.field(factory=dict, init=False)  # release() prunes it
    # When a kept event is due. The number in the middle keeps the order of those due at once.
    _due: list[tuple[float, int, Stream]] = attrs.field(factory=list, init=False)
    _order: int = attrs.field(default=0, init=False)
    _swept_at: float = attrs.field(default=-math.inf, init=False)

    def offer(self, stream: Stream, event: Event, now: float) -> tuple[bool, Conflated | None]:
        """Return whether the event may pass now, and what it replaced; else it is kept."""
        gate = self._gates.get(stream)
        if gate is None:
            self._gates[stream] = _Gate(now + self.interval)
            return True, None
        if now >= gate.opens_at:
            # A kept event is older than this one, and sending it later would turn the price back.
            conflated = gate.skip_kept()
            gate.opens_at, gate.kept, gate.conflated = now + self.interval, None, None
            return True, conflated
        if gate.kept is None:
            self._wait(gate.opens_at, stream)
        else:
            gate.skip_kept()
        gate.kept = event
        return False, None

    def release(self, now: float) -> list[tuple[Stream, Event, Conflated | None]]:
        """Return the kept events whose time has come, oldest first."""
        released = []
        while self._due and self._due[0][0] <= now:
            due, _, stream = heapq.heappop(self._due)
            gate = self._gates.get(stream)
            if gate is None or gate.kept is None or gate.opens_at != due:
                continue  # a newer event passed in its stead
            released.append((stream, gate.kept, gate.conflated))
            gate.opens_at, gate.kept, gate.conflated = now + self.interval, None, None
        if now >= self._swept_at + max(self.interval, 1.0):
            self._swept_at = now
            self._gates = {
                s: g for s, g in self._gates.items() if g.kept is not None or g.opens_at > now
            }
        return released

    def configure(self, interval: float) -> None:
        """Change the interval; what waits becomes due as if it had been so before.

        With 0 every event passes, and still none that was kept comes after a newer one.
        """
        for gate in self._gates.values():
            gate.opens_at += interval - self.interval
        self.interval = interval
        self._due.clear()
        for stream, gate in self._gates.items():
            if gate.kept is not None:
                self._wait(gate.opens_at, stream)

    @property
    def next_due(self) -> float:
        """When `release` has something to return; infinity when nothing waits."""
        return self._due[0][0] if self._due else math.inf

    def active(self, now: float) -> int:
        """How many streams may not speak at once."""
        return sum(gate.kept is not None or gate.opens_at > now for gate in self._gates.values())

    @property
    def kept(self) -> int:
        """Events that wait for their moment."""
        return sum(gate.kept is not None for gate in self._gates.values())

    def _wait(self, due: float, stream: Stream) -> None:
        self._order += 1
        heapq.heappush(self._due, (due, self._order, stream))
