"""The load client for real, against the floor: what it counts must be what was sent."""

import os
import shutil

import pytest

import bench.__main__
from bench.measure import Bench, MeasureError
from bench.servers import servers
from bench.work import FAN_OUT, IDLE, quick

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler; Debian: apt-get install gcc"),
]
SERVERS = {server.name: server for server in servers()}


@pytest.fixture(scope="module")
def tools(tmp_path_factory) -> Bench:
    return Bench.prepare(tmp_path_factory.mktemp("tools"))


def test_every_event_is_counted_once_for_each_client(tools):
    figures = tools.run(SERVERS["floor"], quick(FAN_OUT[1]))

    report = figures.report
    assert report.delivered == report.published * report.clients > 0
    assert (report.disorder, report.closed, figures.lost) == (0, 0, 0)
    assert 0 < report.p50_ms <= report.p99_ms <= report.max_ms


def test_idle_clients_are_connected_and_counted(tools):
    figures = tools.run(SERVERS["floor"], quick(IDLE))

    assert figures.report.clients == 200
    assert figures.connects_per_second > 0
    assert figures.report.published == 0


def test_a_server_that_does_not_start_is_told_with_its_last_words(tools):
    broken = SERVERS["floor"].__class__(
        "broken", "broken", SERVERS["floor"].dialect,
        lambda place: ["sh", "-c", "echo no such port; exit 7"],
    )  # fmt: skip

    with pytest.raises(MeasureError, match=r"(?s)ended with status 7.*no such port"):
        tools.run(broken, quick(IDLE))


def test_what_is_started_pinned_leaves_the_others_where_they_were(tools):
    before = os.sched_getaffinity(0)

    tools.run(SERVERS["floor"], quick(IDLE))

    assert os.sched_getaffinity(0) == before


def test_without_a_compiler_the_bench_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")

    status = bench.__main__.main(["--quick", "--only", "floor", "idle"])

    assert status == 1
    assert "apt-get install gcc" in capsys.readouterr().err


def test_a_run_writes_its_tables_and_the_plot_where_it_is_told(tmp_path, capsys):
    out = tmp_path / "results.md"

    status = bench.__main__.main(["--quick", "--only", "floor", "fan-100", "--out", str(out)])

    assert status == 0
    assert "floor (C, only `send()`)" in out.read_text()
    assert out.read_text() == capsys.readouterr().out.removesuffix("\n")
    assert (tmp_path / "latency.svg").read_text().startswith("<svg ")
