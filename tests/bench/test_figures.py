import msgspec
import pytest

from bench.figures import Figures, Report, ratio, read_report
from bench.work import FAN_OUT, IDLE

LINE = (
    b'{"clients":500,"connect_seconds":0.25,"connect_cpu":0.5,"idle_kib":8000,"seconds":5.0,'
    b'"server_cpu":1.0,"client_cpu":0.5,"rss_kib":30000,"published":600,'
    b'"published_in_window":500,"delivered":299990,"delivered_in_window":250000,"disorder":0,'
    b'"closed":0,"p50_ms":0.5,"p90_ms":1.0,"p99_ms":2.0,"p999_ms":3.0,"max_ms":4.0}\n'
)
IDLE_LINE = b'{"clients":1000,"connect_seconds":2,"connect_cpu":1.5,"idle_kib":16000}\n'


def test_figures_follow_from_the_load_clients_line():
    figures = Figures("cryptows", FAN_OUT[0], read_report(LINE))

    assert figures.per_second == 50_000
    assert figures.per_cpu_second == 250_000
    assert figures.taken_per_second == 100
    assert figures.lost == 10
    assert not figures.overloaded


def test_an_idle_run_has_figures_of_connecting_only():
    figures = Figures("cryptows", IDLE, read_report(IDLE_LINE))

    assert figures.kib_per_client == 16
    assert figures.connects_per_second == 500
    assert figures.connect_cpu_ms == 1.5
    assert figures.per_second == figures.per_cpu_second == 0


@pytest.mark.parametrize(
    "behind",
    [{"published_in_window": 400, "delivered_in_window": 200_000}, {"delivered_in_window": 1000}],
    ids=["takes less than offered", "passes on less than it took"],
)
def test_a_server_that_falls_behind_is_marked(behind):
    report = msgspec.structs.replace(read_report(LINE), **behind)

    assert Figures("nats", FAN_OUT[0], report).overloaded


def test_more_than_expected_is_not_a_negative_loss():
    report = msgspec.structs.replace(read_report(LINE), delivered=300_001)

    assert Figures("nats", FAN_OUT[0], report).lost == 0


@pytest.mark.parametrize("text", [b"", b"{}", b'{"clients":"many"}', b"load: no upgrade"])
def test_a_line_that_is_no_report_is_refused(text):
    with pytest.raises(msgspec.DecodeError):
        read_report(text)


def test_a_ratio_of_nothing_is_zero():
    assert ratio(1, 0) == 0
    assert Figures("x", FAN_OUT[0], Report(0, 0, 0, 0)).kib_per_client == 0
