"""`/metrics` as Prometheus wants it: names, units, bounded labels, true values."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

import cryptows
from cryptows.broker.counters import Counters, Gauges
from cryptows.broker.health import Health, State
from cryptows.store.jobs import StoreCounters
from cryptows.tasks import metrics
from cryptows.tasks.metrics import Metrics, process_metrics


@attrs.define
class FakeStore:
    counters: StoreCounters = attrs.field(factory=StoreCounters)


@attrs.define
class FakeHub:
    counters: Counters = attrs.field(factory=Counters)
    health: Health = attrs.field(factory=Health)
    now: Gauges = attrs.field(factory=Gauges)
    store: FakeStore | None = None

    def gauges(self) -> Gauges:
        return self.now


def families(hub: FakeHub) -> dict[str, Metric]:
    text = Metrics(hub, started_at=1000.5).render().decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def samples(hub: FakeHub) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in families(hub).values()
        for sample in family.samples
    }


def test_counters_are_read_when_they_are_scraped():
    hub = FakeHub()
    metrics = Metrics(hub, 0)
    metrics.render()
    hub.counters.events_in += 5
    hub.counters.disconnected(4008)
    hub.counters.refused("banned")
    hub.counters.feed_failed("invalid_json")
    hub.counters.request_failed("forbidden")

    text = metrics.render().decode()

    for line in (
        "cryptows_events_received_total 5.0",
        'cryptows_disconnects_total{code="4008"} 1.0',
        'cryptows_refused_total{reason="banned"} 1.0',
        'cryptows_feed_errors_total{code="invalid_json"} 1.0',
        'cryptows_request_errors_total{code="forbidden"} 1.0',
    ):
        assert line in text.splitlines()


def test_gauges_are_what_the_hub_says():
    hub = FakeHub(
        now=Gauges(connections={"websocket": 3, "polling": 1}, outbox_bytes=512, banned=2)
    )

    found = samples(hub)

    assert found["cryptows_connections", "websocket"] == 3
    assert found["cryptows_connections", "polling"] == 1
    assert found["cryptows_outbox_bytes",] == 512
    assert found["cryptows_banned",] == 2


def test_every_number_the_daemon_keeps_is_shown():
    def names(cls: type) -> set[str]:
        return {field.name for field in attrs.fields(cls)}

    shown = {row[0] for row in (*metrics.COUNTERS, *metrics.LABELLED_COUNTERS)}
    assert shown | {"latency"} == names(Counters)
    shown_of_the_store = {row[0] for row in (*metrics.STORE_COUNTERS, *metrics.STORE_GAUGES)}
    assert shown_of_the_store == names(StoreCounters)
    # subscribers has a label for each user's channel: it is in /stats, for admins
    assert {row[0] for row in metrics.GAUGES} | {"connections", "subscribers"} == names(Gauges)


def test_the_store_is_shown_once_there_is_one():
    counters = StoreCounters(commits=3, commit_seconds=0.5, stored=70, size=4096)

    without, found = samples(FakeHub()), samples(FakeHub(store=FakeStore(counters)))

    assert ("cryptows_stored_events_total",) not in without
    assert found["cryptows_stored_events_total",] == 70
    assert found["cryptows_store_commits_total",] == 3
    assert found["cryptows_store_commit_seconds_total",] == 0.5
    assert found["cryptows_store_size_bytes",] == 4096


def test_health_is_shown_as_states():
    hub = FakeHub(
        health=Health(
            State.DRAINING, store="half_open", reload_ok=False, reloaded_at=99.5,
            pending_restart=("a", "b"), lag=0.25, overloaded=True,
        )
    )  # fmt: skip

    found = samples(hub)

    assert [found["cryptows_state", s] for s in ("starting", "running", "draining")] == [0, 0, 1]
    breaker = [found["cryptows_store_breaker_state", s] for s in ("closed", "open", "half_open")]
    assert breaker == [0, 0, 1]
    assert found["cryptows_config_last_reload_successful",] == 0
    assert found["cryptows_config_last_reload_success_timestamp_seconds",] == 99.5
    assert found["cryptows_config_pending_restart",] == 2
    assert found["cryptows_loop_lag_seconds",] == 0.25
    assert found["cryptows_overloaded",] == 1


def test_the_latency_is_a_histogram():
    hub = FakeHub()
    hub.counters.latency.add(0.0004, times=2)
    hub.counters.latency.add(0.03)
    hub.counters.latency.add(60)

    family = families(hub)["cryptows_delivery_latency_seconds"]

    found = {(s.name.rpartition("_")[2], s.labels.get("le")): s.value for s in family.samples}
    assert family.type == "histogram"
    assert found["bucket", "0.0005"] == 2
    assert found["bucket", "0.02"] == 2
    assert found["bucket", "0.05"] == 3
    assert found["bucket", "10.0"] == 3
    assert found["bucket", "+Inf"] == 4
    assert found["count", None] == 4
    assert found["sum", None] == pytest.approx(60.0308)


def test_the_version_is_told():
    (sample,) = families(FakeHub())["cryptows_build_info"].samples

    assert sample.labels == {"version": cryptows.__version__, "python": platform.python_version()}
    assert sample.value == 1


def test_names_follow_the_conventions():
    """What `promtool check metrics` complains of: suffixes, units, help, camelCase."""
    hub = FakeHub(store=FakeStore())
    for family in families(hub).values():
        assert re.fullmatch(r"(cryptows|process)(_[a-z0-9]+)+", family.name)
        assert len(family.documentation) > 5
        assert not re.search(r"_(ms|milliseconds|kb|mb|count|total)$", family.name)
        labels = {label for sample in family.samples for label in sample.labels}
        assert labels <= {"version", "python", "transport", "state", "code", "reason", "le"}
    text = Metrics(hub, 0).render().decode()
    for name in re.findall(r"^# TYPE (\S+) counter$", text, re.MULTILINE):
        assert name.endswith("_total")


def test_the_process_is_described_without_proc_stat():
    """As under ProcSubset=pid, where only /proc/self is left."""
    spent = time.process_time()
    found = {
        sample.name: sample.value for family in process_metrics(5.0) for sample in family.samples
    }

    assert found["process_start_time_seconds"] == 5.0
    assert found["process_cpu_seconds_total"] >= spent - 0.05
    assert 10 << 20 < found["process_resident_memory_bytes"] < found["process_virtual_memory_bytes"]
    assert 3 <= found["process_open_fds"] < found["process_max_fds"]
    assert found["process_threads"] >= 1


def test_descriptors_are_counted_where_the_kernel_does_not_tell(tmp_path):
    (tmp_path / "fd").mkdir()
    for n in range(3):
        (tmp_path / "fd" / str(n)).touch()

    class Folder:
        def stat(self) -> os.stat_result:
            return os.stat_result([0] * 10)

        def iterdir(self) -> Iterator[Path]:
            yield from (tmp_path / "fd").iterdir()

    assert metrics._count_fds(Folder()) == 3  # type: ignore[arg-type]


def test_without_proc_there_are_no_process_metrics(tmp_path):
    assert list(process_metrics(0, proc=tmp_path)) == []
