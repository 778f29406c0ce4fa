"""Taking connections in: how fast, how many, from whom, and what their sockets inherit."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import ExitStack

import pytest
import trio
import trio.testing

from cryptows.tasks import acceptor as module
from cryptows.tasks.acceptor import EXTRA, PAUSE, prepare
from tests.tasks.house import CLIENT, head, house

TCP_USER_TIMEOUT, TCP_NOTSENT_LOWAT = 18, 25


class Listener(socket.socket):
    """A listener that notes when it was accepted from, and fails when told to."""

    accepted: list[float]
    failures: list[OSError]

    def accept(self):
        if self.failures:
            raise self.failures.pop(0)
        result = super().accept()
        self.accepted.append(trio.current_time())
        return result


def listening(path: str) -> Listener:
    listener = Listener(socket.AF_UNIX)
    listener.accepted, listener.failures = [], []
    listener.bind(path)
    listener.listen(1000)
    prepare(listener, 65536, 40)
    return listener


def connect(stack: ExitStack, path: str, count: int) -> list[socket.socket]:
    socks = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(count)]
    for sock in socks:
        sock.connect(path)
    return socks


async def test_connections_are_accepted_at_the_rate_and_in_a_small_burst(tmp_path, autojump_clock):
    path = str(tmp_path / "http.sock")
    listener = listening(path)
    async with house("limits.accept_rate=100") as home:
        with ExitStack() as stack:
            connect(stack, path, 250)
            home.nursery.start_soon(home.acceptor.run, listener)
            await trio.sleep(10)
            home.nursery.cancel_scope.cancel()

    times = listener.accepted
    assert len(times) == 250
    # A tenth of a second's worth with hardly a breath, then evenly; never more than the rate in a
    # second.
    assert times[9] <= 10 / module.BURST * module.BREATH < times[11]
    assert times[-1] == pytest.approx(2.4, abs=0.05)
    for first, later in zip(times, times[110:], strict=False):
        assert later - first >= 0.99
    assert listener.fileno() == -1  # closed with its task


async def test_a_changed_rate_holds_at_once(tmp_path, autojump_clock):
    path = str(tmp_path / "http.sock")
    listener = listening(path)
    async with house("limits.accept_rate=1") as home:
        with ExitStack() as stack:
            home.nursery.start_soon(home.acceptor.run, listener)
            connect(stack, path, 5)
            await trio.sleep(1.5)
            before = len(listener.accepted)
            home.hub.reconfigure(home.configured("limits.accept_rate=1000"))
            home.acceptor.reconfigure()
            await trio.sleep(2)
            home.nursery.cancel_scope.cancel()

    assert before <= 3
    assert len(listener.accepted) == 5


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_without_descriptors_it_waits_and_says_so_once(tmp_path, autojump_clock, code):
    path = str(tmp_path / "http.sock")
    listener = listening(path)
    listener.failures = [OSError(code, os.strerror(code)) for _ in range(5)]
    async with house() as home:
        with ExitStack() as stack:
            connect(stack, path, 1)
            home.nursery.start_soon(home.acceptor.run, listener)
            await trio.sleep(5)
            home.nursery.cancel_scope.cancel()

    assert listener.accepted == [pytest.approx(5 * PAUSE)]
    warnings = [line for line in home.logs if line["event"] == "cannot accept"]
    assert warnings == [
        {"event": "cannot accept", "error": os.strerror(code), "log_level": "warning"}
    ]


async def test_a_client_that_vanished_in_the_backlog_is_no_trouble(tmp_path, autojump_clock):
    path = str(tmp_path / "http.sock")
    listener = listening(path)
    listener.failures = [OSError(errno.ECONNABORTED, "aborted")]
    async with house() as home:
        with ExitStack() as stack:
            connect(stack, path, 1)
            home.nursery.start_soon(home.acceptor.run, listener)
            await trio.sleep(5)
            home.nursery.cancel_scope.cancel()

    assert listener.accepted == [0]
    assert home.logs == []


async def test_a_storm_of_connections_lets_other_tasks_have_their_turn(tmp_path, autojump_clock):
    path = str(tmp_path / "http.sock")
    listener = listening(path)
    async with house("limits.accept_rate=100000") as home:
        with ExitStack() as stack:
            connect(stack, path, 6 * module.BURST)
            most, turns = 0, 0

            async def watch():
                nonlocal most, turns
                while len(listener.accepted) < 6 * module.BURST:
                    before = len(listener.accepted)
                    await trio.sleep(module.BREATH / 2)
                    most = max(most, len(listener.accepted) - before)
                    turns += 1

            home.nursery.start_soon(home.acceptor.run, listener)
            home.nursery.start_soon(watch)
            await trio.sleep(1)
            home.nursery.cancel_scope.cancel()

    assert most <= 2 * module.BURST  # a task's turns come in no particular order
    assert turns >= 3


def test_what_client_sockets_need_is_inherited_from_the_listener():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        prepare(listener, 12345, 40.0)
        with socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
            with accepted:
                options = [
                    accepted.getsockopt(socket.IPPROTO_TCP, option)
                    for option in (socket.TCP_NODELAY, TCP_NOTSENT_LOWAT, TCP_USER_TIMEOUT)
                ]

        assert options == [1, 12345, 40_000]
        assert not listener.getblocking()


# --- how many


async def test_one_address_has_so_many_sockets_whatever_they_ask(autojump_clock):
    async with house("limits.connections_per_address=1") as home:
        most = 3 + EXTRA
        streams = [home.dial() for _ in range(most + 1)]
        await home.settled()

        assert await streams[-1].receive_some() == b""
        assert home.hub.counters.refusals == {"sockets": 1}
        assert (await home.get("/healthz", address="203.0.113.8")).status == 200

        await streams[0].aclose()
        await home.settled()
        assert (await home.get("/healthz")).status == 200


@pytest.mark.parametrize("proxy", [None, "10.1.2.3"])
async def test_a_proxy_has_as_many_sockets_as_its_clients_need(autojump_clock, proxy):
    async with house(
        "limits.connections_per_address=1", 'server.trusted_proxies=["10.0.0.0/8"]'
    ) as home:
        streams = [home.dial(proxy) for _ in range(4 + EXTRA)]
        await home.settled()
        await streams[-1].send_all(head("/healthz"))

        assert (await streams[-1].receive_some()).startswith(b"HTTP/1.1 200")
        assert home.hub.counters.refusals == {}


async def test_in_all_there_are_so_many_sockets(autojump_clock):
    async with house("limits.connections=2", "limits.connections_per_address=1000") as home:
        streams = [home.dial(f"203.0.113.{n % 250}") for n in range(3 + EXTRA)]
        await home.settled()

        assert await streams[-1].receive_some() == b""
        assert home.hub.counters.refusals == {"sockets": 1}


async def test_when_all_have_gone_nothing_is_counted(autojump_clock):
    async with house() as home:
        streams = [home.dial(address) for address in (CLIENT, None, "2001:db8::1", "nonsense")]
        await home.settled()
        for stream in streams:
            await stream.aclose()
        await home.settled()

        sockets = home.acceptor._sockets
        assert (sockets.total, sockets.addresses, sockets.users) == (0, 0, 0)
