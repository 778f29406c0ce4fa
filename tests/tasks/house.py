"""The daemon's inside, on Trio's jumping clock: everything but the listeners and the store.

    async with house("limits.requests=5") as home:
        screen = await home.screen(token=home.token("123"))
        await screen.ask("subscribe", channels=["market_data"])
        await home.publish(quote("BTCUSDT", 50000))
        assert (await screen.next("market_data_update"))["seq"] == 1

Connections are socket pairs of this process, which deliver at once, so that the clock may jump; the
wall clock goes along with it. A `Screen` is a WebSocket client that reads in a task of its own and
notes what it sees and when.
"""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import structlog
import trio
import trio.testing
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import (
    BytesMessage,
    CloseConnection,
    Message,
    Ping,
    Pong,
    TextMessage,
)
from wsproto.events import (
    Event as WsEvent,
)

from cryptows.broker.auth import make_token
from cryptows.broker.health import State
from cryptows.broker.journal import Journal
from cryptows.config.load import load
from cryptows.config.settings import Settings
from cryptows.model.errors import BadEvent
from cryptows.model.event import Event
from cryptows.tasks import clock, housekeeper
from cryptows.tasks.acceptor import Acceptor
from cryptows.tasks.connection import Site
from cryptows.tasks.dispatcher import Dispatcher
from cryptows.tasks.endpoint import WebSocketSite
from cryptows.tasks.hub import Hub
from cryptows.tasks.ingest import FeedBatch
from cryptows.tasks.metrics import Metrics
from cryptows.tasks.pages import PATHS, Pages
from cryptows.tasks.stats import Rates
from cryptows.wire.feed import FeedDecoder
from cryptows.wire.feedanswers import Done
from tests.tasks.door import Answer, read_answer

KEY = b"k" * 32
NOW = 1_700_000_000.0  # what the wall clock shows when a test begins
CLIENT = "203.0.113.7"
PATIENCE = 10_000.0  # seconds of the jumping clock, which take no time
Headers = Sequence[tuple[str, str]]


class Wall:
    """A wall clock that goes along with Trio's."""

    def __init__(self) -> None:
        self._offset = NOW - trio.current_time()

    def time(self) -> float:
        return self._offset + trio.current_time()

    def time_ns(self) -> int:
        return round(self.time() * 1e9)


