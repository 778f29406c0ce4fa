"""The daemon in this process: what it opens, tells, reloads and ends, in which order."""

from __future__ import annotations

import gc
import json
import logging
import resource
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from cryptows import daemon as module
from cryptows import opening
from cryptows.broker.auth import make_token
from cryptows.config.load import Loaded, load
from cryptows.control_client import ask
from cryptows.model.errors import ConfigError, StartError
from cryptows.tasks import clock
from tests.e2e.daemon import free_port
from tests.loggers import forget_configuration
from tests.tasks.house import Screen, upgrade

KEY = "k" * 40
STATUS = {"type": "system_status", "data": {"status": "ok"}}


@pytest.fixture(autouse=True)
def process_as_it_was():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(False)
    forget_configuration()
    gc.unfreeze()
    resource.setrlimit(resource.RLIMIT_NOFILE, limit)


@attrs.define(eq=False)
class Place:
    """Where a daemon keeps its things; what it told systemd and the log."""

    folder: Path
    port: int = attrs.field(factory=free_port)
    environ: dict[str, str] = attrs.field(factory=dict)
    sets: list[str] = attrs.field(factory=list)
    daemon: module.Daemon | None = None
    ended: trio.Event = attrs.field(factory=trio.Event)
    _notify: socket.socket = attrs.field(init=False)
    _streams: list[trio.SocketStream] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(self.folder / "notify.sock"))
        self._notify.setblocking(False)
        self.environ["NOTIFY_SOCKET"] = str(self.folder / "notify.sock")

    def load(self, *more: str) -> Loaded:
        values = {
            "server.listen": json.dumps([f"127.0.0.1:{self.port}", f"unix:{self.http}"]),
            "server.state_dir": str(self.folder / "state"),
            "server.control_socket": str(self.control),
            "server.drain": "2s",
            "feed.socket": str(self.feed),
            "auth.secret": KEY,
            "log.format": "json",
        }
        (self.folder / "state").mkdir(exist_ok=True)
        return load(None, [*(f"{k}={v}" for k, v in values.items()), *self.sets, *more])

    @property
    def draining(self) -> bool:
        return self.daemon is not None and self.daemon.hub.draining

    @property
    def http(self) -> Path:
        return self.folder / "http.sock"

    @property
    def feed(self) -> Path:
        return self.folder / "run" / "feed.sock"

    @property
    def control(self) -> Path:
        return self.folder / "private" / "control.sock"

    def told(self) -> list[str]:
        """What systemd was told, states without their numbers."""
        told = []
        while True:
            try:
                told.append(self._notify.recv(4096).decode())
            except BlockingIOError:
                break
        states = ("READY=1", "STOPPING=1", "RELOADING=1")
        return [line for text in told for line in text.splitlines() if line in states]

    async def ask(self, command: str, **fields: Any) -> dict[str, Any]:
        return await trio.to_thread.run_sync(lambda: ask(str(self.control), command, 30, **fields))

    async def get(self, path: str) -> bytes:
        async with await trio.open_unix_socket(str(self.http)) as stream:
            await stream.send_all(
                f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()
            )
            data = b""
            async for chunk in stream:
                data += chunk
            return data

    async def publish(self, *lines: dict[str, Any]) -> list[dict[str, Any]]:
        hello = {"hello": {"producer": "bot", "acks": True}}
        async with await trio.open_unix_socket(str(self.feed)) as stream:
            text = "".join(json.dumps(line) + "\n" for line in (hello, *lines))
            await stream.send_all(text.encode())
            await stream.send_eof()
            data = b""
            async for chunk in stream:
                data += chunk
        return [json.loads(line) for line in data.splitlines()][1:]

    async def screen(self, nursery: trio.Nursery, *, reads: bool = True) -> Screen:
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        self._streams.append(stream)
        await stream.send_all(upgrade())
        head = await stream.socket.recv(4096, socket.MSG_PEEK)
        head = await stream.receive_some(head.index(b"\r\n\r\n") + 4)
        screen = Screen(stream, nursery, head)
        if reads:
            nursery.start_soon(screen.read)
            await screen.next("connection")
        return screen

    async def hang_up(self) -> None:
        for stream in self._streams:
            await stream.aclose()

    def close(self) -> None:
        self._notify.close()


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that nothing tells of."""
    while not condition():  # noqa: ASYNC110
        await trio.sleep(0.01)


@asynccontextmanager
async def serving(
    place: Place, reread: Callable[[], Loaded] | None = None, more: Sequence[str] = ()
) -> AsyncIterator[trio.Nursery]:
    """Run a daemon until the block ends; it may have ended by itself before."""

    async def serve() -> None:
        await module.serve(place.load(*more), place.environ, reread)
        place.ended.set()

    place.ended = trio.Event()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            while not await answers(place):  # noqa: ASYNC110
                await trio.sleep(0.01)
            yield nursery
            await place.hang_up()
            if not place.ended.is_set():
                signal.raise_signal(signal.SIGTERM)
                await place.ended.wait()
            nursery.cancel_scope.cancel()


async def answers(place: Place) -> bool:
    try:
        return b" 200 " in await place.get("/readyz")
    except (OSError, trio.BrokenResourceError):
        return False


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A place whose daemon can be looked into."""
    place = Place(tmp_path)
    make = module.Daemon

    def noting(*arguments: Any) -> module.Daemon:
        place.daemon = make(*arguments)
        return place.daemon

    monkeypatch.setattr(module, "Daemon", noting)
    yield place
    place.close()


