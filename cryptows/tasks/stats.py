"""The stats task: how late the loop is, how much flows, and who is told of it.

Once a second it measures by how much the loop overslept, which is what every client feels, and
derives rates from the counters. systemd is told by the watchdog's ping (a loop that hangs does not
ping, and is restarted with its stack in the journal) and by one line for `systemctl status`.
`/stats` (protocol section 7) is made here too; `/metrics` is in `tasks/metrics.py`.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

import attrs
import structlog
import trio

from cryptows import log as logs
from cryptows.broker.counters import Counters, Gauges
from cryptows.broker.health import Health
from cryptows.notify import Notifier
from cryptows.store.jobs import StoreCounters

log = structlog.get_logger()

TICK = 1.0  # seconds between two samples
RATE_SAMPLES = 10  # rates are over so many ticks
STATUS_EVERY = 10  # ticks between two status lines, unless the state changes


class StoreView(Protocol):
    """What the numbers of the store are read from: its task."""

    @property
    def counters(self) -> StoreCounters:
        """What happened so far."""
        ...


class StatsView(Protocol):
    """What the numbers are read from: the hub."""

    @property
    def counters(self) -> Counters:
        """What happened so far."""
        ...

    @property
    def health(self) -> Health:
        """How the daemon is."""
        ...

    @property
    def store(self) -> StoreView | None:
        """The store's task, once it runs."""
        ...

    def gauges(self) -> Gauges:
        """What is the case now; asked for each answer and each status line."""
        ...


@attrs.define
class Rates:
    """What flows in a second, over the last samples."""

    _samples: deque[tuple[float, int, int, int]] = attrs.field(
        factory=lambda: deque(maxlen=RATE_SAMPLES + 1), init=False
    )

    def sample(self, counters: Counters, now: float) -> None:
        """Take a sample of the counters."""
        self._samples.append((now, counters.events_in, counters.deliveries, counters.bytes_out))

    @property
    def per_second(self) -> tuple[float, float, float]:
        """Events in, deliveries and bytes out, each in a second."""
        if len(self._samples) < 2:
            return (0.0, 0.0, 0.0)
        (t0, *first), (t1, *last) = self._samples[0], self._samples[-1]
        span = max(t1 - t0, 1e-9)
        events, deliveries, size = ((b - a) / span for a, b in zip(first, last, strict=True))
        return events, deliveries, size


def stats_document(
    gauges: Gauges, counters: Counters, health: Health, rates: Rates
) -> dict[str, Any]:
    """Return the body of `/stats`; the three parts and their names are protocol section 7's."""
    server = {
        "connectedClients": gauges.clients,
        "totalChannels": len(gauges.subscribers),
        "channelStats": dict(gauges.subscribers),
    }
    return {
        "server": server,
        "clients": {
            "totalClients": gauges.clients,
            "authenticatedClients": gauges.authenticated,
            "anonymousClients": gauges.clients - gauges.authenticated,
            "channelDistribution": dict(gauges.subscribers),
        },
        "broadcast": {
            "activeThrottlers": gauges.throttlers,
            "cachedDataEntries": gauges.cached,
            "wsServerStats": {**server, **_flow(gauges, counters, health, rates)},
        },
    }


def _flow(gauges: Gauges, counters: Counters, health: Health, rates: Rates) -> dict[str, Any]:
    """What flows through the server and how it is: ours, beyond what the seed system had."""
    events, deliveries, size = rates.per_second
    return {
        "status": health.status,
        "store": str(health.store),
        "loopLagMs": round(health.lag * 1000, 3),
        "transports": dict(gauges.connections),
        "subscriptions": gauges.subscriptions,
        "streams": gauges.streams,
        "producers": gauges.producers,
        "queuedEvents": gauges.queued_events,
        "slowClients": gauges.slow_clients,
        "outboxBytes": gauges.outbox_bytes,
        "banned": gauges.banned,
        "connects": counters.connects,
        "disconnects": {str(code): count for code, count in counters.disconnects.items()},
        "refusals": dict(counters.refusals),
        "events": counters.events_in,
        "deliveries": counters.deliveries,
        "bytesOut": counters.bytes_out,
        "skipped": counters.skipped,
        "throttled": counters.throttled,
        "duplicates": counters.duplicates,
        "eventsPerSecond": round(events, 1),
        "deliveriesPerSecond": round(deliveries, 1),
        "bytesOutPerSecond": round(size),
        "latencyMs": {
            name: counters.latency.quantile(share) * 1000
            for name, share in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999))
        },
    }


def status_line(gauges: Gauges, health: Health, rates: Rates) -> str:
    """Return the one line that `systemctl status` shows."""
    events, deliveries, _ = rates.per_second
    parts = [
        f"{health.status}: {gauges.clients} clients ({gauges.authenticated} with a token)",
        f"{events:.0f} events/s in",
        f"{deliveries:.0f} deliveries/s",
    ]
    if gauges.slow_clients:
        parts.append(f"{gauges.slow_clients} behind")
    if health.store != "closed":
        parts.append(f"store {health.store}")
    return ", ".join(parts)


async def watch(
    view: StatsView, rates: Rates, notifier: Notifier, watchdog: float | None = None
) -> None:
    """Sample until cancelled. `watchdog`: seconds between two pings to systemd, None for none."""
    tick = TICK if watchdog is None else min(TICK, watchdog)
    ping_at = told_at = trio.current_time()
    told = ""
    while True:
        due = trio.current_time() + tick
        await trio.sleep_until(due)
        now = trio.current_time()
        if view.health.observe_lag(now - due):
            _tell_overload(view.health)
        rates.sample(view.counters, now)
        logs.report_repeats()
        if watchdog is not None and now >= ping_at:
            notifier.watchdog()
            ping_at = now + watchdog - tick / 2  # rather early than late
        if notifier.address and (view.health.status != told or now >= told_at):
            told, told_at = view.health.status, now + STATUS_EVERY * TICK
            notifier.status(status_line(view.gauges(), view.health, rates))


def _tell_overload(health: Health) -> None:
    if health.overloaded:
        log.warning("overloaded", lag=round(health.lag, 3))
    else:
        log.info("no longer overloaded", lag=round(health.lag, 3))
