"""A mount behind the daemon's own acceptor, reached over a Unix socket in this process.

    async with opened(EchoClient) as door:
        answer = await door.get("EIO=4&transport=polling")
        ws = await door.websocket("EIO=4&transport=websocket")

Unix sockets deliver at once, so tests may run on Trio's jumping clock.
"""

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import h11
import trio
import trio.testing
import trio_websocket

from cryptows.broker.journal import Journal
from cryptows.config.load import defaults
from cryptows.config.settings import Settings
from cryptows.model.event import Event
from cryptows.tasks.acceptor import Acceptor, prepare
from cryptows.tasks.dispatcher import Dispatcher
from cryptows.tasks.engineclient import EngineClient
from cryptows.tasks.hub import Hub
from cryptows.tasks.polling import Mount
from cryptows.tasks.producer import FeedBatch
from cryptows.wire.engineio import Timing

KEY = b"k" * 32
PAGE = "http://localhost:3000"  # the one allowed origin of the defaults
Headers = Sequence[tuple[str, str]]


@attrs.frozen
class Answer:
    """What a request was answered with."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@attrs.define(eq=False)
class Door:
    """The way in."""

    path: str
    hub: Hub
    mount: Mount
    nursery: trio.Nursery
    _streams: list[trio.SocketStream] = attrs.field(factory=list)
    _events: trio.MemorySendChannel[FeedBatch] | None = None

    async def stream(self) -> trio.SocketStream:
        """Open a connection; it is closed at the end of the test, if not before."""
        self._streams.append(await trio.open_unix_socket(self.path))
        return self._streams[-1]

    async def start_feed(self) -> None:
        """Let the daemon's dispatcher run, so that `publish` reaches clients."""
        self._events, events_in = trio.open_memory_channel[FeedBatch](16)
        self.nursery.start_soon(Dispatcher(self.hub, events_in).run)

    async def publish(self, type_: str, data: dict[str, Any], **more: Any) -> None:
        """Feed one event."""
        event = Event(type_, json.dumps(data).encode(), 0, symbol=data.get("symbol"), **more)
        assert self._events is not None
        await self._events.send(FeedBatch([event], Silent(), "test"))

    def close(self) -> None:
        """Close what is open."""
        for stream in self._streams:
            stream.socket.close()

    async def request(
        self, method: str, query: str, body: bytes = b"", headers: Headers = ()
    ) -> Answer:
        """Ask on a connection of its own."""
        async with await self.stream() as stream:
            await stream.send_all(head(method, query, body, headers))
            return await read_answer(stream)

    async def get(self, query: str, *headers: tuple[str, str]) -> Answer:
        return await self.request("GET", query, headers=headers)

    async def post(self, query: str, body: str | bytes, *headers: tuple[str, str]) -> Answer:
        data = body.encode() if isinstance(body, str) else body
        return await self.request("POST", query, data, headers)

    async def open(self, *headers: tuple[str, str]) -> str:
        """Open a session by polling; return the query that goes on with it."""
        answer = await self.get("EIO=4&transport=polling", *headers)
        assert answer.status == 200, answer
        return f"EIO=4&transport=polling&sid={json.loads(answer.body[1:])['sid']}"

    async def poll(self, query: str) -> list[str]:
        """Poll once; return the packets."""
        answer = await self.get(query)
        assert answer.status == 200, answer
        return answer.body.decode().split("\x1e")

    def start_poll(self, query: str, *headers: tuple[str, str]) -> Pending:
        """Poll beside; the answer can be waited for."""
        pending = Pending()
        self.nursery.start_soon(pending.run, self, query, headers)
        return pending

    async def websocket(self, query: str = "", *headers: tuple[str, str]) -> Peer:
        """Open a WebSocket, for the session of a query if there is one."""
        sid = query.partition("&sid=")[2]
        target = "/io/?EIO=4&transport=websocket" + (f"&sid={sid}" if sid else "")
        connection = await trio_websocket.wrap_client_stream(
            self.nursery,
            await self.stream(),
            "localhost",
            target,
            extra_headers=[(name.encode(), value.encode()) for name, value in headers],
            max_message_size=1 << 24,
        )
        return Peer(connection)

    async def settled(self) -> None:
        """Let everything happen that can happen without time passing."""
        await trio.testing.wait_all_tasks_blocked()


