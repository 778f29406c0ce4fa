"""A client on `/ws` that holds the daemon to its promises with every message.

    with watcher(daemon, user="123") as client:
        client.subscribe("market_data", "user_123_trades")
        ...
        client.until("trade_execution")
        assert client.problems == []

Whatever it gets, it checks what holds for every client at every time: within a stream `seq` counts
without a gap that no `skipped` explained and without a repetition, offsets only grow, a snapshot
lies before what follows it. It speaks the protocol itself (RFC 6455 over a plain socket), because a
test has to say how slowly it reads and how much its kernel buffers.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from tests.e2e.daemon import Daemon

PATIENCE = 15.0  # seconds until what should come counts as missing
RECEIVE = 256 * 1024
CLOSE, PING, PONG, TEXT = 8, 9, 10, 1

Envelope = dict[str, Any]
Stream = tuple[str, str | None]


@attrs.define
class Checker:
    """What one client was told, and what of it cannot be. It may outlive a connection."""

    seqs: dict[Stream, int] = attrs.field(factory=dict)  # the last one of each stream
    skipped: dict[Stream, int] = attrs.field(factory=dict)
    events: dict[Stream, int] = attrs.field(factory=dict)  # snapshots not counted
    problems: list[str] = attrs.field(factory=list)
    position: int = 0  # of the last event
    offset: str = ""  # likewise, as a client gives it back

    def see(self, message: Envelope) -> None:
        """Check one message."""
        if message["type"] == "skipped":
            self._see_skipped(message["data"])
        elif "seq" in message:
            self._see_event(message)

    def _see_skipped(self, data: Envelope) -> None:
        stream = (data["channel"], data["symbol"])
        if data["count"] is None:  # it is said of a whole channel that is no longer kept
            for known in [s for s in self.seqs if s[0] == data["channel"].partition(":")[0]]:
                del self.seqs[known]
            return
        expected = self.seqs.get(stream, data["fromSeq"] - 1) + 1
        if data["fromSeq"] != expected:
            self.problems.append(f"skipped from {data['fromSeq']}, expected {expected}: {data}")
        if data["count"] != data["toSeq"] - data["fromSeq"] + 1:
            self.problems.append(f"skipped does not add up: {data}")
        self.seqs[stream] = data["toSeq"]
        self.skipped[stream] = self.skipped.get(stream, 0) + data["count"]

    def _see_event(self, message: Envelope) -> None:
        stream = (message["channel"], message["data"].get("symbol"))
        seq, position = message["seq"], int(message["offset"].rpartition(".")[2])
        known = self.seqs.get(stream)
        if message.get("snapshot"):
            if known is not None and seq < known:
                self.problems.append(f"snapshot of {seq} after {known}: {message}")
            self.seqs[stream] = seq
            return
        if known is not None and seq != known + 1:
            self.problems.append(f"seq {seq} after {known}: {message}")
        if position <= self.position:
            self.problems.append(f"position {position} after {self.position}: {message}")
        self.seqs[stream], self.position, self.offset = seq, position, message["offset"]
        self.events[stream] = self.events.get(stream, 0) + 1


class Watcher:
    """One connection. `pace`: how many bytes a second it reads, at most."""

    def __init__(
        self,
        daemon: Daemon,
        token: str | None,
        checker: Checker | None = None,
        *,
        kernel_buffer: int | None = None,
    ) -> None:
        self.checker = checker or Checker()
        self.seen: list[Envelope] = []
        self.keep = True  # all messages in `seen`; a test that gets very many goes without
        self.on_message: Callable[[Envelope], None] = lambda message: None
        self.pace: float | None = None
        self.close_code: int | None = None
        self.close_reason = ""
        self.received = 0  # bytes
        self.last = b""  # the last message as it came
        self._asked = 0
        self._buffer = bytearray()
        self._started = 0.0
        self.socket = socket.socket()
        if kernel_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, kernel_buffer)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(("127.0.0.1", daemon.port))
        self._upgrade(token)
        self.connection = self.next()
        assert self.connection["type"] == "connection", self.connection

    @property
    def problems(self) -> list[str]:
        """What broke a promise so far."""
        return self.checker.problems

    def _upgrade(self, token: str | None) -> None:
        head = (
            "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        )
        if token:
            head += f"Authorization: Bearer {token}\r\n"
        self.socket.sendall(head.encode() + b"\r\n")
        answer = b""
        while b"\r\n\r\n" not in answer:
            more = self.socket.recv(4096)
            assert more, answer
            answer += more
        assert answer.startswith(b"HTTP/1.1 101 "), answer
        self._buffer += answer.partition(b"\r\n\r\n")[2]

    # -- saying

    def send(self, **request: Any) -> None:
        """Send a request."""
        self.frame(TEXT, json.dumps(request).encode())

    def frame(self, opcode: int, payload: bytes) -> None:
        """Send a frame; masked, as clients must, with a mask of zeros."""
        size = len(payload)
        head = bytes((0x80 | opcode,))
        head += bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
        self.socket.sendall(head + b"\0\0\0\0" + payload)

    def ask(self, type_: str, **fields: Any) -> Envelope:
        """Send a request and return its answer; what comes before is taken in as always."""
        self._asked += 1
        number = self._asked
        self.send(type=type_, id=number, **fields)
        return self.take(lambda message: message.get("id") == number)

    def subscribe(self, *channels: str, **fields: Any) -> Envelope:
        """Subscribe; return the `data` of the confirmation."""
        answer = self.ask("subscribe", channels=list(channels), **fields)
        assert answer["type"] == "subscription_confirmed", answer
        assert answer["data"]["denied"] == [], answer
        data: Envelope = answer["data"]
        return data

    # -- hearing

    def next(self, limit: float = PATIENCE) -> Envelope:
        """Return the next message; AssertionError if none comes in time, or no more at all."""
        message = self.poll(limit)
        assert message is not None, f"nothing for {limit:g} s; {self.close_code} {self.seen[-5:]}"
        return message

    def poll(self, limit: float) -> Envelope | None:
        """Return the next message, None if there is none within `limit` or the connection ended."""
        deadline = time.monotonic() + limit
        while True:
            frame = self._cut_frame()
            if frame is None:
                if not self._receive(deadline):
                    return None
                continue
            opcode, payload = frame
            if opcode == TEXT:
                message: Envelope = json.loads(payload)
                self.last = payload
                self.checker.see(message)
                self.on_message(message)
                if self.keep:
                    self.seen.append(message)
                return message
            if opcode == PING:
                self.frame(PONG, payload)
            elif opcode == CLOSE:
                self.close_code = int.from_bytes(payload[:2], "big")
                self.close_reason = payload[2:].decode()
                return None

    def take(self, wanted: Callable[[Envelope], object], limit: float = PATIENCE) -> Envelope:
        """Return the next message that is wanted; the others are taken in on the way."""
        deadline = time.monotonic() + limit
        while True:
            message = self.next(max(0.0, deadline - time.monotonic()))
            if wanted(message):
                return message

    def until(self, type_: str, limit: float = PATIENCE) -> Envelope:
        """Return the next message of a type."""
        return self.take(lambda message: message["type"] == type_, limit)

    def listen(self, seconds: float) -> list[Envelope]:
        """Take in whatever comes within a time; return it."""
        heard = []
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and self.close_code is None:
            message = self.poll(left)
            if message is None:
                if self.socket.fileno() < 0 or self.close_code is not None:
                    break
                continue
            heard.append(message)
        return heard

    def caught_up(self) -> list[Envelope]:
        """Take in what is on its way: all that was sent before the answer to a ping."""
        before = len(self.seen)
        self.ask("ping")
        return self.seen[before:-1]

    def events(self, channel: str | None = None) -> list[Envelope]:
        """The events seen, of one channel or all."""
        return [m for m in self.seen if "seq" in m and channel in (None, m["channel"])]

    def ended(self, limit: float = PATIENCE) -> int | None:
        """Read to the end; return the close code."""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline and self.poll(deadline - time.monotonic()) is not None:
            pass
        return self.close_code

    def _receive(self, deadline: float) -> bool:
        """Read once; False when the time is over or the connection has ended."""
        now = time.monotonic()
        if self.close_code is not None or now >= deadline:
            return False
        self.socket.settimeout(max(0.001, deadline - now))
        size = RECEIVE if self.pace is None else max(64, int(self.pace / 10))
        try:
            data = self.socket.recv(size)
        except TimeoutError:
            return False
        except OSError:
            data = b""
        if not data:
            self.close_code = 1006
            return False
        self._buffer += data
        self.received += len(data)
        if self.pace is not None:
            self._keep_pace(len(data))
        return True

    def _keep_pace(self, size: int) -> None:
        assert self.pace is not None
        # A pause for what was read, not a schedule to catch up with: it never reads faster.
        time.sleep(size / self.pace)

    def _cut_frame(self) -> tuple[int, bytes] | None:
        """Take a whole frame off the buffer."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        size, at = buffer[1] & 127, 2
        if size > 125:
            width = 2 if size == 126 else 8
            at += width
            if len(buffer) < at:
                return None
            size = int.from_bytes(buffer[2:at], "big")
        if len(buffer) < at + size:
            return None
        frame = buffer[0] & 15, bytes(buffer[at : at + size])
        del buffer[: at + size]
        return frame

    def close(self) -> None:
        """Leave without a goodbye."""
        self.socket.close()


@contextlib.contextmanager
def watcher(
    daemon: Daemon,
    user: str | None = None,
    role: str = "user",
    checker: Checker | None = None,
    **options: Any,
) -> Iterator[Watcher]:
    """A client that is connected; without a user it has no token."""
    token = None if user is None else daemon.token(user, role)
    client = Watcher(daemon, token, checker, **options)
    try:
        yield client
    finally:
        client.close()


def thorough() -> bool:
    """Whether the long versions of the tests are wanted (CRYPTOWS_THOROUGH=1)."""
    return bool(os.environ.get("CRYPTOWS_THOROUGH"))
