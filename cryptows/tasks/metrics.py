"""`/metrics`: the counters and gauges in Prometheus' text format.

Nothing is registered with the library ahead of time and nothing calls it in the hot path: one
collector reads the plain integers when somebody scrapes. Names have the prefix `cryptows_` and base
units; labels take few values and never a user, a channel or an address.
"""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Iterator, Mapping
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

import cryptows
from cryptows.broker.breaker import BreakerState
from cryptows.broker.counters import Buckets, Counters, Gauges
from cryptows.broker.health import Health, State
from cryptows.store.jobs import StoreCounters
from cryptows.tasks.stats import StatsView

CONTENT_TYPE = CONTENT_TYPE_LATEST
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")

# name (and its label), help, how to read it
COUNTERS: tuple[tuple[str, str, str], ...] = (
    ("connects", "connects", "Sessions that began"),
    ("bans", "bans", "Users and addresses that were banned"),
    ("recovered", "recovered_sessions", "Sessions that came back and got what they missed"),
    ("not_recovered", "unrecovered_sessions", "Sessions that missed more than is kept"),
    ("requests", "requests", "Requests of clients"),
    ("rate_limited", "rate_limited_requests", "Requests refused by the rate limit"),
    ("http_requests", "http_requests", "Plain HTTP requests"),
    ("pings", "pings", "Pings sent"),
    ("pongs", "pongs", "Pongs received"),
    ("pong_timeouts", "pong_timeouts", "Clients closed because their pong was overdue"),
    ("events_in", "events_received", "Events accepted from the feed"),
    ("feed_bytes", "feed_received_bytes", "Bytes read from the feed"),
    ("duplicates", "duplicate_events", "Events whose id was seen already"),
    ("undeliverable", "undelivered_events", "Events that no client was subscribed to"),
    ("deliveries", "deliveries", "Events delivered, each counted once for each client"),
    ("passes", "passes", "Rounds of the dispatcher"),
    ("sends", "sends", "Writes to sockets by the dispatcher"),
    ("short_sends", "short_sends", "Writes that took less than was offered"),
    ("bytes_out", "sent_bytes", "Bytes written to clients"),
    ("throttled", "throttled_events", "Events held back by a channel's throttle"),
    ("skipped", "skipped_deliveries", "Market events skipped for clients that were behind"),
    ("conflated", "conflated_events", "Events that stand for others the throttle held back"),
    ("reloads", "config_reloads", "Reloads of the configuration that took effect"),
    ("reload_failures", "config_reload_failures", "Reloads that were refused"),
    ("bugs", "bugs", "Clients ended by an exception that should not have been raised"),
)
LABELLED_COUNTERS: tuple[tuple[str, str, str, str], ...] = (
    ("disconnects", "disconnects", "code", "Sessions that ended, by close code; 0 is any other"),
    ("refusals", "refused", "reason", "Connections that did not become a session"),
    ("request_errors", "request_errors", "code", "Requests answered with an error"),
    ("feed_errors", "feed_errors", "code", "Feed lines answered with an error"),
)
STORE_COUNTERS: tuple[tuple[str, str, str], ...] = (
    ("commits", "store_commits", "Commits of durable events"),
    ("commit_seconds", "store_commit_seconds", "Time that commits took"),
    ("stored", "stored_events", "Durable events that were committed"),
    ("refused", "unstored_events", "Durable events that went out live and may not be kept"),
    ("failures", "store_failures", "Commits and chores that failed or were overdue"),
    ("opened", "store_breaker_opened", "Times that the store's circuit breaker opened"),
    ("closed", "store_breaker_closed", "Times that it closed again"),
    ("pruned", "store_pruned_events", "Durable events that were given up for age or number"),
)
STORE_GAUGES: tuple[tuple[str, str, str], ...] = (
    ("slowest_commit", "store_slowest_commit_seconds", "The longest commit so far"),
    ("size", "store_size_bytes", "The store's files on disk"),
)
GAUGES: tuple[tuple[str, str, str], ...] = (
    ("authenticated", "authenticated_clients", "Clients with a token"),
    ("subscriptions", "subscriptions", "Subscriptions of all clients"),
    ("streams", "streams", "Streams (channel and symbol) known"),
    ("throttlers", "active_throttlers", "Streams whose throttle is in force"),
    ("cached", "cached_entries", "Events that a throttle keeps for the end of its interval"),
    ("producers", "producers", "Feed connections"),
    ("queued_events", "queued_events", "Events accepted and not yet dispatched"),
    ("slow_clients", "slow_clients", "Clients that are behind"),
    ("outbox_bytes", "outbox_bytes", "Bytes that wait for clients that are behind"),
    ("banned", "banned", "Users and addresses that are banned"),
)


