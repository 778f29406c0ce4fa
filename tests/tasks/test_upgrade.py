"""Engine.IO on WebSocket, and the way there from polling: nothing lost, doubled or out of order."""

from __future__ import annotations

import json
import random

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from cryptows.model.channel import Lane, Pattern
from cryptows.model.errors import Refusal
from cryptows.model.event import Record
from cryptows.tasks.engineclient import EngineClient
from cryptows.wire.engineio import Timing
from cryptows.wire.envelope import Packet
from tests.tasks.door import head, opened
from tests.tasks.test_polling import Echo

# WebSocket from the start


async def test_a_websocket_opens_a_session(autojump_clock):
    async with opened(Echo, Timing(0.3, 0.2)) as door:
        ws = await door.websocket()
        opening = await ws.get()

        assert isinstance(opening, str)
        assert json.loads(opening[1:]) | {"sid": ""} == {
            "sid": "",
            "upgrades": [],
            "pingInterval": 300,
            "pingTimeout": 200,
            "maxPayload": 1_000_000,
        }


async def test_text_and_binary_come_back_as_they_were(autojump_clock):
    async with opened(Echo) as door:
        ws = await door.websocket()
        await ws.get()

        await ws.send("4hello", b"\x01\x02", "bAQI=", "4" + "x" * 100_000)

        assert await ws.get() == "4hello"
        assert await ws.get() == b"\x01\x02"
        assert await ws.get() == b"\x01\x02"
        assert await ws.get() == "4" + "x" * 100_000


async def test_binary_comes_as_base64_if_that_was_asked_for(autojump_clock):
    async with opened(Echo) as door:
        ws = await door.websocket("b64=1&x&sid=")
        await ws.get()
        (client,) = door.mount.clients.values()
        client._base64 = True

        await ws.send(b"\x01\x02\x03\x04")

        assert await ws.get() == "bAQIDBA=="


@pytest.mark.parametrize("message", ["abc", "", "2", "2probe", "b!", "4fail"])
async def test_a_bad_packet_closes_the_websocket(message, autojump_clock):
    async with opened(Echo) as door:
        ws = await door.websocket()

        await ws.send(message)

        code, reason = await ws.closed()
        assert code == 1002
        assert reason
        await door.settled()
        assert not door.mount.clients


@pytest.mark.parametrize("message", ["0", "5", "6", "3"])
async def test_harmless_packets_are_ignored(message, autojump_clock):
    async with opened(Echo) as door:
        ws = await door.websocket()
        await ws.get()

        await ws.send(message, "4hello")

        assert await ws.get() == "4hello"


async def test_a_client_may_close_by_a_packet(autojump_clock):
    async with opened(Echo) as door:
        ws = await door.websocket()

        await ws.send("1")

        assert (await ws.closed())[0] == 1000
        assert not door.mount.clients


async def test_a_message_that_is_too_long_is_refused_with_1009(autojump_clock):
    async with opened(Echo, Timing(max_payload=1024)) as door:
        ws = await door.websocket()

        await ws.send("4" + "x" * 1024)

        assert await ws.closed() == (1009, "message over 1024 bytes")


async def test_the_server_pings_and_closes_whoever_does_not_answer(autojump_clock):
    async with opened(Echo, Timing(25, 20)) as door:
        ws = await door.websocket()
        await ws.get()

        for number in range(1, 4):
            assert await ws.get() == "2"
            assert trio.current_time() == pytest.approx(25 * number)
            await ws.send("3")
        assert await ws.get() == "2"

        assert await ws.closed() == (4010, "no pong for 20 s")
        assert trio.current_time() == pytest.approx(120)


@pytest.mark.parametrize("go", ["close", "cut"])
async def test_a_client_that_goes_leaves_nothing_behind(go, autojump_clock):
    async with opened(Echo) as door:
        ws = await door.websocket()
        await ws.get()

        await getattr(ws, go)()
        await door.settled()

        assert not door.mount.clients
        assert door.hub.seats.total == 0
        assert not list(door.hub.routes)


# The upgrade


async def upgraded(door, query):
    """Take a polling session over to WebSocket like the official client."""
    ws = await door.websocket(query)
    await ws.send("2probe")
    assert await ws.get() == "3probe"
    assert await door.poll(query) == ["6"]
    await ws.send("5")
    return ws


async def test_a_session_moves_to_a_websocket(autojump_clock):
    async with opened(Echo) as door:
        query = await door.open()

        ws = await upgraded(door, query)
        await ws.send("4hello")

        assert await ws.get() == "4hello"
        assert (await door.get(query)).json == {"code": 3, "message": "Bad request"}
        assert (await door.post(query, "4x")).json == {"code": 3, "message": "Bad request"}


