"""What the answers need of a client, and of the daemon around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cryptows.broker.auth import Verifier
from cryptows.broker.counters import Counters
from cryptows.broker.freshness import Freshness
from cryptows.broker.journal import Journal
from cryptows.broker.limits import Bans, RequestLimiter
from cryptows.broker.outbox import Outbox
from cryptows.broker.routes import Audience, Routes
from cryptows.broker.session import Session
from cryptows.config.settings import Settings
from cryptows.model.channel import ChannelTable
from cryptows.model.errors import Refusal
from cryptows.wire.requests import Request

Texts = Sequence[tuple[bytes, bytes | None]]  # envelopes with their offsets


class Peer(Protocol):
    """A client as the answers see it."""

    session: Session
    audience: Audience
    outbox: Outbox | None
    skipped: int

    def message(self, text: bytes, offset: bytes | None = None) -> None:
        """Send an envelope to this client; `offset` is what it recovers by from now on."""
        ...

    def messages(self, texts: Texts) -> None:
        """Send several envelopes in one write."""
        ...

    def answer(self, request: Request, text: bytes) -> None:
        """Send the envelope that answers a request."""
        ...

    def end(self, refusal: Refusal) -> None:
        """Say goodbye."""
        ...

    def seat_as(self, user_id: str | None) -> None:
        """Count the connection as this user's; raises Full."""
        ...

    def failed(self, error: Exception) -> None:
        """End because of an exception that should not have been raised."""
        ...


class Desk(Protocol):
    """What the answers need of the daemon."""

    settings: Settings
    verifier: Verifier
    limiter: RequestLimiter
    bans: Bans
    journal: Journal
    routes: Routes
    counters: Counters
    freshness: Freshness

    @property
    def table(self) -> ChannelTable:
        """The channels there are."""
        ...

    def set_cursor(self, user_id: str, position: int) -> None:
        """Remember how far a user acknowledged."""
        ...