async def test_a_daemon_begins_serves_and_ends(place):
    async with serving(place) as nursery:
        screen = await place.screen(nursery)
        await screen.ask("subscribe", channels=["system_status"])
        (answer,) = await place.publish(STATUS)
        await screen.next("system_status")
        status = await place.ask("status")

        assert answer["delivered_to"] == 1
        assert (status["status"], status["clients"], status["store"]) == ("ready", 1, "closed")
        assert place.told() == ["READY=1"]
        assert gc.get_freeze_count() > 0
        signal.raise_signal(signal.SIGTERM)
        assert await screen.end() == (1012, "the daemon restarts; come back")

    assert place.told() == ["STOPPING=1"]
    for path in (place.http, place.feed, place.control):
        assert not path.exists()


async def test_what_was_stored_is_known_after_a_restart(place):
    fill = {"symbol": "A", "side": "buy", "quantity": 1, "price": 1}
    trade = {"type": "trade_execution", "user_id": "7", "id": "t-1", "data": fill}
    async with serving(place):
        (first,) = await place.publish(trade)
    async with serving(place):
        (second,) = await place.publish(trade)

    assert first["offset"] == second["offset"]
    assert second["duplicate"] is True


async def test_drain_is_answered_when_everybody_has_gone(place):
    async with serving(place) as nursery:
        screens = [await place.screen(nursery) for _ in range(3)]

        answer = await place.ask("drain")

        assert answer["drained"] == 3
        for screen in screens:
            ended = await screen.end()
            assert ended is not None
            assert ended[0] == 1012
        with trio.fail_after(5):
            await place.ended.wait()


async def test_a_second_signal_does_not_wait_for_goodbyes(place):
    place.sets = ["server.drain=60s"]
    async with serving(place) as nursery:
        await place.screen(nursery, reads=False)
        signal.raise_signal(signal.SIGINT)
        await until(lambda: place.draining)
        before = trio.current_time()
        signal.raise_signal(signal.SIGTERM)
        await place.ended.wait()

        assert trio.current_time() - before < 2


async def test_goodbyes_take_no_longer_than_they_may(place):
    place.sets = ["server.drain=300ms"]
    async with serving(place) as nursery:
        await place.screen(nursery, reads=False)
        before = trio.current_time()
        signal.raise_signal(signal.SIGTERM)
        await place.ended.wait()

        assert trio.current_time() - before < 2.5


# --- reload