class Silent:
    """A producer that wants no answers, and must get no errors."""

    wants_all = False

    def done_for(self, index: int) -> Any:
        raise AssertionError(f"event {index} was refused")


@attrs.define(eq=False)
class Pending:
    """A poll under way."""

    answer: Answer | None = None
    done: trio.Event = attrs.field(factory=trio.Event)
    at: float = 0.0
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    async def run(self, door: Door, query: str, headers: Headers) -> None:
        with self.scope:
            self.answer = await door.request("GET", query, headers=headers)
            self.at = trio.current_time()
            self.done.set()

    async def packets(self) -> list[str]:
        """Wait for the answer; return its packets."""
        with trio.fail_after(1000):
            await self.done.wait()
        assert self.answer is not None
        assert self.answer.status == 200, self.answer
        return self.answer.body.decode().split("\x1e")


@attrs.define(eq=False)
class Peer:
    """The client's end of a WebSocket."""

    connection: trio_websocket.WebSocketConnection

    async def send(self, *messages: str | bytes) -> None:
        for message in messages:
            await self.connection.send_message(message)

    async def get(self) -> str | bytes:
        with trio.fail_after(1000):
            return await self.connection.get_message()

    async def closed(self) -> tuple[int, str | None]:
        """Skip what still comes; return how the server closed."""
        with trio.fail_after(1000):
            while True:
                try:
                    await self.connection.get_message()
                except trio_websocket.ConnectionClosed:
                    break
            await trio.testing.wait_all_tasks_blocked()
        how = self.connection.closed
        assert how is not None
        return how.code, how.reason

    async def close(self) -> None:
        await self.connection.aclose()

    async def cut(self) -> None:
        """Go away without a word."""
        await self.connection._stream.aclose()


def head(method: str, query: str, body: bytes, headers: Headers) -> bytes:
    """Return a request."""
    lines = [f"{method} /io/?{query} HTTP/1.1", "Host: localhost"]
    lines += [f"{name}: {value}" for name, value in headers]
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


async def read_answer(stream: trio.abc.ReceiveStream) -> Answer:
    """Read one answer."""
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    reader.send(h11.EndOfMessage())
    body = b""
    response: h11.Response | None = None
    while True:
        event = reader.next_event()
        if event is h11.NEED_DATA:
            data = bytes(await stream.receive_some())
            if not data:
                raise trio.BrokenResourceError("closed without an answer")
            reader.receive_data(data)
        elif isinstance(event, h11.Response):
            response = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            break
        else:
            raise trio.BrokenResourceError(f"no answer: {event}")
    assert response is not None
    names = {name.decode(): value.decode() for name, value in response.headers}
    return Answer(response.status_code, names, body)


@asynccontextmanager
async def opened(
    client: type[EngineClient],
    timing: Timing | None = None,
    settings: Settings | None = None,
    mount: type[Mount] = Mount,
    bugs: int = 0,
) -> AsyncIterator[Door]:
    """Mount an application at `/io/`; what is left at the end is cancelled.

    `bugs`: how many of its clients must have failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "http.sock"))
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        settings = settings or defaults()
        timing = timing or Timing()
        async with trio.open_nursery() as nursery:
            hub = Hub(settings, (KEY,), nursery, Journal("epoch", 1000))
            mounted = mount(hub, client, timing)
            sites = {"/io": mounted, "/io/": mounted}
            prepare(listener, settings.delivery.kernel_buffer, 60)
            nursery.start_soon(hub.reaper.run)
            nursery.start_soon(Acceptor(hub, sites.get).run, listener)
            door = Door(path, hub, mounted, nursery)
            try:
                yield door
                assert hub.counters.bugs == bugs
            finally:
                nursery.cancel_scope.cancel()
                door.close()
