"""A daemon's `/ws` in memory: each connection follows a script."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import trio
from trio.testing import memory_stream_pair
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream

Script = Callable[[WebSocketConnection, dict[str, Any]], Awaitable[None]]


@attrs.frozen
class Rejection:
    """An HTTP answer that refuses the WebSocket."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


@attrs.define
class FakeDaemon:
    """Dials lead here: the n-th connection is served by the n-th script, after its subscribe.

    An exception in place of a script is raised by the dial; an answer is given instead of the 101.
    """

    nursery: trio.Nursery
    scripts: list[Script | Exception | Rejection]
    tokens: list[str | None] = attrs.field(factory=list)
    requests: list[dict[str, Any]] = attrs.field(factory=list)
    times: list[float] = attrs.field(factory=list)
    streams: list[trio.abc.Stream] = attrs.field(factory=list)

    async def dial(self, url: str) -> trio.abc.Stream:
        self.times.append(trio.current_time())
        script = self.scripts.pop(0)
        if isinstance(script, Exception):
            raise script
        here, there = memory_stream_pair()
        self.streams.append(here)
        self.nursery.start_soon(self._serve, there, script)
        return here

    async def _serve(self, stream: trio.abc.Stream, script: Script | Rejection) -> None:
        async with trio.open_nursery() as nursery:
            request = await wrap_server_stream(nursery, stream)
            headers = dict(request.headers)
            token = headers.get(b"authorization", b"").decode().removeprefix("Bearer ")
            self.tokens.append(token or None)
            if isinstance(script, Rejection):
                await request.reject(script.status, extra_headers=script.headers, body=script.body)
            else:
                connection = await request.accept()
                try:
                    self.requests.append(json.loads(await connection.get_message()))
                    await script(connection, self.requests[-1])
                except ConnectionClosed:
                    pass
            nursery.cancel_scope.cancel()


def says(*messages: dict[str, Any] | str, close: tuple[int, str] | None = None) -> Script:
    """Return a script that sends messages, then closes or stays."""

    async def script(connection: WebSocketConnection, _request: dict[str, Any]) -> None:
        for message in messages:
            text = message if isinstance(message, str) else json.dumps(message)
            await connection.send_message(text)
        if close is None:
            await trio.sleep_forever()
        await connection.aclose(*close)

    return script


def connection(interval: int = 25_000, offset: str = "e.1") -> dict[str, Any]:
    data = {"clientId": "c", "heartbeatInterval": interval, "channels": []}
    return {"type": "connection", "data": data, "timestamp": 1, "offset": offset}


def confirmed(*channels: str, denied: tuple[dict[str, str], ...] = ()) -> dict[str, Any]:
    data = {"channels": list(channels), "denied": list(denied)}
    return {"type": "subscription_confirmed", "data": data, "timestamp": 1, "id": 1}


def event(n: int, channel: str = "market_data", **more: Any) -> dict[str, Any]:
    fields = {"data": {"symbol": "BTCUSDT"}, "timestamp": 1, "seq": n, "offset": f"e.{n}"}
    return {"type": "market_data_update", "channel": channel, **fields, **more}


def error(code: str, message: str, id: int | None = None, **extra: Any) -> dict[str, Any]:
    data = {"code": code, "message": message, **extra}
    return {"type": "error", "data": data, "timestamp": 1, **({} if id is None else {"id": id})}


def rejection(status: int, body: str = "", **headers: str) -> Rejection:
    pairs = [(name.replace("_", "-").encode(), text.encode()) for name, text in headers.items()]
    return Rejection(status, pairs, body.encode())