async def test_a_reload_takes_over_what_is_live(place):
    async with serving(place, lambda: place.load("limits.subscriptions=1", "feed.producers=7")):
        answer = await place.ask("reload")
        status = await place.ask("status")

    assert (answer["applied"], answer["pending"]) == (["limits.subscriptions"], ["feed.producers"])
    assert status["pendingRestart"] == ["feed.producers"]
    assert place.told() == ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1"]


async def test_another_key_in_the_same_file_is_told_as_applied(place):
    file = place.folder / "token.key"
    file.touch(0o600)
    file.write_text(KEY)
    place.sets = ["auth.secret=", f"auth.secret_file={file}"]
    async with serving(place, place.load):
        nothing = await place.ask("reload")
        file.write_text("n" * 40)
        answer = await place.ask("reload")
        assert place.daemon is not None
        keys = place.daemon.hub.keys

    assert (nothing["applied"], answer["applied"]) == ([], ["auth.secret_file"])
    assert keys == (b"n" * 40,)


@pytest.mark.parametrize("error", [ConfigError(["limits.bann: unknown"]), LookupError("a bug")])
async def test_a_reload_that_fails_leaves_everything_as_it_was(place, error):
    def fail() -> Loaded:
        raise error

    async with serving(place, fail):
        refused = await place.ask("reload")
        signal.raise_signal(signal.SIGHUP)
        await trio.sleep(0.1)
        assert place.daemon is not None
        failures = place.daemon.hub.counters.reload_failures
        verbose = await place.get("/readyz?verbose")

    assert not refused["ok"]
    assert failures == 2
    assert b"last reload was bad" in verbose


async def test_without_a_way_to_read_it_again_there_is_no_reload(place):
    async with serving(place):
        answer = await place.ask("reload")

    assert answer["error"]["message"] == "this daemon has no configuration to read again"


async def test_a_later_reload_is_never_overtaken_by_an_earlier_one(place: Place):
    calls: list[int] = []
    go = threading.Event()

    def reread() -> Loaded:
        calls.append(len(calls))
        if len(calls) == 1:
            go.wait(20)
            return place.load("limits.requests=1")
        return place.load("limits.requests=2")

    async with serving(place, reread) as nursery:
        done: list[Any] = []

        async def reload() -> None:
            done.append(await place.ask("reload"))

        nursery.start_soon(reload)
        await until(lambda: calls)
        nursery.start_soon(reload)
        await trio.sleep(0.1)
        assert len(calls) == 1
        go.set()
        await until(lambda: len(done) == 2)
        assert place.daemon is not None
        requests = place.daemon.hub.settings.limits.requests

    assert requests == 2


async def test_a_reload_that_takes_long_does_not_put_a_stop_off(place: Place):
    go = threading.Event()

    def reread() -> Loaded:
        go.wait(20)
        return place.load()

    async with serving(place, reread):
        signal.raise_signal(signal.SIGHUP)
        await trio.sleep(0.05)
        signal.raise_signal(signal.SIGTERM)
        await until(lambda: place.draining)
        go.set()
        await place.ended.wait()


async def test_who_stops_does_not_reload(place):
    place.sets = ["server.drain=1s"]
    async with serving(place, place.load) as nursery:
        await place.screen(nursery, reads=False)
        signal.raise_signal(signal.SIGTERM)
        await until(lambda: place.draining)
        answer = await place.ask("reload")

        assert answer["error"]["message"] == "the daemon is stopping"


# --- other commands


async def test_a_revoked_user_is_ended_and_stays_out_after_a_restart(place):
    token = make_token(KEY.encode(), "HS256", "7", "user", 3600, clock.unix_now() - 5)
    async with serving(place) as nursery:
        screen = await place.screen(nursery)
        assert (await screen.ask("authenticate", token=token))["type"] == "authenticated"
        answer = await place.ask("revoke", user="7")
        ended = await screen.end()
    async with serving(place) as nursery:
        again = await place.screen(nursery)
        await again.send({"type": "authenticate", "token": token})
        refused = await again.end()
        restored = await place.ask("restore", user="7")
        wrong = await place.ask("revoke", user="a/b")
        back = await place.screen(nursery)
        welcome = await back.ask("authenticate", token=token)

    assert (answer["revoked"], answer["clients"]) == ("7", 1)
    assert ended == refused == (4001, "jwt revoked")
    assert restored["wasRevoked"] is True
    assert "expected letters" in wrong["error"]["message"]
    assert welcome["type"] == "authenticated"