async def test_the_poll_that_waits_ends_when_the_probe_comes(autojump_clock):
    async with opened(Echo) as door:
        query = await door.open()
        poll = door.start_poll(query)
        await trio.sleep(1)
        ws = await door.websocket(query)
        assert not poll.done.is_set()

        await ws.send("2probe")

        assert await poll.packets() == ["6"]
        assert poll.at == pytest.approx(1)


async def test_further_polls_during_the_probe_end_after_a_moment(autojump_clock):
    async with opened(Echo) as door:
        query = await door.open()
        ws = await door.websocket(query)
        await ws.send("2probe")
        times = []
        for _ in range(4):
            assert await door.poll(query) == ["6"]
            times.append(trio.current_time())

        assert times == pytest.approx([0, 0.03, 0.06, 0.09])


async def test_probe_and_upgrade_may_come_in_one_piece(autojump_clock):
    async with opened(Echo) as door:
        query = await door.open()
        ws = await door.websocket(query)

        await ws.send("2probe", "5", "4hello")

        assert await ws.get() == "3probe"
        assert await ws.get() == "4hello"
        assert (await door.get(query)).status == 400


async def test_a_poll_still_open_at_the_upgrade_ends_with_a_noop(autojump_clock):
    async with opened(Echo) as door:
        query = await door.open()
        ws = await door.websocket(query)
        poll = door.start_poll(query)
        await door.settled()

        await ws.send("2probe", "5")

        assert await poll.packets() == ["6"]
        assert await ws.get() == "3probe"


async def test_messages_go_by_polling_until_the_upgrade_and_by_websocket_after_it(autojump_clock):
    async with opened(Echo) as door:
        query = await door.open()
        ws = await door.websocket(query)
        await ws.send("2probe")
        assert await ws.get() == "3probe"

        await door.post(query, "4one")
        assert await door.poll(query) == ["4one"]
        await door.post(query, "4two\x1ebAQIDBA==")
        await ws.send("5", "4three")

        assert [await ws.get() for _ in range(3)] == ["4two", b"\x01\x02\x03\x04", "4three"]


@pytest.mark.parametrize("message", ["5", "4hello", "2", "probe", "3probe", b"2probe"])
async def test_what_is_no_probe_closes_only_that_websocket(message, autojump_clock):
    async with opened(Echo) as door:
        query = await door.open()
        ws = await door.websocket(query)

        await ws.send(message)

        assert (await ws.closed())[0] == 1008
        await door.post(query, "4alive")
        assert await door.poll(query) == ["4alive"]
        await upgraded(door, query)


async def test_an_upgrade_that_stops_halfway_is_given_up_after_ten_seconds(autojump_clock):
    async with opened(Echo) as door:
        query = await door.open()
        ws = await door.websocket(query)
        await ws.send("2probe")

        assert (await ws.closed())[0] == 1008

        assert trio.current_time() == pytest.approx(10)
        await door.post(query, "4alive")
        assert await door.poll(query) == ["4alive"]


async def test_a_probe_that_is_cut_off_does_no_harm(autojump_clock):
    async with opened(Echo) as door:
        query = await door.open()
        ws = await door.websocket(query)
        await ws.send("2probe")
        await ws.get()

        await ws.cut()
        await door.settled()

        poll = door.start_poll(query)
        await trio.sleep(1)
        assert not poll.done.is_set()
        await upgraded_while_polling(door, query, poll)


async def upgraded_while_polling(door, query, poll):
    ws = await door.websocket(query)
    await ws.send("2probe")
    assert await poll.packets() == ["6"]
    await ws.send("5", "4hello")
    assert await ws.get() == "3probe"
    assert await ws.get() == "4hello"


@pytest.mark.parametrize("when", ["probing", "upgrading", "upgraded"])
async def test_a_second_websocket_for_a_session_is_closed_and_the_first_unharmed(
    when, autojump_clock
):
    async with opened(Echo) as door:
        query = await door.open()
        first = await door.websocket(query)
        if when != "probing":
            await first.send("2probe")
            assert await first.get() == "3probe"
        if when == "upgraded":
            await first.send("5")
        await door.settled()

        second = await door.websocket(query)

        assert (await second.closed())[0] == 1008
        if when == "probing":
            await first.send("2probe")
            assert await first.get() == "3probe"
        if when != "upgraded":
            await first.send("5")
        await first.send("4hello")
        assert await first.get() == "4hello"


async def test_a_long_message_of_a_probe_closes_it(autojump_clock):
    async with opened(Echo, Timing(max_payload=1024)) as door:
        query = await door.open()
        ws = await door.websocket(query)

        await ws.send("2" + "x" * 2000)

        assert (await ws.closed())[0] == 1008
        await door.post(query, "4alive")
        assert await door.poll(query) == ["4alive"]


