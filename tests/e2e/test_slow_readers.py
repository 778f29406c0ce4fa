"""Clients that read slowly or not at all: what they still get, and that nobody else feels it.

The usual run looks for twelve seconds; CRYPTOWS_THOROUGH=1 for the whole minute.
"""

from __future__ import annotations

import json
import statistics
import threading
import time
from typing import Any

import pytest

from tests.e2e.daemon import Daemon, start
from tests.e2e.watcher import Checker, Envelope, thorough, watcher

pytestmark = pytest.mark.e2e

SYMBOLS = 50
RATE = 2000  # quotes a second
PACE = 5000  # bytes a second
MAX_LAG = 10.0  # delivery.max_lag


class Market(threading.Thread):
    """Quotes without pause, and now and then a trade of user 7; says what it sent."""

    def __init__(self, daemon: Daemon, rate: int = RATE, *, padding: int = 0) -> None:
        super().__init__()
        self._daemon, self._rate, self._padding = daemon, rate, "x" * padding
        self._over = threading.Event()
        self.quotes = self.trades = 0

    def run(self) -> None:
        started = time.monotonic()
        with self._daemon.producer(acks=False) as producer:
            while not self._over.wait(max(0.0, started + self.quotes / self._rate - now())):
                end = self.quotes + max(1, self._rate // 100)
                lines: list[Any] = [quote(n, self._padding) for n in range(self.quotes, end)]
                self.quotes = end
                if end % (self._rate // 2) == 0:
                    lines.append(trade(self.trades))
                    self.trades += 1
                producer.send(lines)
            producer.finish()

    @property
    def sent(self) -> dict[str, int]:
        """How many quotes of each symbol."""
        return {f"S{n}": len(range(n, self.quotes, SYMBOLS)) for n in range(SYMBOLS)}

    def end(self) -> None:
        self._over.set()
        self.join()


def price(message: Envelope) -> int:
    return int(message["data"]["price"])


def ended_as(daemon: Daemon, code: int) -> bool:
    return str(code) in daemon.stats()["broadcast"]["wsServerStats"]["disconnects"]


def every_quote(checker: Checker) -> dict[str, int]:
    """Return how many quotes of each symbol a client got or was told of as skipped."""
    return {
        f"S{n}": checker.events[stream] + checker.skipped.get(stream, 0)
        for n in range(SYMBOLS)
        for stream in [("market_data", f"S{n}")]
    }


def is_live(message: Envelope) -> bool:
    return "seq" in message and not message.get("replay") and not message.get("snapshot")


def now() -> float:
    return time.monotonic()


def quote(number: int, padding: str = "") -> str:
    data: dict[str, Any] = {"symbol": f"S{number % SYMBOLS}", "price": number, "sent": now()}
    if padding:
        data["padding"] = padding
    return json.dumps({"type": "market_data_update", "channel": "market_data", "data": data})


def trade(number: int) -> dict[str, Any]:
    data = {"symbol": "BTCUSDT", "number": number, "sent": now()}
    return {"type": "trade_execution", "user_id": "7", "data": data}


@pytest.mark.slow
def test_a_client_that_reads_5_kb_a_second_gets_all_that_is_private_and_always_the_newest_price(
    tmp_path,
):
    seconds = 60 if thorough() else 12
    with (
        start(tmp_path, ["channels.market_data.throttle=0s"]) as daemon,
        watcher(daemon, "7", kernel_buffer=4096) as client,
    ):
        market = Market(daemon)
        ages: list[float] = []
        trades: list[int] = []
        newest: dict[str, int] = {}

        def note(message: Envelope) -> None:
            if "seq" not in message:
                return
            ages.append(now() - message["data"]["sent"])
            if message["type"] == "trade_execution":
                trades.append(message["data"]["number"])
            else:
                newest[message["data"]["symbol"]] = message["data"]["price"]

        client.keep, client.on_message, client.pace = False, note, PACE
        client.subscribe("market_data", "user_7_trades")
        market.start()
        client.listen(4)
        rss = daemon.rss()
        client.listen(seconds - 4)
        grown = daemon.rss() - rss
        lag = daemon.metrics()["cryptows_outbox_bytes"]
        market.end()
        client.pace = 200_000
        client.take(lambda message: market.quotes - 1 in newest.values())

        checker = client.checker
        assert client.close_code is None
        assert checker.problems == []
        assert trades == list(range(market.trades))
        assert newest == {f"S{n % SYMBOLS}": n for n in range(market.quotes)}
        assert max(ages) < MAX_LAG
        assert every_quote(checker) == market.sent
        assert checker.skipped["market_data", "S0"] > market.quotes // SYMBOLS / 2
        assert lag < 1 << 20
        assert grown < 12 << 20, "what the history may still take, and no more"


def test_a_client_that_does_not_read_is_closed_with_4008_and_nobody_is_held_up(tmp_path):
    sets = ["channels.market_data.throttle=0s", "delivery.max_lag=2s", "log.level=info"]
    with (
        start(tmp_path, sets) as daemon,
        watcher(daemon, "1", kernel_buffer=4096) as stuck,
        watcher(daemon, "2") as reading,
    ):
        delays: list[float] = []

        def note(message: Envelope) -> None:
            if "seq" in message:
                delays.append(now() - message["data"]["sent"])

        reading.keep, reading.on_message = False, note
        stuck.subscribe("market_data")
        reading.subscribe("market_data")
        market = Market(daemon, rate=1000, padding=300)
        market.start()
        reading.listen(4)
        market.end()
        reading.caught_up()

        assert stuck.ended() == 4008
        assert "too slow" in stuck.close_reason
        assert stuck.problems == []
        assert reading.problems == []
        assert sum(reading.checker.events.values()) == market.quotes
        assert statistics.quantiles(delays, n=100)[98] < 0.25
        daemon.wait_until(
            lambda: "4008" in daemon.stats()["broadcast"]["wsServerStats"]["disconnects"]
        )


def test_a_private_flood_that_is_not_read_ends_at_the_bound_in_bytes(tmp_path):
    with start(tmp_path, ["delivery.outbox=32KiB"]) as daemon:
        with watcher(daemon, "7", kernel_buffer=4096) as stuck:
            stuck.subscribe("user_7_trades")
            before = daemon.rss()

            daemon.publish(
                {"type": "trade_execution", "user_id": "7", "data": {"number": n, "x": "x" * 500}}
                for n in range(2000)
            )

            assert stuck.ended() == 4008
            numbers = [m["data"]["number"] for m in stuck.events()]
            assert numbers == list(range(len(numbers)))
            assert stuck.problems == []
            assert daemon.rss() - before < 16 << 20
        with watcher(daemon, "7", checker=stuck.checker) as client:
            answer = client.subscribe("user_7_trades", since=stuck.checker.offset)
            client.caught_up()

            assert answer["recovered"] is True
            assert client.events()[-1]["data"]["number"] == 1999
            assert client.problems == []


def test_a_slow_client_gets_what_it_missed_without_being_closed_for_it(tmp_path):
    checker = Checker()
    sets = ["channels.market_data.throttle=0s", "delivery.max_lag=3s"]
    with start(tmp_path, sets) as daemon:
        with watcher(daemon, "7", checker=checker) as client:
            client.subscribe("user_7_trades", "market_data")
            daemon.publish([trade(0), quote(0)])
            client.caught_up()
        daemon.publish(trade(n) for n in range(1, 300))
        with watcher(daemon, "7", checker=checker, kernel_buffer=4096) as client:
            client.pace = 15_000  # four seconds, with all that its kernel buffers
            answer = client.subscribe("user_7_trades", "market_data", since=checker.offset)
            daemon.publish([trade(300)])
            client.take(lambda m: m.get("data", {}).get("number") == 300, limit=30)
            daemon.publish([quote(50)])
            client.take(is_live)

            assert answer["recovered"] is True
            assert client.received > 50_000
            assert [m["data"]["number"] for m in client.events("user_7_trades")] == [*range(1, 301)]
            assert price(client.events("market_data")[-1]) == 50
            assert checker.problems == []
            assert checker.skipped == {}


def test_a_client_slower_than_the_market_is_live_again_soon_after_it_came_back(tmp_path):
    checker = Checker()
    with start(tmp_path, ["channels.market_data.throttle=0s"]) as daemon:
        market = Market(daemon)
        with watcher(daemon, "7", checker=checker) as client:
            client.subscribe("user_7_trades", "market_data")
            market.start()
            client.listen(0.5)
        with watcher(daemon, "7", checker=checker, kernel_buffer=4096) as client:
            client.pace = 30_000
            answer = client.subscribe("user_7_trades", "market_data", since=checker.offset)
            client.take(is_live)
            client.listen(2)
            client.pace = None
            market.end()
            client.caught_up()

            assert answer["recovered"] is True
            assert checker.problems == []
            assert sum(checker.skipped.values()) > 1000
            assert checker.events["user_7_trades", "BTCUSDT"] == market.trades
            assert every_quote(checker) == market.sent


def test_a_snapshot_taken_slowly_is_followed_by_the_newest_of_what_its_ring_has_lost(tmp_path):
    sets = ["channels.market_data.throttle=0s", "channels.market_data.history.events=200"]
    with start(tmp_path, sets) as daemon:
        daemon.publish(quote(n, "x" * 900) for n in range(SYMBOLS))
        with watcher(daemon, "1", kernel_buffer=4096) as client:
            market = Market(daemon)
            client.pace = 20_000
            client.send(type="subscribe", channels=["market_data"], id="s")
            market.start()
            client.take(lambda m: "seq" in m and not m.get("snapshot"))
            client.pace = None
            client.take(is_live)
            client.listen(0.2)
            market.end()
            client.caught_up()

            assert client.problems == []
            assert sum(client.checker.skipped.values()) > 200
            newest = {s: q["data"]["price"] for q in client.events() for s in [q["data"]["symbol"]]}
            assert newest == {f"S{n % SYMBOLS}": n for n in range(market.quotes)}
