"""A broker that could not be simpler: lists of everything, walked from end to end.

It numbers nothing but streams, keeps all it ever published, and knows nothing of clients. The model
test hands it what the real one gets, and compares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

Key = tuple[str, str | None]  # of a stream: channel and symbol


@attrs.frozen
class Rules:
    """The rules of a channel that matter here."""

    interval: float = 0.0
    durable: bool = False


@attrs.frozen
class Entry:
    """An event on a stream: which one, and how many it stands for beside itself."""

    event: int
    replaced: int = 0


@attrs.define
class Gate:
    """The throttle of a stream: when it may speak, and all that waits, in order."""

    opens_at: float
    waiting: list[int] = attrs.field(factory=list)
    since: int = 0  # the first of them: a number that only grows


@attrs.define
class Naive:
    """The broker. `channels`: the rules of each channel by the beginning of its name."""

    channels: Mapping[str, Rules]
    streams: dict[Key, list[Entry]] = attrs.field(factory=dict)
    log: list[tuple[Key, int]] = attrs.field(factory=list)  # stream and seq, as published
    held: list[tuple[int, list[Key]]] = attrs.field(factory=list)
    flying: list[tuple[int, list[Key]]] = attrs.field(factory=list)
    gates: dict[Key, Gate] = attrs.field(factory=dict)
    _kept: int = 0

    def rules(self, channel: str) -> Rules:
        """The rules of a channel; those of a user have his id behind an underscore."""
        return self.channels[channel.partition("_")[0]]

    def accept(self, event: int, streams: Sequence[Key], now: float) -> None:
        """Take an event for some streams."""
        behind = {channel for _, those in self.held + self.flying for channel, _ in those}
        if any(self.rules(c).durable or c in behind for c, _ in streams):
            self.held.append((event, list(streams)))
            return
        for stream in streams:
            self.offer(event, stream, now)

    def offer(self, event: int, stream: Key, now: float) -> None:
        """Publish an event on a stream, or let it wait for the end of its interval."""
        interval = self.rules(stream[0]).interval
        gate = self.gates.get(stream)
        if interval and gate is not None and now < gate.opens_at:
            if not gate.waiting:
                self._kept += 1
                gate.since = self._kept
            gate.waiting.append(event)
            return
        self.emit(event, stream, 0 if gate is None else len(gate.waiting))
        if interval:
            self.gates[stream] = Gate(now + interval)

    def release(self, now: float) -> None:
        """Publish what has waited long enough."""
        due = [(g.opens_at, g.since, s) for s, g in self.gates.items() if g.waiting]
        for opens_at, _, stream in sorted(due, key=lambda entry: entry[:2]):
            if opens_at <= now:
                *replaced, newest = self.gates[stream].waiting
                self.emit(newest, stream, len(replaced))
                self.gates[stream] = Gate(now + self.rules(stream[0]).interval)

    def emit(self, event: int, stream: Key, replaced: int) -> None:
        """Publish."""
        entries = self.streams.setdefault(stream, [])
        entries.append(Entry(event, replaced))
        self.log.append((stream, len(entries)))

    def send_to_store(self) -> None:
        """What is held is on its way."""
        self.flying, self.held = self.held, []

    def settle(self, now: float) -> None:
        """What was on its way came back: first what was stored, then the rest."""
        flying, self.flying = self.flying, []
        for event, streams in flying:
            for stream in streams:
                if self.rules(stream[0]).durable:
                    self.emit(event, stream, 0)
        for event, streams in flying:
            for stream in streams:
                if not self.rules(stream[0]).durable:
                    self.offer(event, stream, now)

    def seqs(self) -> dict[Key, int]:
        """How many events each stream had."""
        return {stream: len(entries) for stream, entries in self.streams.items()}