@attrs.define(eq=False)
class Screen:
    """A client on plain WebSocket."""

    stream: trio.SocketStream
    nursery: trio.Nursery
    head: bytes = b""  # of the answer to its handshake
    pongs: bool = True  # whether it answers pings
    seen: list[tuple[float, dict[str, Any]]] = attrs.field(factory=list)
    pings: list[float] = attrs.field(factory=list)
    ponged: list[bytes] = attrs.field(factory=list)
    closed: tuple[int, str] | None = None  # by a close frame
    ended: float | None = None  # when the connection was over
    reset: bool = False  # whether it was over without an end of file
    ws: Connection = attrs.field(factory=lambda: Connection(ConnectionType.CLIENT))
    _reading: trio.Event = attrs.field(factory=trio.Event)
    _receiving: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _more: trio.Event = attrs.field(factory=trio.Event)
    _at: int = 0
    _ids: Callable[[], int] = attrs.field(factory=lambda: itertools.count(1).__next__)
    _text: str = ""
    _sending: trio.Lock = attrs.field(factory=trio.Lock)

    # what it sends

    async def send(self, message: dict[str, Any] | str | bytes) -> None:
        """Send a message, an object as JSON; nothing once the connection is closing."""
        if isinstance(message, dict):
            message = json.dumps(message)
        event: Message[Any] = (
            TextMessage(message) if isinstance(message, str) else BytesMessage(message)
        )
        await self._send(event)

    async def ask(self, type_: str, **fields: Any) -> dict[str, Any]:
        """Send a request; return its answer, skipping other messages."""
        number = self._ids()
        await self.send({"type": type_, "id": number, **fields})
        return await self.next(where=lambda message: message.get("id") == number)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Say goodbye."""
        await self._send(CloseConnection(code, reason))

    # whether it reads

    def pause(self) -> None:
        """Read no more."""
        self._reading = trio.Event()
        self._receiving.cancel()

    def resume(self) -> None:
        """Read on."""
        self._reading.set()

    # what it sees

    async def next(
        self, type_: str = "", where: Callable[[dict[str, Any]], object] = lambda message: True
    ) -> dict[str, Any]:
        """Return the next message of a type, skipping others."""
        with trio.move_on_after(PATIENCE):
            while True:
                while self._at < len(self.seen):
                    message = self.seen[self._at][1]
                    self._at += 1
                    if type_ in ("", message["type"]) and where(message):
                        return message
                if self.ended is not None:
                    break
                self._more = trio.Event()
                await self._more.wait()
        raise AssertionError(f"no {type_ or 'such message'}; {self.closed}, {self.seen[-5:]}")

    async def end(self) -> tuple[int, str] | None:
        """Wait until the connection is over; return how."""
        with trio.fail_after(PATIENCE):
            while self.ended is None:
                self._more = trio.Event()
                await self._more.wait()
        return self.closed

    def all(self, type_: str) -> list[dict[str, Any]]:
        """Every message of a type so far."""
        return [message for _, message in self.seen if message["type"] == type_]

    async def read(self) -> None:
        """Read until the end; runs beside."""
        self.resume()
        try:
            while True:
                while not self._reading.is_set():
                    await self._reading.wait()
                data = None
                with trio.CancelScope() as self._receiving:
                    data = await self.stream.receive_some()
                if data is None:
                    continue  # told to pause
                if not data:
                    break
                self.ws.receive_data(data)
                for event in self.ws.events():
                    await self._see(event)
                self._more.set()
        except trio.BrokenResourceError:
            self.reset = True
        except trio.ClosedResourceError:
            pass  # the test has hung up
        self.ended = trio.current_time()
        self._more.set()

    async def _see(self, event: object) -> None:
        now = trio.current_time()
        if isinstance(event, TextMessage):
            self._text += event.data
            if event.message_finished:
                self.seen.append((now, json.loads(self._text)))
                self._text = ""
        elif isinstance(event, Ping):
            self.pings.append(now)
            if self.pongs:
                await self._send(event.response())
        elif isinstance(event, Pong):
            self.ponged.append(bytes(event.payload))
        elif isinstance(event, CloseConnection):
            self.closed = (int(event.code), event.reason or "")
            if self.ws.state is ConnectionState.REMOTE_CLOSING:
                await self._send(event.response())

    async def _send(self, event: WsEvent) -> None:
        closing = isinstance(event, CloseConnection)
        async with self._sending:
            if self.ws.state is not ConnectionState.OPEN and not (
                closing and self.ws.state is ConnectionState.REMOTE_CLOSING
            ):
                return
            try:
                await self.stream.send_all(self.ws.send(event))
            except trio.BrokenResourceError:
                self.reset = True


@attrs.define(eq=False)
class Replies:
    """What a producer that wants acks is told."""

    told: list[tuple[int, bytes | None, int, BadEvent | None, bool]] = attrs.field(factory=list)
    wants_all: bool = True

    def done_for(self, index: int) -> Done:
        return lambda *what: self.told.append((index, *what))


@attrs.define(eq=False)
class House:
    """The daemon's inside, and its visitors."""

    hub: Hub
    acceptor: Acceptor
    dispatcher: Dispatcher
    events_out: trio.MemorySendChannel[FeedBatch]
    nursery: trio.Nursery  # of the visitors
    sites: dict[str, Site]
    logs: list[Any] = attrs.field(factory=list)
    _decoder: FeedDecoder = attrs.field(init=False)
    _dialed: list[socket.socket] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self._decoder = FeedDecoder(self.hub.settings)

    def close(self) -> None:
        """Hang up whatever is open."""
        for sock in self._dialed:
            if sock.fileno() >= 0:
                trio.lowlevel.notify_closing(sock)
                sock.close()

    def token(self, user: str = "123", role: str = "user", ttl: float | None = 3600) -> str:
        """Return a token that is accepted."""
        return make_token(KEY, "HS256", user, role, ttl, clock.unix_now())

    def dial(self, address: str | None = CLIENT) -> trio.SocketStream:
        """Open a connection; `address` is what the daemon takes for the other end's."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self._dialed.append(ours)
        self.hub.nursery.start_soon(self.acceptor.serve, theirs, address)
        return trio.SocketStream(trio.socket.from_stdlib_socket(ours))

    async def ask(self, raw: bytes, address: str | None = CLIENT) -> Answer:
        """Send bytes on a connection of their own; return the answer."""
        async with self.dial(address) as stream:
            await stream.send_all(raw)
            with trio.fail_after(PATIENCE):
                return await read_answer(stream)

    async def get(
        self, path: str, *headers: tuple[str, str], method: str = "GET", **options: Any
    ) -> Answer:
        """Make a plain request."""
        return await self.ask(head(path, headers, method), **options)

    async def screen(
        self,
        *headers: tuple[str, str],
        token: str | None = None,
        path: str = "/ws",
        address: str | None = CLIENT,
        welcome: bool = True,
    ) -> Screen:
        """Connect a WebSocket; with `welcome` wait for its first message."""
        screen = await self.handshake(*headers, token=token, path=path, address=address)
        assert screen.head.startswith(b"HTTP/1.1 101 "), screen.head
        self.nursery.start_soon(screen.read)
        if welcome:
            first = await screen.next()
            assert first["type"] == "connection"
        return screen

    async def handshake(
        self,
        *headers: tuple[str, str],
        token: str | None = None,
        path: str = "/ws",
        address: str | None = CLIENT,
        stream: trio.SocketStream | None = None,
    ) -> Screen:
        """Shake hands; nothing is read but the head of the answer, whichever it is."""
        stream = stream or self.dial(address)
        if token is not None:
            headers = (*headers, ("Authorization", f"Bearer {token}"))
        await stream.send_all(upgrade(path, headers))
        with trio.fail_after(PATIENCE):
            answer = await stream.socket.recv(4096, socket.MSG_PEEK)  # written in one piece
        answer = await stream.receive_some(answer.index(b"\r\n\r\n") + 4)
        return Screen(stream, self.nursery, answer)

    async def publish(self, *events: dict[str, Any] | Event) -> Replies:
        """Feed events as one batch and wait until they are written; return their answers."""
        replies = Replies()
        decoded = [e if isinstance(e, Event) else self.decode(e) for e in events]
        batch = FeedBatch(decoded, replies, "test", [], trio.current_time())
        await self.events_out.send(batch)
        await self.dispatched()
        return replies

    async def dispatched(self) -> None:
        """Wait until all that was fed is written."""
        await self.settled()
        while not self.dispatcher.idle:  # noqa: ASYNC110 - it paces itself
            await trio.sleep(0.001)
        await self.settled()

    def decode(self, line: dict[str, Any]) -> Event:
        """Return the event of a feed line."""
        event = self._decoder.decode(json.dumps(line).encode(), clock.now_ms())
        assert isinstance(event, Event)
        return event

    def configured(self, *sets: str) -> Settings:
        """Return the settings that a reload with these changes would bring."""
        return configured(*sets)

    async def settled(self) -> None:
        """Let everything happen that can happen without time passing."""
        await trio.testing.wait_all_tasks_blocked()


def quote(symbol: str, price: float, **data: Any) -> dict[str, Any]:
    """A line of market data."""
    return {"type": "market_data_update", "data": {"symbol": symbol, "price": price, **data}}


def status(text: str = "ok", **data: Any) -> dict[str, Any]:
    """A line that everybody may see."""
    return {"type": "system_status", "data": {"status": text, **data}}


def trade(user: str = "123", **data: Any) -> dict[str, Any]:
    """A line of a user's own."""
    fill = {"symbol": "BTCUSDT", "side": "buy", "quantity": 1, "price": 1, **data}
    return {"type": "trade_execution", "user_id": user, "data": fill}


