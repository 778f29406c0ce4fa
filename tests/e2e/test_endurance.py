"""What must not wear the daemon out: endless lines, clients without end, and all of it at once.

The usual run takes about half a minute; CRYPTOWS_THOROUGH=1 makes it last.
"""

from __future__ import annotations

import json
import os
import random
import socket
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from functools import partial

import pytest
import trio
from websockets.sync.client import connect

from tests.e2e.daemon import Daemon, start
from tests.e2e.test_replay import recording

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

THOROUGH = os.environ.get("CRYPTOWS_THOROUGH") == "1"
CHURN = 10_000 if THOROUGH else 600  # clients that come and go
SOAK = 120.0 if THOROUGH else 8.0  # seconds
MIB = 1 << 20
GAUGES = (
    "cryptows_subscriptions", "cryptows_authenticated_clients", "cryptows_slow_clients",
    "cryptows_outbox_bytes", "cryptows_queued_events",
)  # fmt: skip


def assert_all_gone(daemon: Daemon) -> None:
    """Every gauge of clients is at zero again, and each that came was counted out."""
    daemon.wait_until(lambda: came_and_went(daemon), 20)
    metrics = daemon.metrics()
    left = {
        name: value
        for name, value in metrics.items()
        if value and (name in GAUGES or name.startswith("cryptows_connections"))
    }
    assert left == {}
    assert daemon.stats()["server"]["channelStats"] == {}
    assert metrics["cryptows_bugs_total"] == 0


def came_and_went(daemon: Daemon) -> bool:
    metrics = daemon.metrics()
    ended = sum(v for name, v in metrics.items() if name.startswith("cryptows_disconnects_total"))
    return ended == metrics["cryptows_connects_total"]


@contextmanager
def beside(*work: Callable[[], None]):
    """Run functions in threads of their own; what they raise is raised at the end."""
    errors: list[BaseException] = []

    def guard(each: Callable[[], None]) -> None:
        try:
            each()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guard, args=(each,)) for each in work]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


def test_a_line_without_end_costs_bounded_memory_and_nobody_else_anything(tmp_path):
    with start(tmp_path) as daemon, daemon.producer() as other:
        before, most = daemon.rss(), 0
        with socket.socket(socket.AF_UNIX) as endless:
            endless.connect(str(daemon.feed_socket))
            for n in range(200):
                endless.sendall(b"x" * 1_000_000)
                if not n % 20:
                    most = max(most, daemon.rss())
                    other.send([{"type": "system_status", "data": {"n": n}}])
                    assert other.answers(1)[0]["ok"]
            endless.sendall(b'\n{"type":"system_status","data":{}}\nnonsense\n')
            endless.shutdown(socket.SHUT_WR)
            answers = [json.loads(line) for line in endless.makefile("rb")]

        assert most - before < 30 * MIB
        assert [(answer["line"], answer["error"]["code"]) for answer in answers] == [
            (1, "line_too_long"), (3, "invalid_json"),
        ]  # fmt: skip


