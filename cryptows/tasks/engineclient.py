"""A client on Engine.IO: one session over long-polling, WebSocket, or first one and then the other.

To the dispatcher it is a client like any other. On polling it always has an outbox, which each GET
empties; when it has upgraded, its outbox drains to the socket and it keeps up like the others.
What state it is in and what is due says `wire/enginesession`; here is the I/O. What the messages
mean is a subclass's: Socket.IO, or an echo in the tests.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import trio

from cryptows.broker.auth import ANONYMOUS
from cryptows.broker.outbox import TOO_SLOW
from cryptows.broker.session import Session, State
from cryptows.model.errors import Refusal
from cryptows.tasks.client import Client
from cryptows.tasks.clock import now_ms
from cryptows.tasks.endpoint import new_client_id
from cryptows.tasks.sending import GOODBYE
from cryptows.tasks.websocket import WebSocket
from cryptows.wire import engineio
from cryptows.wire.engineio import Incoming, Kind, ProtocolError, base64_packet
from cryptows.wire.enginesession import Due, EngineSession, PollAnswer
from cryptows.wire.envelope import SOCKETIO_POLLING, SOCKETIO_WEBSOCKET, Packet
from cryptows.wire.frames import text_frame

if TYPE_CHECKING:
    from cryptows.broker.admission import Seat
    from cryptows.broker.outbox import Outbox
    from cryptows.model.event import Record
    from cryptows.tasks.polling import Mount
    from cryptows.tasks.probe import Probe
    from cryptows.wire.envelope import Wire

PROTOCOL_ERROR = 1002  # RFC 6455 7.4.1; the reference closes without a code
GRACE = 0.025  # seconds; connections are served in no particular order
PAUSE = 64  # packets of one POST before the other tasks get a turn
LOST = 1006  # the same: the connection broke without a goodbye
PATIENCE = 0.5  # of `delivery.max_lag` in which a client may poll again and have missed nothing
POLL_BYTES = 64 * 1024  # about how much one GET brings
LEFT = Refusal(1000, "closed by the client", come_back=True)


class Polled(Protocol):
    """The HTTP connection of a GET that waits."""

    async def hung_up(self) -> None:
        """Return when the client has closed it."""
        ...


class EngineClient(Client):
    """A client of a mount. Subclasses say what its messages mean."""

    __slots__ = ("_base64", "_poll", "_probe", "_ws", "engine", "mount")

    def __init__(
        self,
        mount: Mount,
        engine: EngineSession,
        seat: Seat,
        sock: socket.socket | None,
        *,
        base64: bool = False,
    ) -> None:
        wire = SOCKETIO_POLLING if sock is None else SOCKETIO_WEBSOCKET
        session = Session(new_client_id(), ANONYMOUS, seat.address)
        super().__init__(mount.hub, session, seat, sock, wire)
        self.mount = mount
        self.engine = engine
        self._base64 = base64
        self._ws: WebSocket | None = None
        self._probe: Probe | None = None
        self._poll: trio.CancelScope | None = None  # of the GET that waits

    # for the subclass

    async def heard(self, message: str | bytes) -> None:
        """Take a message; raise ProtocolError to end this client."""
        raise NotImplementedError

    def dismissal(self) -> list[Packet]:
        """Return what tells the client's library to stay away, before a terminal end."""
        return []

    def due(self, now: float) -> float:
        """Do what else is due; return when to come again."""
        return math.inf

    # sending

    def packets(self, packets: list[Packet]) -> None:
        """Send or queue packets; those of one call stay together."""
        super().packets([base64_packet(p) for p in packets] if self._base64 else packets)

    def queue(self, items: Sequence[Record | Packet]) -> None:
        """Queue items; a GET that waits is answered with them."""
        super().queue(items)
        if self._ws is None:
            self.hub.behind[self] = None  # until its next poll; who stops polling is too late
            self.wake_poll()

    def urgent(self, packet: Packet) -> None:
        """Send a packet ahead of all that waits."""
        self.control(self.wire.packet(packet))
        self.wake_poll()

    def wake_poll(self) -> None:
        """Let the GET that waits look again at what it can be answered with."""
        if self._poll is not None:
            self._poll.cancel()

    # WebSocket

    async def serve(self, head: bytes) -> None:
        """Serve a session that opens on WebSocket to its end; nothing escapes but Cancelled."""
        assert self._socket is not None
        self._ws = WebSocket(self._socket, head, self, self.mount.timing.max_payload)
        await self.read(self._ws)

    async def read(self, ws: WebSocket) -> None:
        """Read a WebSocket to its end, whoever ends it."""
        code = 1006
        try:
            reason = await ws.serve()
            if reason is not None:
                code = reason.code
        except Exception as error:
            self.failed(error)
        finally:
            if self._ws is ws:
                self.gone(code)
            ws.close_socket()

    def opened(self) -> None:
        self.mount.add(self)
        packet = engineio.open_packet(self.engine.sid, [], self.mount.timing)
        self.packet(Packet(packet))

    async def received(self, message: str | bytes) -> None:
        try:
            await self.take(engineio.decode_frame(message))
        except ProtocolError as error:
            self.fail(error)

    def ponged(self) -> None:
        """Pongs of WebSocket are no heartbeat here."""

    def too_long(self, limit: int) -> None:
        self.end(Refusal(1009, f"message over {limit} bytes", come_back=True))

    def start_probe(self, probe: Probe) -> bool:
        """Take in a WebSocket that wants to carry this session; return whether it may try."""
        if not self.engine.start_probe(trio.current_time()):
            return False
        self._probe = probe
        self.tick_soon(self.engine.deadline())
        return True

    def probed_by(self, probe: Probe) -> bool:
        """Whether this is the WebSocket that may carry the session next."""
        return self._probe is probe

    def probe_ended(self, probe: Probe) -> None:
        """Note that a WebSocket is gone; if it was probing, polling simply goes on."""
        if self._probe is probe:
            self._probe = None
            self.engine.fail_probe(trio.current_time())
            self.tick_soon()

    async def upgrade(self, ws: WebSocket, sock: socket.socket) -> None:
        """Move over to a WebSocket whose probe succeeded. Nothing is read from it meanwhile."""
        self.wake_poll()
        # In the middle of a pass, what is encoded for polling may be on its way to this client.
        await self.hub.at_rest(lambda: self._move(ws, sock))

    def _move(self, ws: WebSocket, sock: socket.socket) -> None:
        self._probe = None
        if self.session.state is State.ENDED:
            ws.close_socket()
            return
        self._ws, self._socket = ws, sock
        ws.hand_over(self)
        outbox = self.outbox
        assert outbox is not None
        outbox.rewire(SOCKETIO_WEBSOCKET, text_frame)
        if self.session.open:
            self.send = sock.send
            self.hub.routes.move(self, self.audience.patterns, SOCKETIO_WEBSOCKET)
        if outbox:
            self.hub.behind[self] = None
            self._wake()
        else:
            self._caught_up(outbox)
        self.tick_soon()

    # polling

    async def poll_answer(self, connection: Polled) -> PollAnswer | None:
        """Wait until the GET can be answered; None when the client has given it up."""
        while True:
            answer = self.engine.poll_answer(bool(self.outbox), trio.current_time())
            if answer is not PollAnswer.WAIT:
                return answer
            try:
                with trio.CancelScope(deadline=self.engine.noop_at()) as self._poll:
                    await connection.hung_up()
                    return None
            finally:
                self._poll = None

    def poll_body(self, answer: PollAnswer) -> bytes:
        """Take what a GET is answered with."""
        match answer:
            case PollAnswer.NOOP:
                return engineio.NOOP
            case PollAnswer.LAST:
                return engineio.encode_payload([*self.last_packets(), engineio.CLOSE])
            case _:
                return engineio.encode_payload(self._next_packets(engineio.MAX_PACKETS_OUT))

    def last_packets(self) -> list[bytes]:
        """Take what goes out before the close."""
        return self._next_packets(engineio.MAX_PACKETS_OUT - 1)

    def _next_packets(self, most: int) -> list[bytes]:
        outbox = self.outbox
        if outbox is None:
            return []
        packets = outbox.next_packets(POLL_BYTES, most, now_ms())
        if not outbox:
            self.hub.behind.pop(self, None)
        return packets

    def _new_outbox(self, wire: Wire) -> Outbox:
        outbox = super()._new_outbox(wire)
        if wire is SOCKETIO_POLLING:
            # Between two polls nobody is slow; who takes longer gets the newest events only.
            outbox.patience = outbox.max_lag * PATIENCE
        return outbox

    def poll_done(self, answer: PollAnswer) -> None:
        """Note that a GET was answered."""
        self.engine.finish_poll(answer, trio.current_time())
        self.settle()

    def poll_broke(self) -> None:
        """Note that a GET was given up."""
        self.engine.abort_poll()
        self.settle()

    async def post(self, body: bytes) -> None:
        """Take the packets of a POST."""
        try:
            for number, packet in enumerate(engineio.decode_payload(body), 1):
                if packet.kind is Kind.CLOSE and not self.engine.polling:
                    # The client's poll may have been sent before this and come in after it, on
                    # another connection; it wants the noop that ends it, not an error.
                    await trio.sleep(GRACE)
                await self.take(packet)
                if not self.session.open:
                    return
                if not number % PAUSE:
                    await trio.lowlevel.checkpoint()
        except ProtocolError as error:
            self.fail(error)

    async def take(self, packet: Incoming) -> None:
        """Take a packet, whichever transport brought it; raise ProtocolError."""
        if not self.session.open:
            return
        if packet.kind is Kind.PONG:
            self.hub.counters.pongs += 1
        message = self.engine.receive(packet, trio.current_time())
        if message is not None:
            await self.heard(message)
        elif self.engine.closed:
            self.end(LEFT)
        elif packet.kind is Kind.PONG:
            self.tick_soon(self.engine.deadline())  # the next ping may be due before this pong was

    # the end

    def fail(self, error: ProtocolError) -> None:
        """End a client that does not speak the protocol; nobody else notices."""
        self.engine.lose()
        if self.session.open:
            self.end(Refusal(PROTOCOL_ERROR, str(error), come_back=True))
        else:
            self.settle()  # it was ending: there is no goodbye left that would forget it

    async def say_goodbye(self, refusal: Refusal) -> None:
        """Close the transport; a client that shall stay away is told so first."""
        await self.hub.at_rest(_nothing)  # an upgrade may be waiting for the same
        if not refusal.come_back and not self.engine.closed:
            self._dismiss()
        ws = self._ws
        if ws is None:
            if refusal.code == TOO_SLOW and self.outbox is not None:
                self.outbox.drop_queued()  # he would be as slow to fetch it
            self.engine.end(trio.current_time(), quietly=refusal.come_back)
            self.settle()
            return
        self._make_room(refusal)
        await ws.say_goodbye(refusal.code, refusal.reason, GOODBYE)

    def _dismiss(self) -> None:
        """Tell the client's library to stay away, behind all that it is still to be told."""
        for packet in self.dismissal():
            if self.outbox is None:
                self.control(self.wire.packet(packet))
                continue
            with suppress(Refusal):  # it is queued all the same
                self.outbox.put(packet, trio.current_time())

    @property
    def ending_code(self) -> int:
        """How the client is ending, as a close code."""
        return LOST if self.ending is None else self.ending.code

    def settle(self) -> None:
        """Answer the GET that waits and forget the session, as its state demands."""
        self.wake_poll()
        if self.engine.polling or self._ws is not None:
            return
        if self.engine.closed:
            self.gone(self.ending_code)
        elif self.engine.ending:
            # The last packets wait for a GET; for everybody else the client has gone.
            self.hub.forget(self, self.ending_code)
            self.tick_soon()

    def gone(self, code: int) -> None:
        """Forget the client, whatever ended it."""
        self.engine.lose()
        self.mount.clients.pop(self.engine.sid, None)
        if self._probe is not None:
            self._probe.close()
        super().gone(code)
        self.wake_poll()

    def broken(self) -> None:
        if self._ws is not None:
            self._ws.close_socket()

    # time

    def tend(self, now: float) -> float:
        self.look(now)
        if self.engine.closed:
            return math.inf
        again = self.engine.deadline()
        if self.session.open:
            again = min(again, self.due(now))
        return again

    def look(self, now: float) -> None:
        """Do what the engine's deadlines demand; also before a request, so that no timer's
        lateness shows."""
        for due in self.engine.advance(now):
            match due:
                case Due.PING:
                    self.ping(now)
                case Due.PONG_MISSING:
                    self.hub.counters.pong_timeouts += 1
                    waited = self.mount.timing.ping_timeout
                    self.end(Refusal(4010, f"no pong for {waited:g} s", come_back=True))
                case Due.PROBE_OVERDUE:
                    if self._probe is not None:
                        self._probe.close()
                case Due.LINGER_OVER:
                    self.gone(self.ending_code)

    def ping(self, now: float) -> None:
        """Ask for a sign of life."""
        self.hub.counters.pings += 1
        self.urgent(engineio.PING)


def _nothing() -> None:
    """Change nothing between two passes."""
