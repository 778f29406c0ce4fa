"""Lost Socket.IO connections that may be recovered: who they were and what they had subscribed.

A client that comes back shows its `pid`, a secret that only it was told, and the offset of the last
event it got; the journal has the events. So little is kept here, for a while and for so many. A
`pid` belongs to the user it was given to: another user's token does not open it. Once taken or
dropped it is gone.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import attrs
import msgspec

from cryptows.config.settings import Recovery
from cryptows.model.channel import Pattern


@attrs.frozen
class Lost:
    """A connection that was lost; `user_id` is None for an anonymous one."""

    sid: str
    user_id: str | None
    patterns: frozenset[Pattern]
    offset: str  # where it began, for one that was lost before its first event


class _Kept(msgspec.Struct, gc=False):
    """The same, packed: thousands of them must not weigh what they were worth alive."""

    until: float
    sid: str
    user_id: str | None
    patterns: bytes
    offset: str


_pack = msgspec.json.Encoder().encode
_unpack = msgspec.json.Decoder(list[str]).decode


class Recoveries:
    """What is remembered of lost connections, the one lost longest first."""

    def __init__(self, settings: Recovery) -> None:
        self.settings = settings  # exchanged by a reload
        self._lost: OrderedDict[str, _Kept] = OrderedDict()  # by pid

    def __len__(self) -> int:
        return len(self._lost)

    @property
    def enabled(self) -> bool:
        """Whether connections can be recovered at all."""
        return self.settings.window > 0 and self.settings.sessions > 0

    def keep(self, pid: str, lost: Lost, now: float) -> None:
        """Remember a lost connection; if there are too many, forget the oldest."""
        if not self.enabled:
            return
        self.prune(now)
        while len(self._lost) >= self.settings.sessions:
            del self._lost[next(iter(self._lost))]
        patterns = _pack([str(pattern) for pattern in lost.patterns])
        until = now + self.settings.window
        self._lost[pid] = _Kept(until, lost.sid, lost.user_id, patterns, lost.offset)

    def take(self, pid: str, user_id: str | None, now: float) -> Lost | None:
        """Return a lost connection of that user, and forget it; None if there is none."""
        self.prune(now)
        found = self._lost.get(pid)
        if found is None or found.user_id != user_id:
            return None
        del self._lost[pid]
        patterns = frozenset(map(Pattern.parse, _unpack(found.patterns)))
        return Lost(found.sid, found.user_id, patterns, found.offset)

    def next_end(self) -> float:
        """When `prune` has something to forget next."""
        return next(iter(self._lost.values())).until if self._lost else math.inf

    def prune(self, now: float) -> None:
        """Forget what was lost too long ago."""
        while self._lost:
            pid = next(iter(self._lost))
            if now < self._lost[pid].until:
                return
            del self._lost[pid]
