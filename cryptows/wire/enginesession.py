"""The state of one Engine.IO session: which transport carries it, and what is due when.

A session starts on polling or on WebSocket and may move from one to the other:

    POLLING -> PROBING -> UPGRADING -> WEBSOCKET
                 2probe      5

While it moves, every poll is ended soon with a noop, since the client switches only when its last
poll has come back, and heartbeats are held. The packets themselves wait in the client's outbox,
which knows nothing of this; a driver in `tasks` does what the methods here return. Time is an
argument: seconds of any steady clock.
"""

from __future__ import annotations

import enum
import math

import attrs

from cryptows.wire.enginehttp import OVERLAP, UNKNOWN_SID, Known, Rejected
from cryptows.wire.engineio import Incoming, Kind, ProtocolError, Timing


class State(enum.Enum):
    """Where a session stands."""

    POLLING = "polling"
    PROBING = "probing"  # a WebSocket came and has yet to say 2probe; packets go by polling
    UPGRADING = "upgrading"  # it was answered 3probe and has yet to say 5; the same
    WEBSOCKET = "websocket"
    CLOSING = "closing"  # ended here, while the last packets wait for a poll to fetch them
    CLOSED = "closed"


class Step(enum.Enum):
    """What moves a session from one state to the next."""

    PROBE_CAME = enum.auto()
    PROBE_SPOKE = enum.auto()
    PROBE_FAILED = enum.auto()
    SWITCH = enum.auto()
    END = enum.auto()  # by us, in good order
    FETCHED = enum.auto()  # the last packets have gone out
    LOST = enum.auto()  # by the client, an error or a deadline


NEXT: dict[tuple[State, Step], State] = {
    (State.POLLING, Step.PROBE_CAME): State.PROBING,
    (State.PROBING, Step.PROBE_SPOKE): State.UPGRADING,
    (State.PROBING, Step.PROBE_FAILED): State.POLLING,
    (State.UPGRADING, Step.PROBE_FAILED): State.POLLING,
    (State.UPGRADING, Step.SWITCH): State.WEBSOCKET,
    (State.POLLING, Step.END): State.CLOSING,
    (State.PROBING, Step.END): State.CLOSING,
    (State.UPGRADING, Step.END): State.CLOSING,
    (State.WEBSOCKET, Step.END): State.CLOSED,
    (State.CLOSING, Step.FETCHED): State.CLOSED,
    **{(state, Step.LOST): State.CLOSED for state in State if state is not State.CLOSED},
}

_PROBED = (State.PROBING, State.UPGRADING)
_BY_POLLING = (State.POLLING, State.PROBING, State.UPGRADING)


class PollAnswer(enum.Enum):
    """What a waiting GET gets."""

    WAIT = enum.auto()
    PACKETS = enum.auto()
    NOOP = enum.auto()
    LAST = enum.auto()  # the close packet, behind what is left if there will be no other poll
    GONE = enum.auto()  # an error, as if the session had never been


class Due(enum.Enum):
    """What time demands."""

    PING = enum.auto()  # send a ping ahead of all that waits
    PONG_MISSING = enum.auto()  # the client is gone: the session has ended
    PROBE_OVERDUE = enum.auto()  # close the WebSocket that did not finish its upgrade
    LINGER_OVER = enum.auto()  # nobody fetched the last packets: the session has ended


