"""A client on plain WebSocket: messages are requests, pings are its heartbeat (section 4)."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import trio

from cryptows.broker.pulse import Pulse
from cryptows.model.errors import Refusal, RequestError
from cryptows.tasks.client import FAILED, Client
from cryptows.tasks.clock import now_ms
from cryptows.tasks.sending import GOODBYE
from cryptows.tasks.websocket import WebSocket
from cryptows.wire import requests
from cryptows.wire.envelope import NATIVE, Packet
from cryptows.wire.frames import ping_frame

if TYPE_CHECKING:
    from cryptows.broker.admission import Seat
    from cryptows.broker.session import Session
    from cryptows.tasks.hub import Hub

PING = ping_frame()


class NativeClient(Client):
    """A client on plain WebSocket (protocol section 4)."""

    __slots__ = ("_unwelcome", "_ws")

    def __init__(self, hub: Hub, session: Session, seat: Seat, sock: socket.socket) -> None:
        super().__init__(hub, session, seat, sock, NATIVE)
        self._ws: WebSocket
        self._unwelcome: Refusal | None = None

    async def serve(self, head: bytes, unwelcome: Refusal | None) -> None:
        """Serve the connection until it ends, whoever ends it; nothing escapes but Cancelled.

        `unwelcome`: why the client is turned away as soon as it can be told.
        """
        self._unwelcome = unwelcome
        assert self._socket is not None
        self._ws = WebSocket(self._socket, head, self, self.hub.settings.limits.message)
        code = 1006
        try:
            reason = await self._ws.serve()
            if reason is not None:
                code = reason.code
        except Exception as error:
            code = FAILED
            self.failed(error)
        finally:
            self.gone(code)
            self._ws.close_socket()

    def opened(self) -> None:
        now = trio.current_time()
        heartbeat = self.hub.settings.heartbeat
        self.pulse = Pulse(heartbeat.interval, heartbeat.timeout, now)
        self.hub.welcome(self, now)
        if self._unwelcome is not None:
            self.hub.answers.turn_away(self, self._unwelcome, now_ms())

    async def received(self, message: str | bytes) -> None:
        if not self.session.open:
            return
        try:
            if isinstance(message, bytes):
                raise RequestError("bad_request", "expected JSON in a text frame, got binary")
            request = requests.decode(message)
        except RequestError as error:
            self.refuse_request(error)
        else:
            self.request(request)

    def ponged(self) -> None:
        self.hub.counters.pongs += 1
        self.pulse.pong()

    def too_long(self, limit: int) -> None:
        self.end(Refusal(1009, f"message over {limit} bytes", come_back=True))

    def ping(self, now: float) -> None:
        self.hub.counters.pings += 1
        beat = self.hub.answers.heartbeat(self, now, now_ms())
        if self.outbox is None:
            # in one write with the ping
            self._ws_write(PING + self.wire.packet(Packet(beat)), beat)
        else:
            self.control(PING)
            self.message(beat)

    def _ws_write(self, data: bytes, beat: bytes) -> None:
        sent = self._write(data)
        if sent is None or sent == len(data):
            return
        if sent < len(PING):
            self.control(PING[sent:])
            self.message(beat)
        else:
            self.fall_behind([Packet(beat)], sent - len(PING))

    async def say_goodbye(self, refusal: Refusal) -> None:
        """Close with the refusal's code; the socket is closed when the peer has answered."""
        self._make_room(refusal)
        await self._ws.say_goodbye(refusal.code, refusal.reason, GOODBYE)

    def broken(self) -> None:
        self._ws.close_socket()
