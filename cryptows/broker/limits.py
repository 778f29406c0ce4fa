"""Limits on requests: who asked how often, and who is banned for it.

A client is a user, over all his connections, dialects and transports; without a token it is an
address, or where that is not known, one session. `RequestLimiter` keeps for each the times of the
last requests that passed, which makes it exact: request number `requests` + 1 passes when the first
is `window` seconds old, not before. How many connections there may be is in `admission`.
"""

from __future__ import annotations

import enum
import math
from array import array
from collections import OrderedDict

import attrs

from cryptows.broker.addresses import UNIX, counted_as

# More clients than can send anything within a window: limits.accept_rate times limits.window.
CLIENTS = 50_000
BANS = 50_000


def client_key(user_id: str | None, address: str, session: str = "") -> str:
    """Return whose requests are counted together; a user id may look like an address."""
    if user_id is not None:
        return f"user {user_id}"
    # Whose address is not known must not be counted, nor banned, for all the others like him.
    return f"session {session}" if address == UNIX else f"address {counted_as(address)}"


class Verdict(enum.Enum):
    """What happens to a request."""

    ALLOW = "allow"
    REFUSE = "refuse"  # answered with `rate_limited`
    BAN = "ban"  # close 4029


@attrs.frozen
class Decision:
    """A verdict, and for REFUSE after how many seconds the next request would pass."""

    verdict: Verdict
    retry_after: float = 0.0

    @property
    def retry_after_ms(self) -> int:
        """The same in milliseconds, rounded up: whoever waits that long is not refused again."""
        return math.ceil(self.retry_after * 1000)


ALLOW = Decision(Verdict.ALLOW)
BAN = Decision(Verdict.BAN)


class _Times:
    """The last `size` moments of something: a ring that grows with its use, 8 bytes each."""

    __slots__ = ("_at", "_size", "_times")

    def __init__(self, size: int) -> None:
        self._size = size
        self._times = array("d")
        self._at = 0  # where the oldest is, once the ring is full

    def add(self, now: float) -> None:
        if len(self._times) < self._size:
            self._times.append(now)
        else:
            self._times[self._at] = now
            self._at = (self._at + 1) % self._size

    def full_until(self, window: float) -> float:
        """When fewer than `size` moments will lie within the window."""
        full = len(self._times) == self._size
        return self._times[self._at] + window if full else -math.inf


class _Client:
    __slots__ = ("last", "passed", "refused")

    def __init__(self, requests: int, strikes: int) -> None:
        self.passed = _Times(requests)
        self.refused = _Times(strikes)
        self.last = 0.0


class RequestLimiter:
    """At most `requests` in any `window` seconds, for each client.

    A request beyond that is refused and is a strike. `strikes` of them within a window are
    forgiven; the next one is a ban. Refused requests do not lengthen the wait. A client is
    remembered for one window after its last request. Beyond `capacity` the one that was quiet
    longest is forgotten, and may then ask as if it had not asked before.
    """

    def __init__(
        self, requests: int, window: float, strikes: int, *, capacity: int = CLIENTS
    ) -> None:
        self._requests = requests
        self._window = window
        self._strikes = strikes
        self._capacity = capacity
        self._clients: OrderedDict[str, _Client] = OrderedDict()  # quiet longest first

    def __len__(self) -> int:
        return len(self._clients)

    def configure(self, requests: int, window: float, strikes: int) -> None:
        """Take other limits over; if they differ, every client begins anew."""
        if (requests, window, strikes) != (self._requests, self._window, self._strikes):
            self._requests, self._window, self._strikes = requests, window, strikes
            self._clients.clear()

    def check(self, key: str, now: float) -> Decision:
        """Count a request and decide about it. After BAN the client's record is clean."""
        client = self._clients.pop(key, None)
        if client is None:
            client = self._new_client(now)
        self._clients[key] = client  # now the last
        client.last = now
        opens = client.passed.full_until(self._window)
        if now >= opens:
            client.passed.add(now)
            return ALLOW
        if now < client.refused.full_until(self._window):
            del self._clients[key]
            return BAN
        client.refused.add(now)
        return Decision(Verdict.REFUSE, opens - now)

    def prune(self, now: float) -> None:
        """Forget the clients whose every request has left the window."""
        while self._clients:
            key = next(iter(self._clients))
            if now < self._clients[key].last + self._window:
                return
            del self._clients[key]

    def _new_client(self, now: float) -> _Client:
        if len(self._clients) >= self._capacity:
            self.prune(now)
        if len(self._clients) >= self._capacity:
            del self._clients[next(iter(self._clients))]
        return _Client(self._requests, self._strikes)


class Bans:
    """Users and addresses that stay out for a while; beyond `capacity` the oldest is let in."""

    def __init__(self, seconds: float, *, capacity: int = BANS) -> None:
        self._seconds = seconds
        self._capacity = capacity
        self._until: OrderedDict[str, float] = (
            OrderedDict()
        )  # client_key -> when it ends; the oldest ban first

    def __len__(self) -> int:
        return len(self._until)

    def configure(self, seconds: float) -> None:
        """Change how long further bans last."""
        self._seconds = seconds

    def ban(self, user_id: str | None, address: str, now: float) -> float:
        """Keep a user and the address out; return until when."""
        until = now + self._seconds
        for key in _banned_keys(user_id, address):
            self._until.pop(key, None)
            if len(self._until) >= self._capacity:
                self.prune(now)
            if len(self._until) >= self._capacity:
                del self._until[next(iter(self._until))]
            self._until[key] = until
        return until

    def until(self, user_id: str | None, address: str, now: float) -> float | None:
        """Return when the ban of this user or this address ends, or None if there is none."""
        if not self._until:
            return None
        keys = _banned_keys(user_id, address)
        end = max((self._until.get(key, -math.inf) for key in keys), default=-math.inf)
        return end if end > now else None

    def remaining(self, key: str, now: float) -> float:
        """Return for how many seconds a `client_key` is still banned; 0 if it is not."""
        return max(0.0, self._until.get(key, 0.0) - now)

    def retry_after(self, user_id: str | None, address: str, now: float) -> int | None:
        """Return the whole seconds until the ban ends (the `Retry-After` header), or None."""
        until = self.until(user_id, address, now)
        return None if until is None else math.ceil(until - now)

    def lift(self, user_id: str | None, address: str | None) -> bool:
        """End a ban early; return whether there was one."""
        keys = [client_key(user_id, "")] if user_id is not None else []
        keys += [client_key(None, address)] if address is not None else []
        lifted = [key for key in keys if self._until.pop(key, None) is not None]
        return bool(lifted)

    def prune(self, now: float) -> None:
        """Forget the bans that have ended."""
        while self._until:
            key = next(iter(self._until))
            if now < self._until[key]:
                return
            del self._until[key]


def _banned_keys(user_id: str | None, address: str) -> list[str]:
    keys = [] if address == UNIX else [client_key(None, address)]
    if user_id is not None:
        keys.append(client_key(user_id, address))
    return keys
