"""python-socketio as a client that a test drives: `pysio_agent.py sync` or `… asyncio`.

One JSON command a line in, one JSON event a line out:

    {"do":"open","url":…,"auth":{…},"transports":[…]}   {"do":"disconnect"}
    {"do":"call","args":["subscribe",{…}],"ack":1}   {"do":"emit","args":[…]}
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from typing import Any

import socketio

_lock = threading.Lock()
DELAYS = {"reconnection_delay": 0.05, "reconnection_delay_max": 0.2}


def say(on: str, **more: Any) -> None:
    with _lock:
        sys.stdout.write(json.dumps({"on": on, **more}) + "\n")
        sys.stdout.flush()


def told_message(envelope: Any, offset: str | None = None) -> None:
    say("message", envelope=envelope, offset=offset)


def told_error(data: Any) -> None:
    say("connect_error", **(data if isinstance(data, dict) else {"message": str(data)}))


def opening(command: dict[str, Any]) -> dict[str, Any]:
    wanted = {"auth": command.get("auth"), "transports": command.get("transports")}
    return {"url": command["url"], "wait_timeout": 10, **wanted}


def run_sync() -> None:
    client = socketio.Client(**DELAYS)
    client.on("connect", lambda: say("connect", transport=client.transport()))
    client.on("disconnect", lambda reason=None: say("disconnect", reason=reason))
    client.on("connect_error", told_error)
    client.on("message", told_message)
    say("ready")
    for line in sys.stdin:
        command = json.loads(line)
        try:
            match command["do"]:
                case "open":
                    client.connect(**opening(command))
                    say("open", transport=client.transport())
                case "call":
                    name, data = command["args"]
                    say("ack", ack=command["ack"], args=[client.call(name, data, timeout=10)])
                case "emit":
                    client.emit(*command["args"])
                case "disconnect":
                    client.disconnect()
        except socketio.exceptions.SocketIOError as error:
            say("failed", kind=type(error).__name__, message=str(error))


async def run_asyncio() -> None:
    client = socketio.AsyncClient(**DELAYS)
    client.on("connect", lambda: say("connect", transport=client.transport()))
    client.on("disconnect", lambda reason=None: say("disconnect", reason=reason))
    client.on("connect_error", told_error)
    client.on("message", told_message)
    say("ready")
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        try:
            match command["do"]:
                case "open":
                    await client.connect(**opening(command))
                    say("open", transport=client.transport())
                case "call":
                    name, data = command["args"]
                    answer = await client.call(name, data, timeout=10)
                    say("ack", ack=command["ack"], args=[answer])
                case "emit":
                    await client.emit(*command["args"])
                case "disconnect":
                    await client.disconnect()
        except socketio.exceptions.SocketIOError as error:
            say("failed", kind=type(error).__name__, message=str(error))


if __name__ == "__main__":
    if sys.argv[1] == "sync":
        run_sync()
    else:
        asyncio.run(run_asyncio())
