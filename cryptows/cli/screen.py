"""How the demo shows its clients' views: a live table on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Protocol

import attrs
import trio

from cryptows.cli.feeding import Counts
from cryptows.cli.terminal import fancy, say
from cryptows.cli.watching import View, Watcher

if TYPE_CHECKING:
    from rich.table import Table

LINES_EVERY = 1.0  # seconds
TABLE_EVERY = 0.25
SWITCH = 0.0005  # seconds until a thread must let another run


class Screen(Protocol):
    """Shows what the watchers see until it is cancelled."""

    async def run(self, watchers: Sequence[Watcher], counts: Counts) -> None:
        """Draw again and again; raises BrokenPipeError when nobody looks any more."""
        ...

    def close(self) -> None:
        """Give the terminal back."""
        ...


@attrs.define
class Lines:
    """Once a second a line for each channel that has news."""

    clock_ms: Callable[[], float]

    async def run(self, watchers: Sequence[Watcher], counts: Counts) -> None:
        begin, seen = self.clock_ms(), dict[str, int]()
        while True:
            await trio.sleep(LINES_EVERY)
            now = self.clock_ms()
            for view in (view for watcher in watchers for view in watcher.views.values()):
                if view.count != seen.get(view.channel, 0):
                    seen[view.channel] = view.count
                    say(line_of(view, now, begin))

    def close(self) -> None:
        pass


def line_of(view: View, now_ms: float, begin_ms: float) -> str:
    """Return what a channel's row of the table says, as a line."""
    at = datetime.fromtimestamp(now_ms / 1000).astimezone().strftime("%H:%M:%S")
    rate = f"{view.rate(now_ms, begin_ms):.1f}/s"
    latency = f"p50 {_ms(view.latency(0.5))} ms  p99 {_ms(view.latency(0.99))} ms"
    return f"{at}  {view.channel:18} {view.client:5} {rate:>7}  {latency}  {view.last}"


class LiveTable:
    """A table that is drawn over and over in the same place."""

    def __init__(self, clock_ms: Callable[[], float]) -> None:
        from rich.console import Console
        from rich.live import Live

        sys.setswitchinterval(SWITCH)
        self._clock_ms = clock_ms
        self._live = Live(console=Console(), auto_refresh=False)

    async def run(self, watchers: Sequence[Watcher], counts: Counts) -> None:
        begin = self._clock_ms()
        self._live.start()
        while True:
            table = table_of(watchers, counts, self._clock_ms(), begin)
            # Drawing takes 20 ms, which would count as latency if the clients had to wait for it.
            await trio.to_thread.run_sync(partial(self._live.update, table, refresh=True))
            await trio.sleep(TABLE_EVERY)

    def close(self) -> None:
        self._live.stop()


def table_of(watchers: Sequence[Watcher], counts: Counts, now_ms: float, begin_ms: float) -> Table:
    """Return the table of all channels."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    lost = sum(watcher.lost for watcher in watchers)
    fed = f"fed {counts.sent} events, {counts.delivered} deliveries, {lost} lost"
    seconds = (now_ms - begin_ms) / 1000
    caption = f"{fed}, {seconds:.0f} s; Ctrl-C ends it"
    table = Table(
        caption=caption, box=SIMPLE_HEAD, expand=True, pad_edge=False, collapse_padding=True
    )
    table.add_column("channel", no_wrap=True, style="cyan")
    table.add_column("as", no_wrap=True, style="dim")
    table.add_column("last message", no_wrap=True, ratio=1, overflow="ellipsis")
    for name in ("events/s", "p50 ms", "p99 ms"):
        table.add_column(name, no_wrap=True, justify="right")
    for view in (view for watcher in watchers for view in watcher.views.values()):
        latencies = (_ms(view.latency(part)) for part in (0.5, 0.99))
        rate = f"{view.rate(now_ms, begin_ms):.1f}"
        table.add_row(view.channel, view.client, Text(view.last), rate, *latencies)
    return table


def _ms(latency: float | None) -> str:
    return "-" if latency is None else f"{latency:.1f}"


def screen_on_stdout(clock_ms: Callable[[], float]) -> Screen:
    """Return a table if stdout is a terminal."""
    return LiveTable(clock_ms) if fancy() else Lines(clock_ms)
