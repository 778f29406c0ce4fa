"""Everybody comes back at once, after a restart or a broken line, and has missed a lot.

The usual run is a part of it; CRYPTOWS_THOROUGH=1 for 100 clients that missed 10 000 events each.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest

from bench.durable import Crowd
from tests.e2e.daemon import Daemon, start
from tests.e2e.watcher import Watcher, thorough, watcher

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CLIENTS, MISSED = (100, 10_000) if thorough() else (40, 2_000)


class Live(threading.Thread):
    """A client that was there all the time, and signals that it measures the delay of."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__()
        self._daemon = daemon
        self._over, self.ready = threading.Event(), threading.Event()
        self.delays: list[float] = []
        self.problems: list[str] = []

    def run(self) -> None:
        with self._daemon.producer(acks=False) as producer, watcher(self._daemon, "live") as client:
            client.subscribe("trading_signals")
            self.ready.set()
            while not self._over.is_set():
                data = {"symbol": "LIVE", "sent": time.monotonic()}
                producer.send([{"type": "trading_signal", "data": data}])
                heard = client.until("trading_signal")
                self.delays.append(time.monotonic() - heard["data"]["sent"])
                time.sleep(0.005)
            self.problems = client.problems

    def end(self) -> None:
        self._over.set()
        self.join()


def quote(number: int) -> dict[str, Any]:
    data = {"symbol": f"S{number % 50}", "price": number, "volume": 12.5, "change24h": 2.5}
    return {"type": "market_data_update", "channel": "market_data", "data": data}


def trade(number: int) -> dict[str, Any]:
    data = {"symbol": "BTCUSDT", "side": "buy", "price": 50000.5, "quantity": 1, "number": number}
    return {"type": "trade_execution", "user_id": "7", "data": data}


def missed_of(client: Watcher, channel: str, since: str) -> list[dict[str, Any]]:
    """What one client that looks at everything gets again."""
    answer = client.subscribe(channel, since=since)
    assert answer["recovered"] is True
    client.caught_up()
    assert client.problems == []
    return [m for m in client.events(channel) if m.get("replay")]


@pytest.mark.parametrize("kept", ["in the ring", "on the disk"])
def test_a_crowd_that_comes_back_gets_all_it_missed_at_once_and_live_goes_on(tmp_path, kept):
    channel = "market_data" if kept == "in the ring" else "user_7_trades"
    make = quote if kept == "in the ring" else trade
    sets = ["channels.market_data.throttle=0s", "log.level=info"]
    with start(tmp_path, sets) as daemon:
        for first in range(0, MISSED, 5000):
            daemon.publish(make(n) for n in range(first, min(first + 5000, MISSED)))
        if kept == "on the disk":
            daemon.restart()
        token = daemon.token("7")
        clients = [Watcher(daemon, token) for _ in range(CLIENTS)]
        crowd = Crowd([client.socket for client in clients])
        since = clients[0].connection["data"]["epoch"] + ".0"
        live = Live(daemon)
        live.start()
        live.ready.wait(10)

        for client in clients:
            client.send(type="subscribe", channels=[channel], since=since)
        crowd.read_until(MISSED)
        live.end()

        assert {crowd.count(client.socket) for client in clients} == {MISSED}
        assert live.problems == []
        assert max(live.delays) < 5, "nobody waits for the crowd to be done"
        for client in clients:
            client.close()
        with watcher(daemon, "7") as client:
            events = missed_of(client, channel, since)
            assert [json.dumps(m["data"]) for m in events] == [
                json.dumps(make(n)["data"]) for n in range(MISSED)
            ]
