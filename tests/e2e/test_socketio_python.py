"""python-socketio against the daemon, with threads and with asyncio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from tests.e2e.agents import Agent, python
from tests.e2e.daemon import Daemon, running

pytestmark = pytest.mark.e2e

FAST = ["channels.market_data.throttle=0s"]
TRANSPORTS: dict[str, Any] = {
    "default": None,
    "polling": ["polling"],
    "websocket": ["websocket"],
}


async def opened(client: Agent, daemon: Daemon, transport: str) -> None:
    auth = {"token": daemon.token()}
    await client.do("open", url=daemon.http, auth=auth, transports=TRANSPORTS[transport])
    await client.until("open")


async def call(client: Agent, *args: Any) -> Any:
    number = len(client.seen)
    await client.do("call", args=list(args), ack=number)
    return (await client.until("ack", lambda told: told["ack"] == number))["args"][0]


def price(number: int) -> dict[str, Any]:
    data = {"symbol": "BTCUSDT", "price": number, "volume": 1}
    return {"type": "market_data_update", "data": data}


@pytest.mark.parametrize("flavour", ["sync", "asyncio"])
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_it_subscribes_and_receives_in_order(flavour, transport, tmp_path: Path):
    async with running(tmp_path, FAST) as daemon, python("pysio_agent.py", flavour) as client:
        await opened(client, daemon, transport)

        answer = await call(client, "subscribe", {"channels": ["market_data"], "id": 1})
        # More than sixteen at once: python-engineio throws away a longer polling answer.
        await trio.to_thread.run_sync(daemon.publish, [price(n) for n in range(1, 101)])
        for _ in range(100):
            await client.message("market_data_update")

        assert answer["type"] == "subscription_confirmed"
        assert client.envelopes("connection")[0]["data"]["userId"] == "123"
        events = client.envelopes("market_data_update")
        if flavour == "sync":
            events.sort(key=lambda event: event["seq"])  # it calls each handler in a thread
        assert [event["data"]["price"] for event in events] == list(range(1, 101))
        assert [event["seq"] for event in events] == list(range(1, 101))
        assert all(
            told["offset"] == told["envelope"]["offset"]
            for told in client.told("message")
            if told["envelope"]["type"] == "market_data_update"
        )


@pytest.mark.parametrize("flavour", ["sync", "asyncio"])
async def test_a_bad_token_is_refused(flavour, tmp_path: Path):
    async with running(tmp_path) as daemon, python("pysio_agent.py", flavour) as client:
        await client.do("open", url=daemon.http, auth={"token": "garbage"}, transports=None)

        error = await client.until("connect_error")

        assert error["message"] == "jwt malformed: expected header.payload.signature"
        assert error["data"] == {"code": "unauthorized"}
        assert (await client.until("failed"))["kind"] == "ConnectionError"


@pytest.mark.parametrize("flavour", ["sync", "asyncio"])
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_it_comes_back_after_a_restart(flavour, transport, tmp_path: Path):
    async with running(tmp_path, FAST) as daemon, python("pysio_agent.py", flavour) as client:
        await opened(client, daemon, transport)

        await trio.to_thread.run_sync(daemon.restart)

        await client.until("disconnect")
        await client.until("connect")
        await client.message("connection")
        await call(client, "subscribe", {"channels": ["market_data"]})
        await trio.to_thread.run_sync(daemon.publish, [price(7)])
        assert (await client.message("market_data_update"))["data"]["price"] == 7


@pytest.mark.parametrize("flavour", ["sync", "asyncio"])
async def test_a_ban_keeps_it_away(flavour, tmp_path: Path):
    limits = ["limits.requests=3", "limits.strikes=1"]
    async with running(tmp_path, limits) as daemon, python("pysio_agent.py", flavour) as client:
        await opened(client, daemon, "default")
        for _ in range(6):
            await client.do("emit", args=["ping", {}])

        gone = await client.until("disconnect")

        assert gone["reason"] == "server disconnect"
        await client.quiet("connect", 0.5)


@pytest.mark.parametrize("flavour", ["sync", "asyncio"])
async def test_leaving_leaves_nothing_behind(flavour, tmp_path: Path):
    async with running(tmp_path) as daemon, python("pysio_agent.py", flavour) as client:
        await opened(client, daemon, "default")
        assert daemon.stats()["server"]["connectedClients"] == 1

        await client.do("disconnect")

        def nobody() -> bool:
            left: int = daemon.stats()["server"]["connectedClients"]
            return left == 0

        await trio.to_thread.run_sync(daemon.wait_until, nobody)
