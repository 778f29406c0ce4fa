"""When each line of a publication is due: at once, at a rate, or as it was recorded.

A pace is asked line by line and answers in seconds since the start; the publisher waits. Keeping to
due times, instead of sleeping between lines, makes a late line catch up.
"""

from __future__ import annotations

import math
import re
from typing import Protocol

import attrs
import msgspec

RATE = re.compile(r"(\d+(?:\.\d+)?)/s", re.ASCII)


class Pace(Protocol):
    """Says when lines are due."""

    def due(self, line: bytes) -> float:
        """Return when the next line is due, in seconds since the start; never less than before."""
        ...

    def again(self) -> None:
        """Take note that the lines begin anew (`--repeat`)."""
        ...


@attrs.define
class AtOnce:
    """Every line is due now."""

    def due(self, line: bytes) -> float:
        return 0.0

    def again(self) -> None:
        pass


@attrs.define
class Steady:
    """So many lines a second."""

    rate: float
    _count: int = attrs.field(default=0, init=False)

    def due(self, line: bytes) -> float:
        due = self._count / self.rate
        self._count += 1
        return due

    def again(self) -> None:
        pass


class _Stamps(msgspec.Struct):
    ts: float | None = None
    timestamp: float | None = None


@attrs.define
class Recorded:
    """As the lines' times have it: `ts` (when it arrived), else `timestamp`, in ms.

    A line without a time, or with an earlier one than the line before, is due together with that.
    A repetition follows without a pause.
    """

    _zero: float | None = attrs.field(default=None, init=False)  # the time that is due at `_base`
    _base: float = attrs.field(default=0.0, init=False)
    _last: float = attrs.field(default=0.0, init=False)
    _read: msgspec.json.Decoder[_Stamps] = attrs.field(
        factory=lambda: msgspec.json.Decoder(_Stamps), init=False
    )

    def due(self, line: bytes) -> float:
        at = self._time_of(line)
        if at is not None:
            if self._zero is None:
                self._zero = at
            due = self._base + (at - self._zero) / 1000
            if self._last < due < math.inf:
                self._last = due
        return self._last

    def again(self) -> None:
        self._zero = None
        self._base = self._last

    def _time_of(self, line: bytes) -> float | None:
        try:
            stamps = self._read.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None  # the daemon will say what is wrong with it
        at = stamps.timestamp if stamps.ts is None else stamps.ts
        return at if at is not None and math.isfinite(at) else None


def parse_pace(text: str) -> Pace:
    """Return the pace of `asap`, `recorded` or `N/s`; raises ValueError."""
    if text == "asap":
        return AtOnce()
    if text == "recorded":
        return Recorded()
    match = RATE.fullmatch(text)
    if match is None or float(match[1]) == 0:
        raise ValueError(f'"{text[:40]}" is no pace; expected recorded, asap, or a rate as 100/s')
    return Steady(float(match[1]))
