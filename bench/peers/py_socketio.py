"""python-socketio on aiohttp, rooms as channels. Arguments: port, path of the feed socket."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import socketio
from aiohttp import web

io = socketio.AsyncServer(async_mode="aiohttp")


async def subscribe(sid: str, wanted: dict[str, Any]) -> None:
    for channel in wanted["channels"]:
        await io.enter_room(sid, channel)
    await io.emit("message", {"type": "subscription_confirmed", "data": wanted}, to=sid)


async def on_producer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        event = json.loads(line)
        event["timestamp"] = int(time.time() * 1000)
        await io.emit("message", event, room=event["channel"])
    writer.close()


async def main(port: int, feed: str) -> None:
    io.on("subscribe", subscribe)
    app = web.Application()
    io.attach(app)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
    async with await asyncio.start_unix_server(on_producer, feed) as producers:
        await producers.serve_forever()


asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