async def test_the_stores_state_is_told_everywhere(place):
    async with serving(place) as nursery:
        screen = await place.screen(nursery)
        await screen.ask("subscribe", channels=["system_status"])
        assert place.daemon is not None

        place.daemon._store_changed("closed", "open", "disk full")
        told = await screen.next("system_status")
        ready = await place.get("/readyz")
        place.daemon._store_changed("open", "closed", "")
        again = await screen.next("system_status")

    assert told["data"] == {"component": "store", "status": "open", "reason": "disk full"}
    assert b'{"status":"ready","store":"open"}' in ready
    assert again["data"]["status"] == "closed"


# --- starts that fail


async def test_a_port_that_is_taken_leaves_nothing_behind(place):
    with (
        socket.create_server(("127.0.0.1", place.port)),
        pytest.raises(StartError, match="address already in use"),
    ):
        await module.serve(place.load(), place.environ)

    assert not place.feed.exists()
    assert not place.control.exists()
    assert place.told() == []


async def test_a_second_daemon_takes_nothing_from_the_first(place):
    async with serving(place):
        with pytest.raises(StartError, match="already running"):
            await module.serve(place.load('server.listen=["127.0.0.1:0"]'), place.environ)

        assert (await place.ask("status"))["ok"]
        assert (await place.publish(STATUS))[0]["ok"]


async def test_a_key_that_is_missing_is_a_wrong_configuration(place):
    loaded = place.load("auth.secret=", f"auth.secret_file={place.folder}/gone")
    with pytest.raises(ConfigError, match="gone"):
        await module.serve(loaded, place.environ)

    assert not place.feed.exists()


@pytest.mark.parametrize("key", ["feed.group", "feed.allow_users", "feed.allow_groups"])
async def test_a_name_that_nobody_has_is_a_wrong_configuration(place, key):
    with pytest.raises(ConfigError, match=f'^--set: {key} (is|has) "no-such"'):
        await module.serve(place.load(f"{key}=no-such"), place.environ)

    assert not place.feed.parent.exists()
    assert not [*(place.folder / "state").iterdir()]


async def test_with_a_socket_of_systemd_the_group_of_the_file_is_not_looked_up(place, monkeypatch):
    monkeypatch.setattr(opening, "listen_fds", lambda environ: {"feed": [-1]})
    loaded = place.load("feed.group=no-such", "feed.allow_users=nobody-")

    with pytest.raises(ConfigError) as caught:
        await module.serve(loaded, place.environ)

    [problem] = caught.value.problems
    assert "feed.allow_users" in problem


async def test_a_folder_that_cannot_be_made_is_told(place):
    (place.folder / "run").write_text("a file")
    with pytest.raises(StartError, match=f"cannot make the folder {place.folder}/run/sub: "):
        await module.serve(
            place.load(f"feed.socket={place.folder}/run/sub/feed.sock"), place.environ
        )


class Notes:
    """A log that only counts."""

    def __init__(self) -> None:
        self.warnings = 0

    def warning(self, *_: object, **__: object) -> None:
        self.warnings += 1


@pytest.mark.parametrize(("soft", "hard", "warns"), [(256, 1024, 1), (1024, 1 << 20, 0)])
def test_as_many_descriptors_are_taken_as_there_are(monkeypatch, soft, hard, warns):
    taken, notes = [], Notes()
    monkeypatch.setattr(opening, "log", notes)
    monkeypatch.setattr("cryptows.opening.resource.getrlimit", lambda which: (soft, hard))
    monkeypatch.setattr(
        "cryptows.opening.resource.setrlimit", lambda which, limit: taken.append(limit)
    )

    opening.raise_file_limit(10_400)

    assert taken == [(hard, hard)]
    assert notes.warnings == warns
