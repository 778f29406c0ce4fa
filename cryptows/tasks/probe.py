"""A WebSocket that a polling client opened to move over to: from its probe to the upgrade.

Until the client has said `5` nothing but `3probe` goes out here, and events still go by polling. If
the probe fails, or something else is said, this WebSocket is closed and the polling session lives
on. Once upgraded, the same task goes on reading for the client.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import trio

from cryptows.tasks.sending import GOODBYE
from cryptows.tasks.websocket import WebSocket
from cryptows.wire import engineio
from cryptows.wire.engineio import ProtocolError
from cryptows.wire.enginesession import State
from cryptows.wire.frames import text_frame

if TYPE_CHECKING:
    from cryptows.tasks.engineclient import EngineClient

NOT_EXPECTED = 1008  # RFC 6455 7.4.1: policy violation


class Probe:
    """The owner of a probing WebSocket."""

    def __init__(self, client: EngineClient, sock: socket.socket) -> None:
        self._client = client
        self._socket = sock
        self._ws: WebSocket

    async def serve(self, head: bytes) -> None:
        """Serve the WebSocket to its end; nothing escapes but Cancelled."""
        client = self._client
        self._ws = WebSocket(self._socket, head, self, client.mount.timing.max_payload)
        try:
            await client.read(self._ws)
        finally:
            client.probe_ended(self)

    def control(self, frame: bytes) -> None:
        """Write a frame; these are the first bytes on this socket, so they fit or it is broken."""
        try:
            sent = self._socket.send(frame)
        except OSError:
            sent = 0
        if sent < len(frame):
            self._ws.close_socket()

    def opened(self) -> None:
        if not self._client.start_probe(self):
            # The session is upgrading already, or upgraded, or over; it takes no harm.
            self.close()

    async def received(self, message: str | bytes) -> None:
        client = self._client
        if not client.probed_by(self):
            return
        try:
            packet = engineio.decode_frame(message)
            answer = client.engine.probe(packet, trio.current_time())
        except ProtocolError:
            self.close()
            return
        if answer:
            self.control(text_frame(engineio.PROBE_ANSWER.payload))
            client.wake_poll()
        elif client.engine.state is State.WEBSOCKET:
            await client.upgrade(self._ws, self._socket)
        else:
            # The session was ended meanwhile, and its last packets are fetched this way.
            for last in client.last_packets():
                self.control(text_frame(last))
            client.gone(client.ending_code)

    def ponged(self) -> None:
        """Pongs of WebSocket mean nothing here."""

    def too_long(self, limit: int) -> None:
        self.close()

    async def last_words(self) -> None:
        """Return: what fits is written at once."""

    def close(self) -> None:
        """Close this WebSocket; the session by polling is not concerned."""
        client = self._client
        client.probe_ended(self)
        client.beside(self._say_goodbye)

    async def _say_goodbye(self) -> None:
        await self._ws.say_goodbye(NOT_EXPECTED, "no upgrade is under way", GOODBYE)
