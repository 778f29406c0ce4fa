"""Signing in during a session: by the first message, or with a fresh token in place of the old.

What a handshake is refused for is refused here too: a wrong token, a ban, too many connections.
"""

from __future__ import annotations

from cryptows.broker.admission import Full
from cryptows.broker.peer import Desk, Peer
from cryptows.model.channel import Pattern
from cryptows.model.errors import Refusal

UNAUTHORIZED, EXPIRED, BANNED = 4001, 4002, 4029
CROWDED = 5.0  # seconds after which a user with too many connections may try again


def sign_in(peer: Peer, desk: Desk, token: str, now: float, unix_now: float) -> tuple[Pattern, ...]:
    """Make a client the bearer of a token; return the subscriptions that it does not cover.

    Raises Refusal, and then nothing has changed.
    """
    session = peer.session
    identity = desk.verifier.verify(token, unix_now)
    session.check_user(identity)  # before the seat, which would be another user's then
    wait = desk.bans.retry_after(identity.user_id, session.address, now)
    if wait is not None:
        raise Refusal(
            BANNED, "banned for breaking the rate limit", come_back=False, retry_after=wait
        )
    try:
        peer.seat_as(identity.user_id)
    except Full as full:
        raise Refusal(BANNED, str(full), come_back=False, retry_after=CROWDED) from None
    return session.authenticate(identity, desk.table)
