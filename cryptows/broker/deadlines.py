"""What the time demands of a session: tokens end, and nobody stays without a purpose.

A clock may be set while the daemon runs, so the times that tokens name are looked at with every
tick of a client and not only when they were to come.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs

from cryptows.broker.peer import Desk, Peer
from cryptows.broker.signin import EXPIRED, UNAUTHORIZED
from cryptows.model.errors import Refusal
from cryptows.wire import envelope


@attrs.define
class Deadlines:
    """Looks at one client's session. `turn_away` tells a client why, and ends it."""

    desk: Desk
    turn_away: Callable[[Peer, Refusal, int], None]

    def check(self, peer: Peer, now: float, unix_now: float) -> float:
        """Do what is due; return when to look again, on the steady clock of `now`."""
        session = peer.session
        expires = session.identity.expires_at
        if expires is not None:
            return self._check_expiry(peer, expires, now, unix_now)
        if session.authenticated:
            return math.inf
        return self._check_purpose(peer, now, int(unix_now * 1000))

    def _check_expiry(self, peer: Peer, expires: float, now: float, unix_now: float) -> float:
        left, now_ms = expires - unix_now, int(unix_now * 1000)
        if left <= 0:
            self.turn_away(peer, Refusal(EXPIRED, "token expired", come_back=True), now_ms)
            return math.inf
        notice = self.desk.settings.auth.expiry_notice
        if left > notice:
            return now + left - notice
        if peer.session.warned_of != expires:
            peer.session.warned_of = expires
            data = {"expiresAt": in_ms(expires), "remainingMs": int(left * 1000)}
            peer.message(envelope.message("token_expiring", data, now_ms))
        return now + left

    def _check_purpose(self, peer: Peer, now: float, now_ms: int) -> float:
        """A client without a token has to bring one, or to subscribe to something."""
        session, settings = peer.session, self.desk.settings
        if not settings.auth.anonymous:
            deadline = session.since + settings.server.handshake_timeout
            if now >= deadline:
                refusal = Refusal(UNAUTHORIZED, "no token in time", come_back=False)
                self.turn_away(peer, refusal, now_ms)
                return math.inf
            return deadline
        if session.patterns:
            session.since = now
            return math.inf
        deadline = session.since + settings.limits.anonymous_idle
        if now >= deadline:
            peer.end(Refusal(UNAUTHORIZED, "no token and no subscription", come_back=False))
            return math.inf
        return deadline


def in_ms(seconds: float | None) -> int | None:
    """Return a Unix time as clients get it."""
    return None if seconds is None else int(seconds * 1000)
