"""What two independent WebSocket libraries see of the daemon: `ws` on Node and `websockets`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio

from tests.e2e.agents import Agent, needs_node, node, python
from tests.e2e.daemon import Daemon, running, start

pytestmark = pytest.mark.e2e

EVENT = {"symbol": "BTCUSDT", "price": 50000, "note": "ä€"}
both = pytest.mark.parametrize(
    "library", [pytest.param("ws", marks=needs_node), pytest.param("websockets")]
)


@attrs.define(eq=False)
class Client:
    """One connection of the library's."""

    agent: Agent
    id: str
    first: dict[str, Any] = attrs.field(factory=dict)  # its `connection`

    async def send(self, message: dict[str, Any] | str) -> None:
        text = message if isinstance(message, str) else json.dumps(message)
        await self.agent.do("send", id=self.id, text=text)

    async def next(self, type_: str = "") -> dict[str, Any]:
        """The next message of a type, skipping others."""

        def wanted(told: dict[str, Any]) -> bool:
            return self.mine(told) and type_ in ("", json.loads(told["text"])["type"])

        told = await self.agent.until("message", wanted)
        message: dict[str, Any] = json.loads(told["text"])
        return message

    async def ask(self, type_: str, **fields: Any) -> dict[str, Any]:
        await self.send({"type": type_, "id": f"{self.id}-{type_}", **fields})
        while (answer := await self.next()).get("id") != f"{self.id}-{type_}":
            pass
        return answer

    async def closed(self) -> tuple[int, str]:
        told = await self.agent.until("close", self.mine)
        return told["code"], told["reason"]

    def mine(self, told: dict[str, Any]) -> bool:
        return bool(told["id"] == self.id)


@attrs.define(eq=False)
class Library:
    """A client process and the daemon that its clients connect to."""

    agent: Agent
    daemon: Daemon
    _count: int = 0

    async def start(self, path: str = "", **options: Any) -> Client:
        self._count += 1
        client = Client(self.agent, f"c{self._count}")
        await self.agent.do("open", id=client.id, url=self.daemon.url + path, **options)
        return client

    async def open(self, token: str | None = None, **options: Any) -> Client:
        """Connect; its first message is read."""
        if token is not None:
            options["headers"] = {"Authorization": f"Bearer {token}"} | options.get("headers", {})
        client = await self.start(**options)
        await self.agent.until("open", client.mine)
        if not options.get("quiet"):
            client.first = await client.next()
            assert client.first["type"] == "connection"
        return client

    async def refused(self, **options: Any) -> dict[str, Any]:
        client = await self.start(**options)
        return await self.agent.until("refused", client.mine)

    async def publish(self, *lines: dict[str, Any]) -> None:
        answers = await trio.to_thread.run_sync(self.daemon.publish, lines)
        assert all(answer["ok"] for answer in answers), answers


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Iterator[Daemon]:
    """The daemon of the tests that leave it as it was."""
    folder = tmp_path_factory.mktemp("daemon")
    throttle = "channels.market_data.throttle=0s"
    sets = [throttle, "auth.leeway=0s", "delivery.outbox=64KiB", "delivery.max_lag=1h"]
    with start(folder, sets) as daemon:
        yield daemon


@asynccontextmanager
async def using(library: str, daemon: Daemon) -> AsyncIterator[Library]:
    async with node("ws_agent.mjs") if library == "ws" else python("ws_agent.py") as agent:
        yield Library(agent, daemon)


@asynccontextmanager
async def connected(library: str, folder, *sets: str) -> AsyncIterator[Library]:
    async with running(folder, sets) as daemon, using(library, daemon) as clients:
        yield clients


@both
async def test_a_conversation(shared, library):
    async with using(library, shared) as clients:
        client = await clients.open(clients.daemon.token("7"))
        wanted = ["market_data:BTC*", "user_7_trades", "user_8_trades", "nonsense"]

        confirmed = await client.ask("subscribe", channels=wanted)
        again = await client.ask("subscribe", channels=["market_data:BTC*"])
        await clients.publish(
            {"type": "market_data_update", "data": EVENT},
            {"type": "market_data_update", "data": {**EVENT, "symbol": "ETHUSDT"}},
        )
        event = await client.next("market_data_update")
        history = await client.ask("history", channel="market_data", since=client.first["offset"])
        listed = await client.ask("list")
        pong = await client.ask("ping")
        unknown = await client.ask("fly")
        gone = await client.ask("unsubscribe", channels=["market_data:BTC*"])
        await clients.publish({"type": "market_data_update", "data": EVENT})
        after = await client.ask("list")

        assert confirmed["data"]["channels"] == ["market_data:BTC*", "user_7_trades"]
        assert [denied["code"] for denied in confirmed["data"]["denied"]] == [
            "forbidden", "unknown_channel",
        ]  # fmt: skip
        assert again["data"] == {"channels": ["market_data:BTC*"], "denied": []}
        assert (event["data"], event["channel"]) == (EVENT, "market_data")
        assert [e["data"]["symbol"] for e in history["data"]["events"]] == ["BTCUSDT", "ETHUSDT"]
        assert listed["data"]["subscribed"] == ["market_data:BTC*", "user_7_trades"]
        assert pong["type"] == "pong"
        assert unknown["data"]["code"] == "bad_request"
        assert gone["type"] == "unsubscription_confirmed"
        assert after["data"]["subscribed"] == ["user_7_trades"]
        texts = [told["text"] for told in clients.agent.told("message")]
        live = [text for text in texts if '"type":"market_data_update"' in text[:40]]
        assert len([text for text in live if "snapshot" not in text]) == 1