async def test_heartbeats_wait_for_the_end_of_an_upgrade(autojump_clock):
    async with opened(Echo, Timing(5, 20)) as door:
        query = await door.open()
        await trio.sleep(4)
        ws = await door.websocket(query)
        await ws.send("2probe")
        await ws.get()
        await trio.sleep(3)
        await ws.send("5")

        assert await ws.get() == "2"
        assert trio.current_time() == pytest.approx(7)
        await ws.send("3")
        assert await ws.get() == "2"
        assert trio.current_time() == pytest.approx(12)


async def test_a_ping_queued_for_polling_is_sent_by_websocket_after_the_upgrade(autojump_clock):
    async with opened(Echo, Timing(5, 20)) as door:
        query = await door.open()
        await trio.sleep(6)
        ws = await door.websocket(query)

        await ws.send("2probe", "5")

        assert await ws.get() == "3probe"
        assert await ws.get() == "2"


async def test_a_session_that_ends_during_its_probe_closes_the_websocket_too(autojump_clock):
    async with opened(Echo) as door:
        query = await door.open()
        ws = await door.websocket(query)
        await ws.send("2probe")
        await ws.get()

        await door.post(query, "abc")

        assert (await ws.closed())[0] == 1008
        assert not door.mount.clients


async def test_the_last_packets_can_be_fetched_by_completing_the_upgrade(autojump_clock):
    async with opened(Echo) as door:
        query = await door.open()
        ws = await door.websocket(query)
        await ws.send("2probe")
        await ws.get()
        await door.post(query, "4late")
        (client,) = door.mount.clients.values()

        client.end(Refusal(1012, "restart", come_back=True))
        await door.settled()
        await ws.send("5")

        assert await ws.get() == "4late"
        await ws.closed()
        assert not door.mount.clients


async def test_an_end_reaches_an_upgraded_client_with_its_code(autojump_clock):
    async with opened(Echo) as door:
        query = await door.open()
        ws = await upgraded(door, query)
        await door.settled()
        (client,) = door.mount.clients.values()

        client.end(Refusal(1012, "restart", come_back=True))

        assert await ws.closed() == (1012, "restart")


# Under load


class Listener(EngineClient):
    """Is subscribed to a channel from the beginning."""

    __slots__ = ()

    async def heard(self, message: str | bytes) -> None:
        self.packet(Packet(b"4pong"))


def number_of(packet: str) -> int:
    """Return the price in an event's packet, which counts them."""
    price: int = json.loads(packet[2:])[1]["data"]["price"]
    return price


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), gap=st.sampled_from([0.0, 0.0005, 0.003]))
def test_no_event_is_lost_doubled_or_reordered_by_an_upgrade(seed, gap):
    """Events flow the whole time; the upgrade begins and ends at any moment between them."""
    trio.run(upgrade_under_load, seed, gap, clock=trio.testing.MockClock(autojump_threshold=0))


async def upgrade_under_load(seed: int, gap: float) -> None:
    rng = random.Random(seed)
    got: list[int] = []
    total = 60
    async with opened(Listener) as door:
        hub = door.hub
        await door.start_feed()
        query = await door.open()
        (client,) = door.mount.clients.values()
        patterns = frozenset([Pattern("trading_signals")])
        client.session.patterns = patterns
        hub.routes.move(client, patterns)

        async def feed() -> None:
            for number in range(total):
                await door.publish("trading_signal", {"price": number})
                await trio.sleep(gap * rng.random())

        async def poll_until(stop: trio.Event) -> None:
            while not stop.is_set():
                got.extend(number_of(p) for p in await door.poll(query) if p.startswith("42"))
            stopped.set()

        stop, stopped = trio.Event(), trio.Event()
        door.nursery.start_soon(feed)
        door.nursery.start_soon(poll_until, stop)
        await trio.sleep(gap * total * rng.random() / 2)
        ws = await door.websocket(query)
        await ws.send("2probe")
        assert await ws.get() == "3probe"
        await trio.sleep(gap * total * rng.random() / 4)
        stop.set()  # the official client pauses: its last poll must end
        await stopped.wait()
        await ws.send("5")
        while len(got) < total:
            packet = await ws.get()
            assert isinstance(packet, str)
            if packet.startswith("42"):
                got.append(number_of(packet))
    assert got == list(range(total))


def record(number: int) -> Record:
    """Make a record by hand."""
    envelope = b'{"type":"x","data":{"price":%d}}' % number
    return Record(number, number, "c", None, Lane.PRIVATE, 0, envelope, b"e.%d" % number)


