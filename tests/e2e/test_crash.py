"""kill -9 under durable load: what was acknowledged is there, and comes once.

A producer feeds events of one user with ids and acknowledgements, and sends again what was not
answered when the daemon died, as producers do. A client follows that user's channel and recovers
by `since` each time. Every other time it feeds batch lines of ten. CRYPTOWS_CRASHES=50 crashes it
fifty times; the usual run does so ten times, or as often as it can within ENOUGH.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import signal
import threading
import time
from typing import Any

import pytest
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from tests.e2e.daemon import Daemon, start

pytestmark = pytest.mark.e2e

CRASHES = int(os.environ.get("CRYPTOWS_CRASHES", "10"))
ENOUGH = 25.0 if "CRYPTOWS_CRASHES" not in os.environ else 1e9  # seconds
IN_FLIGHT = 100
BATCH = 10
CHANNEL = "user_7_trades"


class Bot(threading.Thread):
    """Feeds numbered trades; each is sent until it is acknowledged, in order."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(daemon=True)
        self.feed, self.stop = daemon, threading.Event()
        self.acknowledged: dict[str, str] = {}  # id: offset
        self.errors: list[dict[str, Any]] = []
        self.made = self.rounds = 0
        self.unanswered: list[str] = []

    def has_more_than(self, acknowledged: int) -> bool:
        return len(self.acknowledged) > acknowledged

    def run(self) -> None:
        while not self.stop.is_set() or self.unanswered:
            with contextlib.suppress(OSError, AssertionError, ValueError):
                self.feed_until_it_breaks()
            time.sleep(0.01)

    def feed_until_it_breaks(self) -> None:
        with self.feed.producer(name="crash-bot") as producer:
            producer.socket.settimeout(30)
            self.exchange(producer, self.unanswered)
            while not self.stop.is_set():
                new = [f"t-{self.made + i}" for i in range(1, IN_FLIGHT + 1)]
                self.made += len(new)
                self.unanswered += new
                self.exchange(producer, new)

    def exchange(self, producer: Any, ids: list[str]) -> None:
        """Send events, one or several a line, and take the answers, which come line by line."""
        self.rounds += 1
        size = BATCH if self.rounds % 2 else 1
        lines = [ids[at : at + size] for at in range(0, len(ids), size)]
        producer.send(
            trade(ids[0]) if size == 1 else {"batch": [*map(trade, ids)]} for ids in lines
        )
        for line in lines:
            (answer,) = producer.answers(1)
            if answer["ok"]:
                self.acknowledged |= dict.fromkeys(line, answer["offset"])
            else:
                self.errors.append(answer)
            self.unanswered = self.unanswered[len(line) :]


def trade(id_: str) -> dict[str, Any]:
    data = {"symbol": "BTCUSDT", "side": "buy", "quantity": 1, "tag": id_}
    return {"type": "trade_execution", "user_id": "7", "id": id_, "data": data}


class Follower(threading.Thread):
    """Follows the channel, and recovers by `since` after each crash."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(daemon=True)
        self.server, self.stop = daemon, threading.Event()
        self.ready = threading.Event()
        self.tags: list[str] = []
        self.seqs: list[int] = []
        self.offsets: list[str] = []
        self.recovered: list[Any] = []

    def run(self) -> None:
        while not self.stop.is_set():
            with contextlib.suppress(OSError, WebSocketException, EOFError):
                self.follow()
            time.sleep(0.01)

    def follow(self) -> None:
        headers = {"Authorization": f"Bearer {self.server.token('7')}"}
        with connect(
            self.server.url, additional_headers=headers, compression=None, max_size=None
        ) as socket:
            request: dict[str, Any] = {"type": "subscribe", "channels": [CHANNEL], "id": 1}
            if self.offsets:
                request["since"] = self.offsets[-1]
            socket.send(json.dumps(request))
            while not self.stop.is_set():
                with contextlib.suppress(TimeoutError):
                    self.take(json.loads(socket.recv(timeout=0.1)))

    def take(self, message: dict[str, Any]) -> None:
        if message["type"] == "subscription_confirmed":
            self.recovered.append(message["data"])
            self.ready.set()
        elif message.get("channel") == CHANNEL:
            self.tags.append(message["data"]["tag"])
            self.seqs.append(message["seq"])
            self.offsets.append(message["offset"])


@pytest.mark.slow
@pytest.mark.timeout(120 + 8 * CRASHES)
def test_what_was_acknowledged_survives_kill_9_and_is_delivered_once(tmp_path):
    seed = int(os.environ.get("CRYPTOWS_SEED", time.time_ns() % 1_000_000))
    print("CRYPTOWS_SEED", seed)
    moments = random.Random(seed)
    sets = ["store.keep_events=10000000", "feed.dedup_ids=1000000", "log.level=info"]
    with start(tmp_path, sets) as daemon:
        bot, follower = Bot(daemon), Follower(daemon)
        follower.start()
        assert follower.ready.wait(10)
        bot.start()
        enough = time.monotonic() + ENOUGH
        for _ in range(CRASHES):
            if time.monotonic() > enough:
                break
            time.sleep(moments.uniform(0.02, 0.8))
            daemon.restart(signal.SIGKILL)
            daemon.wait_until(functools.partial(bot.has_more_than, len(bot.acknowledged)), 30)
        bot.stop.set()
        bot.join(30)
        daemon.wait_until(lambda: set(follower.tags) >= set(bot.acknowledged), 30)
        follower.stop.set()
        follower.join(10)

    assert bot.errors == []
    assert len(bot.acknowledged) == bot.made
    assert len(follower.tags) == len(set(follower.tags)), "delivered twice"
    assert set(follower.tags) == set(bot.acknowledged)
    assert follower.seqs == list(range(1, len(follower.seqs) + 1)), "seq has a gap"
    numbers = [int(offset.partition(".")[2]) for offset in follower.offsets]
    assert numbers == sorted(set(numbers)), "positions do not go up"
    assert len({offset.partition(".")[0] for offset in follower.offsets}) == 1
    assert all(data.get("recovered") in (True, None) for data in follower.recovered)
    print(f"{bot.made} events, {CRASHES} crashes, {len(follower.recovered)} connections")
