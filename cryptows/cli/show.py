"""The demo's run: daemon, clients and bot are started in this order, watched, and ended.

The clients subscribe before the bot says its first word, so that they see everything it reports.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import sys
import time
from pathlib import Path

import attrs
import click
import trio

from cryptows import __version__
from cryptows.broker.auth import make_token
from cryptows.cli.bot import GRID_USER, STEP, Bot
from cryptows.cli.embedded import Embedded, embedded_daemon
from cryptows.cli.feeding import FeedClient, Refused
from cryptows.cli.listening import Listener
from cryptows.cli.screen import Screen, screen_on_stdout
from cryptows.cli.terminal import fancy, say
from cryptows.cli.watching import Watcher

TOKEN_LIFE = 86400.0  # seconds; who pastes it may come back after lunch
USER_CHANNELS = (
    "market_data", "price_updates", "trading_signals", "system_status",
    f"user_{GRID_USER}_trades", f"user_{GRID_USER}_positions", f"user_{GRID_USER}_alerts",
)  # fmt: skip
ADMIN_CHANNELS = ("all_trades", "risk_alerts", "admin_alerts", "system_metrics")


def clock_ms() -> float:
    """Return Unix ms with decimals."""
    return time.time_ns() / 1e6


@attrs.define
class Show:
    """One run of the demo; without `seconds` it goes on until it is cancelled."""

    seconds: float | None
    _watchers: list[Watcher] = attrs.field(factory=list, init=False)
    _refused: list[Refused] = attrs.field(factory=list, init=False)  # our bot writes no bad lines

    async def run(self) -> None:
        """Return after `seconds`; raises Failure when the daemon or a client gives up."""
        async with embedded_daemon() as daemon:
            tokens = {
                name: make_token(daemon.key.encode(), "HS256", user, name, TOKEN_LIFE, time.time())
                for name, user in (("user", GRID_USER), ("admin", "admin"))
            }
            for name, token in tokens.items():
                _write_private(daemon.folder / f"{name}.token", token)
            introduce(daemon, tokens)
            screen = screen_on_stdout(clock_ms)
            try:
                await self._play(daemon, tokens, screen)
            finally:
                screen.close()

    async def _play(self, daemon: Embedded, tokens: dict[str, str], screen: Screen) -> None:
        feed_stream = await trio.open_unix_socket(daemon.feed_socket)
        async with feed_stream, trio.open_nursery() as nursery:
            nursery.start_soon(_watch_process, daemon)
            for name, channels in (("user", USER_CHANNELS), ("admin", ADMIN_CHANNELS)):
                await nursery.start(self._watch, daemon, name, tokens[name], channels)
            feed = FeedClient(feed_stream, "demo-bot", self._refused.append)
            await feed.greet()
            nursery.start_soon(feed.read_answers)
            nursery.start_soon(_run_bot, feed)
            with trio.move_on_after(self.seconds if self.seconds is not None else float("inf")):
                await screen.run(self._watchers, feed.counts)
            nursery.cancel_scope.cancel()

    async def _watch(
        self,
        daemon: Embedded,
        name: str,
        token: str,
        channels: tuple[str, ...],
        task_status: trio.TaskStatus[None],
    ) -> None:
        watcher = Watcher.of(name, channels, clock_ms, task_status.started)
        self._watchers.append(watcher)
        ending = await Listener(daemon.url, channels, watcher.take, token=token).listen()
        if ending is not None:
            raise daemon.failure(f"the {name}'s client: {ending.why}")

    def summary(self) -> str:
        """Return what it came to, once everything has ended."""
        received = sum(view.count for w in self._watchers for view in w.views.values())
        lost = sum(w.lost for w in self._watchers)
        refused = f", {len(self._refused)} refused" if self._refused else ""
        return f"received {received} events, {lost} lost{refused}; nothing is left behind"


async def _run_bot(feed: FeedClient) -> None:
    bot = Bot(random.Random())
    begin = trio.current_time()
    while True:
        for event in bot.step(clock_ms()):
            await feed.send(bot.steps, json.dumps(event, separators=(",", ":")).encode())
        try:
            await feed.flush()
        except trio.BrokenResourceError:
            return  # the daemon has gone; whoever watches it says so
        await trio.sleep_until(begin + bot.steps * STEP)


async def _watch_process(daemon: Embedded) -> None:
    code = await daemon.wait_ended()
    raise daemon.failure(f"the daemon ended with exit code {code}")


def introduce(daemon: Embedded, tokens: dict[str, str]) -> None:
    """Say what runs where, and how to join."""
    command = own_command()
    tail = [
        *command, "tail", "--url", daemon.url, "--token-file", str(daemon.folder / "user.token"),
        "market_data:BTCUSDT", f"user_{GRID_USER}_trades",
    ]  # fmt: skip
    alert = {"type": "user_alert", "user_id": GRID_USER, "data": {"message": "hello"}}
    publish = [*command, "publish", "--socket", daemon.feed_socket]
    say(f"cryptows {__version__}: a daemon, a simulated bot and two clients; Ctrl-C ends them")
    # Each on a line of its own that is left to the terminal to wrap: so it can be copied whole.
    for title, text in (
        ("URL", daemon.url),
        (f"Token of user {GRID_USER}", tokens["user"]),
        ("Token of an admin", tokens["admin"]),
        ("Subscribe, in another terminal", shlex.join(tail)),
        ("Publish", f"echo {shlex.quote(json.dumps(alert))} | {shlex.join(publish)}"),
        ("Socket.IO", socketio_snippet(daemon.http, tokens["user"])),
    ):
        say(f"\n{click.style(title, bold=fancy())}\n{text}")
    say("")


def socketio_snippet(url: str, token: str) -> str:
    """Return a line of JavaScript that subscribes with the official client."""
    return (
        f'const s = io("{url}", {{auth: {{token: "{token}"}}}}); '
        's.on("message", console.log); '
        's.on("connect", () => s.emit("subscribe", {channels: ["market_data"]}))'
    )


def own_command() -> list[str]:
    """Return how the person at the keyboard runs cryptows."""
    if Path("run").is_file() and Path("cryptows").is_dir():
        return ["./run"]
    if shutil.which("cryptows"):
        return ["cryptows"]
    return [sys.executable, "-m", "cryptows"]


def _write_private(path: Path, text: str) -> None:
    with open(path, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(text + "\n")
