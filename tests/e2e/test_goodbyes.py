"""The last moments: of a connection while events flow, and of the daemon while it is fed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from tests.e2e.daemon import Daemon, Producer, start
from tests.e2e.watcher import CLOSE, watcher

pytestmark = pytest.mark.e2e


def news(number: int) -> dict[str, object]:
    return {"type": "trading_signal", "data": {"symbol": "BTCUSDT", "number": number}}


@contextmanager
def feeding(daemon: Daemon) -> Iterator[None]:
    """Events without pause."""
    over = threading.Event()

    def feed() -> None:
        with daemon.producer(acks=False) as producer:
            while not over.wait(0.0005):
                producer.send([news(0)])

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def opcodes(data: bytes) -> list[int]:
    """Return the opcodes of unmasked frames; AssertionError if the last one is cut off."""
    found = []
    while data:
        size, at = data[1] & 127, 2
        if size == 126:
            size, at = int.from_bytes(data[2:4], "big"), 4
        assert len(data) >= at + size
        found.append(data[0] & 15)
        data = data[at + size :]
    return found


def test_after_the_close_frame_nothing_follows_though_events_flow(tmp_path):
    with start(tmp_path) as daemon, feeding(daemon):
        for _ in range(100):
            with watcher(daemon, "7") as client:
                client.subscribe("trading_signals")
                client.until("trading_signal")
                client.frame(CLOSE, b"\x03\xe8")
                rest = bytes(client._buffer)
                client.socket.settimeout(10)
                while more := client.socket.recv(1 << 16):
                    rest += more

            found = opcodes(rest)
            assert found[-1] == CLOSE
            assert found.count(CLOSE) == 1


def test_what_was_acknowledged_reaches_who_is_here_before_the_goodbye(tmp_path):
    with start(tmp_path) as daemon, watcher(daemon, "7") as client:
        client.subscribe("trading_signals")
        with daemon.producer() as producer:
            thread = threading.Thread(target=send, args=(producer,))
            thread.start()
            answers = producer.answers(1000)
            daemon.send_signal(signal.SIGTERM)
            answers += rest_of(producer)
            thread.join()
        client.ended()

        accepted = [a for a in answers if a["ok"]]
        assert client.close_code == 1012
        assert len(client.events()) == len(accepted)
        assert daemon.wait() == 0


def send(producer: Producer) -> None:
    """Send more than is ever read."""
    with suppress(OSError):
        producer.send(news(n) for n in range(50_000))


def rest_of(producer: Producer) -> list[dict[str, Any]]:
    """Return the answers that still come, until the daemon closes the feed."""
    found: list[dict[str, Any]] = []
    with suppress(OSError, AssertionError):
        while True:
            found += producer.answers(1)
    return found


def test_sigusr1_shows_the_tasks_and_ends_nothing(tmp_path):
    with start(tmp_path) as daemon, watcher(daemon, "7") as client:
        daemon.send_signal(signal.SIGUSR1)
        daemon.wait_until(lambda: daemon.logs("tasks"))

        (line,) = daemon.logs("tasks")
        assert any("Dispatcher.run" in task for task in line["tree"])
        assert client.ask("ping")["type"] == "pong"