class Metrics(Collector):
    """Reads the daemon when it is scraped. `started_at`: when the process started, Unix s."""

    def __init__(self, view: StatsView, started_at: float) -> None:
        self._view = view
        self._started_at = started_at
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def render(self) -> bytes:
        """Return the body of an answer of CONTENT_TYPE."""
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        """Return nothing: without it the registry would scrape when we register."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield all families, read at this moment."""
        yield _info(
            "build_info", "The version that runs",
            {"version": cryptows.__version__, "python": platform.python_version()},
        )  # fmt: skip
        yield from _counters(self._view.counters)
        yield from _gauges(self._view.gauges())
        yield from _health(self._view.health)
        if self._view.store is not None:
            yield from _store(self._view.store.counters)
        yield _histogram(
            "delivery_latency_seconds",
            "From reading an event off the feed to the end of the pass that delivered it",
            self._view.counters.latency,
        )
        yield from process_metrics(self._started_at)


def _info(name: str, doc: str, labels: Mapping[str, str]) -> Metric:
    family = GaugeMetricFamily(f"cryptows_{name}", doc, labels=list(labels))
    family.add_metric(list(labels.values()), 1)
    return family


def _counters(counters: Counters) -> Iterator[Metric]:
    for attribute, name, doc in COUNTERS:
        yield CounterMetricFamily(f"cryptows_{name}", doc, value=getattr(counters, attribute))
    for attribute, name, label, doc in LABELLED_COUNTERS:
        family = CounterMetricFamily(f"cryptows_{name}", doc, labels=[label])
        for key, count in sorted(getattr(counters, attribute).items()):
            family.add_metric([str(key)], count)
        yield family


def _gauges(gauges: Gauges) -> Iterator[Metric]:
    connections = GaugeMetricFamily(
        "cryptows_connections", "Open connections", labels=["transport"]
    )
    for transport, count in gauges.connections.items():
        connections.add_metric([transport], count)
    yield connections
    for attribute, name, doc in GAUGES:
        yield GaugeMetricFamily(f"cryptows_{name}", doc, value=getattr(gauges, attribute))


def _store(counters: StoreCounters) -> Iterator[Metric]:
    for attribute, name, doc in STORE_COUNTERS:
        yield CounterMetricFamily(f"cryptows_{name}", doc, value=getattr(counters, attribute))
    for attribute, name, doc in STORE_GAUGES:
        yield GaugeMetricFamily(f"cryptows_{name}", doc, value=getattr(counters, attribute))


def _health(health: Health) -> Iterator[Metric]:
    yield _states("state", "Where the daemon is in its life", [str(s) for s in State], health.state)
    yield _states(
        "store_breaker_state", "The circuit breaker of the store",
        [str(s) for s in BreakerState], health.store,
    )  # fmt: skip
    for name, doc, value in (
        ("loop_lag_seconds", "How late the event loop was at the last sample", health.lag),
        ("overloaded", "1 while new clients are not welcome because of lag", health.overloaded),
        ("config_last_reload_successful", "1 if the last reload took effect", health.reload_ok),
        (
            "config_last_reload_success_timestamp_seconds",
            "When the configuration was last (re)loaded",
            health.reloaded_at,
        ),
        (
            "config_pending_restart",
            "Changed settings that wait for the next start",
            len(health.pending_restart),
        ),
    ):
        yield GaugeMetricFamily(f"cryptows_{name}", doc, value=float(value))


def _states(name: str, doc: str, states: list[str], current: str) -> Metric:
    """Return a gauge for each state, 1 for the current one."""
    family = GaugeMetricFamily(f"cryptows_{name}", doc, labels=["state"])
    for state in states:
        family.add_metric([state], state == current)
    return family


def _histogram(name: str, doc: str, buckets: Buckets) -> Metric:
    cumulated, seen = [], 0
    for bound, count in zip((*map(str, buckets.bounds), "+Inf"), buckets.counts, strict=True):
        seen += count
        cumulated.append((bound, seen))
    return HistogramMetricFamily(f"cryptows_{name}", doc, buckets=cumulated, sum_value=buckets.sum)


def process_metrics(started_at: float, proc: Path = Path("/proc/self")) -> Iterator[Metric]:
    """Yield the usual process_* metrics from /proc/self.

    The library's own collector reads /proc/stat, which ProcSubset=pid of our unit hides, and then
    yields nothing at all.
    """
    try:
        # The name in brackets may hold spaces and brackets; the fields after it are from `state`.
        fields = (proc / "stat").read_text().rpartition(")")[2].split()
        open_fds = _count_fds(proc / "fd")
    except OSError:
        return
    seconds = (int(fields[11]) + int(fields[12])) / TICKS  # utime, stime: 14 and 15 of proc(5)
    yield CounterMetricFamily("process_cpu_seconds", "User and system CPU time", value=seconds)
    for name, doc, value in (
        ("virtual_memory_bytes", "Virtual memory", int(fields[20])),
        ("resident_memory_bytes", "Resident memory", int(fields[21]) * PAGE),
        ("threads", "Threads", int(fields[17])),
        ("start_time_seconds", "When the process started", started_at),
        ("open_fds", "Open file descriptors", open_fds),
        ("max_fds", "Allowed file descriptors", resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
    ):
        yield GaugeMetricFamily(f"process_{name}", doc, value=value)


def _count_fds(folder: Path) -> int:
    """Return how many descriptors are open. Since Linux 6.2 the folder's size tells."""
    return folder.stat().st_size or sum(1 for _ in folder.iterdir())