@both
async def test_every_way_to_say_who_one_is(shared, library):
    async with using(library, shared) as clients:
        daemon = clients.daemon
        token, expired = daemon.token("7"), daemon.token("7", ttl=-10)
        protocols = ["cryptows.v1", f"bearer.{token}"]

        by_protocol = await clients.start(protocols=protocols)
        opened = await clients.agent.until("open", by_protocol.mine)
        assert opened["protocol"] == "cryptows.v1"
        assert (await by_protocol.next())["data"]["userId"] == "7"

        by_message = await clients.open()
        assert (await by_message.ask("authenticate", token=token))["data"]["userId"] == "7"
        assert (await by_message.ask("subscribe", channels=["user_7_trades"]))["type"] == (
            "subscription_confirmed"
        )

        by_query = await clients.start(path=f"?token={token}")
        assert (await by_query.next())["data"]["userId"] is None

        for bad, code, name in ((expired, 4002, "token_expired"), ("x.y.z", 4001, "unauthorized")):
            client = await clients.open(bad)
            assert (await client.next("error"))["data"]["code"] == name
            assert (await client.closed())[0] == code

        short = await clients.open(daemon.token("7", ttl=3))
        assert (await short.next("token_expiring"))["data"]["remainingMs"] <= 3000
        await short.ask("authenticate", token=token)
        soon = await clients.open(daemon.token("7", ttl=1))
        assert (await soon.closed()) == (4002, "token expired")
        await trio.sleep(2)
        assert (await short.ask("ping"))["type"] == "pong"


@both
async def test_who_is_not_let_in_sees_the_answer(tmp_path, library):
    sets = ["limits.connections_per_user=1", "limits.requests=2", "limits.strikes=1"]
    async with connected(library, tmp_path, *sets) as clients:
        foreign = await clients.refused(headers={"Origin": "https://evil.example"})
        first = await clients.open(clients.daemon.token("7"))
        full = await clients.refused(
            headers={"Authorization": f"Bearer {clients.daemon.token('7')}"}
        )
        for _ in range(6):
            await first.send({"type": "ping"})
        banned = await first.closed()
        late = await clients.refused()

        assert (foreign["status"], foreign["body"]) == (
            403, "this origin is not in cors.origins\n"
        )  # fmt: skip
        assert (full["status"], full["headers"]["retry-after"]) == (429, "5")
        assert banned[0] == 4029
        assert late["status"] == 429
        assert 290 <= int(late["headers"]["retry-after"]) <= 300


@both
async def test_how_connections_end(tmp_path, library):
    sets = ["limits.message=1KiB", "heartbeat.interval=300ms", "heartbeat.timeout=4s"]
    async with connected(library, tmp_path, *sets) as clients:
        staying, mute = await clients.open(), None
        if library == "ws":  # the other one answers every ping
            mute = await clients.open(pongs=False)
        talker = await clients.open()
        await talker.send(json.dumps({"type": "ping", "x": "y" * 2000}))
        assert await talker.closed() == (1009, "message over 1024 bytes")

        leaving = await clients.open()
        await clients.agent.do("ping", id=leaving.id, text="there?")
        assert (await clients.agent.until("pong", leaving.mine))["text"] == "there?"
        await clients.agent.do("close", id=leaving.id, code=3000, reason="enough")
        assert (await leaving.closed())[0] == 3000

        if mute is not None:
            assert await mute.closed() == (4010, "no pong for 4 s")
        for _ in range(3):  # the library answers the pings
            await staying.next("heartbeat")
        assert (await staying.ask("ping"))["type"] == "pong"
        assert (await staying.next("heartbeat"))["data"]["lagMs"] == 0

        clients.daemon.send_signal()
        assert await staying.closed() == (1012, "the daemon restarts; come back")
        assert await trio.to_thread.run_sync(clients.daemon.wait) == 0


@both
async def test_compression_that_is_offered_is_declined(shared, library):
    async with using(library, shared) as clients:
        client = await clients.open(deflate=True)

        assert (await client.ask("ping"))["type"] == "pong"


@both
async def test_a_client_that_stops_reading_sees_4008_when_it_reads_on(shared, library):
    """By bytes: the events are of a private channel, of which nothing may be left out."""
    async with using(library, shared) as clients:
        slow, other = await clients.open(quiet=True), await clients.open(quiet=True)
        for client in (slow, other):
            await client.send({"type": "subscribe", "channels": ["system_status"]})
        await trio.sleep(0.3)
        before = await trio.to_thread.run_sync(too_slow, shared)
        await clients.agent.do("pause", id=slow.id)

        count = 0
        line = {"type": "system_status", "data": {"fill": "x" * 1000}}
        with trio.fail_after(60):
            while before == await trio.to_thread.run_sync(too_slow, shared):
                await clients.publish(*[line] * 40)
                count += 40
        await clients.agent.do("resume", id=slow.id)
        code, reason = await slow.closed()
        await clients.agent.do("counts")
        counts = (await clients.agent.until("counts"))["counts"]

        assert (code, reason.partition(",")[0]) == (4008, "too slow")
        snapshot = counts[other.id] - count - 2
        assert snapshot in (0, 1)
        assert counts[slow.id] < count
        assert count * 1000 < 20_000_000  # the two kernels' buffers, and what may be behind


def too_slow(daemon: Daemon) -> float:
    """How many were, and are being closed for it."""
    metrics = daemon.metrics()
    closed = metrics.get('cryptows_disconnects_total{code="4008"}', 0)
    return closed - metrics['cryptows_connections{transport="websocket"}']
