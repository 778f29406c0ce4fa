"""Opening a WebSocket as a client, with every failure told as what it was.

trio-websocket waits for ever when a server closes during the handshake, and leaves the stream open
when a connection breaks. So the stream is ours: it says when it ends too early, and it is closed.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast
from urllib.parse import urlsplit

import attrs
import h11
import trio
import wsproto.utilities
from trio_websocket import (
    ConnectionRejected,
    HandshakeError,
    WebSocketConnection,
    wrap_client_stream,
)

from cryptows.cli.endings import Ending, rejected
from cryptows.cli.running import first_of

T = TypeVar("T")

HANDSHAKE = 10.0  # seconds until somebody must have answered
# A feed line may have 64 MiB, the highest feed.max_line, and the envelope comes on top.
MAX_MESSAGE = 65 << 20
QUEUE = 64  # messages that may wait for us, so that reading goes on meanwhile
RECEIVE = 64 * 1024  # bytes of one read
PORTS = {"ws": 80, "wss": 443}
CLOSED = Ending("the connection was closed during the handshake")
TOO_SLOW = Ending(f"no answer within {HANDSHAKE:g} s")
Dial = Callable[[str], Awaitable[trio.abc.Stream]]


class NotConnectedError(Exception):
    """There is no connection; `ending` says why."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.why)
        self.ending = ending


async def dial(url: str) -> trio.abc.Stream:
    """Connect to the host of a URL, with TLS for wss; raises OSError or NotConnectedError."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
    stream = await trio.open_tcp_stream(host, port)
    if parts.scheme == "ws":
        return stream
    secured = trio.SSLStream(
        stream, ssl.create_default_context(), server_hostname=host, https_compatible=True
    )
    try:
        await secured.do_handshake()
    except trio.BrokenResourceError as error:
        await trio.aclose_forcefully(secured)
        raise NotConnectedError(Ending(f"TLS failed: {error.__cause__}", False)) from None
    except BaseException:
        await trio.aclose_forcefully(secured)
        raise
    return secured


REFUSED = (NotConnectedError, HandshakeError, h11.ProtocolError, wsproto.utilities.ProtocolError)


@attrs.define
class _Watched(trio.abc.Stream):
    """A stream that tells when it ends during the handshake."""

    stream: trio.abc.Stream
    opened: bool = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        try:
            data = await self.stream.receive_some(max_bytes)
        except trio.BrokenResourceError:
            if self.opened:
                raise
            data = b""
        if not data and not self.opened:
            raise NotConnectedError(CLOSED)
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await self.stream.send_all(data)
        except trio.BrokenResourceError:
            if self.opened:
                raise
            raise NotConnectedError(CLOSED) from None

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self.stream.aclose()


async def converse(
    url: str,
    headers: list[tuple[bytes, bytes]],
    dial: Dial,
    talk: Callable[[WebSocketConnection], Awaitable[T]],
) -> T:
    """Open a WebSocket, talk, close it; return what `talk` returns.

    Raises NotConnectedError. What `talk` raises comes out in an exception group.
    """
    stream = await _open(url, dial)
    try:
        async with trio.open_nursery() as nursery:
            connection = await _shake_hands(nursery, stream, url, headers)
            result = await talk(connection)
            nursery.cancel_scope.cancel()
        return result
    except BaseExceptionGroup as group:
        # trio-websocket's reading task raises what went wrong with the handshake.
        refused, others = group.split(REFUSED)
        if refused is None or others is not None:
            raise
        raise _not_connected(first_of(refused)) from None
    finally:
        await trio.aclose_forcefully(stream)


async def _open(url: str, dial: Dial) -> trio.abc.Stream:
    try:
        with trio.fail_after(HANDSHAKE):
            return await dial(url)
    except trio.TooSlowError:
        raise NotConnectedError(TOO_SLOW) from None
    except OSError as error:
        raise NotConnectedError(Ending(f"cannot connect: {error.strerror or error}")) from None


async def _shake_hands(
    nursery: trio.Nursery, stream: trio.abc.Stream, url: str, headers: list[tuple[bytes, bytes]]
) -> WebSocketConnection:
    parts = urlsplit(url)
    resource = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    watched = _Watched(stream)
    try:
        with trio.fail_after(HANDSHAKE):
            connection = await wrap_client_stream(
                nursery,
                cast("trio.SocketStream", watched),  # any stream will do
                parts.netloc.rpartition("@")[2],
                resource,
                extra_headers=headers,
                max_message_size=MAX_MESSAGE,
                message_queue_size=QUEUE,
                receive_buffer_size=RECEIVE,
            )
    except trio.TooSlowError:
        raise NotConnectedError(TOO_SLOW) from None
    watched.opened = True
    return connection


def _not_connected(error: BaseException) -> NotConnectedError:
    if isinstance(error, NotConnectedError):
        return error
    if isinstance(error, ConnectionRejected):
        return NotConnectedError(rejected(error))
    return NotConnectedError(Ending(f"the handshake failed: {error}", come_back=False))
