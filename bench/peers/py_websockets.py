"""Python's `websockets` with its own broadcast(). Arguments: port, path of the feed socket."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import defaultdict

from websockets.asyncio.server import ServerConnection, broadcast, serve

members: defaultdict[str, set[ServerConnection]] = defaultdict(set)


async def on_client(socket: ServerConnection) -> None:
    mine: set[str] = set()
    try:
        async for text in socket:
            channels = json.loads(text)["channels"]
            mine.update(channels)
            for channel in channels:
                members[channel].add(socket)
            answer = {"type": "subscription_confirmed", "data": {"channels": channels}}
            await socket.send(json.dumps(answer))
    finally:
        for channel in mine:
            members[channel].discard(socket)


async def on_producer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        event = json.loads(line)
        event["timestamp"] = int(time.time() * 1000)
        broadcast(members[event["channel"]], json.dumps(event))
    writer.close()


async def main(port: int, feed: str) -> None:
    async with (
        serve(on_client, "127.0.0.1", port, compression=None, backlog=4096) as clients,
        await asyncio.start_unix_server(on_producer, feed),
    ):
        await clients.serve_forever()


asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
