"""What each request does, and how it is answered: the same for both dialects.

Every request is answered by one message that echoes its `id`; a bad channel in a subscription does
not spoil the others. Nothing here waits: changes of subscriptions take place between two passes of
the dispatcher, so that confirmation, snapshot and live events follow each other without a gap.
Protocol sections 2, 4 and 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import attrs
import msgspec

from cryptows.broker.auth import Identity, Verifier
from cryptows.broker.counters import Counters
from cryptows.broker.freshness import Freshness
from cryptows.broker.journal import Journal
from cryptows.broker.limits import Bans, RequestLimiter, Verdict, client_key
from cryptows.broker.outbox import Outbox
from cryptows.broker.replay import (
    LAST,
    Query,
    Recover,
    is_large,
    marked,
    read_offset,
    read_query,
    snapshot_of,
)
from cryptows.broker.routes import Audience, Routes
from cryptows.broker.session import Session, Subscribed
from cryptows.config.settings import Settings
from cryptows.model.channel import ChannelTable, Pattern
from cryptows.model.errors import CryptowsError, Refusal, RequestError
from cryptows.model.event import Record
from cryptows.wire import envelope
from cryptows.wire.requests import Request

Texts = Sequence[tuple[bytes, bytes | None]]  # envelopes with their offsets

UNAUTHORIZED, EXPIRED, BANNED = 4001, 4002, 4029
_ERROR_OF = {UNAUTHORIZED: "unauthorized", EXPIRED: "token_expired", BANNED: "rate_limited"}


class Peer(Protocol):
    """A client as the answers see it."""

    session: Session
    audience: Audience
    outbox: Outbox | None
    skipped: int

    def message(self, text: bytes, offset: bytes | None = None) -> None:
        """Send an envelope to this client."""
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

    def between_passes(self, change: Callable[[], None], peer: Peer | None = None) -> None:
        """Make a change to the routes now, or when the pass that is being written has ended.

        Should it fail then, that ends the peer it is for.
        """
        ...


@attrs.define
class Answers:
    """The requests' counter. `now` is the steady clock in seconds, `now_ms` Unix time."""

    desk: Desk

    def handle(
        self, peer: Peer, request: Request, now: float, now_ms: int
    ) -> Recover | Query | None:
        """Answer one request; return what the client's task has to read for the answer, if so."""
        if not self.within_limits(peer, request, now, now_ms):
            return None
        try:
            self._check_token(peer, request)
            match request.type:
                case "subscribe":
                    plan = self._plan(peer, request)
                    if plan is not None:
                        return plan
                    change = partial(self._subscribe, peer, request, now_ms)
                    self.desk.between_passes(change, peer)
                case "unsubscribe":
                    change = partial(self._unsubscribe, peer, request, now_ms)
                    self.desk.between_passes(change, peer)
                case "authenticate":
                    change = partial(self._authenticate, peer, request, now_ms)
                    self.desk.between_passes(change, peer)
                case "list":
                    self._list(peer, request, now_ms)
                case "ping":
                    peer.answer(request, envelope.message("pong", {}, now_ms, request.id))
                case "history":
                    assert request.channel is not None
                    pattern = peer.session.readable(request.channel, self.desk.table)
                    return read_query(request, pattern, self.desk.journal)
                case "ack":
                    self._acknowledge(peer, request, now_ms)
                case _:
                    raise AssertionError(request.type)  # requests.checked() knows them all
        except RequestError as error:
            self._error(peer, error, request, now_ms)
        return None

    def refuse(
        self, peer: Peer, error: RequestError, now: float, now_ms: int, blank: Request | None = None
    ) -> None:
        """Answer a request that could not be read; it counts like any other.

        `blank` stands for it where the answer needs more than the id.
        """
        request = blank or Request("")
        request.id = error.extra.pop("id", None)
        if self.within_limits(peer, request, now, now_ms):
            self._error(peer, error, request, now_ms)

    def reject(self, peer: Peer, error: RequestError, request: Request, now_ms: int) -> None:
        """Answer a request with an error that showed only while it was carried out."""
        self._error(peer, error, request, now_ms)

    def history(
        self, peer: Peer, query: Query, events: Sequence[bytes], more: bool, now_ms: int
    ) -> None:
        """Answer a history request with the envelopes found; cut to what a client may be sent."""
        room, fitting = self.desk.settings.delivery.outbox // 2, 0
        for event in events:
            room -= len(event) + 1
            if room < 0:
                break
            fitting += 1
        data = {
            "channel": str(query.pattern),
            "events": [msgspec.Raw(event) for event in events[:fitting]],
            "more": more or fitting < len(events),
        }
        peer.answer(query.request, envelope.message("history", data, now_ms, query.request.id))

    def welcome(self, peer: Peer, now_ms: int) -> None:
        """Send the `connection` message, the first of every session."""
        desk = self.desk
        data = {
            **peer.session.describe(),
            "epoch": desk.journal.epoch,
            "heartbeatInterval": int(desk.settings.heartbeat.interval * 1000),
            "channels": peer.session.available(desk.table),
        }
        offset = desk.journal.offset
        peer.message(envelope.message("connection", data, now_ms, offset=offset), offset)

    def turn_away(self, peer: Peer, refusal: Refusal, now_ms: int) -> None:
        """Tell a client why it is not welcome, and end it."""
        code = _ERROR_OF.get(refusal.code, "forbidden")
        extra = {}
        if refusal.retry_after is not None:
            extra["retryAfterMs"] = math.ceil(refusal.retry_after * 1000)
        self._error(peer, RequestError(code, refusal.reason, extra), None, now_ms)
        peer.end(refusal)

    def heartbeat(self, peer: Peer, now: float, now_ms: int) -> bytes:
        """Return the `heartbeat` envelope: this client's own lag, and how old its channels are."""
        lag = 0.0 if peer.outbox is None else peer.outbox.lag(now)
        skipped = peer.skipped + (0 if peer.outbox is None else peer.outbox.skipped)
        ages = {}
        for pattern in peer.session.patterns:
            heard = self.desk.journal.heard(pattern)
            ages[str(pattern)] = None if heard is None else int((now - heard) * 1000)
        data = {"lagMs": int(lag * 1000), "skipped": skipped, "channels": ages}
        return envelope.message("heartbeat", data, now_ms)

    # limits

    def within_limits(self, peer: Peer, request: Request, now: float, now_ms: int) -> bool:
        """Count a request; answer the one that is too many, and ban who will not listen."""
        desk, session = self.desk, peer.session
        desk.counters.requests += 1
        key = client_key(session.identity.user_id, session.address)
        decision = desk.limiter.check(key, now)
        if decision.verdict is Verdict.ALLOW:
            return True
        desk.counters.rate_limited += 1
        limits = desk.settings.limits
        if decision.verdict is Verdict.REFUSE:
            text = f"more than {limits.requests} requests in {limits.window:g} s"
            extra = {"retryAfterMs": decision.retry_after_ms}
            self._error(peer, RequestError("rate_limited", text, extra), request, now_ms)
            return False
        desk.counters.bans += 1
        desk.bans.ban(session.identity.user_id, session.address, now)
        reason = f"rate limit broken again and again; come back in {limits.ban:g} s"
        refusal = Refusal(BANNED, reason, come_back=False, retry_after=limits.ban)
        self.turn_away(peer, refusal, now_ms)
        return False

    def _error(self, peer: Peer, error: RequestError, request: Request | None, now_ms: int) -> None:
        self.desk.counters.request_failed(error.code)
        id_ = None if request is None else request.id
        text = envelope.error(error.code, error.message, now_ms, id_, error.extra)
        if request is None:
            peer.message(text)
        else:
            peer.answer(request, text)

    # requests

    def _check_token(self, peer: Peer, request: Request) -> None:
        """Where a token is required, raise RequestError for whatever comes before it."""
        if self.desk.settings.auth.anonymous or peer.session.authenticated:
            return
        if request.type not in ("authenticate", "ping"):
            raise RequestError("unauthorized", "authenticate first: a token is required here")

    def _plan(self, peer: Peer, request: Request) -> Recover | None:
        """Return the plan of a request that takes reading; None: it can be answered at once."""
        outcome = self._decide(peer, request)
        if not outcome.granted:
            return None
        if request.since is None:
            most = self.desk.settings.delivery.outbox
            if not is_large(self._last_values(peer, outcome), most):
                return None
            return Recover(request, outcome.patterns, outcome.granted, outcome.denied, None)
        known, since, last = True, 0, request.since == LAST
        if last:
            if not peer.session.authenticated:
                raise RequestError("bad_request", 'since: "last" needs a token')
        else:
            position = read_offset(request.since, self.desk.journal)
            known, since = position is not None, position or 0
        return Recover(
            request, outcome.patterns, outcome.granted, outcome.denied, since, known, last
        )

    def _decide(self, peer: Peer, request: Request) -> Subscribed:
        assert request.channels is not None
        most = self.desk.settings.limits.subscriptions
        return peer.session.subscribe(request.channels, self.desk.table, most)

    def _last_values(self, peer: Peer, outcome: Subscribed) -> list[Record]:
        """Return what is the case on the channels that a client is about to subscribe to."""
        new = [p for p in outcome.granted if p not in peer.session.patterns]
        journal = self.desk.journal
        return snapshot_of(journal, self.desk.table, new, dict.fromkeys(new, journal.n))

    def _subscribe(self, peer: Peer, request: Request, now_ms: int) -> None:
        """Confirm, send the last values, and be live, all at one position of the journal."""
        session = peer.session
        if not session.open:
            return
        outcome = self._decide(peer, request)
        if not outcome.granted:
            first = outcome.denied[0]
            text = f"{first['channel']}: {first['message']}"
            error = RequestError(first["code"], text, {"denied": outcome.denied})
            self._error(peer, error, request, now_ms)
            return
        new = [p for p in outcome.granted if p not in session.patterns]
        values = self._last_values(peer, outcome)
        self._route(peer, outcome.patterns)
        data = {"channels": [str(p) for p in outcome.granted], "denied": outcome.denied}
        confirmed = envelope.message("subscription_confirmed", data, now_ms, request.id)
        peer.answer(request, confirmed)
        notices = [(text, None) for text in self.desk.freshness.notices(new, now_ms)]
        if values or notices:
            peer.messages([*marked(values, "snapshot"), *notices])

    def _acknowledge(self, peer: Peer, request: Request, now_ms: int) -> None:
        """Keep how far a user has got, for `since: "last"`."""
        assert request.offset is not None
        user_id = peer.session.identity.user_id
        if user_id is None:
            raise RequestError("bad_request", "ack: needs a token")
        position = read_offset(request.offset, self.desk.journal)
        if position is not None:
            self.desk.set_cursor(user_id, position)
        data = {"offset": request.offset}
        peer.answer(request, envelope.message("ack", data, now_ms, request.id))

    def _unsubscribe(self, peer: Peer, request: Request, now_ms: int) -> None:
        if not peer.session.open:
            return
        assert request.channels is not None
        wanted = {Pattern.parse(text) for text in request.channels}
        self._route(peer, peer.session.patterns - wanted)
        data = {"channels": request.channels}
        text = envelope.message("unsubscription_confirmed", data, now_ms, request.id)
        peer.answer(request, text)

    def _route(self, peer: Peer, patterns: frozenset[Pattern]) -> None:
        peer.session.patterns = patterns
        self.desk.routes.move(peer, patterns)

    def _list(self, peer: Peer, request: Request, now_ms: int) -> None:
        session = peer.session
        data = {
            "subscribed": sorted(str(p) for p in session.patterns),
            "channels": session.available(self.desk.table),
        }
        peer.answer(request, envelope.message("list", data, now_ms, request.id))

    def _authenticate(self, peer: Peer, request: Request, now_ms: int) -> None:
        session = peer.session
        if not session.open:
            return
        assert request.token is not None
        try:
            identity = self.desk.verifier.verify(request.token, now_ms / 1000)
            self._take_identity(peer, identity)
        except (Refusal, CryptowsError) as error:
            self._refuse_token(peer, error, request, now_ms)
            return
        data = {
            **session.describe(),
            "channels": session.available(self.desk.table),
            "expiresAt": _in_ms(identity.expires_at),
        }
        peer.answer(request, envelope.message("authenticated", data, now_ms, request.id))

    def _take_identity(self, peer: Peer, identity: Identity) -> None:
        peer.session.check_user(identity)  # before the seat, which would be another user's then
        peer.seat_as(identity.user_id)
        lost = peer.session.authenticate(identity, self.desk.table)
        if lost:
            self.desk.routes.move(peer, peer.session.patterns)

    def _refuse_token(
        self, peer: Peer, error: CryptowsError, request: Request, now_ms: int
    ) -> None:
        """A wrong first token ends the session; a wrong fresh one leaves the old in force."""
        code = UNAUTHORIZED
        name = "rate_limited"
        if isinstance(error, Refusal):
            code, name = error.code, _ERROR_OF.get(error.code, "unauthorized")
        self._error(peer, RequestError(name, str(error)), request, now_ms)
        if not peer.session.authenticated:
            peer.end(Refusal(code, str(error), come_back=code == EXPIRED))

    # time

    def check_session(self, peer: Peer, now: float, unix_now: float) -> float:
        """Do what the time demands of a session; return when to look again (steady clock)."""
        session, settings = peer.session, self.desk.settings
        expires = session.identity.expires_at
        if expires is not None:
            return self._check_expiry(peer, expires, now, unix_now)
        if session.authenticated:
            return math.inf
        return self._check_idle(peer, settings, now, int(unix_now * 1000))

    def _check_expiry(self, peer: Peer, expires: float, now: float, unix_now: float) -> float:
        left = expires - unix_now
        if left <= 0:
            refusal = Refusal(EXPIRED, "token expired", come_back=True)
            self.turn_away(peer, refusal, int(unix_now * 1000))
            return math.inf
        notice = self.desk.settings.auth.expiry_notice
        if left > notice:
            return now + left - notice
        if peer.session.warned_of != expires:
            peer.session.warned_of = expires
            data = {"expiresAt": _in_ms(expires), "remainingMs": int(left * 1000)}
            peer.message(envelope.message("token_expiring", data, int(unix_now * 1000)))
        return now + left

    def _check_idle(self, peer: Peer, settings: Settings, now: float, now_ms: int) -> float:
        session = peer.session
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


def _in_ms(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1000)
