"""A server's WebSocket: trio-websocket reads, answers and closes; we write.

trio-websocket does the handshake, parses and checks frames, joins fragments, answers pings and runs
the closing handshake. It runs on `ClientStream`, whose writes are non-blocking and go through the
client's outbox: so a pong or a close never cuts into a frame, and the dispatcher may write the
shared frames to the same socket.

Its `serve` runs in the client's own task: one task and 13 KiB for a connection, against three tasks
and 23 KiB with `wrap_server_stream`, a queue of messages and a task that drains. For that a few
methods with a leading underscore are overridden, all of them here; `tests/tasks/test_websocket.py`
holds their names against the installed version. After the handshake its h11 parser is let go.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from typing import Any, Protocol

import trio
import trio_websocket
import wsproto
from wsproto.connection import ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, Request, TextMessage

RECEIVE = 16 * 1024  # bytes asked of the kernel at once


class Owner(Protocol):
    """The client whose connection it is."""

    def control(self, frame: bytes) -> None:
        """Write a control frame, now or as soon as the frame being written has ended."""
        ...

    def opened(self) -> None:
        """The handshake is done."""
        ...

    async def received(self, message: str | bytes) -> None:
        """A whole message came in; nothing more is read until this returns."""
        ...

    def ponged(self) -> None:
        """A pong came in."""
        ...

    def too_long(self, limit: int) -> None:
        """A message was longer than allowed; the rest of it is thrown away."""
        ...

    async def last_words(self) -> None:
        """The last frame was given to `control`; return when it is written or given up."""
        ...


class _Nobody:
    """The owner of a connection that has ended."""

    def control(self, frame: bytes) -> None:
        pass

    def opened(self) -> None:
        pass

    async def received(self, message: str | bytes) -> None:
        pass

    def ponged(self) -> None:
        pass

    def too_long(self, limit: int) -> None:
        pass

    async def last_words(self) -> None:
        pass


_NOBODY = _Nobody()


class ClientStream(trio.abc.Stream):
    """A client's socket as trio-websocket sees it. Owns the socket."""

    __slots__ = ("_head", "owner", "socket")

    def __init__(self, sock: socket.socket, head: bytes, owner: Owner) -> None:
        self.socket = sock
        self._head = head  # what the acceptor has read already
        self.owner = owner

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._head:
            # The head by itself: wsproto would lose what comes with it.
            head, end, self._head = self._head.partition(b"\r\n\r\n")
            return head + end
        while True:
            if self.socket.fileno() < 0:
                # Trio would remember a wait on descriptor -1, and complain of the next one.
                raise trio.ClosedResourceError
            # Waiting first costs one system call less than trying first, and is a checkpoint:
            # a client that never stops talking cannot keep the loop to itself.
            try:
                await trio.lowlevel.wait_readable(self.socket)
                return self.socket.recv(RECEIVE)
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno == errno.EBADF:
                    raise trio.ClosedResourceError from None
                raise trio.BrokenResourceError from error

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if data:
            self.owner.control(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        """Return at once: writes go to the outbox."""

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; whoever waits on it gets ClosedResourceError."""
        if self.socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()


class Bug(Exception):
    """A KeyError out of our code, which the library would take for its own and log as a trifle."""


class _Opened:
    """What is left of wsproto's handshake once it is done: 6 KiB less for each connection."""

    __slots__ = ()

    def events(self) -> Iterator[Any]:
        return iter(())


_OPENED = _Opened()


class WebSocket(trio_websocket.WebSocketConnection):
    """One server-side connection. `head` is the request, read and checked by the acceptor."""

    def __init__(self, sock: socket.socket, head: bytes, owner: Owner, max_message: int) -> None:
        self._stream: ClientStream
        super().__init__(
            ClientStream(sock, head, owner),
            wsproto.WSConnection(wsproto.ConnectionType.SERVER),
            max_message_size=max_message,
            message_queue_size=0,
        )
        self._owner = owner

    async def serve(self) -> trio_websocket.CloseReason | None:
        """Read until the connection ends; return how (None: before the handshake)."""
        await self._reader_task()
        return self.closed

    def hand_over(self, owner: Owner) -> None:
        """Give the connection to another owner, from the next message on."""
        self._owner = owner
        self._stream.owner = owner

    async def say_goodbye(self, code: int, reason: str, patience: float) -> None:
        """Close the connection once the peer has answered, or after `patience` seconds."""
        with trio.move_on_after(patience):
            await self.aclose(code, reason)
        self.close_socket()

    def close_socket(self) -> None:
        """Close the socket without a goodbye; `serve` returns.

        The owner is let go: client and connection know each other, and their memory would else
        wait for a full collection, which a daemon with many clients hardly ever makes.
        """
        self._stream.close()
        self.hand_over(_NOBODY)

    async def _send(self, event: Event) -> None:
        # Our writes never wait, so no lock keeps them apart; waiting for it the library would let
        # the peer's close come in between, and close the socket before ours was written.
        await self._stream.send_all(self._wsproto.send(event))

    async def _handle_request_event(self, event: Request) -> None:
        # The acceptor has checked the request and chosen the subprotocol, which is the only one.
        subprotocol = event.subprotocols[0] if event.subprotocols else None
        await trio_websocket.WebSocketRequest(self, event).accept(subprotocol=subprotocol)
        self._wsproto.handshake = _OPENED  # type: ignore[assignment]
        self._connection_proposal = None
        try:
            self._owner.opened()
        except KeyError as error:
            raise Bug from error

    async def _handle_message_event(self, event: TextMessage | BytesMessage) -> None:
        if self._close_reason is not None:
            return  # we have said goodbye and only wait for the answer
        try:
            await self._take(event)
        except KeyError as error:
            raise Bug from error

    async def _take(self, event: TextMessage | BytesMessage) -> None:
        """Add a piece to the message it belongs to, and hand over a whole one."""
        data = event.data
        self._message_size += len(data) if isinstance(data, bytes | bytearray) else _utf8(data)
        if self._message_size > self._max_message_size:
            self._message_parts, self._message_size = [], 0
            self._owner.too_long(self._max_message_size)
            return
        if not self._message_parts and event.message_finished:
            self._message_size = 0
            await self._owner.received(data if isinstance(data, str) else bytes(data))
            return
        if data:  # empty pieces have no size, and any number of them may come
            self._message_parts.append(data)  # type: ignore[arg-type]
        if event.message_finished:
            parts, self._message_parts, self._message_size = self._message_parts, [], 0
            whole: str | bytes = (
                "".join(parts)  # type: ignore[arg-type]
                if isinstance(event, TextMessage)
                else b"".join(parts)  # type: ignore[arg-type]
            )
            await self._owner.received(whole)

    async def _handle_ping_event(self, event: Ping) -> None:
        # Once we have said goodbye, wsproto refuses to send a pong, and nobody waits for it.
        if self._wsproto.state is ConnectionState.OPEN:
            await self._send(event.response())

    async def _handle_pong_event(self, event: Pong) -> None:
        self._owner.ponged()

    async def _handle_close_connection_event(self, event: CloseConnection) -> None:
        if self._wsproto.state is ConnectionState.OPEN:
            # Not the peer's close but a frame that breaks the protocol: say so (RFC 6455 7.1.7).
            await self._send(CloseConnection(code=event.code, reason=event.reason))
        elif self._wsproto.state is ConnectionState.REMOTE_CLOSING:
            await self._send(event.response())
        await self._owner.last_words()  # closing the socket, the library would cut them off
        await super()._handle_close_connection_event(event)


def _utf8(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
