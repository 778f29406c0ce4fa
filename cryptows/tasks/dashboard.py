"""A dashboard: a client of the daemon that speaks Socket.IO (protocol section 5).

What it asks is a request like those on `/ws`, answered by the same code; only the form differs: the
event's name is the request's type, and answers come by the ack callback, if there is one, and
always as a `message`. Its session begins with the CONNECT, which brings the token, and ends with
the namespace, while the transport may live longer. A lost connection may be recovered:
`recover.py`.
"""

from __future__ import annotations

import math
import secrets
import socket
import time
from typing import TYPE_CHECKING, Any

import attrs
import msgspec
import trio

from cryptows.broker.admission import RETRY_AFTER, Full
from cryptows.broker.auth import ANONYMOUS, Identity
from cryptows.broker.recovery import Lost
from cryptows.broker.session import Session, State, Step
from cryptows.model.errors import CryptowsError, Refusal, RequestError
from cryptows.tasks.clock import now_ms
from cryptows.tasks.endpoint import new_client_id
from cryptows.tasks.engineclient import LEFT
from cryptows.tasks.recover import SocketRecovery
from cryptows.tasks.socketio import SocketIoClient
from cryptows.wire import engineio, requests
from cryptows.wire.envelope import Packet
from cryptows.wire.socketsession import Connect, Event

if TYPE_CHECKING:
    from cryptows.broker.admission import Seat
    from cryptows.tasks.recover import DashboardMount
    from cryptows.wire.enginesession import EngineSession

CODES = {4001: "unauthorized", 4002: "token_expired", 4029: "rate_limited"}
WAIT = 0.02  # seconds between two looks whether a request is still being carried out


class Asked(requests.Request):
    """A request that came as an event, whose ack it is answered by."""

    event: Any = None  # an Event with an id, or None


class Unwelcome(CryptowsError):
    """A CONNECT that is refused: `message` and `data` of the client's `connect_error`."""

    def __init__(self, message: str, code: str, **more: Any) -> None:
        super().__init__(message)
        self.message = message
        self.data = {"code": code, **more}


