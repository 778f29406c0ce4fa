"""uWebSockets (C++) through socketify; its own publish() does the fan-out.

Arguments: port, path of the feed socket.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from socketify import App, CompressOptions, OpCode

port, feed = int(sys.argv[1]), sys.argv[2]
app = App()
servers: list[asyncio.Server] = []  # one that nobody holds is closed


def on_message(socket: Any, text: str, opcode: Any) -> None:
    channels = json.loads(text)["channels"]
    for channel in channels:
        socket.subscribe(channel)
    answer = {"type": "subscription_confirmed", "data": {"channels": channels}}
    socket.send(json.dumps(answer), OpCode.TEXT)


async def on_producer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        event = json.loads(line)
        event["timestamp"] = int(time.time() * 1000)
        app.publish(event["channel"], json.dumps(event), OpCode.TEXT)
    writer.close()


async def listen_to_producers() -> None:
    servers.append(await asyncio.start_unix_server(on_producer, feed))


app.ws(
    "/*",
    {
        "compression": CompressOptions.DISABLED,
        "max_payload_length": 1 << 16,
        "max_backpressure": 1 << 24,
        "idle_timeout": 120,
        "message": on_message,
    },
)
app.on_start(listen_to_producers)
app.listen({"port": port, "host": "127.0.0.1"}, lambda config: None)
app.run()
