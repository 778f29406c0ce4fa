"""The official Engine.IO client against the echo application, which runs on the daemon's engine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from tests.e2e.agents import needs_node, node
from tests.e2e.daemon import ROOT, free_port

pytestmark = [pytest.mark.e2e, needs_node]

TRANSPORTS: dict[str, dict[str, Any]] = {
    "default": {},
    "polling": {"transports": ["polling"]},
    "websocket": {"transports": ["websocket"]},
}


@asynccontextmanager
async def echo() -> AsyncIterator[str]:
    """Run the echo application as a process; give its URL."""
    port = free_port()
    command = [sys.executable, "-m", "tests.e2e.echo_app", str(port)]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert process.stdout is not None
        with trio.fail_after(30):
            assert b"echoing" in await process.stdout.receive_some()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_text_and_binary_come_back_in_order(transport):
    async with echo() as url, node("raw_agent.mjs") as client:
        await client.do("open", url=url, path="/engine.io/", **TRANSPORTS[transport])
        await client.until("open")
        for number in range(50):
            await client.do("send", data=f"text {number}")
            await client.do("send", bytes=[number, 0, 255])
        await client.until("data", lambda told: told.get("bytes") == [49, 0, 255])

        assert [told.get("data") or told["bytes"] for told in client.told("data")] == [
            each for n in range(50) for each in (f"text {n}", [n, 0, 255])
        ]
        if transport == "default":
            await client.ever("upgrade")


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_it_stays_by_heartbeats_and_leaves_when_it_wants(transport):
    async with echo() as url, node("raw_agent.mjs") as client:
        await client.do("open", url=url, path="/engine.io/", **TRANSPORTS[transport])
        await client.until("open")

        await client.quiet("close", 2)  # four times as long as interval and timeout together
        await client.do("send", data="still here")
        assert (await client.until("data"))["data"] == "still here"
        await client.do("close")

        assert (await client.until("close"))["reason"] == "forced close"
