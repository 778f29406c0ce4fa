import io
import re

import pytest
import trio
from rich.console import Console

from cryptows.cli import screen
from cryptows.cli.feeding import Counts
from cryptows.cli.screen import Lines, LiveTable, line_of, screen_on_stdout, table_of
from cryptows.cli.watching import Watcher

NOW = 1_700_000_000_000.0


def watchers():
    watcher = Watcher.of("user", ("market_data", "system_status"), lambda: NOW, lambda: None)
    data = {"symbol": "A[b]", "price": 2, "change24h": 0, "sentAt": NOW - 3}
    watcher.views["market_data"].take("market_data_update", data, 0, NOW)
    return [watcher]


async def test_lines_come_once_a_second_for_channels_with_news(autojump_clock, capsys):
    lines = Lines(lambda: NOW - 500 + trio.current_time() * 1000)
    heard = watchers()

    with trio.move_on_after(2.5):
        await lines.run(heard, Counts())
    lines.close()

    out = capsys.readouterr().out
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d  market_data        user    1.0/s  p50 3.0 ms  p99 3.0 ms  "
        r"A\[b\] 2 \(\+0\.00 %\)\n",
        out,
    )


def test_a_line_without_latency_has_a_dash():
    assert "p50 - ms" in line_of(watchers()[0].views["system_status"], NOW, NOW - 1000)


def test_the_table_shows_every_channel_and_what_was_fed():
    console = Console(width=100, file=io.StringIO(), record=True)

    console.print(table_of(watchers(), Counts(sent=7, delivered=9), NOW, NOW - 2000))

    text = console.export_text()
    assert re.search(r"market_data +user +A\[b\] 2 \(\+0\.00 %\) +0\.5 +3\.0 +3\.0", text)
    assert re.search(r"system_status +user +0\.0 +- +-", text)
    assert "fed 7 events, 9 deliveries, 0 lost, 2 s" in text


async def test_the_live_table_gives_the_terminal_back(monkeypatch):
    monkeypatch.setattr("sys.setswitchinterval", lambda _: None)
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100, height=30)
    monkeypatch.setattr("rich.console.Console", lambda: console)
    table = LiveTable(lambda: NOW)

    with trio.move_on_after(0.3):
        await table.run(watchers(), Counts())
    table.close()

    assert "market_data" in file.getvalue()
    assert file.getvalue().rstrip("\n").endswith("\x1b[?25h")  # the cursor is visible again


@pytest.mark.parametrize(("terminal", "kind"), [(True, LiveTable), (False, Lines)])
def test_only_a_terminal_gets_a_table(monkeypatch, terminal, kind):
    monkeypatch.setattr("sys.setswitchinterval", lambda _: None)
    monkeypatch.setattr(screen, "fancy", lambda: terminal)

    assert isinstance(screen_on_stdout(lambda: NOW), kind)
