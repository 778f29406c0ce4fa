import msgspec
import pytest

from cryptows.cli.listening import Message
from cryptows.cli.watching import View, Watcher, brief


def a_watcher(times, confirmed=lambda: None):
    now = iter(times)
    return Watcher.of("user", ("market_data",), lambda: next(now), confirmed)


def an_event(seq, symbol="BTCUSDT", **more):
    data = {"symbol": symbol, "price": 1.5, "change24h": 2, "sentAt": 1000.0}
    return Message(
        "market_data_update",
        msgspec.Raw(msgspec.json.encode(data)),
        1000,
        "market_data",
        seq,
        **more,
    )


def test_a_view_tells_rate_and_latency():
    view = View("market_data", "user")

    for i in range(100):
        view.take(
            "other", {"sentAt": 1000.0 + 100 * i}, 0, 1000.0 + 100 * i + (9 if i == 99 else 1)
        )

    now = 1000.0 + 9900 + 9
    assert view.rate(now, since_ms=0) == pytest.approx(10, abs=0.3)
    assert (view.latency(0.5), view.latency(0.99)) == (1, 9)
    assert view.count == 100


def test_a_view_without_messages_has_no_latency():
    view = View("market_data", "user")

    assert (view.latency(0.5), view.rate(1000, 0)) == (None, 0)


def test_latency_falls_back_on_the_envelope():
    view = View("price_updates", "user")

    view.take("other", {}, 1000, 1004.5)

    assert view.latency(0.5) == 4.5


def test_a_gap_in_seq_is_a_loss_unless_it_was_told():
    watcher = a_watcher(range(1000, 2000))
    skipped = msgspec.json.encode(
        {"channel": "market_data", "symbol": "BTCUSDT", "count": 2, "toSeq": 9}
    )

    watcher.take("", an_event(5))
    watcher.take("", an_event(7))
    watcher.take("", Message("skipped", msgspec.Raw(skipped)))
    watcher.take("", an_event(10))

    assert (watcher.lost, watcher.skipped) == (1, 2)
    assert watcher.views["market_data"].count == 3


def test_a_gap_without_numbers_begins_the_count_anew():
    watcher = a_watcher(range(1000, 2000))
    skipped = msgspec.json.encode(
        {"channel": "market_data", "symbol": "BTCUSDT", "count": None, "toSeq": None}
    )

    watcher.take("", an_event(5))
    watcher.take("", Message("skipped", msgspec.Raw(skipped)))
    watcher.take("", an_event(10))

    assert (watcher.lost, watcher.skipped) == (0, 0)


def test_each_symbol_has_its_own_seq_and_snapshots_have_none():
    watcher = a_watcher(range(1000, 2000))

    for message in (an_event(5), an_event(90, "ETHUSDT"), an_event(1, snapshot=True), an_event(6)):
        watcher.take("", message)

    assert watcher.lost == 0


def test_a_confirmation_is_passed_on():
    told = []
    watcher = a_watcher([1000.0], lambda: told.append(True))

    watcher.take("", Message("subscription_confirmed", msgspec.Raw(b"{}")))

    assert told == [True]


@pytest.mark.parametrize(
    ("kind", "data", "text"),
    [
        ("market_data_update", {"symbol": "A", "price": 2, "change24h": 0.5}, "A 2 (+0.50 %)"),
        ("market_data_update", {"symbol": "A", "price": 2, "previousPrice": 1}, "A 2, before 1"),
        ("trading_signal", {"symbol": "A", "direction": "long", "confidence": 0.7},
         "A long, confidence 0.7"),
        ("trade_execution", {"side": "buy", "quantity": 1, "symbol": "A", "price": 2},
         "buy 1 A at 2"),
        ("position_update",
         {"symbol": "A", "side": "long", "size": 1, "unrealizedPnl": -2, "realizedPnl": 0.5},
         "A long 1, P&L -1.50"),
        ("grid_update", {"symbol": "A", "filledLevels": 2, "gridCount": 9, "totalProfit": 3.5},
         "grid A: 2 of 9 levels filled, profit 3.5"),
        ("user_alert", {"level": "info", "message": "hello"}, "info: hello"),
        ("system_status", {"component": "bot", "status": "ok"}, "bot: ok"),
        ("performance_metrics", {"totalPnl": 3, "totalTrades": 2}, "P&L +3.00 in 2 trades"),
        ("performance_metrics", {"eventsPerSecond": 32, "totalTrades": 2}, "32 ticks/s, 2 trades"),
        ("another", {"a": 1}, '{"a":1}'),
    ],
)  # fmt: skip
def test_every_type_is_told_in_a_few_words(kind, data, text):
    assert brief(kind, data) == text
