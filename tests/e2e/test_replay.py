"""A recording is replayed to fifty clients of two foreign libraries, and every one gets it all.

The recording is made here: every type of event, prices written in several ways, text in several
scripts, blanks where JSON allows them. What each client is to get is worked out from the lines by
the routes of the contract alone; it is compared byte for byte.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from fnmatch import fnmatchcase
from pathlib import Path

import attrs
import pytest
import trio

from tests.e2e.agents import Agent, needs_node, node, python
from tests.e2e.daemon import ROOT, Daemon, running

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SYMBOLS = [f"{base}{quote}" for base in ("BTC", "ETH", "SOL", "金") for quote in ("USDT", "-EUR")]
USERS = ["1", "2", "anna.k-7"]
ROUTES = {
    "market_data_update": ["market_data"],
    "trading_signal": ["trading_signals"],
    "trade_execution": ["user_{}_trades", "all_trades"],
    "position_update": ["user_{}_positions"],
    "user_alert": ["user_{}_alerts"],
    "risk_alert": ["risk_alerts", "user_{}_alerts"],
    "grid_update": ["user_{}_trades"],
    "system_status": ["system_status"],
    "performance_metrics": ["system_metrics"],
}
OWNED = ("trade_execution", "position_update", "user_alert", "grid_update")
# Nothing may be left out however slowly a test machine reads.
LOSSLESS = (
    "channels.market_data.throttle=0s", "channels.market_data.lane=private",
    "channels.system_metrics.lane=private", "channels.trading_signals.lane=private",
    "delivery.outbox=64MiB", "delivery.max_lag=1h",
)  # fmt: skip


@attrs.frozen
class Line:
    """A line of the recording, and which channels its event belongs on."""

    text: str
    data: str
    symbol: str | None
    channels: tuple[str, ...]


def recording(count: int, seed: int) -> list[Line]:
    """Return as many lines, the same ones for a seed."""
    chance = random.Random(seed)
    return [line(chance, n) for n in range(count)]


def line(chance: random.Random, n: int) -> Line:
    type_ = chance.choices(list(ROUTES), [60, 5, 8, 8, 3, 3, 4, 5, 4])[0]
    symbol = chance.choice(SYMBOLS) if type_ not in ("system_status", "user_alert") else None
    user = None
    if type_ in OWNED or (type_ == "risk_alert" and chance.random() < 0.5):
        user = chance.choice(USERS)
    data = data_of(chance, n, symbol)
    fields = [f'"type":"{type_}"', f'"data":{data}', f'"ts":{1_700_000_000_000 + n * 2}']
    if user is not None:
        fields.append(f'"user_id": "{user}"')
    if chance.random() < 0.3:
        fields.append(f'"id":"event-{n}"')
    chance.shuffle(fields)
    routes = [route for route in ROUTES[type_] if user is not None or "{}" not in route]
    channels = tuple(route.format(user) for route in routes)
    return Line("{" + ",".join(fields) + "}", data, symbol, channels)


def data_of(chance: random.Random, n: int, symbol: str | None) -> str:
    """Return an object as no encoder would write it."""
    price = chance.choice([f"{n}.50", f'"{n}.1"', f"{n}e0", f"{n + 0.1}", str(n)])
    parts = [f'"price" : {price}', f'"n":{n}', '"note":"caf\\u00e9 ü € 𝄞 \\"\\\\ \\n"']
    parts += [
        chance.choice(['"deep": {"a": [1, 2.50, null, {}], "b" : true}', '"x":"' + "y" * 200 + '"'])
    ]
    if symbol is not None:
        parts.append(f'"symbol":"{symbol}"')
    chance.shuffle(parts)
    return "{ " + " , ".join(parts) + "}"


@attrs.frozen
class Wish:
    """What one client subscribes to."""

    user: str
    role: str
    channels: tuple[str, ...]

    def expected(self, lines: list[Line]) -> dict[str, list[str]]:
        """By channel the data of each event it is to get, in order."""
        found: dict[str, list[str]] = {}
        for each in lines:
            for channel in each.channels:
                if any(self._covers(p, channel, each.symbol) for p in self.channels):
                    found.setdefault(channel, []).append(each.data)
        return found

    @staticmethod
    def _covers(pattern: str, channel: str, symbol: str | None) -> bool:
        name, colon, wanted = pattern.partition(":")
        if name != channel:
            return False
        return not colon or (symbol is not None and fnmatchcase(symbol, wanted))


WISHES = [
    Wish("1", "user", ("market_data", "system_status")),
    Wish("1", "user", ("market_data:BTCUSDT", "user_1_trades", "user_1_positions")),
    Wish("2", "user", ("market_data:ETH*", "market_data:SOL-EUR", "user_2_alerts")),
    Wish("anna.k-7", "user", ("user_anna.k-7_trades", "user_anna.k-7_alerts", "trading_signals")),
    Wish("9", "admin", ("all_trades", "risk_alerts", "system_metrics", "market_data:*-EUR")),
    Wish(
        "9", "super_admin", ("user_1_trades", "user_2_positions", "market_data", "market_data:金*")
    ),
    Wish("1", "user", ("market_data:金USDT", "trading_signals:BTC*", "system_status")),
]


@attrs.define(eq=False)
class Crowd:
    """All clients of one library."""

    agent: Agent
    folder: Path
    wishes: dict[str, Wish] = attrs.field(factory=dict)

    async def connect(self, daemon: Daemon, name: str, count: int) -> None:
        """Connect and subscribe as many, and wait until each has its confirmation."""
        for n in range(count):
            wish = WISHES[n % len(WISHES)]
            id_ = f"{name}-{n}"
            self.wishes[id_] = wish
            token = {"Authorization": f"Bearer {daemon.token(wish.user, wish.role)}"}
            await self.agent.do("open", id=id_, url=daemon.url, headers=token, quiet=True)
        for _ in range(count):
            told = await self.agent.until("open")
            request = {"type": "subscribe", "channels": self.wishes[told["id"]].channels}
            await self.agent.do("send", id=told["id"], text=json.dumps(request))
        await self.have(dict.fromkeys(self.wishes, 2))

    async def have(self, least: dict[str, int]) -> None:
        """Wait until every client has received so many messages."""
        counts: dict[str, int] = {}
        with trio.move_on_after(60):
            while True:
                await self.agent.do("counts")
                counts = (await self.agent.until("counts"))["counts"]
                if all(counts[id_] >= number for id_, number in least.items()):
                    return
                await trio.sleep(0.05)
        missing = {id_: n - counts[id_] for id_, n in least.items() if counts[id_] < n}
        raise AssertionError(f"not within 60 s: {missing}")

    async def check(self, lines: list[Line]) -> None:
        """Hold what every client has received against the recording."""
        expected = {id_: wish.expected(lines) for id_, wish in self.wishes.items()}
        totals = {id_: 2 + sum(map(len, found.values())) for id_, found in expected.items()}
        await self.have(totals)
        await trio.sleep(0.3)  # for what should not come
        await self.agent.do("save", folder=str(self.folder))
        await self.agent.until("saved")
        for id_, found in expected.items():
            text = await trio.Path(self.folder, id_).read_text()
            assert received(text.splitlines()[2:]) == found, id_


def received(messages: list[str]) -> dict[str, list[str]]:
    """By channel the data of each event as it came; checks what holds for every client."""
    found: dict[str, list[str]] = {}
    seqs: dict[tuple[str, str | None], int] = {}
    position = 0
    for text in messages:
        message = json.loads(text)
        if message["type"] == "heartbeat":
            continue
        stream = (message["channel"], message["data"].get("symbol"))
        seq, n = message["seq"], int(message["offset"].rpartition(".")[2])
        assert seq == seqs.get(stream, seq - 1) + 1, text
        assert n > position, text
        seqs[stream], position = seq, n
        found.setdefault(message["channel"], []).append(raw_data(text))
    return found


def raw_data(text: str) -> str:
    """Return the bytes of `data` as they stand in an envelope."""
    _, _, rest = text.partition('"data":')
    _, end = json.JSONDecoder().raw_decode(rest)
    return rest[:end]


@asynccontextmanager
async def crowds(folder: Path, count: int) -> AsyncIterator[tuple[Daemon, list[Crowd]]]:
    """A daemon, and half of the clients of each library."""
    agents = [node("ws_agent.mjs"), python("ws_agent.py")]
    async with running(folder, LOSSLESS) as daemon, agents[0] as first, agents[1] as second:
        both = [Crowd(first, folder), Crowd(second, folder)]
        for crowd, name in zip(both, ("ws", "websockets"), strict=True):
            await crowd.connect(daemon, name, count // 2)
        yield daemon, both


async def publish(daemon: Daemon, lines: list[Line], *options: str) -> None:
    """Replay lines by the project's own command."""
    path = trio.Path(daemon.folder, "recording.ndjson")
    await path.write_text("".join(each.text + "\n" for each in lines))
    command = [sys.executable, "-m", "cryptows", "publish", "--config", str(daemon.config)]
    done = await trio.run_process(
        [*command, *options, str(path)], cwd=ROOT, check=False,
        capture_stdout=True, capture_stderr=True, env=daemon.environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()


@needs_node
@pytest.mark.parametrize(("pace", "seed"), [("asap", 1), ("recorded", 2)])
async def test_every_client_gets_every_event_in_order_and_byte_for_byte(tmp_path, pace, seed):
    lines = recording(1500, seed)
    async with crowds(tmp_path, 50) as (daemon, both):
        await publish(daemon, lines, "--pace", pace)
        for crowd in both:
            await crowd.check(lines)
        stats = (await trio.to_thread.run_sync(daemon.stats))["broadcast"]["wsServerStats"]

    assert stats["skipped"] == stats["throttled"] == 0
    assert stats["disconnects"] == {}
    assert stats["events"] == len(lines)


def test_the_recording_holds_every_type_and_every_wish_something():
    lines = recording(1500, seed=1)

    assert {channel.partition("_")[0] for each in lines for channel in each.channels} == {
        "market", "trading", "user", "all", "risk", "system",
    }  # fmt: skip
    for wish in WISHES:
        found = wish.expected(lines)
        assert len(found) == len({channel.partition(":")[0] for channel in wish.channels})
        assert all(len(data) > 5 for data in found.values())
