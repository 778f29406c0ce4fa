"""The daemon as a process: what the end-to-end tests start, feed, ask and stop.

    with start(tmp_path, sets=["limits.requests=5"]) as daemon:
        token = daemon.token("123", "admin")
        ...connect to daemon.url with Authorization: Bearer {token}...
        answers = daemon.publish([{"type": "system_status", "data": {"status": "ok"}}])

It is a process of its own, started and stopped like a user's, on a free loopback port, with its
sockets, its store and a generated key in a temporary folder. Nothing here imports the daemon: what
a test compares against must not be the code under test. `start` waits until `/readyz` says 200; its
end sends SIGTERM and fails the test if the daemon does not end by itself. In an async test use
`async with running(...)`, which waits in a thread, so that clients of the same loop go on.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import trio

ROOT = Path(__file__).resolve().parents[2]
START_LIMIT = 30.0  # seconds; a start takes about 0.5, but test machines are shared
STOP_LIMIT = 30.0
SUN_PATH = 107  # bytes of a Unix socket's address, without its final NUL
Line = str | bytes | dict[str, Any]

# Wide enough that a test meets a limit only when it asks for one: all its clients are one address.
WIDE = (
    "limits.connections_per_address=10000",
    "limits.connections_per_user=10000",
    "limits.accept_rate=100000",
    "limits.requests=100000",
    "server.drain=5s",
    "log.format=json",
    "log.level=debug",
)


class NotStarted(Exception):
    """The daemon ended, or was not ready in time; holds its exit code and what it wrote."""

    def __init__(self, code: int | None, output: str) -> None:
        super().__init__(f"exit code {code}\n{output}")
        self.code = code
        self.output = output


@attrs.define
class Daemon:
    """One daemon process and how to reach it."""

    folder: Path
    port: int
    key: str
    sets: tuple[str, ...]
    environ: dict[str, str]
    process: subprocess.Popen[bytes]
    _sockets: Path

    # -- addresses

    @property
    def url(self) -> str:
        """The plain WebSocket."""
        return f"ws://127.0.0.1:{self.port}/ws"

    @property
    def http(self) -> str:
        """The base of HTTP and of Socket.IO."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def feed_socket(self) -> Path:
        return self._sockets / "feed.sock"

    @property
    def control_socket(self) -> Path:
        return self._sockets / "control.sock"

    @property
    def config(self) -> Path:
        """The config file, which the command line's other commands can be pointed at."""
        return self.folder / "cryptows.toml"

    @property
    def log_file(self) -> Path:
        return self.folder / "daemon.log"

    @property
    def pid(self) -> int:
        return self.process.pid

    # -- what goes in

    def token(
        self, user: str = "123", role: str = "user", ttl: float = 3600.0, **claims: Any
    ) -> str:
        """Return a token that the daemon accepts; claims are added, those of None are left out."""
        now = int(time.time())
        payload = {"sub": user, "role": role, "iat": now, "exp": now + int(ttl), **claims}
        return sign({k: v for k, v in payload.items() if v is not None}, self.key)

    def publish(self, lines: Iterable[Line], *, acks: bool = True) -> list[dict[str, Any]]:
        """Feed lines over a connection of its own; return the answers, one a line with `acks`."""
        with self.producer(acks=acks) as producer:
            producer.send(lines)
            return producer.finish()

    @contextlib.contextmanager
    def producer(self, *, acks: bool = True, name: str = "test") -> Iterator[Producer]:
        """A feed connection that stays open."""
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
            sock.settimeout(30)
            sock.connect(str(self.feed_socket))
            producer = Producer(sock)
            if acks:
                producer.send([{"hello": {"producer": name, "acks": True}}])
                hello = producer.answers(1)[0]
                assert hello["ok"], hello
            with contextlib.closing(producer):
                yield producer

    # -- what it says

    def get(
        self, path: str, headers: dict[str, str] | None = None, method: str = "GET"
    ) -> tuple[int, dict[str, str], bytes]:
        """Ask over HTTP; return status, headers (names in lower case) and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request(method, path, headers=headers or {})
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, names, answer.read()

    def stats(self) -> dict[str, Any]:
        """Return `/stats`."""
        status, _, body = self.get("/stats")
        assert status == 200, body
        stats: dict[str, Any] = json.loads(body)
        return stats

    def metrics(self) -> dict[str, float]:
        """Return `/metrics` as `name` or `name{labels}`: value."""
        status, _, body = self.get("/metrics")
        assert status == 200, body
        samples = re.findall(r"^([^#\s]\S*(?:\{.*\})?) (\S+)", body.decode(), re.MULTILINE)
        return {name: float(value) for name, value in samples}

    def control(self, request: dict[str, Any]) -> dict[str, Any]:
        """Ask over the control socket, one JSON line each way."""
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
            sock.settimeout(30)
            sock.connect(str(self.control_socket))
            sock.sendall(json.dumps(request).encode() + b"\n")
            with sock.makefile("rb") as answers:
                answer: dict[str, Any] = json.loads(answers.readline())
                return answer

    def output(self) -> str:
        """Everything it wrote to stdout and stderr, over all its starts."""
        return self.log_file.read_text(errors="replace")

    def logs(self, event: str | None = None) -> list[dict[str, Any]]:
        """Its log lines as objects, or only those of one `event`."""
        lines = [json.loads(line) for line in self.output().splitlines() if line.startswith("{")]
        return [line for line in lines if event is None or line.get("event") == event]

    def rss(self) -> int:
        """Resident memory in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
        assert found, status
        return int(found[1]) * 1024

    def wait_until(self, condition: Callable[[], object], limit: float = 10.0) -> None:
        """Poll until the condition holds; fail after `limit` seconds. Blocks the calling thread."""
        deadline = time.monotonic() + limit
        while not condition():
            assert time.monotonic() < deadline, f"not within {limit:g} s\n{self.output()[-4000:]}"
            time.sleep(0.02)

    # -- its life

    def send_signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self, limit: float = STOP_LIMIT) -> int:
        """Wait for its end; return the exit code."""
        return self.process.wait(limit)

    def stop(self, number: int = signal.SIGTERM, limit: float = STOP_LIMIT) -> int:
        """End it by a signal; return the exit code. Harmless if it has ended already."""
        if self.process.poll() is None:
            self.send_signal(number)
        try:
            return self.wait(limit)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(
                f"it did not end within {limit:g} s\n{self.output()[-4000:]}"
            ) from None

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()

    def restart(self, number: int = signal.SIGTERM, sets: Sequence[str] | None = None) -> None:
        """Stop it (SIGKILL: crash it) and start it again on the same port, sockets and store."""
        if number == signal.SIGKILL:
            self.kill()
        else:
            self.stop(number)
        if sets is not None:
            self.sets = tuple(sets)
        self.process = _spawn(self.folder, self.sets, self.environ)
        self._wait_ready()

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_LIMIT
        while not self._is_ready():
            if self.process.poll() is not None:
                raise NotStarted(self.process.returncode, self.output())
            if time.monotonic() > deadline:
                self.kill()
                raise NotStarted(None, self.output())
            time.sleep(0.02)

    def _is_ready(self) -> bool:
        try:
            return self.get("/readyz")[0] == 200
        except (OSError, http.client.HTTPException):
            return False