@attrs.define
class EngineSession:
    """One session. `sid` is a secret of this client: whoever knows it can poll in its place."""

    sid: str = attrs.field(repr=False)
    timing: Timing
    opened: float
    state: State = State.POLLING
    polling: bool = attrs.field(default=False, init=False)  # a GET waits
    posting: bool = attrs.field(default=False, init=False)  # a POST is being read
    _by_client: bool = attrs.field(default=False, init=False)
    _quietly: bool = attrs.field(default=False, init=False)
    _ping_at: float = attrs.field(init=False)
    _pong_by: float = attrs.field(default=math.inf, init=False)
    _end_by: float = attrs.field(default=math.inf, init=False)  # of the probe, or of the linger
    _noop_at: float = attrs.field(default=-math.inf, init=False)

    def __attrs_post_init__(self) -> None:
        self._ping_at = self.opened + self.timing.ping_interval

    @property
    def closed(self) -> bool:
        return self.state is State.CLOSED

    @property
    def ending(self) -> bool:
        """Whether nothing new may be sent any more."""
        return self.state in (State.CLOSING, State.CLOSED)

    @property
    def known(self) -> Known:
        """How requests that name this session are judged."""
        if self.state is State.CLOSED:
            return Known.UNKNOWN
        return Known.WEBSOCKET if self.state is State.WEBSOCKET else Known.POLLING

    def _step(self, step: Step) -> bool:
        """Move on if that step leads anywhere from here."""
        following = NEXT.get((self.state, step))
        if following is None:
            return False
        self.state = following
        return True

    # Packets from the client, on the transport that carries the session

    def receive(self, packet: Incoming, now: float) -> str | bytes | None:
        """Take a packet; return the data of a message. The client's close ends the session.

        Raise ProtocolError for a packet that a client may not send. Like the reference, this
        ignores types that make no sense here but do no harm.
        """
        if self.ending:
            return None
        match packet.kind:
            case Kind.MESSAGE:
                return packet.data
            case Kind.PONG:
                # One that nobody asked for must not put off the next ping.
                if self._pong_by < math.inf:
                    self._ping_at = now + self.timing.ping_interval
                    self._pong_by = math.inf
            case Kind.CLOSE:
                self._by_client = True
                self._step(Step.LOST)
            case Kind.PING:
                raise ProtocolError("a ping from the client; in version 4 the server pings")
            case Kind.OPEN | Kind.UPGRADE | Kind.NOOP:
                pass
        return None

    # The end

    def end(self, now: float, *, quietly: bool = False) -> None:
        """End it from here. On polling the last packets stay for the next GET, for a while.

        Quietly, there is no close packet at the end: python-engineio takes one for a final goodbye,
        while after an error every client comes back by itself.
        """
        if not self._step(Step.END):
            return  # it has ended in another way already
        self._quietly = quietly
        if self.state is State.CLOSING:
            self._end_by = now + self.timing.linger

    def lose(self) -> None:
        """Note that the transport broke, or that nothing more can be done for this session."""
        self._step(Step.LOST)

    # GET

    def start_poll(self, *, given_up: bool = False) -> None:
        """Note that a GET came and waits; raise Rejected.

        `given_up`: its client has closed the connection already. Such a GET was sent before the one
        that waits, though it is served after it, and that one gets the error in its place.
        """
        if self.polling:
            self._quietly = given_up
            self.lose()
            raise Rejected(OVERLAP)
        if self.closed:
            raise Rejected(UNKNOWN_SID)
        self.polling = True

    def poll_answer(self, packets: bool, now: float) -> PollAnswer:
        """Return what the GET that waits gets now; `packets`: whether any are queued."""
        match self.state:
            case State.POLLING | State.PROBING:
                return PollAnswer.PACKETS if packets else PollAnswer.WAIT
            case State.UPGRADING:
                if packets:
                    return PollAnswer.PACKETS
                return PollAnswer.NOOP if now >= self._noop_at else PollAnswer.WAIT
            case State.WEBSOCKET:
                return PollAnswer.NOOP  # the packets belong to the WebSocket now
            case State.CLOSING:
                # The close goes alone: the official client deals with it before the packets that
                # stand in front of it in the same answer, and then throws those away.
                if packets:
                    return PollAnswer.PACKETS
                return PollAnswer.GONE if self._quietly else PollAnswer.LAST
            case State.CLOSED:
                # A client that said goodbye itself only wants its poll back.
                if self._by_client:
                    return PollAnswer.NOOP
                return PollAnswer.GONE if self._quietly else PollAnswer.LAST

    def noop_at(self) -> float:
        """When a GET that waits must be ended though nothing came."""
        return self._noop_at if self.state is State.UPGRADING else math.inf

    def finish_poll(self, answer: PollAnswer, now: float) -> None:
        """Note that the GET has been answered."""
        self.polling = False
        if self.state is State.UPGRADING:
            self._noop_at = now + self.timing.noop_delay
        if answer in (PollAnswer.LAST, PollAnswer.GONE):
            self._step(Step.FETCHED)

    def abort_poll(self) -> None:
        """Note that the client gave up its GET, or that its answer could not be written.

        On polling that ends the session, because nobody knows what the client has got.
        """
        self.polling = False
        if self.state in _BY_POLLING or self.state is State.CLOSING:
            self.lose()

    # POST

    def start_post(self) -> None:
        """Note that a POST came; raise Rejected."""
        if self.closed:
            raise Rejected(UNKNOWN_SID)
        if self.posting:
            self.lose()
            raise Rejected(OVERLAP)
        self.posting = True

    def finish_post(self) -> None:
        """Note that the POST has been read and answered."""
        self.posting = False

    # The upgrade

    def start_probe(self, now: float) -> bool:
        """Note that a WebSocket came for this session; return whether it may go on."""
        if not self._step(Step.PROBE_CAME):
            return False
        self._end_by = now + self.timing.upgrade_timeout
        return True

    def probe(self, packet: Incoming, now: float) -> bool:
        """Take a packet of the probing WebSocket; return whether it must be answered `3probe`.

        Afterwards `state` is WEBSOCKET when the client has switched over. Raise ProtocolError for
        anything else than the two packets of an upgrade; that costs only this WebSocket.
        """
        if packet.kind is Kind.PING and packet.data == "probe" and self._step(Step.PROBE_SPOKE):
            self._noop_at = -math.inf  # a GET that waits, or else the next one, is ended at once
            return True
        if packet.kind is Kind.UPGRADE and self._switch(now):
            return False
        raise ProtocolError("expected 2probe, then 5")

    def _switch(self, now: float) -> bool:
        if self.state is State.CLOSING:
            # The client comes for its last packets this way; the driver sends them and closes.
            return self._step(Step.FETCHED)
        if not self._step(Step.SWITCH):
            return False
        self._resume(now)
        return True

    def fail_probe(self, now: float) -> None:
        """Note that the probing WebSocket is gone; the session lives on by polling."""
        if self._step(Step.PROBE_FAILED):
            self._resume(now)

    def _resume(self, now: float) -> None:
        """Let the heartbeat go on; what is owed after it was held may still take its time."""
        self._end_by = math.inf
        self._ping_at = max(self._ping_at, now)
        if self._pong_by < math.inf:
            self._pong_by = max(self._pong_by, now + self.timing.ping_timeout)

    # Time

    def deadline(self) -> float:
        """Return when `advance` has something to do next."""
        if self.state is State.CLOSED:
            return math.inf
        if self.state in _PROBED or self.state is State.CLOSING:
            return self._end_by
        return min(self._ping_at, self._pong_by)

    def advance(self, now: float) -> list[Due]:
        """Return what is due. Calling it late or often does no harm: it goes by the clock alone."""
        due: list[Due] = []
        if self.state in _PROBED and now >= self._end_by:
            self.fail_probe(now)
            due.append(Due.PROBE_OVERDUE)
        if self.state is State.CLOSING and now >= self._end_by:
            self.lose()
            due.append(Due.LINGER_OVER)
        if self.state not in (State.POLLING, State.WEBSOCKET):
            return due  # heartbeats are held while the transports change
        if now >= self._ping_at:
            # Both steps count from the opening or the last pong, however late somebody looks.
            self._pong_by = self._ping_at + self.timing.ping_timeout
            self._ping_at = math.inf
            due.append(Due.PING)
        if now >= self._pong_by:
            self.lose()
            due.append(Due.PONG_MISSING)
        return due
