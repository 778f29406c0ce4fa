"""The disk fails: delivery goes on, who has to know is told, and all is well again by itself."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.daemon import Daemon, Producer, start
from tests.e2e.watcher import Checker, Watcher, watcher

pytestmark = pytest.mark.e2e

SETS = ["store.failures=2", "store.retry=200ms", "store.retry_max=400ms", "store.timeout=1s"]


def trade(number: int) -> dict[str, Any]:
    data = {"symbol": "BTCUSDT", "price": number + 1, "note": "x" * 200}
    return {"type": "trade_execution", "user_id": "1", "id": f"t{number}", "data": data}


def mounted(folder: Path, options: str) -> None:
    if os.geteuid():
        pytest.skip("a small tmpfs needs root")
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this root cannot mount: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    mounted(folder, "size=4m")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all the room there is."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                pass
    return ballast


def ask(producer: Producer, number: int) -> dict[str, Any]:
    producer.send([trade(number)])
    return producer.answers(1)[0]


def ready(daemon: Daemon) -> tuple[int, dict[str, Any]]:
    status, _, body = daemon.get("/readyz")
    return status, json.loads(body)


def breaker(daemon: Daemon) -> str:
    metrics = daemon.metrics()
    name = "cryptows_store_breaker_state"
    states = ("closed", "open", "half_open")
    [state] = [s for s in states if metrics[f'{name}{{state="{s}"}}'] == 1]
    return state


def store_states(client: Watcher) -> list[str]:
    """What `system_status` told of the store."""
    told = [m["data"] for m in client.events("system_status")]
    return [data["status"] for data in told if data.get("component") == "store"]


def numbers(client: Watcher) -> list[int]:
    return [m["data"]["price"] - 1 for m in client.events("user_1_trades")]


def prices(*numbers: int) -> list[dict[str, Any]]:
    return [
        {"type": "market_data_update", "data": {"symbol": "ETHUSDT", "price": n}} for n in numbers
    ]


def test_a_full_disk_opens_the_breaker_and_room_closes_it_again(tmp_path, small_disk):
    checker = Checker()
    with start(tmp_path, [*SETS, f"server.state_dir={small_disk}"]) as daemon:
        with (
            daemon.producer() as producer,
            watcher(daemon, "1", checker=checker) as client,
        ):
            client.subscribe("user_1_trades", "system_status", "price_updates")
            assert ask(producer, 0)["ok"]
            assert ready(daemon) == (200, {"status": "ready", "store": "ok"})
            ballast = fill(small_disk)

            sent = 1
            while (answer := ask(producer, sent))["ok"]:  # what its files have room for
                sent += 1
                assert sent < 5000

            assert answer["error"]["code"] == "not_stored"
            refused = ask(producer, sent + 1)
            assert refused["error"]["code"] == "not_stored"
            status, body = ready(daemon)
            assert (status, body["status"]) == (200, "ready")
            assert body["store"] in ("open", "half_open")
            assert breaker(daemon) in ("open", "half_open")
            daemon.publish(prices(1, 2, 3))
            client.caught_up()
            assert numbers(client) == [*range(sent + 2)]  # live, and each once
            assert len(client.events("price_updates")) == 3
            assert store_states(client)[0] == "open"
            [line] = daemon.logs("store state")[:1]
            assert (line["level"], line["before"], line["now"]) == ("error", "closed", "open")
            assert "full" in line["reason"]

            ballast.unlink()
            daemon.wait_until(lambda: breaker(daemon) == "closed", limit=15)

            assert ready(daemon) == (200, {"status": "ready", "store": "ok"})
            answers = [ask(producer, n) for n in (sent, sent + 1, sent + 2)]
            assert [a["ok"] for a in answers] == [True] * 3
            client.caught_up()
            assert store_states(client)[-1] == "closed"
            assert daemon.logs("store state")[-1]["now"] == "closed"
            # At least once: what was refused has been sent again, under the same id.
            assert numbers(client) == [*range(sent + 2), sent, sent + 1, sent + 2]
            assert checker.problems == []
            metrics = daemon.metrics()
            assert metrics["cryptows_store_breaker_opened_total"] >= 1
            assert metrics["cryptows_unstored_events_total"] >= 2

        daemon.restart()
        with watcher(daemon, "1") as client:
            data = client.ask("history", channel="user_1_trades", limit=1000, order="newest")
            stored = [m["data"]["price"] - 1 for m in data["data"]["events"]][::-1]
            assert stored[-4:] == [sent - 1, sent, sent + 1, sent + 2]


def test_a_client_that_comes_back_over_the_time_without_a_disk_misses_nothing_that_is_kept(
    tmp_path, small_disk
):
    """Of what went out unstored the ring has the latest; beyond it, what is missing is told."""
    checker = Checker()
    sets = [*SETS, f"server.state_dir={small_disk}"]
    with start(tmp_path, sets) as daemon, daemon.producer() as producer:
        with watcher(daemon, "1", checker=checker) as client:
            client.subscribe("user_1_trades")
            ask(producer, 0)
            client.until("trade_execution")
        ballast = fill(small_disk)
        sent = 1
        while ask(producer, sent)["ok"]:
            sent += 1
        producer.send(trade(n) for n in range(sent + 1, sent + 20))
        assert not any(answer["ok"] for answer in producer.answers(19))
        sent += 20
        since = checker.offset

        with watcher(daemon, "1") as client:
            answer = client.subscribe("user_1_trades", since=since)
            client.caught_up()
            assert answer["recovered"] is (sent <= 200)
            assert numbers(client)[-20:] == [*range(sent - 20, sent)]
        ballast.unlink()
        daemon.wait_until(lambda: breaker(daemon) == "closed", limit=15)
        # More than the ring holds: the store alone has the events from before.
        producer.send(trade(n) for n in range(sent, sent + 400))
        assert all(answer["ok"] for answer in producer.answers(400))

        with watcher(daemon, "1") as client:
            answer = client.subscribe("user_1_trades", since=since)
            client.caught_up()

            assert answer["recovered"] is False
            got = numbers(client)
            assert set(range(1, sent - 20)) <= set(got)
            assert got[-400:] == [*range(sent, sent + 400)]
            assert got == sorted(set(got))
            assert answer["missing"][0]["channel"] == "user_1_trades"


def test_a_store_that_was_removed_is_made_anew_and_events_go_on(tmp_path):
    with (
        start(tmp_path, SETS) as daemon,
        daemon.producer() as producer,
        watcher(daemon, "1") as client,
    ):
        client.subscribe("user_1_trades", "system_status")
        assert ask(producer, 0)["ok"]
        for file in (tmp_path / "state").glob("cryptows.db*"):
            file.unlink()

        daemon.wait_until(lambda: "open" in logged_states(daemon), limit=15)
        daemon.wait_until(lambda: breaker(daemon) == "closed", limit=15)
        again = ask(producer, 1)

        assert again["ok"]
        client.caught_up()
        assert numbers(client) == [0, 1]
        assert store_states(client)[0] == "open"
        assert store_states(client)[-1] == "closed"
        assert client.problems == []


def logged_states(daemon: Daemon) -> list[str]:
    return [str(line["now"]) for line in daemon.logs("store state")]


def test_a_corrupt_file_is_set_aside_at_the_start_and_said_in_the_log(tmp_path):
    with start(tmp_path) as daemon:
        daemon.publish([trade(0)])
        with watcher(daemon, "1") as client:
            epoch = client.connection["data"]["epoch"]
        assert daemon.stop() == 0
        (tmp_path / "state" / "cryptows.db").write_bytes(b"no database" * 1000)

        daemon.restart()

        with watcher(daemon, "1") as client:
            answer = client.subscribe("user_1_trades", since=f"{epoch}.0")
            assert client.connection["data"]["epoch"] != epoch
            assert answer["recovered"] is False
        assert daemon.publish([trade(0)])[0]["ok"]
        assert len(list((tmp_path / "state").glob("cryptows.db.*"))) >= 1
        warned = [line for line in daemon.logs() if line["level"] in ("warning", "error")]
        assert any("set aside" in line["event"] for line in warned), warned


def test_a_disk_that_hangs_is_overdue_and_live_delivery_goes_on(tmp_path):
    """A lock of another process stands for the disk: commits wait for it and take too long."""
    with (
        start(tmp_path, SETS) as daemon,
        daemon.producer() as producer,
        watcher(daemon, "1") as client,
    ):
        client.subscribe("user_1_trades", "price_updates")
        assert ask(producer, 0)["ok"]
        with sqlite3.connect(tmp_path / "state" / "cryptows.db", isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            started = time.monotonic()
            producer.send([trade(1)])
            daemon.publish(prices(1))
            client.until("market_data_update")
            assert time.monotonic() - started < 1
            answer = producer.answers(1)[0]
            assert answer["error"]["code"] == "not_stored"
            assert time.monotonic() - started < 5
            daemon.wait_until(lambda: ready(daemon)[1]["store"] in ("open", "half_open"))
            assert ask(producer, 2)["error"]["code"] == "not_stored"
            other.execute("ROLLBACK")
        other.close()

        daemon.wait_until(lambda: breaker(daemon) == "closed", limit=15)

        assert ask(producer, 3)["ok"]
        client.caught_up()
        assert numbers(client) == [0, 1, 2, 3]
        assert client.problems == []
