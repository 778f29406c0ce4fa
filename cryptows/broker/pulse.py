"""One client's heartbeat: when to ask for a sign of life, and when its silence has been too long.

A ping goes out each `interval`; its pong must come within `timeout`. Nothing else counts as a sign
of life: a client whose reading side hangs may well go on sending. The reaper keeps the time for all
clients, so that none needs a timer of its own.
"""

from __future__ import annotations

import attrs


@attrs.frozen
class Due:
    """What a tick says: send a ping, give the client up, and when to ask again."""

    next: float
    ping: bool = False
    overdue: bool = False


@attrs.define
class Pulse:
    """The heartbeat of a client. Times in seconds of one clock."""

    interval: float
    timeout: float
    _pinged_at: float  # at first: when it connected
    _waiting: bool = attrs.field(default=False, init=False)

    def pong(self) -> None:
        """Note a pong."""
        self._waiting = False

    def tick(self, now: float) -> Due:
        """Return what is due at `now`; ticks may come late, but not before `Due.next`."""
        if self._waiting and now >= self._pinged_at + self.timeout:
            return Due(now, overdue=True)
        if not self._waiting and now >= self._pinged_at + self.interval:
            self._pinged_at, self._waiting = now, True
            return Due(now + min(self.timeout, self.interval), ping=True)
        if self._waiting:  # a late pong does not put the next ping off until it was overdue
            return Due(min(self._pinged_at + self.timeout, now + self.interval))
        return Due(self._pinged_at + self.interval)
