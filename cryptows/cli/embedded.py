"""A daemon of one's own in a temporary folder, for the demo.

It is the real daemon, started as `cryptows serve` with a config file, on a free loopback port. It
gets a session of its own, so that Ctrl-C reaches it only through us, and it ends with us whatever
happens: by SIGTERM, by SIGKILL if it does not listen, and by the kernel if we are killed ourselves.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import attrs
import trio

from cryptows.cli.terminal import FAILURE, Failure

READY = 15.0  # seconds; a start takes about half a second
STOP = 1.5  # seconds until SIGKILL: the demo promises to end within two
POLL = 0.02
ATTEMPTS = 3  # somebody else may take the port that was free a moment ago
LOG_LINES = 15  # shown when it failed
PR_SET_PDEATHSIG = 1  # linux/prctl.h
# What the daemon would read and a demo must not: the environment of a real installation.
FOREIGN = ("JWT_SECRET", "FRONTEND_URL", "NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS")

CONFIG = """\
# The demo's daemon; this folder is removed at its end.
[server]
listen = ["127.0.0.1:{port}"]
state_dir = "state"
control_socket = "control.sock"
drain = "1s"
[feed]
socket = "feed.sock"
[auth]
secret_file = "token.key"
[cors]
origins = ["*"]
credentials = false
[log]
format = "text"
"""


@attrs.define
class Embedded:
    """A running daemon and what is needed to reach it."""

    folder: Path
    port: int
    key: str
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """The plain WebSocket."""
        return f"ws://127.0.0.1:{self.port}/ws"

    @property
    def http(self) -> str:
        """The base of HTTP and Socket.IO."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def feed_socket(self) -> str:
        """Where events go in."""
        return str(self.folder / "feed.sock")

    def failure(self, what: str) -> Failure:
        """Return an error that shows the end of the daemon's log."""
        log = (self.folder / "daemon.log").read_text(errors="replace")
        lines = "".join(f"\n    {line}" for line in log.splitlines()[-LOG_LINES:])
        return Failure(f"{what}; it said:{lines or ' nothing'}")

    async def wait_ended(self) -> int:
        """Return its exit code once it has ended."""
        descriptor = os.pidfd_open(self.process.pid)
        try:
            await trio.lowlevel.wait_readable(descriptor)
        finally:
            os.close(descriptor)
        return self.process.wait()

    async def stop(self) -> None:
        """End it, one way or the other."""
        with trio.CancelScope(shield=True):
            if self.process.poll() is None:
                self.process.terminate()
                with trio.move_on_after(STOP):
                    await self.wait_ended()
            self.process.kill()
            self.process.wait()


@asynccontextmanager
async def embedded_daemon() -> AsyncIterator[Embedded]:
    """Start a daemon, yield it when it is ready, leave nothing behind; raises Failure."""
    with tempfile.TemporaryDirectory(prefix="cryptows-demo-") as name:
        daemon = await _start(Path(name))
        try:
            yield daemon
        finally:
            await daemon.stop()


async def _start(folder: Path) -> Embedded:
    key = secrets.token_urlsafe(32)
    key_file = folder / "token.key"
    key_file.touch(0o600)
    key_file.write_text(key)
    (folder / "state").mkdir(0o700)
    for attempt in range(1, ATTEMPTS + 1):
        daemon = _spawn(folder, key)
        try:
            await _wait_ready(daemon)
            return daemon
        except Failure:
            # It ends with 1 when the port is taken; what we had to kill would hang again.
            if attempt == ATTEMPTS or daemon.process.returncode != FAILURE:
                raise
        except BaseException:
            await daemon.stop()
            raise
    raise AssertionError("unreachable")


def _spawn(folder: Path, key: str) -> Embedded:
    port = _free_port()
    config = folder / "cryptows.toml"
    config.write_text(CONFIG.format(port=port))
    environ = {k: v for k, v in os.environ.items() if not k.startswith("CRYPTOWS_")}
    for name in FOREIGN:
        environ.pop(name, None)
    command = [sys.executable, "-m", "cryptows", "serve", "--config", str(config)]
    with (folder / "daemon.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ,
            start_new_session=True, preexec_fn=_end_with_parent,  # noqa: PLW1509 - one thread
        )  # fmt: skip
    return Embedded(folder, port, key, process)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _free_port() -> int:
    with closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def _wait_ready(daemon: Embedded) -> None:
    with trio.move_on_after(READY):
        while daemon.process.poll() is None:
            if await _is_ready(daemon.port):
                return
            await trio.sleep(POLL)
    code = daemon.process.poll()
    await daemon.stop()
    ended = f"ended with exit code {code}" if code is not None else f"was not ready in {READY:g} s"
    raise daemon.failure(f"the daemon {ended}")


async def _is_ready(port: int) -> bool:
    request = b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    try:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(request)
            return (await stream.receive_some(64)).startswith(b"HTTP/1.1 200 ")
    except (OSError, trio.BrokenResourceError):
        return False
