"""A quiet market, a dead feed and one's own lag: a client can tell them apart."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.daemon import Daemon, start
from tests.e2e.watcher import Envelope, Watcher, watcher

pytestmark = pytest.mark.e2e

MAX_AGE = 1.5  # seconds; a look every second
SETS = [
    "channels.market_data.max_age=1500ms",
    "channels.market_data.throttle=0s",
    "channels.user_{id}_trades.max_age=1500ms",
    "heartbeat.interval=500ms",
]


def tick(symbol: str, price: int = 1) -> dict[str, Any]:
    return {"type": "market_data_update", "data": {"symbol": symbol, "price": price}}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory) -> Iterator[Daemon]:
    """One for all; each test has symbols of its own."""
    with start(tmp_path_factory.mktemp("freshness"), SETS) as running:
        yield running


def is_news(message: Envelope) -> bool:
    return message["type"] == "system_status" and "since" in message["data"]


def news(client: Watcher) -> list[tuple[Any, ...]]:
    """What was told of streams: status, symbol, and of stale ones how their producer is."""
    told = [m["data"] for m in client.seen if is_news(m)]
    return [(data["status"], data["symbol"], data.get("producer")) for data in told]


def test_a_silent_stream_is_told_once_as_stale_and_once_as_fresh(daemon):
    with (
        daemon.producer(acks=False) as producer,
        watcher(daemon, "1") as client,
        watcher(daemon, "1") as other,
    ):
        client.subscribe("market_data:ONCE*", "price_updates")
        other.subscribe("market_data:ELSE", "system_status")
        producer.send([tick("ONCE1"), tick("ONCE2")])
        heard_at = time.time() * 1000
        while time.time() * 1000 < heard_at + 4500:
            producer.send([tick("ONCE2")])
            client.listen(0.3)

        [stale] = [m for m in client.seen if is_news(m)]
        assert stale["data"] == {
            "status": "stale", "channel": "market_data", "symbol": "ONCE1",
            "since": stale["data"]["since"], "producer": "quiet",
        }  # fmt: skip
        assert abs(stale["data"]["since"] - heard_at) < 500
        assert MAX_AGE * 1000 <= stale["timestamp"] - stale["data"]["since"] < 4000

        producer.send([tick("ONCE1", 2)])
        fresh = client.take(lambda m: is_news(m) and m["data"]["status"] == "fresh")
        producer.send([tick("ONCE1", 3), tick("ONCE2", 3)])
        client.caught_up()

        assert (fresh["data"]["channel"], fresh["data"]["symbol"]) == ("market_data", "ONCE1")
        assert news(client) == [("stale", "ONCE1", "quiet"), ("fresh", "ONCE1", None)]
        assert news(other) == []
        assert client.problems == []


def test_a_producer_that_is_gone_is_told_also_when_it_goes_later(daemon):
    with watcher(daemon, "1") as client:
        client.subscribe("market_data:GONE*")
        with daemon.producer(acks=False, name="bot") as later:
            later.send([tick("GONE2")])
            daemon.publish([tick("GONE1")])
            client.take(lambda m: is_news(m) and m["data"]["symbol"] == "GONE2")
        client.take(lambda m: is_news(m) and m["data"].get("producer") == "no_producer"
                    and m["data"]["symbol"] == "GONE2")  # fmt: skip
        client.listen(1.2)

        assert sorted(news(client)) == [
            ("stale", "GONE1", "no_producer"),
            ("stale", "GONE2", "no_producer"),
            ("stale", "GONE2", "quiet"),
        ]


def test_keepalives_keep_a_quiet_stream_fresh(daemon):
    with daemon.producer(acks=False) as producer, watcher(daemon, "1") as client:
        client.subscribe("market_data:KEEP*")
        producer.send([tick("KEEP1"), tick("KEEP2"), tick("KEEP3")])
        for _ in range(12):
            producer.send([{"keepalive": ["market_data:KEEP1", "market_data:KEEP2"]}])
            client.listen(0.3)

        assert news(client) == [("stale", "KEEP3", "quiet")]


def test_a_new_subscriber_is_told_of_what_is_stale_already(daemon):
    with daemon.producer(acks=False) as producer, watcher(daemon, "1") as first:
        first.subscribe("market_data:OLD")
        producer.send([tick("OLD", 5)])
        first.take(is_news)
        epoch = first.connection["data"]["epoch"]

        with watcher(daemon, "1") as late, watcher(daemon, "1") as back:
            late.subscribe("market_data")
            back.subscribe("market_data:OLD", since=f"{epoch}.0")
            back.caught_up()
            late.caught_up()

            assert ("stale", "OLD", "quiet") in news(late)
            assert news(back) == [("stale", "OLD", "quiet")]
            kinds = [m["type"] for m in back.seen if m["type"] not in ("pong", "heartbeat")]
            assert kinds[-1] == "system_status"  # after the value that it is about


def test_durable_channels_have_ages_too(daemon):
    trade = {"type": "trade_execution", "user_id": "quiet", "data": {"price": 1}}
    with daemon.producer() as producer, watcher(daemon, "quiet") as client:
        client.subscribe("user_quiet_trades")
        producer.send([trade])
        client.take(is_news)
        producer.send([trade])
        client.take(is_news)

        assert news(client) == [("stale", None, "quiet"), ("fresh", None, None)]


def test_heartbeats_tell_the_age_of_each_subscription_and_ones_own_lag(daemon):
    with daemon.producer(acks=False) as producer, watcher(daemon, "1") as client:
        producer.send([tick("BEAT1")])
        client.subscribe("market_data:BEAT1", "market_data:NEVER", "trading_signals")
        client.until("heartbeat")
        client.listen(0.6)
        producer.send([tick("BEAT1", 2)])
        time.sleep(0.05)
        beats = [client.until("heartbeat")["data"] for _ in range(3)]

        assert set(beats[0]) == {"lagMs", "skipped", "channels"}
        ages = [beat["channels"]["market_data:BEAT1"] for beat in beats]
        assert 0 <= ages[0] < 1000
        assert 300 < ages[1] - ages[0] < 1500
        assert 300 < ages[2] - ages[1] < 1500
        assert beats[0]["channels"]["market_data:NEVER"] is None
        assert (beats[0]["lagMs"], beats[0]["skipped"]) == (0, 0)


def test_a_client_that_is_behind_learns_of_its_lag_and_of_what_it_skipped(tmp_path):
    sets = ["channels.market_data.throttle=0s", "heartbeat.interval=300ms"]
    with start(tmp_path, sets) as daemon, watcher(daemon, "1", kernel_buffer=4096) as client:
        client.subscribe("market_data")
        client.pace = 20_000
        with daemon.producer(acks=False) as producer:
            for n in range(150):
                line = tick(f"S{n % 10}", n)
                line["data"]["padding"] = "x" * 1000
                producer.send([line] * 4)
                if not n % 4:
                    client.listen(0.02)
        client.pace = None
        client.caught_up()

        beats = [m["data"] for m in client.seen if m["type"] == "heartbeat"]
        assert max(beat["lagMs"] for beat in beats) > 50
        assert beats[-1]["skipped"] > 0
        assert beats[-1]["skipped"] <= sum(client.checker.skipped.values())
        assert client.problems == []
