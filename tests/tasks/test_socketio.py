"""Socket.IO on both transports, on the echo application of the official suites."""

from __future__ import annotations

import json

import pytest
import trio

from cryptows.model.errors import Refusal
from cryptows.wire.engineio import Timing
from cryptows.wire.socketsession import Ack, Connect, Event
from tests.e2e.echo_app import EchoSocket
from tests.tasks.door import Door, Peer, opened


async def joined(door: Door, namespace: str = "") -> Peer:
    """Open a WebSocket and join."""
    ws = await door.websocket()
    await ws.get()
    await ws.send(f"40{namespace}")
    await ws.get()
    await ws.get()
    return ws


@pytest.mark.parametrize(
    ("connect", "answer", "auth"),
    [
        ("40", "40{", '42["auth",{}]'),
        ('40{"token":"123"}', "40{", '42["auth",{"token":"123"}]'),
        ("40/custom", "40/custom,{", '42/custom,["auth",{}]'),
        ("40/custom,", "40/custom,{", '42/custom,["auth",{}]'),
        ('40/custom,{"token":"abc"}', "40/custom,{", '42/custom,["auth",{"token":"abc"}]'),
    ],
)
async def test_a_namespace_is_joined(connect, answer, auth, autojump_clock):
    async with opened(EchoSocket) as door:
        ws = await door.websocket()
        await ws.get()

        await ws.send(connect)

        granted = await ws.get()
        assert isinstance(granted, str)
        assert granted.startswith(answer)
        assert list(json.loads(granted[granted.index("{") :])) == ["sid"]
        assert await ws.get() == auth


async def test_namespaces_have_their_own_public_sids(autojump_clock):
    async with opened(EchoSocket) as door:
        ws = await door.websocket()
        opening = await ws.get()
        await ws.send("40", "40/custom")
        answers = [await ws.get() for _ in range(4)]

        sids = [json.loads(a[a.index("{") :])["sid"] for a in answers if "sid" in str(a)]  # type: ignore[arg-type]
        assert isinstance(opening, str)
        assert len({*sids, json.loads(opening[1:])["sid"]}) == 3


async def test_an_unknown_namespace_is_refused_and_the_connection_stays(autojump_clock):
    async with opened(EchoSocket) as door:
        ws = await joined(door)

        await ws.send("40/random", '42["message",1]')

        assert await ws.get() == '44/random,{"message":"Invalid namespace"}'
        assert await ws.get() == '42["message-back",1]'


async def test_who_joins_nothing_is_closed(autojump_clock):
    async with opened(EchoSocket) as door:
        ws = await door.websocket()

        assert await ws.closed() == (1008, "joined no namespace in time")
        assert trio.current_time() == pytest.approx(1.5)


async def test_who_leaves_everything_is_closed_later(autojump_clock):
    async with opened(EchoSocket) as door:
        ws = await joined(door)
        await trio.sleep(10)
        await ws.send("41")

        assert (await ws.closed())[0] == 1008
        assert trio.current_time() == pytest.approx(11.5)


async def test_leaving_one_namespace_leaves_the_other(autojump_clock):
    async with opened(EchoSocket) as door:
        ws = await joined(door, "/custom")
        await ws.send("40")
        await ws.get()
        await ws.get()

        await ws.send("41/custom", '42["message","still here"]')

        assert await ws.get() == '42["message-back","still here"]'
        await trio.sleep(10)
        await ws.send('42["message",1]')
        assert await ws.get() == '42["message-back",1]'


async def test_events_acks_and_attachments(autojump_clock):
    async with opened(EchoSocket) as door:
        ws = await joined(door)
        places = '{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}'

        await ws.send('42["message",1,"2",{"3":[true]}]')
        assert await ws.get() == '42["message-back",1,"2",{"3":[true]}]'

        await ws.send('42456["message-with-ack",1,"2",{"3":[false]}]')
        assert await ws.get() == '43456[1,"2",{"3":[false]}]'

        await ws.send(f'452-["message",{places}]', b"\1\2\3", b"\4\5\6")
        assert await ws.get() == f'452-["message-back",{places}]'
        assert [await ws.get(), await ws.get()] == [b"\1\2\3", b"\4\5\6"]

        await ws.send(f'452-789["message-with-ack",{places}]', b"\1\2\3", b"\4\5\6")
        assert await ws.get() == f"462-789[{places}]"
        assert [await ws.get(), await ws.get()] == [b"\1\2\3", b"\4\5\6"]


async def test_attachments_by_polling(autojump_clock):
    async with opened(EchoSocket) as door:
        query = await door.open()
        await door.post(query, "40")
        await door.poll(query)

        await door.post(
            query, '451-7["message-with-ack",{"_placeholder":true,"num":0}]\x1ebAQIDBA=='
        )

        assert await door.poll(query) == ['461-7[{"_placeholder":true,"num":0}]', "bAQIDBA=="]