def head(path: str, headers: Headers = (), method: str = "GET") -> bytes:
    """Return a request without a body."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode()


def upgrade(path: str = "/ws", headers: Headers = ()) -> bytes:
    """Return a WebSocket handshake."""
    wanted = [
        ("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ]  # fmt: skip
    return head(path, [*wanted, *headers])


def configured(*sets: str) -> Settings:
    """Return the defaults with `section.key=value` over them."""
    return load(None, sets).settings


@asynccontextmanager
async def house(*sets: str, run: bool = True, bugs: int = 0) -> AsyncIterator[House]:
    """Open a house with these settings; `bugs` is how many there are to be at its end."""
    settings = configured("channels.market_data.throttle=0s", *sets)
    real, clock.time = clock.time, Wall()  # type: ignore[attr-defined, assignment]
    try:
        async with trio.open_nursery() as nursery:
            home = build(settings, nursery)
            if run:
                nursery.start_soon(home.dispatcher.run)
                nursery.start_soon(home.hub.reaper.run)
                nursery.start_soon(housekeeper.run, home.hub)
            try:
                with structlog.testing.capture_logs() as home.logs:
                    yield home
            finally:
                home.close()
            assert home.hub.counters.bugs == bugs, home.logs
            nursery.cancel_scope.cancel()
    finally:
        clock.time = real  # type: ignore[attr-defined]


def build(settings: Settings, nursery: trio.Nursery) -> House:
    """Put a house together, with no task running."""
    hub = Hub(settings, (KEY,), nursery, Journal("epoch", settings.limits.streams))
    hub.health.state = State.RUNNING
    events_out, events_in = trio.open_memory_channel[FeedBatch](16)
    dispatcher = Dispatcher(hub, events_in, wake_in=events_out.clone())
    hub.wake = dispatcher.wake
    sites: dict[str, Site] = {"/ws": WebSocketSite(hub)}
    sites |= dict.fromkeys(PATHS, Pages(hub, Metrics(hub, NOW), Rates()))
    acceptor = Acceptor(hub, sites.get)
    acceptor.reconfigure()
    return House(hub, acceptor, dispatcher, events_out, nursery, sites)
