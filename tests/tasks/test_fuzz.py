"""Strangers: any packets and bytes, on any transport and in any order, harm only their sender."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tasks.door import Door, head
from tests.tasks.test_dashboard import Client, daemon, joined, token

TOKEN = json.dumps({"token": token("666")})
PACKETS = [
    "1", "2", "2probe", "3", "3probe", "5", "6", "0{}", "4", "40", "40" + TOKEN, "40/x,", "41",
    "40{}", '40{"pid":"x","offset":"epoch.0"}', '42["subscribe",{"channels":["system_status"]}]',
    '42["subscribe",{"channels":["system_status"],"since":"epoch.0"}]', '427["list",{}]',
    '42["history",{"channel":"system_status"}]', '421["ping"]', '42["authenticate",' + TOKEN + "]",
    '42["unsubscribe",{"channels":["system_status"]}]', '42[1]', "42{}", "42[]", '43["x"]', "431[]",
    '451-["ping",{"_placeholder":true,"num":0}]', '461-1[{"_placeholder":true,"num":0}]', "44{}",
    '4511-["x"]', '451-2["ping"]', "bAQI=", "b!", "\x1e", "4\x00", '42["' + "x" * 70_000 + '"]',
    "42" + "[" * 2000, '42["ping",' + "1," * 200 + "1]", '42["\\ud800"]', '42["ping",1e999]',
]  # fmt: skip

packets = st.sampled_from(PACKETS) | st.text(max_size=6)
binary = st.binary(max_size=6)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("post"), st.lists(packets, max_size=4)),
        st.tuples(st.just("post_bytes"), binary),
        st.tuples(st.just("poll"), st.none()),
        st.tuples(st.just("give_up_poll"), st.none()),
        st.tuples(st.just("open_websocket"), st.booleans()),
        st.tuples(st.just("websocket"), st.lists(packets | binary, max_size=4)),
        st.tuples(st.just("raw"), binary),
        st.tuples(st.just("cut"), st.none()),
        st.tuples(st.just("method"), st.sampled_from(["PUT", "OPTIONS", "HEAD", "DELETE"])),
        st.tuples(st.just("event"), st.none()),
        st.tuples(st.just("wait"), st.floats(0, 30)),
    ),
    max_size=15,
)


UPGRADE = (
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
)


def frame(message: str | bytes) -> bytes:
    """Return a client's frame; a mask of zeros changes nothing."""
    opcode = 0x81 if isinstance(message, str) else 0x82
    payload = message.encode(errors="replace") if isinstance(message, str) else message
    if len(payload) < 126:
        size = bytes([0x80 | len(payload)])
    else:
        size = b"\xff" + len(payload).to_bytes(8, "big")
    return bytes([opcode]) + size + bytes(4) + payload


class Stranger:
    """A client that does what it is told, and does not mind what becomes of it."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.query = ""
        self.polls: list[trio.CancelScope] = []
        self.websockets: list[trio.SocketStream] = []

    async def do(self, step: str, value: Any) -> None:
        if not self.query and step in ("post", "post_bytes", "poll", "method"):
            self.query = await self.door.open()
        await getattr(self, step)(value)
        await trio.testing.wait_all_tasks_blocked()

    async def post(self, texts: list[str]) -> None:
        await self.ask("POST", "\x1e".join(texts).encode(errors="replace"))

    async def post_bytes(self, body: bytes) -> None:
        await self.ask("POST", body)

    async def method(self, method: str) -> None:
        await self.ask(method, b"")

    async def poll(self, _value: None) -> None:
        self.door.nursery.start_soon(self.wait_for_poll)

    async def give_up_poll(self, _value: None) -> None:
        for scope in self.polls:
            scope.cancel()

    async def open_websocket(self, probe: bool) -> None:
        """Ask for an upgrade, and take for granted that it is granted."""
        query = self.query.replace("transport=polling", "") if probe else "EIO=4"
        stream = await self.door.stream()
        await stream.send_all(head("GET", f"{query}&transport=websocket", b"", UPGRADE))
        self.websockets.append(stream)

    async def websocket(self, messages: list[str | bytes]) -> None:
        await self.raw(b"".join(map(frame, messages)))

    async def raw(self, data: bytes) -> None:
        for ws in self.websockets[-1:]:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await ws.send_all(data)

    async def cut(self, _value: None) -> None:
        for ws in self.websockets[-1:]:
            await trio.aclose_forcefully(ws)

    async def event(self, _value: None) -> None:
        await self.door.publish("system_status", {"n": 1})

    async def wait(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def ask(self, method: str, body: bytes) -> None:
        async with await self.door.stream() as stream:
            await stream.send_all(head(method, self.query, body, ()))
            with trio.move_on_after(1):
                await stream.receive_some()

    async def wait_for_poll(self) -> None:
        with trio.CancelScope() as scope:
            self.polls.append(scope)
            async with await self.door.stream() as stream:
                await stream.send_all(head("GET", self.query, b"", ()))
                with contextlib.suppress(trio.BrokenResourceError):
                    await stream.receive_some()

    async def leave(self) -> None:
        for scope in self.polls:
            scope.cancel()
        for ws in self.websockets:
            await trio.aclose_forcefully(ws)


@settings(max_examples=60)
@given(steps=steps)
def test_a_stranger_harms_nobody_and_leaves_nothing_behind(steps):
    trio.run(visit, steps, clock=trio.testing.MockClock(autojump_threshold=0))


async def visit(steps: list[tuple[str, object]]) -> None:
    async with daemon() as door:
        honest = await joined(door, {"token": token("123")})
        await honest.emit("subscribe", {"channels": ["trading_signals"]})
        assert (await honest.message())["type"] == "subscription_confirmed"
        events: list[int] = []
        door.nursery.start_soon(answer_pings, honest, events)
        await trio.testing.wait_all_tasks_blocked()
        tasks = daemon_tasks()
        stranger = Stranger(door)
        for number, step in enumerate(steps):
            await stranger.do(*step)
            await door.publish("trading_signal", {"n": number})
        await stranger.leave()
        await trio.sleep(120)  # longer than any deadline

        assert events == list(range(len(steps)))
        assert door.hub.counters.bugs == 0
        assert len(door.mount.clients) == len(door.hub.clients) == door.hub.seats.total == 1
        assert [len(audience.members) for audience in door.hub.routes] == [1]
        assert not door.hub.behind
        assert daemon_tasks() == tasks


def daemon_tasks() -> list[str]:
    """Return the names of the daemon's tasks; the clients of the test have some too."""
    found, tasks = [], [trio.lowlevel.current_root_task()]
    while tasks:
        task = tasks.pop()
        if task is None:
            continue
        found.append(task.name)
        tasks += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return sorted(name for name in found if name.startswith("cryptows."))


async def answer_pings(client: Client, events: list[int]) -> None:
    """Stay, like an honest client, and note the events that come."""
    while True:
        packet = await client.ws.connection.get_message()
        assert isinstance(packet, str)
        if packet == "2":
            await client.ws.send("3")
        elif '"type":"trading_signal"' in packet:
            events.append(json.loads(packet[2:])[1]["data"]["n"])


@pytest.mark.parametrize("packet", PACKETS)
def test_each_odd_packet_by_itself_after_joining(packet):
    """On both transports, as the only thing a joined client says."""
    for by_websocket in (False, True):
        send = ("websocket", ["40", packet]) if by_websocket else ("post", ["40", packet])
        opening = [("open_websocket", False)] if by_websocket else []
        trio.run(visit, [*opening, send], clock=trio.testing.MockClock(autojump_threshold=0))