@pytest.mark.parametrize(
    "message",
    [
        "40", "4abc", "42{}", '42abc["message-with-ack",1]', "42[]", '42["connect"]', "47", "44",
        '42/custom,["message",1]', '42/random,["message",1]', "41/custom", '4511-["message"]',
        '42["message",' + "0," * 100 + "0]", "42" + "[" * 100_000, b"\1\2\3", "4",
    ],
)  # fmt: skip
async def test_what_makes_no_sense_closes_its_sender_and_nobody_else(message, autojump_clock):
    async with opened(EchoSocket) as door:
        other, ws = await joined(door), await joined(door)

        await ws.send(message)

        assert (await ws.closed())[0] == 1002
        await other.send('42["message","untouched"]')
        assert await other.get() == '42["message-back","untouched"]'
        assert len(door.mount.clients) == 1


@pytest.mark.parametrize("message", ['42["message",1]', "41", "43", '451-["m"]', "4"])
async def test_only_a_connect_may_come_first(message, autojump_clock):
    async with opened(EchoSocket) as door:
        ws = await door.websocket()

        await ws.send(message)

        assert (await ws.closed())[0] == 1002


async def test_text_between_attachments_closes(autojump_clock):
    async with opened(EchoSocket) as door:
        ws = await joined(door)

        await ws.send('451-["message",{"_placeholder":true,"num":0}]', '42["message",1]')

        assert (await ws.closed())[0] == 1002


async def test_a_bad_packet_by_polling_ends_only_that_session(autojump_clock):
    async with opened(EchoSocket) as door:
        query, other = await door.open(), await door.open()
        for each in (query, other):
            await door.post(each, "40")
            await door.poll(each)
        poll = door.start_poll(query)
        await door.settled()

        posted = await door.post(query, "42{}")

        assert posted.body == b"ok"
        assert await poll.packets() == ["1"]
        assert (await door.get(query)).status == 400
        await door.post(other, '42["message",1]')
        assert await door.poll(other) == ['42["message-back",1]']


@pytest.mark.parametrize("come_back", [True, False])
async def test_a_terminal_end_says_goodbye_to_each_namespace_first(come_back, autojump_clock):
    async with opened(EchoSocket) as door:
        ws = await joined(door)
        await ws.send("40/custom")
        await ws.get()
        await ws.get()
        (client,) = door.mount.clients.values()

        client.end(Refusal(4029, "enough", come_back=come_back))

        if not come_back:
            assert [await ws.get(), await ws.get()] == ["41", "41/custom,"]
        assert await ws.closed() == (4029, "enough")


@pytest.mark.parametrize("waiting", [True, False])
async def test_a_terminal_end_by_polling_says_goodbye_with_the_last_poll(waiting, autojump_clock):
    async with opened(EchoSocket, Timing(25, 20)) as door:
        query = await door.open()
        await door.post(query, "40")
        await door.poll(query)
        poll = door.start_poll(query) if waiting else None
        await door.settled()
        (client,) = door.mount.clients.values()

        client.end(Refusal(4029, "enough", come_back=False))
        await trio.sleep(1)

        last = await poll.packets() if poll is not None else await door.poll(query)
        assert last == ["41"]
        assert await door.poll(query) == ["1"]
        assert (await door.get(query)).status == 400


class Asking(EchoSocket):
    """Asks the client back, and notes what it answers and when it leaves."""

    __slots__ = ()
    noted: list[object] = []  # noqa: RUF012 - one test, one list

    async def connecting(self, wish: Connect) -> None:
        if wish.auth == {"token": "bad"}:
            self.refuse(wish.namespace, "jwt expired", {"code": "token_expired"})
            return
        self.accept(wish.namespace, "public")
        self.emit(wish.namespace, "q", "x", call="mine")

    async def happened(self, event: Event) -> None:
        self.noted.append(event.name)

    async def acked(self, ack: Ack) -> None:
        self.noted.append((ack.call, ack.arguments))

    async def left(self, namespace: str) -> None:
        self.noted.append(f"left {namespace}")


async def test_a_server_may_ask_too(autojump_clock):
    Asking.noted.clear()
    async with opened(Asking) as door:
        ws = await door.websocket()
        await ws.get()
        await ws.send("40")
        assert await ws.get() == '40{"sid":"public"}'
        assert await ws.get() == '420["q","x"]'

        await ws.send('430[{"ok":1}]', "430[]", "439[]", "42[7]", "41")
        await door.settled()

    assert Asking.noted == [("mine", [{"ok": 1}]), 7, "left /"]


async def test_a_refused_client_may_try_again_on_the_same_transport(autojump_clock):
    async with opened(Asking) as door:
        ws = await door.websocket()
        await ws.get()

        await ws.send('40{"token":"bad"}', "40")

        assert await ws.get() == '44{"message":"jwt expired","data":{"code":"token_expired"}}'
        assert await ws.get() == '40{"sid":"public"}'
