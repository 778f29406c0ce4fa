"""Clients that do not keep up: what they still get, when they are closed, and that nobody minds."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import trio

from cryptows.model.errors import Refusal
from cryptows.tasks.hub import RESTARTING
from cryptows.tasks.sending import GOODBYE
from tests.tasks.house import House, Screen, house, quote, status

FILL = "x" * 20_000


async def slow(home: House, *channels: str) -> Screen:
    """A client that subscribes and then reads no more."""
    screen = await home.screen(token=home.token())
    await screen.ask("subscribe", channels=list(channels))
    screen.pause()
    await home.settled()
    return screen


async def fill(home: House, count: int = 12) -> None:
    """Publish as much as a socket takes, and some more."""
    for n in range(count):
        await home.publish(status(str(n), fill=FILL))


def seqs(screen: Screen, type_: str = "system_status") -> list[int]:
    return [message["seq"] for message in screen.all(type_)]


async def test_a_client_that_is_behind_loses_nothing_private_and_catches_up(autojump_clock):
    async with house() as home:
        screen = await slow(home, "system_status")
        await fill(home, 30)
        assert len(home.hub.behind) == home.hub.gauges().slow_clients == 1
        assert home.hub.gauges().outbox_bytes > 100_000

        screen.resume()
        await home.settled()
        await home.publish(status("live"))

        assert seqs(screen) == list(range(1, 32))
        assert home.hub.behind == {}
        assert home.hub.counters.short_sends == 1
        (client,) = home.hub.clients.values()
        assert client.outbox is None


async def test_prices_are_conflated_and_the_gaps_are_told_exactly(autojump_clock):
    async with house() as home:
        screen = await slow(home, "market_data", "system_status")
        await fill(home)
        await trio.sleep(1)  # a burst that is read sooner is kept whole
        for n in range(60):
            await home.publish(*[quote(symbol, n) for symbol in "ABC"])
        screen.resume()
        await home.settled()
        await home.publish(*[quote(symbol, 1000) for symbol in "ABC"])
        await trio.sleep(26)

        skipped = 0
        for symbol in "ABC":
            seen = 0
            for _, message in screen.seen:
                data = message["data"]
                if data.get("symbol") != symbol:
                    continue
                if message["type"] == "skipped":
                    assert data["channel"] == "market_data"
                    assert data["fromSeq"] == seen + 1
                    assert data["count"] == data["toSeq"] - data["fromSeq"] + 1
                    assert data["reason"] == "slow"
                    seen = data["toSeq"]
                    skipped += data["count"]
                elif message["type"] == "market_data_update":
                    assert message["seq"] == seen + 1
                    seen = message["seq"]
            assert seen == 61
        assert skipped > 150
        assert home.hub.counters.skipped == skipped
        assert screen.all("heartbeat")[-1]["data"]["skipped"] == skipped
        assert seqs(screen) == list(range(1, 13))


async def test_a_client_that_is_too_many_bytes_behind_is_closed_and_sees_why(autojump_clock):
    async with house("delivery.outbox=256KiB") as home:
        screen, other = await slow(home, "system_status"), await home.screen()
        await other.ask("subscribe", channels=["system_status"])

        await fill(home, 40)
        await home.settled()
        (client,) = [c for c in home.hub.clients.values() if c.ending]
        assert client.waiting < 64 * 1024  # the queue is given up, the frame is not
        screen.resume()

        ended = await screen.end()
        assert ended is not None
        assert ended[0] == 4008
        assert ended[1].startswith("too slow, 0.3 MiB behind")
        assert seqs(screen) == list(range(1, len(seqs(screen)) + 1))  # whole and without a gap
        await home.settled()
        assert seqs(other) == list(range(1, 41))
        assert home.hub.counters.disconnects == {4008: 1}
        assert home.hub.behind == {}


async def test_a_client_whose_oldest_byte_is_too_old_is_closed_and_sees_why(autojump_clock):
    async with house("delivery.max_lag=5s") as home:
        screen = await slow(home, "system_status")
        await fill(home)
        began = trio.current_time()
        await trio.sleep(6)

        screen.resume()
        ended = await screen.end()

        assert ended is not None
        assert (ended[0], ended[1].partition(" s behind")[0][:12]) == (4008, "too slow, 5.")
        assert trio.current_time() - began < 6.1
        await home.settled()
        assert home.hub.seats.total == 0


async def test_who_reads_nothing_at_all_is_cut_off_in_the_end(autojump_clock):
    async with house("delivery.max_lag=5s") as home:
        screen = await slow(home, "system_status")
        await fill(home)
        await trio.sleep(5 + GOODBYE + 1)

        assert home.hub.seats.total == 0
        assert not home.hub.clients
        screen.resume()  # what the kernel has is still there
        assert await screen.end() is None
        assert seqs(screen) == list(range(1, len(seqs(screen)) + 1))


async def test_a_drain_reaches_a_slow_client_behind_all_that_waits(autojump_clock):
    async with house() as home:
        screen = await slow(home, "system_status")
        await fill(home, 30)
        (client,) = home.hub.clients.values()

        client.end(RESTARTING)
        await home.publish(status("late"))
        await trio.sleep(1)
        screen.resume()

        assert await screen.end() == (1012, "the daemon restarts; come back")
        assert seqs(screen) == list(range(1, 31))


async def test_the_error_comes_before_the_close_that_it_explains(autojump_clock):
    async with house("auth.leeway=0s") as home:
        screen = await home.screen(token=home.token(ttl=100))
        await screen.ask("subscribe", channels=["system_status"])
        await screen.next("token_expiring")
        await trio.sleep(58)
        screen.pause()
        await home.settled()
        await fill(home, 20)
        await trio.sleep(3)
        screen.resume()

        assert await screen.end() == (4002, "token expired")
        assert screen.seen[-1][1]["data"]["code"] == "token_expired"
        assert seqs(screen) == list(range(1, 21))


async def test_pings_overtake_what_waits(autojump_clock):
    async with house("delivery.max_lag=1h", "heartbeat.timeout=20s") as home:
        screen = await slow(home, "system_status")
        await fill(home, 40)
        await trio.sleep(26)  # a ping was due
        screen.resume()
        await home.settled()

        at_ping = next(i for i, (at, m) in enumerate(screen.seen) if m["type"] == "heartbeat")
        assert screen.pings
        assert at_ping == len(screen.seen) - 1  # but not the message that goes with it
        await trio.sleep(100)
        assert screen.ended is None


async def test_ten_slow_clients_hold_up_nobody(autojump_clock):
    async with house("delivery.outbox=256KiB") as home:
        sleepers = [await slow(home, "system_status") for _ in range(10)]
        fast = await home.screen()
        await fast.ask("subscribe", channels=["system_status"])

        for n in range(60):
            await home.publish(status(str(n), fill=FILL))
            assert seqs(fast)[-1] == n + 1
            assert all(client.waiting <= 300_000 for client in home.hub.behind)

        await trio.sleep(GOODBYE + 1)
        assert len(home.hub.clients) == 1
        assert home.hub.counters.disconnects == {4008: 10}
        for screen in sleepers:
            await screen.stream.aclose()


async def test_a_bug_while_draining_ends_that_client_only(autojump_clock, monkeypatch):
    async with house(bugs=1) as home:
        screen, other = await slow(home, "system_status"), await home.screen()
        await other.ask("subscribe", channels=["system_status"])
        await fill(home)
        (client,) = home.hub.behind

        def fail(*_: Any) -> None:
            raise LookupError("bug")

        monkeypatch.setattr(type(client), "_caught_up", fail)
        screen.resume()

        assert await screen.end() is None
        await home.publish(status("on"))
        assert seqs(other) == list(range(1, 14))
        assert home.hub.behind == {}


async def test_a_bug_while_falling_behind_ends_that_client_only(autojump_clock, monkeypatch):
    async with house(bugs=1) as home:
        screen, other = await slow(home, "system_status"), await home.screen()
        await other.ask("subscribe", channels=["system_status"])
        (client, _) = home.hub.clients.values()

        def fail(*_: Any) -> None:
            raise LookupError("bug")

        monkeypatch.setattr(type(client), "fall_behind", fail)
        await fill(home)

        assert client.over
        assert seqs(other) == list(range(1, 13))
        await screen.stream.aclose()


async def test_a_socket_that_broke_while_it_was_behind_is_let_go(autojump_clock):
    async with house() as home:
        screen = await slow(home, "system_status")
        await fill(home, 20)
        await screen.stream.aclose()
        await home.settled()

        assert home.hub.behind == {}
        assert home.hub.counters.disconnects == {1006: 1}


# --- a socket of TCP, whose kernel buffer is bounded


async def test_over_tcp_the_kernel_hoards_little_and_the_close_is_still_seen(nursery):
    """On the real clock: what the kernel holds does not follow a jumping one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        theirs, _ = listener.accept()
    theirs.setblocking(False)
    ours.setblocking(False)
    async with house("delivery.outbox=64KiB", "delivery.kernel_buffer=16KiB") as home:
        theirs.setsockopt(socket.IPPROTO_TCP, 25, 16 * 1024)
        theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        home.hub.nursery.start_soon(home.acceptor.serve, theirs, "127.0.0.1")
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        with trio.fail_after(30):
            screen = await home.handshake(stream=stream)
            home.nursery.start_soon(screen.read)
            await screen.ask("subscribe", channels=["system_status"])
            screen.pause()
            sent = 0
            while not any(client.ending for client in home.hub.clients.values()):
                await home.publish(status(str(sent), fill="x" * 1000))
                sent += 1
            await trio.sleep(0.2)
            screen.resume()
            ended = await screen.end()
        await stream.aclose()

    assert ended is not None
    assert ended[0] == 4008
    assert seqs(screen) == list(range(1, len(seqs(screen)) + 1))
    # Its socket's buffers, the bound on what the kernel may hold, and the outbox.
    assert sent * 1000 < 3_000_000


@pytest.mark.parametrize("code", [4001, 4008, 1012])
async def test_nothing_follows_a_close_frame(autojump_clock, code):
    async with house() as home:
        screen = await slow(home, "system_status")
        await fill(home, 20)
        (client,) = home.hub.clients.values()

        client.end(Refusal(code, "out", come_back=False))
        await home.settled()
        client.control(b"\x89\x00")
        client.message(b'{"type":"late","data":{},"timestamp":0}')
        await home.publish(status("late"))
        screen.resume()
        ended = await screen.end()

        assert ended == (code, "out")
        assert not screen.reset
        assert screen.pings == []
        expected = 20 if code != 4008 else len(seqs(screen))
        assert seqs(screen) == list(range(1, expected + 1))