class Producer:
    """A trading bot's connection to the feed."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._file = sock.makefile("rb")

    def send(self, lines: Iterable[Line]) -> None:
        """Write lines: bytes and text as they are, objects as JSON; a missing newline is added."""
        self.socket.sendall(b"".join(map(_line, lines)))

    def answers(self, count: int) -> list[dict[str, Any]]:
        """Wait for that many answers."""
        lines = [self._file.readline() for _ in range(count)]
        assert all(lines), f"the daemon closed the feed connection; answers: {lines}"
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        """Leave; the socket stays open as long as one of the two is."""
        self._file.close()
        self.socket.close()

    def finish(self) -> list[dict[str, Any]]:
        """Say that nothing more comes; return all further answers."""
        self.socket.shutdown(socket.SHUT_WR)
        return [json.loads(line) for line in self._file]


@contextlib.contextmanager
def start(
    folder: Path,
    sets: Sequence[str] = (),
    *,
    config: str = "",
    environ: dict[str, str] | None = None,
    key: str | None = None,
    listen: Sequence[str] = (),
) -> Iterator[Daemon]:
    """Start a daemon, yield it when it is ready, stop it at the end; raise NotStarted.

    `sets` are `--set` arguments, `config` is TOML added to the config file, `environ` is added to
    an environment without any `CRYPTOWS_*`, `listen` are addresses beside its port.
    """
    daemon = _launch(folder, sets, config, environ, key, listen)
    try:
        daemon._wait_ready()
        yield daemon
    except BaseException:
        daemon.kill()
        print(daemon.output()[-8000:])  # pytest shows it with the failure
        raise
    else:
        code = daemon.stop()
        # A test that kills its daemon, or stops it in another way, has looked at the code itself.
        assert code in (0, -signal.SIGKILL), f"exit code {code}\n{daemon.output()[-4000:]}"
    finally:
        if daemon._sockets != folder:
            shutil.rmtree(daemon._sockets, ignore_errors=True)


@contextlib.asynccontextmanager
async def running(folder: Path, sets: Sequence[str] = (), **options: Any) -> AsyncIterator[Daemon]:
    """The same for Trio: starting and stopping wait in a thread."""
    manager = start(folder, sets, **options)
    daemon = await trio.to_thread.run_sync(manager.__enter__)
    try:
        yield daemon
    except BaseException:
        daemon.kill()
        raise
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(manager.__exit__, None, None, None)


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on right now."""
    with contextlib.closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def sign(claims: dict[str, Any], key: str, algorithm: str = "HS256") -> str:
    """Return a JWT, made by hand (RFC 7519) so that tests do not lean on the daemon's library."""
    head = {"alg": algorithm, "typ": "JWT"}
    text = ".".join(_base64(json.dumps(part).encode()) for part in (head, claims))
    digest = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}[algorithm]
    return f"{text}.{_base64(hmac.new(key.encode(), text.encode(), digest).digest())}"