async def test_an_upgrade_in_the_middle_of_a_pass_waits_for_its_end(autojump_clock):
    async with opened(Listener) as door:
        query = await door.open()
        (client,) = door.mount.clients.values()
        ws = await door.websocket(query)
        await ws.send("2probe")
        assert await ws.get() == "3probe"
        assert await door.poll(query) == ["6"]

        door.hub.writing = True
        await ws.send("5", "4hello")
        await door.settled()
        client.queue([record(1)])  # the pass has it encoded for polling and comes to it only now
        await door.settled()
        assert client.wire.name == "socketio_polling"
        door.hub.end_pass()

        assert await ws.get() == '42["message",{"type":"x","data":{"price":1}},"e.1"]'
        assert await ws.get() == "4pong"


async def test_a_client_that_ends_while_its_upgrade_waits_is_closed_by_websocket(autojump_clock):
    async with opened(Listener) as door:
        query = await door.open()
        (client,) = door.mount.clients.values()
        ws = await door.websocket(query)
        door.hub.writing = True
        await ws.send("2probe", "5")
        await door.settled()

        client.end(Refusal(1012, "restart", come_back=True))
        await door.settled()
        door.hub.end_pass()

        assert await ws.closed() == (1012, "restart")
        assert not door.mount.clients


# Clients that fail


class Faulty(EngineClient):
    """Does not know what to do with a message."""

    __slots__ = ()

    async def heard(self, message: str | bytes) -> None:
        raise RuntimeError("a bug")


async def test_a_bug_ends_its_client_and_nobody_else_on_websocket(autojump_clock):
    with capture_logs() as logs:
        await end_by_a_bug_on_websocket()

    assert [entry["event"] for entry in logs] == ["client failed"]


async def end_by_a_bug_on_websocket():
    async with opened(Faulty, bugs=1) as door:
        other, ws = await door.websocket(), await door.websocket()
        for each in (other, ws):
            await each.get()

        await ws.send("4boom")

        assert (await ws.closed())[0] == 1006
        assert len(door.mount.clients) == door.hub.seats.total == 1
        assert await other.get() == "2"


async def test_a_bug_ends_its_client_and_nobody_else_by_polling(autojump_clock):
    with capture_logs() as logs:
        await end_by_a_bug_by_polling()

    assert [entry["event"] for entry in logs] == ["client failed"]


async def end_by_a_bug_by_polling():
    async with opened(Faulty, bugs=1) as door:
        other, query = await door.open(), await door.open()

        posted = await door.post(query, "4boom")

        assert (posted.status, posted.body) == (500, b"")
        assert len(door.mount.clients) == door.hub.seats.total == 1
        assert (await door.get(query)).status == 400
        assert await door.poll(other) == ["2"]


async def test_a_client_that_goes_before_its_session_is_told_leaves_nothing(autojump_clock):
    async with opened(Echo) as door:
        stream = await door.stream()
        await stream.send_all(head("GET", "EIO=4&transport=polling", b"", ()))
        await stream.aclose()
        await door.settled()

        assert not door.mount.clients
        assert door.hub.seats.total == 0


UPGRADE = (
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
)


async def test_a_probe_that_goes_before_its_101_does_no_harm(autojump_clock):
    async with opened(Echo) as door:
        query = await door.open()
        target = query.replace("transport=polling", "transport=websocket")
        stream = await door.stream()
        await stream.send_all(head("GET", target, b"", UPGRADE))
        await stream.aclose()
        await door.settled()

        await upgraded(door, query)


async def test_an_upgrade_without_a_key_does_no_harm_to_the_session(autojump_clock):
    async with opened(Echo) as door:
        query = await door.open()
        target = query.replace("transport=polling", "transport=websocket")

        answer = await door.request("GET", target, headers=UPGRADE[:3])

        assert answer.status == 400
        await upgraded(door, query)


async def test_a_session_that_ends_while_its_upgrade_waits_leaves_nothing(autojump_clock):
    async with opened(Listener) as door:
        query = await door.open()
        (client,) = door.mount.clients.values()
        ws = await door.websocket(query)
        door.hub.writing = True
        await ws.send("2probe", "5")
        await door.settled()

        client.gone(1006)
        door.hub.end_pass()

        await ws.closed()
        assert not door.mount.clients
        assert door.hub.seats.total == 0


async def test_protocol_pings_of_websocket_are_answered_and_are_no_heartbeat(autojump_clock):
    async with opened(Echo, Timing(25, 20)) as door:
        ws = await door.websocket()
        await ws.get()
        assert await ws.get() == "2"

        with trio.fail_after(1):
            await ws.connection.ping(b"x")
        await ws.connection.pong(b"unasked")

        assert (await ws.closed())[0] == 4010
