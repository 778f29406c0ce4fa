"""Limits on connections: how many at once, in all, of one address, of one user, and how fast.

Every connection holds a `Seat` from accept to close. Giving a seat back twice changes nothing, so
whoever cleans up need not know who did before; the counts can neither leak nor go negative.
"""

from __future__ import annotations

import enum
import math
from types import TracebackType
from typing import Self

import attrs

from cryptows.broker.addresses import UNIX, counted_as
from cryptows.config.settings import Limits
from cryptows.model.errors import CryptowsError

RETRY_AFTER = 5.0  # seconds until a connection too many may try again
BURST = 0.1  # seconds' worth of connections that are accepted without a pause


class Scope(enum.Enum):
    """What a limit on connections counts."""

    ALL = "in all"
    ADDRESS = "of this address"
    USER = "of this user"


class Full(CryptowsError):
    """No further connection. `status` is HTTP's: 503 if nobody may, 429 if this one may not."""

    def __init__(self, scope: Scope, limit: int) -> None:
        super().__init__(f"too many connections {scope.value}, at most {limit}")
        self.scope = scope
        self.limit = limit
        self.status = 503 if scope is Scope.ALL else 429


@attrs.define(eq=False)
class Seat:
    """One connection's place in the counts. As a context manager it gives itself back."""

    _counts: ConnectionCounts
    address: str
    user_id: str | None = None
    _held: bool = attrs.field(default=True, init=False)

    def move(self, user_id: str | None) -> None:
        """Count this connection as another user's; None: as nobody's.

        Raises Full, and then nothing has changed.
        """
        if self._held and user_id != self.user_id:
            self._counts._move(self, user_id)

    def release(self) -> None:
        """Give the seat back; again and again if need be."""
        if self._held:
            self._held = False
            self._counts._release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class ConnectionCounts:
    """The connections there are. The dicts hold only what is above zero."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits  # exchanged on reload; who is seated stays
        self.total = 0
        self._of_address: dict[str, int] = {}
        self._of_user: dict[str, int] = {}

    def acquire(self, address: str, user_id: str | None = None) -> Seat:
        """Return a seat for a new connection; raises Full, and then nothing has changed.

        `UNIX` is everybody whose address is not known, and no limit of one address.
        """
        if self.total >= self.limits.connections:
            raise Full(Scope.ALL, self.limits.connections)
        if self.of_address(address) >= self.limits.connections_per_address:
            raise Full(Scope.ADDRESS, self.limits.connections_per_address)
        self._check_user(user_id)
        self.total += 1
        _add(self._of_address, _counted(address), 1)
        _add(self._of_user, user_id, 1)
        return Seat(self, address, user_id)

    def of_address(self, address: str) -> int:
        """How many connections an address has."""
        return self._of_address.get(counted_as(address), 0)

    def of_user(self, user_id: str) -> int:
        """How many connections a user has."""
        return self._of_user.get(user_id, 0)

    @property
    def addresses(self) -> int:
        """How many addresses are connected."""
        return len(self._of_address)

    @property
    def users(self) -> int:
        """How many users are connected."""
        return len(self._of_user)

    def _check_user(self, user_id: str | None) -> None:
        if user_id is not None and self.of_user(user_id) >= self.limits.connections_per_user:
            raise Full(Scope.USER, self.limits.connections_per_user)

    def _move(self, seat: Seat, user_id: str | None) -> None:
        self._check_user(user_id)
        _add(self._of_user, seat.user_id, -1)
        _add(self._of_user, user_id, 1)
        seat.user_id = user_id

    def _release(self, seat: Seat) -> None:
        self.total -= 1
        _add(self._of_address, _counted(seat.address), -1)
        _add(self._of_user, seat.user_id, -1)


class AcceptRate:
    """At most `rate` new connections a second, evenly; the others wait in the kernel's backlog."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free_at = -math.inf  # when the turn after the last one taken is

    def configure(self, rate: float) -> None:
        """Change the rate."""
        self._rate = rate

    def delay(self, now: float) -> float:
        """Take the next turn; return how many seconds to wait before that accept."""
        turn = max(self._free_at, now)
        self._free_at = turn + 1 / self._rate
        return max(0.0, turn - now - max(0.0, BURST - 1 / self._rate))


def _counted(address: str) -> str | None:
    return None if address == UNIX else counted_as(address)


def _add(counts: dict[str, int], key: str | None, change: int) -> None:
    if key is not None:
        count = counts.get(key, 0) + change
        if count:
            counts[key] = count
        else:
            del counts[key]