class Dashboard(SocketIoClient):
    """A client on Socket.IO."""

    __slots__ = ("_asked_before", "_began_at", "_pid", "_recovering")

    mount: DashboardMount

    def __init__(
        self,
        mount: DashboardMount,
        engine: EngineSession,
        seat: Seat,
        sock: socket.socket | None,
        *,
        base64: bool = False,
    ) -> None:
        super().__init__(mount, engine, seat, sock, base64=base64)
        self._pid: str | None = None
        self._recovering: Lost | None = None  # what it comes back for, until it is let in
        self._began_at = ""  # the offset then
        self._asked_before = False

    # coming

    async def connecting(self, wish: Connect) -> None:
        now, auth = trio.current_time(), wish.auth or {}
        # A token may be guessed once for each connection; after that it counts as a request.
        if self._asked_before and not self._counted(now):
            self.refuse(wish.namespace, "too many requests", {"code": "rate_limited"})
            return
        self._asked_before = True
        pid, lost = auth.get("pid"), None
        if not isinstance(pid, str):
            pid = ""  # nobody's
        try:
            identity = self._identify(auth.get("token"), now)
            # Before it is counted: what it recovers may be the one connection too many.
            lost = self._take(pid, auth.get("offset"), identity, now)
            self._sit_down(identity)
        except Unwelcome as unwelcome:
            if lost is not None:
                self.mount.lose(pid, lost)  # it may try once more
            self.hub.counters.refused(unwelcome.data["code"])
            self.refuse(wish.namespace, unwelcome.message, unwelcome.data)
            return
        if lost is None:
            self.begin(identity)
            return
        self.session = Session(lost.sid, identity, self.seat.address, since=now)
        self._pid, self._recovering = pid, lost
        self.mount.live[pid] = self
        # Beside, because a slow client must go on being read for its pongs.
        self.beside(SocketRecovery(self.hub, self, lost, pid).run)

    def _take(self, pid: str, offset: object, identity: Identity, now: float) -> Lost | None:
        """Return the lost connection that the client comes back for, if it is its own."""
        if not self.mount.recoveries.enabled or not (offset is None or isinstance(offset, str)):
            return None
        lost = self.mount.take(pid, identity.user_id, now)
        return lost if lost is None or offset is None else attrs.evolve(lost, offset=offset)

    def astray(self, answer: Packet) -> None:
        if self._counted(trio.current_time()):
            super().astray(answer)

    def _counted(self, now: float) -> bool:
        return self.hub.answers.within_limits(self, requests.Request(""), now, now_ms())

    def _identify(self, token: object, now: float) -> Identity:
        """Return who the client is; raise Unwelcome."""
        hub = self.hub
        identity = ANONYMOUS
        # Pages without a login say {token: null} or {token: ""}.
        if token not in (None, ""):
            if not isinstance(token, str):
                raise Unwelcome("the token must be a string", "unauthorized")
            try:
                identity = hub.verifier.verify(token, now_ms() / 1000)
            except Refusal as refusal:
                raise Unwelcome(refusal.reason, CODES[refusal.code]) from None
        elif not hub.settings.auth.anonymous:
            raise Unwelcome("a token is needed", "unauthorized")
        wait = hub.bans.retry_after(identity.user_id, self.seat.address, now)
        if wait is not None:
            reason = "banned for breaking the rate limit"
            raise Unwelcome(reason, "rate_limited", retryAfterMs=math.ceil(wait * 1000))
        return identity

    def _sit_down(self, identity: Identity) -> None:
        """Count the connection as this user's; raise Unwelcome if that is one too many."""
        try:
            self.seat_as(identity.user_id)
        except Full as full:
            again = math.ceil(RETRY_AFTER * 1000)
            raise Unwelcome(str(full), "rate_limited", retryAfterMs=again) from None

    def begin(self, identity: Identity) -> None:
        """Begin a new session."""
        self._drop_pid()
        self.session = Session(new_client_id(), identity, self.seat.address)
        pid = secrets.token_urlsafe(15) if self.mount.recoveries.enabled else None
        self.let_in(pid)

    def let_in(self, pid: str | None) -> None:
        """Grant the CONNECT: from now on the session lives."""
        now = trio.current_time()
        self._pid, self._recovering = pid, None
        self._began_at = self.hub.journal.offset.decode()
        if pid is not None:
            self.mount.live[pid] = self
        self.accept("/", self.session.id, pid)
        self.tick_soon()
        self.hub.welcome(self, now)

    # requests

    async def happened(self, event: Event) -> None:
        name = str(event.name)
        ack = event if event.id is not None else None
        try:
            argument = event.arguments[0] if event.arguments else None
            request = requests.convert(name, argument)
        except RequestError as error:
            blank = Asked(name, event=ack)
            self.hub.answers.refuse(self, error, trio.current_time(), now_ms(), blank)
            return
        self.request(Asked(**msgspec.structs.asdict(request), event=ack))

    def answer(self, request: requests.Request, text: bytes) -> None:
        packets = [self.wire.message(text)]
        event = getattr(request, "event", None)
        if event is not None:
            packets.insert(0, Packet(b"43%d[%b]" % (event.id, text)))
        self.packets(packets)

    # time

    def due(self, now: float) -> float:
        again = super().due(now)
        if self.session.open and self.joined:
            again = min(again, self.hub.answers.check_session(self, now, time.time()))
        return again

    def ping(self, now: float) -> None:
        between_polls = self._ws is None and not self.engine.polling
        if between_polls or not self.joined or not self.session.open:
            # A heartbeat that waits for the next poll would be the oldest of what waits, and end
            # for its age a client that has nothing to answer to.
            super().ping(now)
            return
        beat = self.wire.message(self.hub.answers.heartbeat(self, now, now_ms()))
        if self.outbox is None:
            self.hub.counters.pings += 1
            self.packets([engineio.PING, beat])  # in one write
        else:
            super().ping(now)
            self.packet(beat)

    # leaving

    async def left(self, namespace: str) -> None:
        """The session is over for good; the transport may be used for another."""
        self._drop_pid()
        self.hub.forget(self, LEFT.code)
        self.session.step(Step.END)
        # What is being carried out must not touch the next session.
        while self._queued is not None:  # noqa: ASYNC110 - rare, and soon over
            await trio.sleep(WAIT)
        if self.session.state is State.ENDED:
            return  # the transport went away meanwhile
        self.seat_as(None)
        self.session = Session(new_client_id(), ANONYMOUS, self.seat.address)
        self.hub.between_passes(self._rejoin, self)
        if self.engine.ending:
            self.end(LEFT)  # or it was to be ended, when there was no session to end

    def _rejoin(self) -> None:
        """Stand in the routes again, subscribed to nothing, as before the CONNECT."""
        if self.session.open:
            self.hub.routes.move(self, frozenset())

    def end(self, refusal: Refusal) -> None:
        if not refusal.come_back:
            self._drop_pid()
        super().end(refusal)

    def gone(self, code: int) -> None:
        lost = self.to_recover()
        pid = self._drop_pid()
        if pid is not None:
            self.mount.lose(pid, lost)
        super().gone(code)

    def to_recover(self) -> Lost:
        """Return what a client that comes back for this session is to have again."""
        if self._recovering is not None:
            return self._recovering
        session = self.session
        return Lost(session.id, session.identity.user_id, session.patterns, self._began_at)

    def _drop_pid(self) -> str | None:
        """Give up the right to be recovered; return what was given up."""
        pid, self._pid, self._recovering = self._pid, None, None
        if pid is not None and self.mount.live.get(pid) is self:
            del self.mount.live[pid]
        return pid
