"""Commands over the control socket, from both ends."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self

import pytest
import structlog
import trio

from cryptows.control_client import ControlError, NotRunningError, ask
from cryptows.model.errors import ConfigError, StartError
from cryptows.tasks.control import MAX_CONNECTIONS, MAX_LINE, MODE, serve_control
from cryptows.tasks.listeners import open_unix


async def status(request: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"status": "ready", "asked": dict(request)}


async def reload(request: Mapping[str, Any]) -> Mapping[str, Any]:
    raise ConfigError(["f.toml:1: a is 1", "f.toml:2: b is 2"])


async def drain(request: Mapping[str, Any]) -> Mapping[str, Any]:
    raise StartError("not now")


async def broken(request: Mapping[str, Any]) -> Mapping[str, Any]:
    raise RuntimeError("a bug")


async def slow(request: Mapping[str, Any]) -> Mapping[str, Any]:
    await trio.sleep(30)
    return {}


COMMANDS = {"status": status, "reload": reload, "drain": drain, "broken": broken, "slow": slow}


@asynccontextmanager
async def serving(tmp_path):
    path = str(tmp_path / "control.sock")
    sock = open_unix(path, MODE, 2 * MAX_CONNECTIONS)
    sock.setblocking(False)
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_control, listener, COMMANDS)
        yield path
        nursery.cancel_scope.cancel()


async def asked(path: str, command: str, timeout: float = 5, **fields: Any) -> dict[str, Any]:
    return await trio.to_thread.run_sync(lambda: ask(path, command, timeout, **fields))


async def test_a_command_is_answered_with_what_it_returns(tmp_path):
    async with serving(tmp_path) as path:
        answer = await asked(path, "status", verbose=True)

    assert answer == {"ok": True, "status": "ready", "asked": {"verbose": True}}


async def test_a_command_that_refuses_says_why(tmp_path):
    async with serving(tmp_path) as path:
        reloaded = await asked(path, "reload")
        drained = await asked(path, "drain")
        unknown = await asked(path, "restart")

    assert reloaded == {
        "ok": False,
        "error": {
            "code": "invalid_config",
            "message": "f.toml:1: a is 1\nf.toml:2: b is 2",
            "problems": ["f.toml:1: a is 1", "f.toml:2: b is 2"],
        },
    }
    assert drained == {"ok": False, "error": {"code": "refused", "message": "not now"}}
    assert unknown["error"] == {
        "code": "unknown_command",
        "message": "there is no command 'restart'; there are broken, drain, reload, slow, status",
    }


async def test_a_bug_in_a_command_costs_that_command_only(tmp_path):
    with structlog.testing.capture_logs() as captured:
        async with serving(tmp_path) as path:
            answer = await asked(path, "broken")
            assert (await asked(path, "status"))["ok"]

    assert answer["error"] == {"code": "internal_error", "message": "RuntimeError: a bug"}
    assert [line["event"] for line in captured] == ["control command failed"]


@pytest.mark.parametrize(
    "line", [b"\n", b"status\n", b"[1]\n", b'{"command":"status"', b"\xff\n", b"x" * (MAX_LINE + 9)]
)
async def test_what_is_not_a_request_is_told_so(tmp_path, line):
    async with serving(tmp_path) as path, await trio.open_unix_socket(path) as stream:
        await stream.send_all(line)
        await stream.send_eof()
        answer = json.loads(await stream.receive_some())

    assert answer["error"]["code"] == "bad_request"


async def test_a_command_must_be_a_string(tmp_path):
    async with serving(tmp_path) as path, await trio.open_unix_socket(path) as stream:
        await stream.send_all(b'{"command":[1]}\n')
        answer = json.loads(await stream.receive_some())

    assert answer["error"]["code"] == "unknown_command"


async def test_who_goes_away_harms_nobody(tmp_path):
    async with serving(tmp_path) as path:
        for line in (b"", b'{"command":"status"}\n', b'{"command":"slow"}\n'):
            stream = await trio.open_unix_socket(path)
            await stream.send_all(line)
            await stream.aclose()
        assert (await asked(path, "status"))["ok"]


async def test_a_silent_connection_is_let_go_in_time(tmp_path, autojump_clock):
    async with serving(tmp_path) as path:
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(b'{"command":')
            answer = json.loads(await stream.receive_some())

        assert answer["error"]["code"] == "bad_request"
        assert trio.current_time() == 5


async def test_no_more_connections_than_allowed_are_served_at_once(tmp_path, autojump_clock):
    async with serving(tmp_path) as path:
        silent = [await trio.open_unix_socket(path) for _ in range(MAX_CONNECTIONS)]
        async with await trio.open_unix_socket(path) as late:
            await late.send_all(b'{"command":"status"}\n')
            assert json.loads(await late.receive_some())["ok"]

        assert trio.current_time() == 5
        for stream in silent:
            await stream.aclose()


async def test_running_out_of_descriptors_is_survived(tmp_path, autojump_clock):
    class Listener:
        failures = 3

        async def accept(self) -> trio.SocketStream:
            await trio.lowlevel.checkpoint()
            self.failures -= 1
            if self.failures < 0:
                await trio.sleep_forever()
            raise OSError(24, "Too many open files")

        async def __aenter__(self) -> Self:
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

    listener = Listener()
    with trio.move_on_after(10), structlog.testing.capture_logs() as captured:
        await serve_control(listener, COMMANDS)  # type: ignore[arg-type]

    assert len(captured) == 3


def test_nobody_there_is_told_apart(tmp_path):
    (tmp_path / "plain").touch()
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "left"))
    left.close()

    for name in ("gone", "left", "plain/x"):
        with pytest.raises(NotRunningError, match="cryptows is not running: nobody listens at"):
            ask(str(tmp_path / name), "status")


@pytest.fixture
def fake_daemon(tmp_path):
    """Call with what the daemon does on a connection; returns its path."""
    path = str(tmp_path / "fake.sock")
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen()
    threads = []

    def start(serve: Callable[[socket.socket], Awaitable[None] | None]) -> str:
        def run() -> None:
            connection, _ = sock.accept()
            with connection:
                serve(connection)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return path

    yield start
    for thread in threads:
        thread.join()
    sock.close()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "ended without a whole answer"),
        (b'{"ok":tr', "ended without a whole answer"),
        (b"[1]\n", "expected an object as the answer"),
    ],
)
def test_a_daemon_that_dies_while_answering(fake_daemon, answer, why):
    def serve(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(answer)

    with pytest.raises(ControlError, match=why):
        ask(fake_daemon(serve), "status")


def test_a_long_answer_arrives_whole(fake_daemon):
    answer = {"ok": True, "text": "x" * 500_000}

    def serve(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(json.dumps(answer).encode() + b"\n")

    assert ask(fake_daemon(serve), "status") == answer


def test_a_daemon_that_does_not_answer_costs_the_timeout(fake_daemon):
    done = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.sendall(b'{"ok":')  # a piece does not start the time anew
        done.wait(5)

    path = fake_daemon(serve)
    with pytest.raises(ControlError, match=r"no answer to status within 0\.2 s"):
        ask(path, "status", timeout=0.2)
    done.set()


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (PermissionError(13, "Permission denied"), "ask as root or as the daemon's user"),
        (OSError(105, "No buffer space available"), "No buffer space available"),
        (OSError("AF_UNIX path too long"), "AF_UNIX path too long"),
    ],
)
def test_why_the_daemon_cannot_be_asked(monkeypatch, error, why):
    def connect(*_: object) -> None:
        raise error

    monkeypatch.setattr("socket.socket.connect", connect, raising=False)

    with pytest.raises(ControlError, match=why):
        ask("/x", "status")
