"""What the daemon tells of itself: to systemd, in `/stats`, and when its loop is late."""

from __future__ import annotations

import itertools
import math

import attrs
import pytest
import structlog
import trio
import trio.testing

from cryptows.broker.counters import Counters, Gauges
from cryptows.broker.health import Health, State
from cryptows.notify import Notifier
from cryptows.tasks.stats import Rates, stats_document, status_line, watch


@attrs.define
class FakeHub:
    counters: Counters = attrs.field(factory=Counters)
    health: Health = attrs.field(factory=lambda: Health(State.RUNNING))
    now: Gauges = attrs.field(factory=Gauges)
    store: None = None

    def gauges(self) -> Gauges:
        return self.now


@attrs.frozen
class FakeNotifier(Notifier):
    address: str = "/run/systemd/notify"
    sent: list[tuple[float, str, str]] = attrs.field(factory=list)

    def send(self, **fields: str | int) -> bool:
        self.sent.extend((trio.current_time(), key, str(value)) for key, value in fields.items())
        return True

    def times(self, key: str) -> list[float]:
        return [at for at, sent, _ in self.sent if sent == key]


GAUGES = Gauges(
    connections={"websocket": 2, "polling": 1},
    authenticated=2,
    subscribers={"market_data": 2, "user_1_trades": 1},
    subscriptions=4,
    throttlers=5,
    cached=6,
    slow_clients=1,
)


def test_the_stats_document_is_the_contracts():
    counters = Counters(connects=7, deliveries=70)
    counters.disconnected(4008)
    counters.latency.add(0.004, times=99)
    rates = Rates()
    rates.sample(counters, 1.0)
    counters.events_in, counters.deliveries, counters.bytes_out = 20, 470, 80_000
    rates.sample(counters, 3.0)

    document = stats_document(GAUGES, counters, Health(State.RUNNING, store="open"), rates)

    server = {
        "connectedClients": 3,
        "totalChannels": 2,
        "channelStats": {"market_data": 2, "user_1_trades": 1},
    }
    flow = document["broadcast"].pop("wsServerStats")
    assert document == {
        "server": server,
        "clients": {
            "totalClients": 3,
            "authenticatedClients": 2,
            "anonymousClients": 1,
            "channelDistribution": {"market_data": 2, "user_1_trades": 1},
        },
        "broadcast": {"activeThrottlers": 5, "cachedDataEntries": 6},
    }
    assert flow.items() >= server.items()
    assert flow["status"] == "ready"
    assert flow["store"] == "open"
    assert flow["disconnects"] == {"4008": 1}
    assert (flow["eventsPerSecond"], flow["deliveriesPerSecond"]) == (10.0, 200.0)
    assert flow["bytesOutPerSecond"] == 40_000
    assert flow["latencyMs"] == {"p50": 5.0, "p99": 5.0, "p999": 5.0}


def test_rates_need_two_samples_and_forget_the_old_ones():
    rates, counters = Rates(), Counters()
    assert rates.per_second == (0, 0, 0)

    rates.sample(counters, 0.0)
    assert rates.per_second == (0, 0, 0)
    counters.events_in = 1_000_000
    for n in range(11):
        rates.sample(counters, 100.0 + n)

    assert rates.per_second == (0, 0, 0)


def test_the_status_line_names_what_is_wrong():
    quiet = status_line(Gauges(), Health(State.STARTING), Rates())
    ill = status_line(GAUGES, Health(State.RUNNING, store="open"), Rates())

    assert quiet == "starting: 0 clients (0 with a token), 0 events/s in, 0 deliveries/s"
    assert ill == (
        "ready: 3 clients (2 with a token), 0 events/s in, 0 deliveries/s, 1 behind, store open"
    )


async def test_the_watchdog_is_pinged_in_time_and_the_status_told(autojump_clock):
    hub, notifier = FakeHub(), FakeNotifier()

    with trio.move_on_after(60.5):
        await watch(hub, Rates(), notifier, watchdog=10)

    pings = notifier.times("WATCHDOG")
    assert len(pings) >= 6
    assert max(b - a for a, b in zip([0.0, *pings], [*pings, 60.5], strict=True)) <= 10
    assert notifier.times("STATUS") == [1, 11, 21, 31, 41, 51]


@pytest.mark.parametrize("watchdog", [0.1, 0.5, 1.0, 1.7, 3.0])
async def test_a_short_watchdog_is_pinged_in_time_too(watchdog, autojump_clock):
    notifier = FakeNotifier()

    with trio.move_on_after(10.05):
        await watch(FakeHub(), Rates(), notifier, watchdog=watchdog)

    pings = [0.0, *notifier.times("WATCHDOG")]
    gaps = [b - a for a, b in itertools.pairwise(pings)]
    assert max(gaps) <= max(watchdog, math.ceil(watchdog)) + 1e-9
    assert max(gaps) < 2 * watchdog  # what systemd allows


async def test_a_changed_state_is_told_at_once(autojump_clock):
    hub, notifier = FakeHub(), FakeNotifier()

    with trio.move_on_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, hub, Rates(), notifier)
            await trio.sleep(3.5)
            hub.health.state = State.DRAINING

    assert notifier.times("WATCHDOG") == []
    assert notifier.times("STATUS") == [1, 4]
    assert notifier.sent[1][2].startswith("draining: ")


async def test_a_late_loop_is_measured_and_told(mock_clock):
    hub = FakeHub()
    with structlog.testing.capture_logs() as captured:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, hub, Rates(), FakeNotifier())
            await trio.testing.wait_all_tasks_blocked()
            lags = []
            for late in (0.75, 0.75, 0.75, 0, 0, 0, 0, 0):
                mock_clock.jump(1 + late)  # as if something had held the loop
                await trio.testing.wait_all_tasks_blocked()
                lags.append((hub.health.lag, hub.health.overloaded))
            nursery.cancel_scope.cancel()

    assert lags == [(0.75, False)] * 2 + [(0.75, True)] + [(0, True)] * 4 + [(0, False)]
    assert [line["event"] for line in captured] == ["overloaded", "no longer overloaded"]
