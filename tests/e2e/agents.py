"""Foreign clients that tests drive from outside: a process that takes and tells JSON lines.

async with node("sio_agent.mjs") as client:
    await client.do("open", url=daemon.http, options={"auth": {"token": token}})
    assert (await client.until("connect"))["recovered"] is False
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

HERE = Path(__file__).parent
PATIENCE = 30.0  # seconds until something that should happen counts as missing

needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not (HERE / "node_modules" / "socket.io-client").is_dir(),
    reason="needs Node and `npm ci` in tests/e2e",
)


@attrs.define(eq=False)
class Agent:
    """One client process; `seen` holds all that it told, in order."""

    process: trio.Process
    seen: list[dict[str, Any]] = attrs.field(factory=list)
    _read: int = 0
    _more: trio.Event = attrs.field(factory=trio.Event)

    async def do(self, what: str, **arguments: Any) -> None:
        """Give a command."""
        assert self.process.stdin is not None
        await self.process.stdin.send_all(json.dumps({"do": what, **arguments}).encode() + b"\n")

    async def until(
        self, on: str, where: Callable[[dict[str, Any]], object] = lambda told: True
    ) -> dict[str, Any]:
        """Return the next thing told of that kind, skipping others."""
        with trio.move_on_after(PATIENCE):
            while True:
                while self._read < len(self.seen):
                    told = self.seen[self._read]
                    self._read += 1
                    if told["on"] == on and where(told):
                        return told
                self._more = trio.Event()
                await self._more.wait()
        raise AssertionError(f"no {on} within {PATIENCE:g} s; told: {self.seen[-20:]}")

    async def ever(self, on: str) -> None:
        """Wait for something of that kind unless it has been told already."""
        if not self.told(on):
            await self.until(on)

    async def message(self, type_: str) -> dict[str, Any]:
        """Return the next envelope of a type."""
        told = await self.until("message", lambda told: told["envelope"]["type"] == type_)
        envelope: dict[str, Any] = told["envelope"]
        return envelope

    async def answer(self, *args: Any) -> Any:
        """Emit an event and return what its ack brings."""
        number = len(self.seen)
        await self.do("emit", args=list(args), ack=number)
        return (await self.until("ack", lambda told: told["ack"] == number))["args"][0]

    def told(self, on: str) -> list[dict[str, Any]]:
        """Everything told of a kind so far."""
        return [told for told in self.seen if told["on"] == on]

    def envelopes(self, type_: str) -> list[dict[str, Any]]:
        """Every envelope of a type so far."""
        found = [told["envelope"] for told in self.told("message")]
        return [envelope for envelope in found if envelope["type"] == type_]

    async def quiet(self, on: str, seconds: float) -> None:
        """Fail if something of that kind is told within a time."""
        known = len(self.told(on))
        await trio.sleep(seconds)
        assert len(self.told(on)) == known, self.seen[-20:]

    async def _listen(self) -> None:
        assert self.process.stdout is not None
        rest = b""
        async for chunk in self.process.stdout:
            *lines, rest = (rest + chunk).split(b"\n")
            self.seen += [json.loads(line) for line in lines]
            self._more.set()


@asynccontextmanager
async def agent(command: Sequence[str]) -> AsyncIterator[Agent]:
    """Run a client process for the time of the block."""
    async with trio.open_nursery() as nursery:
        process = await trio.lowlevel.open_process(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=HERE
        )
        driven = Agent(process)
        nursery.start_soon(driven._listen)
        try:
            await driven.until("ready")
            yield driven
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
            nursery.cancel_scope.cancel()


def node(script: str) -> Any:
    """Run a client on Node."""
    return agent(["node", script])


def python(script: str, *arguments: str) -> Any:
    """Run a client on this Python."""
    return agent([sys.executable, script, *arguments])
