"""Revocations: users and tokens that are no longer believed, though their signature is right.

A user is revoked up to a moment: what was issued until then is refused, a token made later is not.
A single token is revoked by its `jti`. Nothing is ever forgotten to make room, because that would
let someone in again; when full, a further revocation is refused and the operator changes the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from cryptows.model.errors import CryptowsError

CAPACITY = 100_000  # entries, about 20 MB


class RevocationsFull(CryptowsError):
    """There is no room for a further revocation; change the signing key instead."""

    def __init__(self, capacity: int) -> None:
        super().__init__(f"{capacity} revocations are all that fit; change the signing key")


@attrs.define
class Revocations:
    """What is revoked. A Verifier asks on every use, so changes take effect at once."""

    capacity: int = CAPACITY
    _users: dict[str, float] = attrs.field(factory=dict, init=False)  # user id -> issued until
    # Token id -> when it expires and need not be remembered, None: never.
    _tokens: dict[str, float | None] = attrs.field(factory=dict, init=False)

    def __len__(self) -> int:
        return len(self._users) + len(self._tokens)

    def revoke_user(self, user_id: str, until: float) -> None:
        """Refuse the user's tokens issued at or before Unix time `until`, or at no stated time.

        Raises RevocationsFull.
        """
        self._check_room(user_id in self._users)
        self._users[user_id] = max(until, self._users.get(user_id, until))

    def revoke_token(self, jti: str, expires_at: float | None = None) -> None:
        """Refuse the token with this id; it is forgotten once it has expired anyway.

        Raises RevocationsFull.
        """
        self._check_room(jti in self._tokens)
        self._tokens[jti] = expires_at

    def restore_user(self, user_id: str) -> bool:
        """Take a user's revocation back; return whether there was one."""
        return self._users.pop(user_id, None) is not None

    def covers(self, user_id: str | None, jti: str | None, issued_at: float | None) -> bool:
        """Whether a token with these claims is revoked."""
        if jti is not None and jti in self._tokens:
            return True
        until = self._users.get(user_id) if user_id is not None else None
        return until is not None and (issued_at is None or issued_at <= until)

    def prune(self, now: float) -> None:
        """Forget the single tokens that have expired by now."""
        self._tokens = {j: e for j, e in self._tokens.items() if e is None or e > now}

    def dump(self) -> dict[str, Any]:
        """Return everything as plain data, to be kept over a restart."""
        return {"users": dict(self._users), "tokens": dict(self._tokens)}

    @classmethod
    def load(cls, data: Mapping[str, Any], capacity: int = CAPACITY) -> Revocations:
        """Rebuild from what `dump` returned."""
        loaded = cls(capacity)
        loaded._users.update(data["users"])
        loaded._tokens.update(data["tokens"])
        return loaded

    def _check_room(self, known: bool) -> None:
        if not known and len(self) >= self.capacity:
            raise RevocationsFull(self.capacity)
