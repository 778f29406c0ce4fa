"""The control socket: how `status`, `reload` and `drain` reach the daemon.

One connection asks one thing: a line of JSON `{"command":"status"}` gets one line of JSON,
`{"ok":true,...}` or `{"ok":false,"error":{"code":...,"message":...}}`, when the command is done.
That the answer waits is the point: a signal would return before a reload has succeeded or failed.
Who may ask is settled by the socket file's mode, 0600. The other end is `control_client.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import msgspec
import structlog
import trio

from cryptows.model.errors import ConfigError, CryptowsError

log = structlog.get_logger()

# Takes the request's other fields, returns the answer's. Raises CryptowsError to refuse.
Command = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]

MODE = 0o600
MAX_LINE = 64 << 10  # bytes of a request
READ_TIMEOUT = 5.0  # seconds for a request to come; commands themselves take what they take
MAX_CONNECTIONS = 16  # at once; further ones wait in the backlog


async def serve_control(listener: trio.SocketListener, commands: Mapping[str, Command]) -> None:
    """Serve until cancelled; a command that runs then is cancelled too. Closes the listener."""
    limit = trio.CapacityLimiter(MAX_CONNECTIONS)
    async with listener, trio.open_nursery() as nursery:
        while True:
            async with limit:
                pass  # accept only what can be served
            try:
                stream = await listener.accept()
            except OSError as error:  # e.g. no descriptors left; try again when some may be
                log.warning("control connection failed", error=error)
                await trio.sleep(0.1)
                continue
            nursery.start_soon(_serve_limited, limit, partial(serve_one, stream, commands))


async def _serve_limited(limit: trio.CapacityLimiter, serve: Callable[[], Awaitable[None]]) -> None:
    async with limit:
        await serve()


async def serve_one(stream: trio.SocketStream, commands: Mapping[str, Command]) -> None:
    """Answer one request and close. Nothing escapes: whoever asks cannot hurt the daemon."""
    async with stream:
        try:
            answer = await _answer(await _read_line(stream), commands)
            with trio.move_on_after(READ_TIMEOUT):
                await stream.send_all(msgspec.json.encode(answer) + b"\n")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the asker has gone


async def _read_line(stream: trio.SocketStream) -> bytes:
    """Return the request line; what came until then if it does not end in time or size."""
    line = bytearray()
    with trio.move_on_after(READ_TIMEOUT):
        while b"\n" not in line and len(line) <= MAX_LINE:
            chunk = await stream.receive_some(MAX_LINE)
            if not chunk:
                break
            line += chunk
    return bytes(line[: MAX_LINE + 1])


async def _answer(line: bytes, commands: Mapping[str, Command]) -> dict[str, Any]:
    try:
        request = msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError:
        return _error("bad_request", "expected one line with a JSON object")
    name = request.pop("command", None)
    command = commands.get(name) if isinstance(name, str) else None
    if command is None:
        known = ", ".join(sorted(commands))
        return _error("unknown_command", f"there is no command {name!r}; there are {known}")
    try:
        return {"ok": True, **await command(request)}
    except ConfigError as error:
        return _error("invalid_config", str(error), problems=error.problems)
    except CryptowsError as error:
        return _error("refused", str(error))
    except Exception as error:
        log.exception("control command failed", command=name)
        return _error("internal_error", f"{type(error).__name__}: {error}")


def _error(code: str, message: str, **more: Any) -> dict[str, Any]:
    return {"ok": False, "error": {"code": code, "message": message, **more}}