def _launch(
    folder: Path,
    sets: Sequence[str],
    config: str,
    environ: dict[str, str] | None,
    key: str | None,
    listen: Sequence[str],
) -> Daemon:
    key = key or secrets.token_urlsafe(48)
    port = free_port()
    sockets = folder
    if len(os.fsencode(folder / "control.sock")) > SUN_PATH:
        sockets = Path(tempfile.mkdtemp(prefix="cryptows-"))
    write_config(folder, sockets, port, key, config, listen)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CRYPTOWS_")}
    for name in ("JWT_SECRET", "FRONTEND_URL", "NOTIFY_SOCKET", "JOURNAL_STREAM", "LISTEN_FDS"):
        clean.pop(name, None)
    clean |= environ or {}
    all_sets = (*WIDE, *sets)
    process = _spawn(folder, all_sets, clean)
    return Daemon(folder, port, key, all_sets, clean, process, sockets)


def write_config(
    folder: Path, sockets: Path, port: int, key: str, more: str = "", listen: Sequence[str] = ()
) -> None:
    """Write `cryptows.toml` and the key file that a daemon in a temporary folder runs on."""
    key_file = folder / "token.key"
    key_file.touch(0o600)
    key_file.write_text(key + "\n")
    state = folder / "state"
    state.mkdir(mode=0o700, exist_ok=True)
    values = {
        "server.listen": [f"127.0.0.1:{port}", *listen],
        "server.state_dir": str(state),
        "server.control_socket": str(sockets / "control.sock"),
        "feed.socket": str(sockets / "feed.sock"),
        "auth.secret_file": str(key_file),
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    (folder / "cryptows.toml").write_text("\n".join([*lines, "", more]))


def _spawn(folder: Path, sets: Sequence[str], environ: dict[str, str]) -> subprocess.Popen[bytes]:
    config = str(folder / "cryptows.toml")
    arguments = [sys.executable, "-m", "cryptows", "serve", "--config", config]
    for text in sets:
        arguments += ["--set", text]
    with (folder / "daemon.log").open("ab") as log:
        return subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT, env=environ
        )


def _line(line: Line) -> bytes:
    if isinstance(line, dict):
        line = json.dumps(line)
    data = line.encode() if isinstance(line, str) else line
    return data if data.endswith(b"\n") else data + b"\n"


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
