"""Durable events, which no peer has: how fast they are acknowledged, and how a crowd comes back.

One producer sends trades with ids in batches and waits for the acknowledgements of each before the
next; they come after the commit. Then the daemon starts anew, so that nothing is left in memory,
and many clients at once ask for all that they missed. They only count: to read the JSON would be
what is measured.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import attrs

from bench.measure import Bench, MeasureError, pinned
from bench.servers import Server, compact, token

BATCH = 100  # events in flight
BATCHES = 300
USER = "bench"  # whose token the daemon's own clients have
MISSED = 10_000  # events; store.keep_events keeps as many of each channel
CLIENTS = 100
PATIENCE = 60.0  # seconds
REPLAYED = b'"replay":true}'


@attrs.frozen
class Durable:
    """What was measured."""

    acknowledged: float  # events a second
    recovery: float  # seconds until every client has every event


@attrs.define
class Crowd:
    """Connections that count what comes, all in one thread."""

    sockets: Sequence[socket.socket]
    _counts: dict[socket.socket, int] = attrs.field(factory=dict, init=False)
    _rests: dict[socket.socket, bytes] = attrs.field(factory=dict, init=False)

    def read_until(self, each: int, limit: float = PATIENCE) -> float:
        """Read until each has so many replayed events; return the seconds that took."""
        started = time.monotonic()
        waiting = set(self.sockets)
        with selectors.DefaultSelector() as selector:
            for sock in self.sockets:
                sock.setblocking(False)
                selector.register(sock, selectors.EVENT_READ, sock)
            while waiting:
                left = started + limit - time.monotonic()
                if left <= 0:
                    raise MeasureError(f"after {limit:g} s {len(waiting)} clients miss events")
                for key, _ in selector.select(left):
                    if self._read(key.data) >= each:
                        waiting.discard(key.data)
        return time.monotonic() - started

    def count(self, sock: socket.socket) -> int:
        """Return how many replayed events came over one of them."""
        return self._counts.get(sock, 0)

    def _read(self, sock: socket.socket) -> int:
        data = sock.recv(1 << 20)
        if not data:
            raise MeasureError("the daemon closed a client")
        rest = self._rests.get(sock, b"") + data
        self._counts[sock] = self.count(sock) + rest.count(REPLAYED)
        # What follows the last event counted; an event may have come in part.
        self._rests[sock] = rest[max(rest.rfind(REPLAYED) + 1, len(rest) - len(REPLAYED) + 1) :]
        return self._counts[sock]


def measure_durable(bench: Bench, server: Server) -> Durable:
    """Measure the daemon; raises MeasureError."""
    with bench.place() as place:
        try:
            with bench.running(server, place), pinned(bench.client_cpu):
                rate = feed(place.feed)
            with bench.running(server, place), pinned(bench.client_cpu):
                return Durable(rate, come_back(place.port))
        except OSError as error:
            raise MeasureError(f"durable events: {error}") from None


def feed(path: Path) -> float:
    """Send all batches; return how many events a second were acknowledged."""
    with socket.socket(socket.AF_UNIX) as sock, sock.makefile("rb") as answers:
        sock.settimeout(PATIENCE)
        sock.connect(str(path))
        sock.sendall(b'{"hello":{"producer":"bench","acks":true}}\n')
        expect_ok(answers.readline())
        started = time.monotonic()
        for number in range(BATCHES):
            sock.sendall("".join(trade(number * BATCH + n) for n in range(BATCH)).encode())
            for _ in range(BATCH):
                expect_ok(answers.readline())
        return BATCHES * BATCH / (time.monotonic() - started)


def trade(number: int) -> str:
    """Return a line of the feed: an execution of the one user."""
    data = {"symbol": "BTCUSDT", "side": "buy", "price": 50000.5, "quantity": 1, "number": number}
    event = {"type": "trade_execution", "user_id": USER, "id": f"t-{number}", "data": data}
    return compact(event) + "\n"


def expect_ok(line: bytes) -> None:
    """Raise MeasureError if that is no acknowledgement."""
    if not line or not json.loads(line)["ok"]:
        raise MeasureError(f"not acknowledged: {line.decode()}")


def come_back(port: int) -> float:
    """Let all clients ask for everything at once; return the seconds until they have it."""
    sockets = [socket.create_connection(("127.0.0.1", port), PATIENCE) for _ in range(CLIENTS)]
    try:
        for sock in sockets:
            epoch = connect(sock)
            request = {"type": "subscribe", "channels": [f"user_{USER}_trades"]}
            # The latest are kept; of the others it is said that they are not.
            send(sock, compact(request | {"since": f"{epoch}.0"}))
        return Crowd(sockets).read_until(MISSED)
    finally:
        for sock in sockets:
            sock.close()


def connect(sock: socket.socket) -> str:
    """Open a WebSocket; return the epoch, from the first message."""
    sock.sendall(
        b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        + f"Authorization: Bearer {token()}\r\n\r\n".encode()
    )
    data = b""
    while b'"epoch":"' not in data:
        more = sock.recv(4096)
        if not more or not (data + more).startswith(b"HTTP/1.1 101 "):
            raise MeasureError(f"no WebSocket: {(data + more).decode(errors='replace')}")
        data += more
    return data.partition(b'"epoch":"')[2].partition(b'"')[0].decode()


def send(sock: socket.socket, text: str) -> None:
    """Send a short text frame, masked with zeros as clients may."""
    payload = text.encode()
    assert len(payload) < 126
    sock.sendall(bytes((0x81, 0x80 | len(payload))) + bytes(4) + payload)