def test_a_message_without_end_costs_bounded_memory(tmp_path):
    with start(tmp_path) as daemon:
        before = daemon.rss()
        with socket.create_connection(("127.0.0.1", daemon.port)) as sock:
            sock.sendall(
                b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            assert sock.recv(12) == b"HTTP/1.1 101"
            sock.sendall(b"\x81\xff" + (1 << 40).to_bytes(8, "big") + b"\0\0\0\0")
            with suppress(OSError):
                for _ in range(100):
                    sock.sendall(b"x" * 1_000_000)

        assert daemon.rss() - before < 10 * MIB
        assert_all_gone(daemon)


async def one_visit(daemon: Daemon, n: int, chance: random.Random) -> None:
    """Connect, perhaps subscribe, and leave in one of many ways."""
    stream = await trio.open_tcp_stream("127.0.0.1", daemon.port)
    async with stream:
        token = f"Authorization: Bearer {daemon.token(str(n % 50))}\r\n" if n % 3 else ""
        head = (
            f"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{token}"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ).encode()
        way = chance.randrange(8)
        if way == 0:  # in the middle of the head
            await stream.send_all(head[: chance.randrange(len(head))])
            return
        await stream.send_all(head)
        if way == 1:  # before the answer
            return
        await stream.receive_some()
        await stream.send_all(masked(0x81, b'{"type":"subscribe","channels":["system_status"]}'))
        if way == 2:
            return
        await stream.receive_some()
        if way == 3:
            await stream.send_all(b"nonsense" * 10)
        elif way == 4:
            stream.socket.setsockopt(
                trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0"
            )  # a reset
        elif way >= 5:
            await stream.send_all(masked(0x88, b"\x03\xe8"))
            while await stream.receive_some():
                pass


def masked(first: int, payload: bytes) -> bytes:
    return bytes([first, 0x80 | len(payload), 0, 0, 0, 0]) + payload


async def visits(daemon: Daemon, first: int, count: int) -> None:
    """So many clients, fifty at a time."""
    chance = random.Random(first)
    limit = trio.CapacityLimiter(50)

    async def visit(n: int) -> None:
        with suppress(OSError, trio.BrokenResourceError):
            await one_visit(daemon, n, chance)
        limit.release_on_behalf_of(n)

    async with trio.open_nursery() as nursery:
        for n in range(first, first + count):
            await limit.acquire_on_behalf_of(n)
            nursery.start_soon(visit, n)


def test_clients_that_come_and_go_leave_nothing_behind(tmp_path):
    with start(tmp_path, ["heartbeat.interval=1h", "heartbeat.timeout=1h"]) as daemon:
        trio.run(visits, daemon, 0, CHURN)
        daemon.wait_until(lambda: came_and_went(daemon))
        warm = daemon.rss()
        files = daemon.metrics()["process_open_fds"]

        trio.run(visits, daemon, CHURN, CHURN)

        assert_all_gone(daemon)
        assert daemon.metrics()["process_open_fds"] == files
        # A tenth, as promised for ten thousand, and what one garbage collection may come late.
        assert daemon.rss() < warm * 1.1 + 4 * MIB


class Soak:
    """Everything that goes on at once, each in a thread of its own, until the time is over."""

    def __init__(self, daemon: Daemon, seconds: float) -> None:
        self.daemon = daemon
        self.problems: list[str] = []
        self.counts: dict[int, int] = {}
        self._until = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return max(0.0, self._until - time.monotonic())

    def feed(self) -> None:
        lines = [each.text for each in recording(100, seed=3)]
        status = [{"type": "system_status", "data": {"fill": "x" * 2000}}] * 5
        with self.daemon.producer(acks=False, name="soak") as producer:
            while self.left:
                producer.send(lines)
                producer.send(status)
                time.sleep(0.05)
            assert producer.finish() == []

    def stay(self, n: int) -> None:
        """Listen all the time; nothing may be missing."""
        seq = count = 0
        with connect(self.daemon.url, proxy=None) as ws:
            ws.send('{"type":"subscribe","channels":["system_status"]}')
            while self.left:
                with suppress(TimeoutError):
                    message = json.loads(ws.recv(timeout=0.5))
                    if message["type"] == "system_status" and "seq" in message:
                        if seq and message["seq"] != seq + 1:
                            self.problems.append(f"{message['seq']} after {seq}")
                        seq, count = message["seq"], count + 1
        self.counts[n] = count

    def come_and_go(self) -> None:
        at = 0
        while self.left:
            trio.run(visits, self.daemon, at, 50)
            at += 50

    def be_slow(self) -> None:
        while self.left:
            with connect(self.daemon.url, proxy=None, max_queue=1, close_timeout=1) as ws:
                ws.send('{"type":"subscribe","channels":["system_status"]}')
                time.sleep(min(3.0, self.left))

    def look(self) -> None:
        while self.left:
            assert self.daemon.get("/healthz")[0] == 200
            assert self.daemon.get("/metrics")[0] == 200
            assert self.daemon.control({"command": "reload"})["ok"]
            time.sleep(0.3)


def test_a_soak_of_everything_at_once(tmp_path):
    """Feed, clients that stay, clients that come and go, slow ones, probes and reloads."""
    sets = ["delivery.outbox=256KiB", "delivery.max_lag=2s", "heartbeat.interval=1s"]
    with start(tmp_path, sets) as daemon:
        soak = Soak(daemon, SOAK)

        staying = [partial(soak.stay, n) for n in range(5)]
        with beside(soak.feed, soak.come_and_go, soak.be_slow, soak.look, *staying):
            pass

        assert soak.problems == []
        assert min(soak.counts[n] for n in range(5)) > 50
        assert_all_gone(daemon)
        assert [line for line in daemon.logs() if line["level"] in ("error", "critical")] == []


def test_what_producers_without_acks_wrote_last_is_stored_before_the_end(tmp_path):
    fill = {"symbol": "BTCUSDT", "side": "buy", "quantity": 1, "price": 1}
    trades = [
        {"type": "trade_execution", "user_id": "7", "data": {**fill, "n": n}} for n in range(3000)
    ]
    sets = ['channels.user_{id}_trades.history={events=5000,bytes="8MiB",age="1h"}']
    with start(tmp_path, sets) as daemon:
        with daemon.producer(acks=False) as producer:
            producer.send(trades)
            daemon.wait_until(lambda: daemon.metrics()["cryptows_producers"] == 1)
            daemon.send_signal()
            with suppress(OSError):  # it is not read to the end
                producer.finish()
            assert daemon.wait() == 0
        read = daemon.logs("producer gone")[0]["events"]

        daemon.restart()
        header = {"Authorization": f"Bearer {daemon.token('7')}"}
        with connect(daemon.url, additional_headers=header, proxy=None, max_size=None) as ws:
            epoch = json.loads(ws.recv())["data"]["epoch"]
            request = {"type": "subscribe", "channels": ["user_7_trades"], "since": f"{epoch}.0"}
            ws.send(json.dumps(request))
            seen: list[int] = []
            while len(seen) < read:
                message = json.loads(ws.recv(timeout=20))
                if message["type"] == "trade_execution":
                    seen.append(message["data"]["n"])

    assert seen == list(range(read))
    assert read > 0
