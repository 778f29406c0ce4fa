"""WebSocket clients of the library `websockets` that a test drives; see `ws_agent.mjs`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus


def say(on: str, **more: Any) -> None:
    sys.stdout.write(json.dumps({"on": on, **more}) + "\n")
    sys.stdout.flush()


class Client:
    """One connection; reads in a task of its own, unless it is paused."""

    def __init__(self, command: dict[str, Any]) -> None:
        self.id: str = command["id"]
        self.kept: list[str] = []
        self.ws: ClientConnection | None = None
        self._command = command
        self._reading = asyncio.Event()
        self._reading.set()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        command = self._command
        try:
            self.ws = await connect(
                command["url"],
                additional_headers=command.get("headers", {}),
                subprotocols=command.get("protocols") or None,
                compression="deflate" if command.get("deflate") else None,
                ping_interval=None,
                max_size=64 << 20,
                max_queue=4,
                open_timeout=30,
                close_timeout=30,
                proxy=None,
            )
        except InvalidStatus as error:
            answer = error.response
            body = (answer.body or b"").decode()
            headers = {name.lower(): value for name, value in answer.headers.raw_items()}
            say("refused", id=self.id, status=answer.status_code, headers=headers, body=body)
            return
        say("open", id=self.id, protocol=self.ws.subprotocol)
        await self._read(self.ws, command.get("quiet", False))

    async def _read(self, ws: ClientConnection, quiet: bool) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await self._reading.wait()
                message = await ws.recv()
                if quiet:
                    assert isinstance(message, str)
                    self.kept.append(message)
                else:
                    say("message", id=self.id, text=message if isinstance(message, str) else None)
        await ws.wait_closed()
        code = ws.protocol.close_rcvd.code if ws.protocol.close_rcvd else 1006
        reason = ws.protocol.close_rcvd.reason if ws.protocol.close_rcvd else ""
        say("close", id=self.id, code=code, reason=reason)

    async def do(self, command: dict[str, Any]) -> None:
        assert self.ws is not None
        match command["do"]:
            case "send":
                await self.ws.send(command["text"])
            case "close":
                await self.ws.close(command.get("code", 1000), command.get("reason", ""))
            case "pause":
                self._reading.clear()
            case "resume":
                self._reading.set()
            case "ping":
                text = command.get("text", "")
                await (await self.ws.ping(text))
                say("pong", id=self.id, text=text)


async def main() -> None:
    clients: dict[str, Client] = {}
    doing: set[asyncio.Task[None]] = set()
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    say("ready")
    while line := await reader.readline():
        command = json.loads(line)
        match command["do"]:
            case "open":
                clients[command["id"]] = Client(command)
            case "counts":
                say("counts", counts={id_: len(client.kept) for id_, client in clients.items()})
            case "save":
                for id_, client in clients.items():
                    text = "".join(f"{message}\n" for message in client.kept)
                    Path(command["folder"], id_).write_text(text)  # noqa: ASYNC240
                say("saved")
            case _:
                task = asyncio.create_task(clients[command["id"]].do(command))
                doing.add(task)
                task.add_done_callback(doing.discard)


if __name__ == "__main__":
    asyncio.run(main())
