"""What each request does, and how it is answered: the same for both dialects.

Every request is answered by one message that echoes its `id`; a bad channel in a subscription does
not spoil the others. Nothing here waits. Requests are handled between two passes of the dispatcher,
so that confirmation, snapshot and live events follow each other without a gap; what takes reading
is returned as a plan. Protocol sections 2, 4 and 5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import msgspec

from cryptows.broker.deadlines import Deadlines, in_ms
from cryptows.broker.limits import Verdict, client_key
from cryptows.broker.peer import Desk, Peer
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
from cryptows.broker.routes import NOTHING
from cryptows.broker.session import Subscribed
from cryptows.broker.signin import BANNED, EXPIRED, UNAUTHORIZED, sign_in
from cryptows.model.channel import Pattern
from cryptows.model.errors import Refusal, RequestError
from cryptows.wire import envelope
from cryptows.wire.requests import Request

_ERROR_OF = {UNAUTHORIZED: "unauthorized", EXPIRED: "token_expired", BANNED: "rate_limited"}


@attrs.define
class Answers:
    """The requests' counter. `now` is the steady clock in seconds, `now_ms` Unix time."""

    desk: Desk
    _deadlines: Deadlines = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._deadlines = Deadlines(self.desk, self.turn_away)

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
                    return self._subscribe(peer, request, now_ms)
                case "unsubscribe":
                    self._unsubscribe(peer, request, now_ms)
                case "authenticate":
                    self._authenticate(peer, request, now, now_ms)
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
        """Answer a history request with the envelopes found; cut to what a client may be sent.

        What is cut is what is farthest from where the client begins to read.
        """
        from_end = query.request.since is None and not query.newest
        room, fitting = self.desk.settings.delivery.outbox // 2, 0
        for event in reversed(events) if from_end else events:
            room -= len(event) + 1
            if room < 0:
                break
            fitting += 1
        kept = events[len(events) - fitting :] if from_end else events[:fitting]
        data = {
            "channel": str(query.pattern),
            "events": [msgspec.Raw(event) for event in kept],
            "more": more or fitting < len(events),
        }
        if not query.known:
            data["recovered"] = False
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
        self._error(peer, _error_of(refusal), None, now_ms)
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
        key = client_key(session.identity.user_id, session.address, session.id)
        banned_for = desk.bans.remaining(key, now)
        if banned_for:  # for what he did on another connection
            self._turn_away_banned(peer, banned_for, now_ms)
            return False
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
        self._turn_away_banned(peer, limits.ban, now_ms)
        return False

    def _turn_away_banned(self, peer: Peer, seconds: float, now_ms: int) -> None:
        reason = f"rate limit broken again and again; come back in {seconds:.3g} s"
        refusal = Refusal(BANNED, reason, come_back=False, retry_after=seconds)
        self.turn_away(peer, refusal, now_ms)

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

    def _subscribe(self, peer: Peer, request: Request, now_ms: int) -> Recover | None:
        """Confirm, send the last values, and be live, all at one position of the journal.

        What has to be read, or is too much for one write, is returned as a plan instead.
        """
        assert request.channels is not None
        session, desk = peer.session, self.desk
        outcome = session.subscribe(
            request.channels, desk.table, desk.settings.limits.subscriptions
        )
        if not outcome.granted:
            first = outcome.denied[0]
            text = f"{first['channel']}: {first['message']}"
            raise RequestError(first["code"], text, {"denied": outcome.denied})
        if request.since is not None:
            return self._recovery(peer, request, request.since, outcome)
        new = [p for p in outcome.granted if p not in session.patterns]
        journal = desk.journal
        values = snapshot_of(journal, desk.table, new, dict.fromkeys(new, journal.n))
        if is_large(values, desk.settings.delivery.outbox):
            return Recover(request, outcome.patterns, outcome.granted, outcome.denied, None)
        texts: list[tuple[bytes, bytes | None]] = [*marked(values, "snapshot")]
        if session.patterns:
            # Where a client recovers must not fall behind what it has of its other channels.
            texts = [(text, journal.offset) for text, _ in texts]
        texts += [(text, None) for text in desk.freshness.notices(new, now_ms)]
        self._route(peer, outcome.patterns)
        data = {"channels": [str(p) for p in outcome.granted], "denied": outcome.denied}
        confirmed = envelope.message("subscription_confirmed", data, now_ms, request.id)
        peer.answer(request, confirmed)
        if texts:
            peer.messages(texts)
        return None

    def _recovery(self, peer: Peer, request: Request, since: str, outcome: Subscribed) -> Recover:
        """Return the plan of a request with `since`."""
        known, position, last = True, None, since == LAST
        if last:
            if not peer.session.authenticated:
                raise RequestError("bad_request", 'since: "last" needs a token')
        else:
            position = read_offset(since, self.desk.journal)
            known = position is not None
        return Recover(
            request, outcome.patterns, outcome.granted, outcome.denied, position or 0, known, last
        )

    def _acknowledge(self, peer: Peer, request: Request, now_ms: int) -> None:
        """Keep how far a user has got, for `since: "last"`."""
        assert request.offset is not None
        user_id = peer.session.identity.user_id
        if user_id is None:
            raise RequestError("bad_request", "ack: needs a token")
        position = read_offset(request.offset, self.desk.journal, "offset")
        if position is not None:
            self.desk.set_cursor(user_id, position)
        data = {"offset": request.offset}
        peer.answer(request, envelope.message("ack", data, now_ms, request.id))

    def _unsubscribe(self, peer: Peer, request: Request, now_ms: int) -> None:
        assert request.channels is not None
        wanted = {Pattern.parse(text) for text in request.channels}
        self._route(peer, peer.session.patterns - wanted)
        data = {"channels": request.channels}
        text = envelope.message("unsubscription_confirmed", data, now_ms, request.id)
        peer.answer(request, text)

    def _route(self, peer: Peer, patterns: frozenset[Pattern]) -> None:
        if patterns != peer.session.patterns:
            peer.session.patterns = patterns
            self.desk.routes.move(peer, patterns)

    def _list(self, peer: Peer, request: Request, now_ms: int) -> None:
        session = peer.session
        data = {
            "subscribed": sorted(str(p) for p in session.patterns),
            "channels": session.available(self.desk.table),
        }
        peer.answer(request, envelope.message("list", data, now_ms, request.id))

    def _authenticate(self, peer: Peer, request: Request, now: float, now_ms: int) -> None:
        assert request.token is not None
        session = peer.session
        try:
            lost = sign_in(peer, self.desk, request.token, now, now_ms / 1000)
        except Refusal as refusal:
            # A wrong first token ends the session; a wrong fresh one leaves the old in force.
            self._error(peer, _error_of(refusal), request, now_ms)
            if not session.authenticated:
                peer.end(refusal)
            return
        data = {
            **session.describe(),
            "channels": session.available(self.desk.table),
            "expiresAt": in_ms(session.identity.expires_at),
        }
        if lost:
            self.desk.routes.move(peer, session.patterns)
            data["unsubscribed"] = sorted(map(str, lost))
        peer.answer(request, envelope.message("authenticated", data, now_ms, request.id))

    # what nobody asked for

    def check_session(self, peer: Peer, now: float, unix_now: float) -> float:
        """Do what the time demands of a session; return when to look again (steady clock)."""
        return self._deadlines.check(peer, now, unix_now)

    def review(self, peer: Peer, now_ms: int) -> None:
        """Take away the subscriptions that are not allowed any more after a reload."""
        lost = peer.session.review(self.desk.table)
        if not lost:
            return
        if peer.audience.patterns != NOTHING:  # else it is still being made up for
            self.desk.routes.move(peer, peer.session.patterns)
        data = {"channels": sorted(map(str, lost)), "reason": "not allowed any more"}
        peer.message(envelope.message("unsubscription_confirmed", data, now_ms))


def _error_of(refusal: Refusal) -> RequestError:
    """Return what a client is told of a refusal before it is ended, if it is."""
    extra = {}
    if refusal.retry_after is not None:
        extra["retryAfterMs"] = math.ceil(refusal.retry_after * 1000)
    return RequestError(_ERROR_OF.get(refusal.code, "forbidden"), refusal.reason, extra)
