"""Connection state recovery: what comes before the CONNECT answer, and who may have it."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest
import trio

from cryptows.config.load import defaults
from cryptows.config.settings import Limits, Recovery
from cryptows.model.channel import ChannelTable, History
from tests.tasks.door import Door
from tests.tasks.test_dashboard import Client, connect, daemon, joined, token


async def start(
    door: Door, user: str | None = "123", channels: tuple[str, ...] = ("trading_signals",)
) -> tuple[Client, dict[str, str], str]:
    """Connect and subscribe; return the client, the CONNECT answer and the offset."""
    auth = {} if user is None else {"token": token(user)}
    client = await connect(door, auth)
    granted = json.loads((await client.packet("40"))[2:])
    offset = (await client.message())["offset"]
    await client.emit("subscribe", {"channels": list(channels)})
    assert (await client.message())["type"] == "subscription_confirmed"
    return client, granted, offset


async def lose(door: Door, client: Client) -> None:
    await client.ws.cut()
    await door.settled()


def back(granted: dict[str, str], offset: str, user: str | None = "123") -> dict[str, Any]:
    """Return what the official client sends when it comes back."""
    auth = {"pid": granted["pid"], "offset": offset}
    return auth if user is None else {**auth, "token": token(user)}


async def recovering(door: Door) -> tuple[Client, dict[str, str], str]:
    """Return a client that has come back and waits for the end of a pass, as `start` does."""
    client, granted, offset = await start(door)
    await lose(door, client)
    await signal(door, 1)
    await door.settled()
    door.hub.writing = True
    again = await connect(door, back(granted, offset))
    await door.settled()
    return again, granted, offset


async def signal(door: Door, price: int) -> None:
    await door.publish("trading_signal", {"price": price})
    await trio.sleep(0.01)  # the dispatcher gathers events for a moment


def price_of(packet: str) -> int:
    price: int = json.loads(packet[2:])[1]["data"]["price"]
    return price


async def test_what_was_missed_comes_before_the_answer_and_the_session_goes_on(autojump_clock):
    async with daemon() as door:
        client, granted, _ = await start(door)
        await signal(door, 1)
        offset = (await client.message())["offset"]
        await lose(door, client)
        for price in (2, 3):
            await signal(door, price)

        again = await connect(door, back(granted, offset))
        missed = [await again.packet("42") for _ in range(2)]
        answer = json.loads((await again.packet("40"))[2:])
        await signal(door, 4)

        assert [price_of(packet) for packet in missed] == [2, 3]
        assert all('"replay":true' in packet for packet in missed)
        assert [packet.rpartition(",")[2] for packet in missed] == ['"epoch.2"]', '"epoch.3"]']
        assert answer == granted
        assert (await again.message())["type"] == "connection"
        live = await again.message()
        assert (live["data"], live.get("replay")) == ({"price": 4}, None)
        assert door.hub.counters.recovered == 1
        assert set(door.hub.clients) == {granted["sid"]}


async def test_it_works_with_no_event_received_yet_and_again_and_again(autojump_clock):
    async with daemon() as door:
        client, granted, offset = await start(door)
        for round_ in range(3):
            await lose(door, client)
            await signal(door, round_)

            client = await connect(door, back(granted, offset))
            assert price_of(await client.packet("42")) == round_
            assert json.loads((await client.packet("40"))[2:]) == granted
            offset = (await client.message())["offset"]


async def test_nothing_missed_is_recovered_too(autojump_clock):
    async with daemon() as door:
        client, granted, offset = await start(door)
        await lose(door, client)

        again = await connect(door, back(granted, offset))

        assert json.loads((await again.packet("40"))[2:]) == granted


async def test_an_anonymous_session_is_recovered_by_its_pid_alone(autojump_clock):
    async with daemon() as door:
        client, granted, offset = await start(door, None, ("system_status",))
        await lose(door, client)
        await door.publish("system_status", {"price": 9})
        await trio.sleep(0.01)

        again = await connect(door, back(granted, offset, None))

        assert price_of(await again.packet("42")) == 9
        assert json.loads((await again.packet("40"))[2:]) == granted


async def fresh(door: Door, auth: dict[str, Any], granted: dict[str, str]) -> Client:
    """Come back and be given a new session."""
    client = await connect(door, auth)
    answer = json.loads((await client.packet("40"))[2:])
    assert answer["pid"] != granted["pid"]
    assert answer["sid"] != granted["sid"]
    assert (await client.message())["type"] == "connection"
    return client


@pytest.mark.parametrize("user", ["124", None])
async def test_another_user_does_not_get_it(user, autojump_clock):
    async with daemon() as door:
        client, granted, offset = await start(door)
        await lose(door, client)
        await signal(door, 1)

        other = await fresh(door, back(granted, offset, user), granted)
        await other.emit("list")

        assert (await other.message())["data"]["subscribed"] == []
        again = await connect(door, back(granted, offset))  # it is still there for its owner
        assert price_of(await again.packet("42")) == 1


async def test_a_bad_token_does_not_recover(autojump_clock):
    async with daemon() as door:
        client, granted, offset = await start(door)
        await lose(door, client)

        again = await connect(door, {**back(granted, offset), "token": "garbage"})

        assert '"code":"unauthorized"' in await again.packet("44")


@pytest.mark.parametrize(
    "offset", ["other.0", "epoch.99", "epoch.", "epoch.²", "garbage", "", "epoch.-1"]
)
async def test_an_offset_that_means_nothing_gives_a_new_session(offset, autojump_clock):
    async with daemon() as door:
        client, granted, _ = await start(door)
        await lose(door, client)

        await fresh(door, back(granted, offset), granted)

        assert door.hub.counters.not_recovered == 1


@pytest.mark.parametrize("wrong", [{"pid": "made-up"}, {"pid": 7}, {"offset": 7}, {"pid": None}])
async def test_a_pid_that_means_nothing_gives_a_new_session(wrong, autojump_clock):
    async with daemon() as door:
        client, granted, offset = await start(door)
        await lose(door, client)

        await fresh(door, {**back(granted, offset), **wrong}, granted)


async def test_the_window_ends(autojump_clock):
    async with daemon() as door:
        client, granted, offset = await start(door)
        await lose(door, client)
        await trio.sleep(121)

        await fresh(door, back(granted, offset), granted)


async def test_what_can_no_longer_be_recovered_is_forgotten_by_itself(autojump_clock):
    async with daemon() as door:
        client, _, _ = await start(door)
        await lose(door, client)
        await trio.sleep(60)
        client, _, _ = await start(door)
        await lose(door, client)
        recoveries = door.mount.recoveries  # type: ignore[attr-defined]
        assert len(recoveries) == 2

        await trio.sleep(61)
        assert len(recoveries) == 1
        await trio.sleep(60)
        assert len(recoveries) == 0
        assert len(door.hub.reaper) == 0
        assert len(door.mount.clients) == 0


async def test_a_client_that_left_is_not_recovered(autojump_clock):
    async with daemon() as door:
        client, granted, offset = await start(door)
        await client.ws.send("41")
        await lose(door, client)

        await fresh(door, back(granted, offset), granted)


async def test_with_recovery_off_there_is_no_pid(autojump_clock):
    settings = attrs.evolve(defaults(), recovery=Recovery(window=0))
    async with daemon(settings) as door:
        client = await connect(door, {"token": token(), "pid": "x", "offset": "epoch.0"})

        assert list(json.loads((await client.packet("40"))[2:])) == ["sid"]


async def test_what_is_no_longer_kept_cannot_be_recovered(autojump_clock):
    settings = defaults()
    short = [attrs.evolve(c, history=History(events=2)) for c in settings.channels.classes]
    settings = attrs.evolve(settings, channels=ChannelTable(tuple(short)))
    async with daemon(settings) as door:
        client, granted, offset = await start(door)
        await lose(door, client)
        for price in range(3):
            await signal(door, price)
        await door.settled()

        await fresh(door, back(granted, offset), granted)


async def test_a_right_that_was_lost_meanwhile_gives_a_new_session(autojump_clock):
    async with daemon() as door:
        client = await connect(door, {"token": token("123", "admin")})
        granted = json.loads((await client.packet("40"))[2:])
        offset = (await client.message())["offset"]
        await client.emit("subscribe", {"channels": ["admin_alerts"]})
        await client.message()
        await lose(door, client)

        await fresh(door, back(granted, offset), granted)  # this token is a user's


async def test_the_older_connection_is_evicted(autojump_clock):
    async with daemon() as door:
        older, granted, offset = await start(door)
        await signal(door, 1)
        await older.message()

        newer = await connect(door, back(granted, offset))

        assert price_of(await newer.packet("42")) == 1
        assert json.loads((await newer.packet("40"))[2:]) == granted
        assert await older.packet("41") == "41"
        assert await older.ws.closed() == (4031, "another connection recovered this session")
        await signal(door, 2)
        assert (await newer.message())["type"] == "connection"
        assert (await newer.message())["data"] == {"price": 2}
        assert set(door.hub.clients) == {granted["sid"]}
        assert door.hub.seats.of_user("123") == 1
        assert len(door.mount.recoveries) == 0  # type: ignore[attr-defined]


async def test_who_is_still_recovering_is_evicted_too(autojump_clock):
    async with daemon() as door:
        second, granted, offset = await recovering(door)

        third = await connect(door, back(granted, offset))
        await door.settled()
        door.hub.end_pass()

        assert price_of(await third.packet("42")) == 1
        assert json.loads((await third.packet("40"))[2:]) == granted
        assert (await second.ws.closed())[0] == 4031
        assert len(door.mount.recoveries) == 0  # type: ignore[attr-defined]
        assert list(door.mount.live) == [granted["pid"]]  # type: ignore[attr-defined]


async def test_the_older_connection_is_not_the_one_too_many(autojump_clock):
    settings = attrs.evolve(defaults(), limits=Limits(connections_per_user=1))
    async with daemon(settings) as door:
        _, granted, offset = await start(door)

        newer = await connect(door, back(granted, offset))

        assert json.loads((await newer.packet("40"))[2:]) == granted
        assert door.hub.seats.of_user("123") == 1


async def test_who_is_one_too_many_may_try_the_recovery_again(autojump_clock):
    settings = attrs.evolve(defaults(), limits=Limits(connections_per_user=1))
    async with daemon(settings) as door:
        client, granted, offset = await start(door)
        await lose(door, client)
        other = await joined(door, {"token": token()})
        refused = await connect(door, back(granted, offset))
        assert "too many connections" in await refused.packet("44")
        await lose(door, other)

        again = await connect(door, back(granted, offset))

        assert json.loads((await again.packet("40"))[2:]) == granted


async def test_without_an_offset_it_begins_where_the_session_did(autojump_clock):
    async with daemon() as door:
        client, granted, _ = await start(door)
        await signal(door, 1)
        await lose(door, client)

        again = await connect(door, {"pid": granted["pid"], "token": token()})

        assert price_of(await again.packet("42")) == 1
        assert json.loads((await again.packet("40"))[2:]) == granted


async def test_another_user_cannot_evict(autojump_clock):
    async with daemon() as door:
        older, granted, offset = await start(door)

        await fresh(door, back(granted, offset, "124"), granted)
        await signal(door, 1)

        assert (await older.message())["data"] == {"price": 1}


async def test_recovery_by_polling(autojump_clock):
    async with daemon() as door:
        client, granted, offset = await start(door)
        await lose(door, client)
        await signal(door, 5)
        query = await door.open()

        await door.post(query, "40" + json.dumps(back(granted, offset)))
        packets: list[str] = []
        while len(packets) < 3:
            packets += await door.poll(query)

        assert price_of(packets[0]) == 5
        assert json.loads(packets[1][2:]) == granted
        assert '"type":"connection"' in packets[2]


async def test_many_missed_events_come_in_pieces_and_live_ones_after_them(autojump_clock):
    async with daemon() as door:
        client, granted, offset = await start(door)
        await lose(door, client)
        for price in range(900):
            await signal(door, price)

        again = await connect(door, back(granted, offset))
        door.nursery.start_soon(signal, door, 900)
        prices: list[int] = []
        answered = None
        while len(prices) < 901 or answered is None:
            packet = await again.ws.get()
            assert isinstance(packet, str)
            if packet.startswith("40"):
                answered = len(prices)
            elif '"type":"trading_signal"' in packet:
                prices.append(price_of(packet))

        assert prices == list(range(901))
        assert answered in (900, 901)


async def test_a_client_lost_again_while_it_recovers_may_try_once_more(autojump_clock):
    async with daemon() as door:
        second, granted, offset = await recovering(door)

        await lose(door, second)
        door.hub.end_pass()
        await door.settled()
        third = await connect(door, back(granted, offset))

        assert price_of(await third.packet("42")) == 1
        assert json.loads((await third.packet("40"))[2:]) == granted


async def test_a_recovered_client_keeps_its_place_among_those_recovered(autojump_clock):
    async with daemon() as door:
        client, granted, offset = await start(door)
        other = await joined(door, {"token": token("124")})
        await lose(door, client)

        again = await connect(door, back(granted, offset))
        await again.packet("40")

        assert len(door.hub.clients) == 2
        await lose(door, again)
        await lose(door, other)
        assert not door.hub.clients
        assert door.hub.seats.total == 0
        assert not list(door.hub.routes)
