"""What a client is promised: conflation that hides nothing, snapshots without a seam, history."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest

from tests.e2e.daemon import Daemon, start
from tests.e2e.watcher import Checker, Envelope, watcher

pytestmark = pytest.mark.e2e


def tick(symbol: str, price: Any, **more: Any) -> dict[str, Any]:
    return {"type": "market_data_update", "data": {"symbol": symbol, "price": price, **more}}


def trade(user: str, number: int, **more: Any) -> dict[str, Any]:
    data = {"symbol": "BTCUSDT", "price": number + 1}
    return {"type": "trade_execution", "user_id": user, "data": data, **more}


def price(message: Envelope) -> float:
    return float(message["data"]["price"])


@contextmanager
def flowing(daemon: Daemon, symbols: int, rate: int) -> Iterator[list[int]]:
    """Quotes on `market_data` for the time of the block; yields a list with how many were sent."""
    sent, stop = [0], threading.Event()

    def flow() -> None:
        with daemon.producer(acks=False) as producer:
            started = time.monotonic()
            while not stop.wait(max(0.0, started + sent[0] / rate - time.monotonic())):
                numbers = range(sent[0], sent[0] + max(1, rate // 100))
                producer.send(tick(f"S{n % symbols}", n, channel="market_data") for n in numbers)
                sent[0] = numbers.stop
            producer.finish()

    thread = threading.Thread(target=flow)
    thread.start()
    try:
        yield sent
    finally:
        stop.set()
        thread.join()


@pytest.fixture(scope="module")
def unthrottled(tmp_path_factory) -> Iterator[Daemon]:
    """A daemon that passes every quote on; tests use symbols and users of their own."""
    folder = tmp_path_factory.mktemp("unthrottled")
    with start(folder, ["channels.market_data.throttle=0s"]) as daemon:
        yield daemon


# --- conflation at the source


def test_the_first_quote_passes_at_once_and_the_newest_at_the_end_of_the_interval(tmp_path):
    sets = ["channels.market_data.throttle=500ms"]
    with start(tmp_path, sets) as daemon, watcher(daemon, "1") as client:
        client.subscribe("market_data")
        started = time.monotonic()

        daemon.publish([
            tick("BTC", 100, volume=1),
            tick("BTC", 130, volume=2), tick("BTC", 90, volume="2.5"), tick("BTC", 101, size=4),
            tick("ETH", 7), tick("ETH", 8),
            tick("BTC", 103, volume=8),
        ])  # fmt: skip

        first, other = client.next(), client.next()
        assert time.monotonic() - started < 0.4
        assert (price(first), price(other)) == (100, 7)
        assert "conflated" not in first
        newest, other = client.next(), client.next()
        assert 0.4 < time.monotonic() - started < 5
        assert (price(newest), newest["seq"]) == (103, 2)
        assert newest["conflated"] == {"count": 3, "high": 130, "low": 90, "volume": 8.5}
        assert price(other) == 8
        assert "conflated" not in other
        assert client.listen(0.7) == []
        assert client.problems == []
        stats = daemon.stats()["broadcast"]
        assert stats["cachedDataEntries"] == 0
        assert daemon.metrics()["cryptows_throttled_events_total"] == 5


def test_a_stream_that_never_pauses_speaks_once_an_interval_and_every_quote_is_accounted_for(
    tmp_path,
):
    with (
        start(tmp_path, ["channels.market_data.throttle=100ms"]) as daemon,
        watcher(daemon, "1") as client,
    ):
        client.subscribe("market_data:S0")

        with flowing(daemon, 1, rate=1000) as sent:
            client.listen(1.5)
        client.listen(0.3)

        quotes = client.events()
        assert 10 <= len(quotes) <= 20
        assert sum(1 + q.get("conflated", {"count": 0})["count"] for q in quotes) == sent[0]
        assert price(quotes[-1]) == sent[0] - 1
        for before, after in pairwise(quotes):
            if "conflated" in after:  # every price between the two, and none of them twice
                skipped = after["conflated"]
                assert (skipped["low"], skipped["high"]) == (price(before) + 1, price(after) - 1)
                assert skipped["count"] == price(after) - price(before) - 1
        assert client.problems == []


def test_without_keep_extremes_only_the_newest_is_sent(tmp_path):
    sets = ["channels.market_data.throttle=300ms", "channels.market_data.keep_extremes=false"]
    with start(tmp_path, sets) as daemon, watcher(daemon, "1") as client:
        client.subscribe("market_data")

        daemon.publish([tick("BTC", 1), tick("BTC", 9), tick("BTC", 2), tick("BTC", 3)])

        assert [price(client.next()), price(client.next())] == [1, 3]
        assert all("conflated" not in quote for quote in client.events())


def test_private_channels_and_price_updates_are_not_throttled(unthrottled):
    with watcher(unthrottled, "thr") as client:
        client.subscribe("user_thr_trades", "price_updates:THR", "trading_signals:THR")
        signal = {"type": "trading_signal", "data": {"symbol": "THR"}}

        unthrottled.publish(
            line for n in range(50) for line in (trade("thr", n), tick("THR", n), signal)
        )

        client.caught_up()
        for channel in ("user_thr_trades", "price_updates", "trading_signals"):
            assert len(client.events(channel)) == 50
        assert client.problems == []


# --- snapshots


def test_a_subscriber_first_gets_the_last_value_of_each_symbol_it_covers(unthrottled):
    unthrottled.publish(tick(f"SNAP{n % 3}", n) for n in range(9))
    with watcher(unthrottled, "1") as client:
        asked = client.ask("subscribe", channels=["market_data:SNAP*", "price_updates:SNAP1"])
        unthrottled.publish([tick("SNAP1", 20), tick("SNAP9", 21)])

        client.caught_up()

        assert asked["type"] == "subscription_confirmed"
        told = [(m["channel"], price(m), m.get("snapshot")) for m in client.events()]
        assert told == [
            ("market_data", 6, True), ("market_data", 7, True), ("price_updates", 7, True),
            ("market_data", 8, True),
            ("market_data", 20, None), ("price_updates", 20, None), ("market_data", 21, None),
        ]  # fmt: skip
        assert client.problems == []


def test_what_is_subscribed_already_is_not_sent_again(unthrottled):
    unthrottled.publish([tick("AGAIN1", 1), tick("AGAIN2", 2)])
    with watcher(unthrottled, "1") as client:
        client.subscribe("market_data:AGAIN1")
        client.subscribe("market_data:AGAIN1")
        client.subscribe("market_data:AGAIN2", "market_data:AGAIN1")

        client.caught_up()

        assert [price(m) for m in client.events()] == [1, 2]


def test_snapshots_join_live_quotes_without_a_gap_or_a_repetition_under_load(unthrottled):
    unthrottled.publish(tick(f"S{n}", n) for n in range(40))
    with flowing(unthrottled, 40, rate=2000):
        for _ in range(30):
            with watcher(unthrottled, "1") as client:
                client.subscribe("price_updates", "market_data:S1*", "market_data:S2")
                client.take(lambda m: m.get("channel") == "market_data" and not m.get("snapshot"))
                client.listen(0.02)

                quotes = client.events("market_data")
                snapshot = [int(q["offset"].split(".")[1]) for q in quotes if q.get("snapshot")]
                live = [int(q["offset"].split(".")[1]) for q in quotes if not q.get("snapshot")]
                assert len(snapshot) >= 12
                assert live
                # A consistent cut: all values as of one position.
                assert max(snapshot) < min(live)
                assert client.problems == []


def test_a_snapshot_larger_than_the_outbox_reaches_a_client_that_reads_in_its_own_time(tmp_path):
    symbols = 5000
    padding = "x" * 300
    with start(tmp_path, ["channels.market_data.throttle=0s"]) as daemon:
        daemon.publish(
            (tick(f"S{n}", n, channel="market_data", note=padding) for n in range(symbols)),
            acks=False,
        )
        daemon.wait_until(lambda: daemon.metrics()["cryptows_events_received_total"] == symbols)
        with flowing(daemon, symbols, rate=1000), watcher(daemon, "1") as client:
            client.keep = False
            newest: dict[str, float] = {}
            kinds: list[bool] = []

            def note(message: Envelope) -> None:
                if "seq" in message:
                    newest[message["data"]["symbol"]] = price(message)
                    kinds.append(bool(message.get("snapshot")))

            client.on_message = note
            client.pace = 2_000_000
            client.subscribe("market_data")
            client.listen(2.5)

            assert client.close_code is None
            assert len(newest) == symbols
            assert kinds == sorted(kinds, reverse=True)  # all of the snapshot before what is live
            assert kinds.count(True) == symbols
            assert client.problems == []


# --- history


@pytest.mark.parametrize(
    ("channel", "lines"),
    [
        ("market_data:HIST", [tick("HIST", n) for n in range(30)]),
        ("user_hist_trades", [trade("hist", n) for n in range(30)]),
    ],
    ids=["of a ring", "of the disk"],
)
def test_history_is_asked_by_beginning_limit_and_order(unthrottled, channel, lines):
    answers = unthrottled.publish(lines)
    with watcher(unthrottled, "hist") as client:

        def asked(**fields: Any) -> tuple[list[int], bool]:
            data = client.ask("history", channel=channel, **fields)["data"]
            return [m["seq"] for m in data["events"]], data["more"]

        assert asked() == ([*range(1, 31)], False)
        assert asked(limit=5) == ([*range(26, 31)], True)
        assert asked(limit=5, order="newest") == ([*range(30, 25, -1)], True)
        middle = client.ask("history", channel=channel)["data"]["events"][9]["offset"]
        assert asked(since=middle) == ([*range(11, 31)], False)
        assert asked(since=middle, limit=4) == ([*range(11, 15)], True)
        assert asked(since=middle, limit=4, order="newest") == ([30, 29, 28, 27], True)
        assert asked(since=answers[-1]["offset"]) == ([], False)
        assert asked(since="otherone.5", limit=1000) == ([*range(1, 31)], False)


def test_history_of_the_disk_is_there_after_a_restart_with_whether_there_is_more(tmp_path):
    with start(tmp_path) as daemon:
        daemon.publish(trade("7", n) for n in range(500))
        daemon.restart()
        daemon.publish(trade("7", n) for n in range(500, 510))
        with watcher(daemon, "7") as client:

            def asked(**fields: Any) -> tuple[list[int], bool]:
                data = client.ask("history", channel="user_7_trades", **fields)["data"]
                return [m["seq"] for m in data["events"]], data["more"]

            assert asked(limit=510) == ([*range(1, 511)], False)
            assert asked(limit=509) == ([*range(2, 511)], True)
            assert asked(limit=20) == ([*range(491, 511)], True)
            assert asked(limit=20, order="newest") == ([*range(510, 490, -1)], True)
            assert asked(limit=3, order="newest") == ([510, 509, 508], True)
            beginning = client.connection["data"]["epoch"] + ".0"
            assert asked(since=beginning, limit=20) == ([*range(1, 21)], True)
            assert asked(since=beginning, limit=505) == ([*range(1, 506)], True)


def test_history_of_another_users_channel_is_refused(unthrottled):
    with watcher(unthrottled, "1") as client:
        answer = client.ask("history", channel="user_hist_trades")

        assert (answer["type"], answer["data"]["code"]) == ("error", "forbidden")


# --- passes


def test_delivery_batch_gathers_what_comes_in_meanwhile_into_one_pass(tmp_path):
    with start(tmp_path, ["delivery.batch=200ms"]) as daemon, watcher(daemon, "1") as client:
        client.subscribe("trading_signals")
        passes = daemon.metrics()["cryptows_passes_total"]
        started = time.monotonic()

        with daemon.producer(acks=False) as producer:
            for n in range(5):
                producer.send([{"type": "trading_signal", "data": {"symbol": "BTC", "price": n}}])
                time.sleep(0.01)
            client.next()
            took = time.monotonic() - started
            client.caught_up()

        assert 0.15 < took < 2
        assert len(client.events()) == 5
        assert daemon.metrics()["cryptows_passes_total"] == passes + 1
        assert client.problems == []


def test_a_batch_line_is_validated_whole_and_acknowledged_once(unthrottled):
    with watcher(unthrottled, "batch") as client:
        client.subscribe("user_batch_trades", "market_data:BATCH")
        good = [tick("BATCH", 1), trade("batch", 1, id="b1"), trade("batch", 2, id="b2")]

        answers = unthrottled.publish([
            {"batch": good, "id": "first"},
            {"batch": [tick("BATCH", 2), tick("BATCH", "bad"), trade("batch", 3)]},
            {"batch": good[1:]},
            {"batch": []},
        ])  # fmt: skip

        client.caught_up()
        assert [(a["ok"], a["line"]) for a in answers] == [
            (True, 2), (False, 3), (True, 4), (False, 5),
        ]  # fmt: skip
        first, bad, again, _ = answers
        assert first["delivered_to"] == 3
        assert "data.price" in bad["error"]["message"]
        assert (again["delivered_to"], again["duplicate"]) == (0, True)
        assert [(m["channel"], price(m)) for m in client.events()] == [
            ("market_data", 1), ("user_batch_trades", 2), ("user_batch_trades", 3),
        ]  # fmt: skip
        offset = int(first["offset"].split(".")[1])
        assert offset >= int(client.events()[-1]["offset"].split(".")[1])
        assert client.problems == []


# --- dedup


def test_an_id_seen_within_the_window_is_acknowledged_and_not_sent_again(tmp_path):
    with start(tmp_path, ["feed.dedup=1s"]) as daemon, watcher(daemon, "1") as client:
        client.subscribe("user_1_trades", "trading_signals")
        signal = {"type": "trading_signal", "id": "s", "data": {"symbol": "BTC"}}

        once = daemon.publish([trade("1", 1, id="t"), signal, trade("1", 1, id="t"), signal])
        time.sleep(1.1)
        later = daemon.publish([trade("1", 1, id="t"), signal])

        assert [a.get("duplicate", False) for a in once] == [False, False, True, True]
        assert [a["offset"] for a in once[:2]] == [a["offset"] for a in once[2:]]
        assert [a.get("duplicate", False) for a in later] == [False, False]
        client.caught_up()
        assert len(client.events()) == 4


def test_an_id_of_a_durable_event_is_known_after_a_restart_and_after_a_crash(tmp_path):
    with start(tmp_path) as daemon:
        first = daemon.publish([trade("1", 1, id="t1")])
        daemon.restart()
        second = daemon.publish([trade("1", 1, id="t1"), trade("1", 2, id="t2")])
        daemon.restart(9)
        third = daemon.publish([trade("1", 1, id="t1"), trade("1", 2, id="t2")])

        assert [a.get("duplicate", False) for a in second] == [True, False]
        assert [a.get("duplicate", False) for a in third] == [True, True]
        assert first[0]["offset"] == second[0]["offset"] == third[0]["offset"]
        with watcher(daemon, "1") as client:
            events = client.ask("history", channel="user_1_trades")["data"]["events"]
            assert [m["seq"] for m in events] == [1, 2]


# --- recovery


def test_a_client_that_lost_its_connection_gets_what_it_missed_and_then_live(unthrottled):
    checker, channels = Checker(), ("market_data:REC*", "user_rec_trades", "trading_signals:REC")
    signal = {"type": "trading_signal", "data": {"symbol": "REC"}}
    lines = [tick("REC1", 1), tick("REC2", 2), trade("rec", 3), signal]
    with watcher(unthrottled, "rec", checker=checker) as client:
        client.subscribe(*channels)
        unthrottled.publish(lines)
        client.caught_up()
    for _ in range(3):
        unthrottled.publish(lines)

    with watcher(unthrottled, "rec", checker=checker) as client:
        answer = client.subscribe(*channels, since=checker.offset)
        unthrottled.publish(lines)
        client.caught_up()

        assert (answer["recovered"], answer["missing"]) == (True, [])
        assert [bool(m.get("replay")) for m in client.events()] == [True] * 12 + [False] * 4
        assert checker.problems == []
        assert checker.seqs == {
            ("market_data", "REC1"): 5, ("market_data", "REC2"): 5,
            ("user_rec_trades", "BTCUSDT"): 5, ("trading_signals", "REC"): 5,
        }  # fmt: skip


def test_recovery_joins_live_events_without_a_gap_or_a_repetition_under_load(unthrottled):
    checker = Checker()
    with flowing(unthrottled, 20, rate=2000):
        with watcher(unthrottled, "1", checker=checker) as client:
            client.subscribe("market_data")
            client.listen(0.3)
        for _ in range(8):
            time.sleep(0.3)
            with watcher(unthrottled, "1", checker=checker) as client:
                answer = client.subscribe("market_data", since=checker.offset)
                assert answer["recovered"]
                client.take(lambda m: "seq" in m and not m.get("replay"))
                client.listen(0.1)
                events = [m for m in client.events() if not m.get("snapshot")]
                replay = [bool(m.get("replay")) for m in events]
                assert replay == sorted(replay, reverse=True)
                assert replay[0]

    assert checker.problems == []


def test_after_a_restart_durable_channels_are_made_up_for_and_of_others_it_is_said(tmp_path):
    checker = Checker()
    with start(tmp_path) as daemon:
        with watcher(daemon, "1", checker=checker) as client:
            client.subscribe("user_1_trades", "market_data")
            daemon.publish([trade("1", 1), tick("BTC", 1)])
            client.caught_up()
            epoch = client.connection["data"]["epoch"]
        daemon.publish([trade("1", 2), tick("BTC", 2)])
        daemon.restart()
        daemon.publish([trade("1", 3), tick("BTC", 3)])

        with watcher(daemon, "1", checker=checker) as client:
            assert client.connection["data"]["epoch"] == epoch
            trades = client.subscribe("user_1_trades", since=checker.offset)
            client.caught_up()
            quotes = client.subscribe("market_data", since=checker.offset)
            client.caught_up()

            assert trades["recovered"] is True
            assert [price(m) for m in client.events("user_1_trades")] == [3, 4]
            assert quotes["recovered"] is True  # the last trade came after the restart
            assert checker.problems == []

        with watcher(daemon, "1") as client:
            answer = client.subscribe("user_1_trades", "market_data", since=epoch + ".0")
            client.caught_up()
            assert answer["recovered"] is False
            [missing] = answer["missing"]
            assert (missing["channel"], missing["recovered"]) == ("market_data", False)
            assert missing["from"].startswith(epoch + ".")
            assert [price(m) for m in client.events("user_1_trades")] == [2, 3, 4]
            assert [price(m) for m in client.events("market_data")] == [3]


def test_what_is_no_longer_kept_is_said_with_where_the_rest_begins(tmp_path):
    sets = ["channels.market_data.throttle=0s", "channels.market_data.history.events=10"]
    with start(tmp_path, sets) as daemon, watcher(daemon, "1") as client:
        offsets = [a["offset"] for a in daemon.publish(tick("BTC", n) for n in range(30))]

        old = client.subscribe("market_data:BTC", since=offsets[3])
        client.caught_up()

        assert old["recovered"] is False
        [missing] = old["missing"]
        replayed = [m for m in client.events() if m.get("replay")]
        assert [price(m) for m in replayed] == [*range(20, 30)]
        assert missing == {
            "channel": "market_data:BTC", "recovered": False,
            "from": client.ask("history", channel="market_data", limit=1, order="newest")
            and missing["from"],
        }  # fmt: skip
        first = int(replayed[0]["offset"].split(".")[1])
        assert int(missing["from"].split(".")[1]) < first


def test_an_offset_of_a_lost_history_or_nonsense_is_answered(unthrottled):
    unthrottled.publish([tick("LOST", 1)])
    with watcher(unthrottled, "1") as client:
        answer = client.subscribe("market_data:LOST", since="gone99.17")
        wrong = client.ask("subscribe", channels=["market_data"], since="17")
        epoch = client.connection["data"]["epoch"]
        ahead = client.ask("subscribe", channels=["market_data"], since=f"{epoch}.{10**17}")

        lost = client.ask("history", channel="market_data:LOST", since="gone99.17")["data"]
        known = client.ask("history", channel="market_data:LOST", since=f"{epoch}.0")["data"]

        assert answer["recovered"] is False
        assert (lost["recovered"], lost["events"]) == (False, known["events"])
        assert known["events"][0]["replay"] is True
        assert "recovered" not in known
        assert (wrong["type"], wrong["data"]["code"]) == ("error", "bad_request")
        assert (ahead["type"], ahead["data"]["code"]) == ("error", "bad_request")


def test_a_user_who_was_away_gets_all_since_what_he_acknowledged_last(tmp_path):
    with start(tmp_path) as daemon:
        with watcher(daemon, "1") as client:
            client.subscribe("user_1_trades", "user_1_alerts", "user_1_positions")
            daemon.publish(trade("1", n) for n in range(4))
            client.caught_up()
            answer = client.ask("ack", offset=client.events()[2]["offset"])
            assert (answer["type"], answer["data"]["offset"]) == (
                "ack", client.events()[2]["offset"],
            )  # fmt: skip
        alert = {"type": "user_alert", "user_id": "1", "data": {"message": "m"}}
        position = {"type": "position_update", "user_id": "1", "data": {"symbol": "BTCUSDT"}}
        daemon.publish([trade("1", 9), alert, position])
        daemon.restart()

        with watcher(daemon, "1") as client, watcher(daemon, "2") as other:
            asked = ("user_1_trades", "user_1_alerts", "user_1_positions")
            answer = client.subscribe(*asked, since="last")
            other.subscribe("user_2_trades", since="last")
            client.caught_up()
            other.caught_up()

            assert answer["recovered"] is True
            assert [m["type"] for m in client.events()] == [
                "trade_execution", "trade_execution", "user_alert", "position_update",
            ]  # fmt: skip
            assert all(m["replay"] for m in client.events())
            assert other.events() == []
            refused = None
            with watcher(daemon) as anonymous:
                refused = anonymous.ask("subscribe", channels=["system_status"], since="last")
            assert (refused["type"], refused["data"]["code"]) == ("error", "bad_request")
