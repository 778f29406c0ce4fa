"""Dashboards: the daemon's Socket.IO clients, from CONNECT to their end."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio

from cryptows.broker.auth import make_token
from cryptows.config.load import defaults
from cryptows.config.settings import Auth, Limits, Settings
from cryptows.model.errors import Refusal
from cryptows.tasks.dashboard import Dashboard
from cryptows.tasks.recover import DashboardMount, timing
from tests.tasks.door import KEY, Door, Peer, head, opened


def token(user: str = "123", role: str = "user", ttl: float | None = 3600) -> str:
    return make_token(KEY, "HS256", user, role, ttl, time.time())


@asynccontextmanager
async def daemon(settings: Settings | None = None) -> AsyncIterator[Door]:
    """The dashboards of a daemon, with its dispatcher."""
    settings = settings or defaults()
    async with opened(Dashboard, timing(settings), settings, DashboardMount) as door:
        await door.start_feed()
        yield door


@attrs.define(eq=False)
class Client:
    """A dashboard by hand."""

    ws: Peer

    async def packet(self, begin: str) -> str:
        """Return the next packet that begins so; others must be heartbeats."""
        while True:
            packet = await self.ws.get()
            assert isinstance(packet, str)
            if packet.startswith(begin):
                return packet
            assert packet == "2", packet
            await self.ws.send("3")

    async def message(self) -> dict[str, Any]:
        """Return the next envelope."""
        event = json.loads((await self.packet("42"))[2:])
        assert event[0] == "message"
        if len(event) == 3:
            assert event[2] == event[1]["offset"]
        envelope: dict[str, Any] = event[1]
        return envelope

    async def emit(self, name: str, *arguments: Any, id: int | None = None) -> None:
        number = "" if id is None else id
        await self.ws.send(f"42{number}{json.dumps([name, *arguments])}")


async def connect(door: Door, auth: Any = None, *headers: tuple[str, str]) -> Client:
    """Open a WebSocket and CONNECT; the answer is the next packet."""
    ws = await door.websocket("", *headers)
    await ws.get()
    await ws.send("40" if auth is None else f"40{json.dumps(auth)}")
    return Client(ws)


async def joined(door: Door, auth: Any = None, *headers: tuple[str, str]) -> Client:
    client = await connect(door, auth, *headers)
    await client.packet("40")
    assert (await client.message())["type"] == "connection"
    return client


FROM = ("X-Forwarded-For", "192.0.2.9")  # believed: it comes over a Unix socket


# CONNECT


@pytest.mark.parametrize("auth", [None, {}, {"token": None}, {"token": ""}])
async def test_without_a_token_a_client_is_anonymous(auth, autojump_clock):
    async with daemon() as door:
        client = await connect(door, auth)

        granted = json.loads((await client.packet("40"))[2:])
        connection = await client.message()

        assert list(granted) == ["sid", "pid"]
        assert connection["data"] == {
            "clientId": granted["sid"],
            "userId": None,
            "role": "anonymous",
            "epoch": "epoch",
            "heartbeatInterval": 25000,
            "channels": ["system_status"],
        }
        assert connection["offset"] == "epoch.0"
        assert set(door.hub.clients) == {granted["sid"]}


async def test_the_token_says_who_it_is(autojump_clock):
    async with daemon() as door:
        client = await connect(door, {"token": token("123", "admin")})

        await client.packet("40")
        connection = await client.message()

        assert (connection["data"]["userId"], connection["data"]["role"]) == ("123", "admin")
        assert "admin_alerts" in connection["data"]["channels"]
        assert door.hub.seats.of_user("123") == 1


@pytest.mark.parametrize(
    ("wrong", "message", "code"),
    [
        ("garbage", "jwt malformed: expected header.payload.signature", "unauthorized"),
        (make_token(b"x" * 32, "HS256", "1", "user", 60, 1e9), "jwt signature does not match",
         "unauthorized"),
        (make_token(KEY, "HS256", "1", "user", 60, 1e9), "jwt expired", "token_expired"),
        (7, "the token must be a string", "unauthorized"),
        (["x"], "the token must be a string", "unauthorized"),
    ],
)  # fmt: skip
async def test_a_bad_token_is_a_connect_error(wrong, message, code, autojump_clock):
    async with daemon() as door:
        client = await connect(door, {"token": wrong})

        refused = json.loads((await client.packet("44"))[2:])

        assert refused == {"message": message, "data": {"code": code}}
        assert not door.hub.clients
        await client.ws.send('40{"token":"' + token() + '"}')
        await client.packet("40")


async def test_a_daemon_may_want_a_token_of_everybody(autojump_clock):
    settings = attrs.evolve(defaults(), auth=Auth(anonymous=False))
    async with daemon(settings) as door:
        client = await connect(door)

        refused = json.loads((await client.packet("44"))[2:])

        assert refused == {"message": "a token is needed", "data": {"code": "unauthorized"}}


async def test_a_users_connections_are_counted_over_all_dialects(autojump_clock):
    settings = attrs.evolve(defaults(), limits=Limits(connections_per_user=1))
    async with daemon(settings) as door:
        first = await joined(door, {"token": token()})
        second = await connect(door, {"token": token()})

        refused = json.loads((await second.packet("44"))[2:])

        assert refused["data"] == {"code": "rate_limited", "retryAfterMs": 5000}
        await first.ws.close()
        await door.settled()
        await second.ws.send('40{"token":"' + token() + '"}')
        await second.packet("40")


async def test_a_banned_user_is_told_when_to_come_back(autojump_clock):
    async with daemon() as door:
        door.hub.bans.ban("123", "192.0.2.7", trio.current_time())
        client = await connect(door, {"token": token()})

        refused = json.loads((await client.packet("44"))[2:])

        assert refused["data"] == {"code": "rate_limited", "retryAfterMs": 300_000}


async def test_guessing_tokens_counts_as_requests(autojump_clock):
    settings = attrs.evolve(defaults(), limits=Limits(requests=3, strikes=1))
    async with daemon(settings) as door:
        client = await connect(door, {"token": "garbage"}, FROM)
        for _ in range(10):
            await client.ws.send('40{"token":"garbage"}')

        code, _reason = await client.ws.closed()

        assert code == 4029
        assert len(door.hub.bans) == 1


async def test_other_namespaces_do_not_exist(autojump_clock):
    async with daemon() as door:
        client = await joined(door)

        await client.ws.send("40/admin")

        assert await client.packet("44") == '44/admin,{"message":"Invalid namespace"}'


# Requests


async def test_a_subscription_is_confirmed_and_brings_events(autojump_clock):
    async with daemon() as door:
        client = await joined(door, {"token": token()})

        await client.emit("subscribe", {"channels": ["trading_signals", "admin_alerts"], "id": 7})
        confirmed = await client.message()
        await door.publish("trading_signal", {"symbol": "BTCUSDT", "price": 1})
        event = await client.message()

        assert (confirmed["type"], confirmed["id"]) == ("subscription_confirmed", 7)
        assert confirmed["data"]["channels"] == ["trading_signals"]
        assert [denied["code"] for denied in confirmed["data"]["denied"]] == ["forbidden"]
        assert (event["type"], event["data"]) == (
            "trading_signal",
            {"symbol": "BTCUSDT", "price": 1},
        )
        assert (event["seq"], event["offset"]) == (1, "epoch.1")


@pytest.mark.parametrize(
    ("name", "argument", "type_"),
    [
        ("subscribe", {"channels": ["market_data"]}, "subscription_confirmed"),
        ("unsubscribe", {"channels": ["market_data"]}, "unsubscription_confirmed"),
        ("list", {}, "list"),
        ("list", None, "list"),
        ("ping", {}, "pong"),
        ("history", {"channel": "market_data"}, "history"),
        ("authenticate", {"token": token()}, "authenticated"),
        ("subscribe", {"channels": ["nowhere"]}, "error"),
        ("subscribe", {}, "error"),
        ("subscribe", "market_data", "error"),
        ("nonsense", {}, "error"),
        ("authenticate", {"token": "garbage"}, "error"),
    ],
)
async def test_answers_come_by_the_ack_and_as_a_message(name, argument, type_, autojump_clock):
    async with daemon() as door:
        client = await joined(door, {"token": token()})

        await client.emit(name, argument, id=12)
        ack = json.loads((await client.packet("4312"))[4:])
        message = await client.message()

        assert ack == [message]
        assert message["type"] == type_


async def test_without_an_ack_the_answer_is_a_message_alone(autojump_clock):
    async with daemon() as door:
        client = await joined(door)

        await client.emit("ping")
        await client.emit("ping", {"id": "second"})

        assert (await client.message())["type"] == "pong"
        assert (await client.message())["id"] == "second"


async def test_a_numeric_event_is_answered_with_an_error(autojump_clock):
    async with daemon() as door:
        client = await joined(door)

        await client.ws.send("42[1,2]")

        assert (await client.message())["data"]["code"] == "bad_request"


async def test_an_ack_in_the_argument_is_not_taken_for_ours(autojump_clock):
    async with daemon() as door:
        client = await joined(door)

        await client.emit("ping", {"event": {"id": 5}, "id": 1})

        assert (await client.message())["type"] == "pong"


async def test_too_many_requests_are_refused_and_then_banned_for_good(autojump_clock):
    settings = attrs.evolve(defaults(), limits=Limits(requests=3, strikes=2))
    async with daemon(settings) as door:
        client = await joined(door, {"token": token()}, FROM)
        for number in range(6):
            await client.emit("ping", {"id": number})

        types = [await client.message() for _ in range(6)]
        assert [t["type"] for t in types] == ["pong"] * 3 + ["error"] * 3
        assert types[3]["data"]["code"] == "rate_limited"
        assert await client.packet("41") == "41"
        assert (await client.ws.closed())[0] == 4029
        assert (await door.get("EIO=4&transport=polling", FROM)).status == 429


async def test_a_ban_reaches_the_users_other_connections_when_they_ask_next(autojump_clock):
    settings = attrs.evolve(defaults(), limits=Limits(requests=2, strikes=1))
    async with daemon(settings) as door:
        one, other = [await joined(door, {"token": token()}) for _ in "12"]
        stranger = await joined(door, {"token": token("124")})
        for number in range(4):
            await one.emit("ping", {"id": number})
        assert (await one.ws.closed())[0] == 4029

        await other.emit("ping")
        await stranger.emit("ping")

        assert (await other.message())["data"]["retryAfterMs"] > 290_000
        assert (await other.ws.closed())[0] == 4029
        assert (await stranger.message())["type"] == "pong"


async def test_whose_address_is_not_known_bans_nobody_else(autojump_clock):
    settings = attrs.evolve(defaults(), limits=Limits(requests=2, strikes=1))
    async with daemon(settings) as door:
        one, other = [await joined(door) for _ in "12"]
        for number in range(4):
            await one.emit("ping", {"id": number})
        assert (await one.ws.closed())[0] == 4029

        await other.emit("ping")

        assert (await other.message())["type"] == "pong"
        assert (await door.get("EIO=4&transport=polling")).status == 200


async def test_a_wrong_first_token_by_event_ends_the_client(autojump_clock):
    async with daemon() as door:
        client = await joined(door)

        await client.emit("authenticate", {"token": "garbage"})

        assert (await client.message())["data"]["code"] == "unauthorized"
        assert await client.packet("41") == "41"
        assert (await client.ws.closed())[0] == 4001


# Polling


async def test_everything_works_by_polling(autojump_clock):
    async with daemon() as door:
        query = await door.open()
        await door.post(query, '40{"token":"' + token() + '"}')
        first = await door.poll(query)
        assert first[0].startswith('40{"sid"')
        assert first[1].startswith('42["message",{"type":"connection"')

        await door.post(query, '421["subscribe",{"channels":["trading_signals"]}]')
        answer = await door.poll(query)
        assert [packet[:3] for packet in answer] == ["431", "42["]
        poll = door.start_poll(query)
        await door.settled()
        await door.publish("trading_signal", {"price": 1})

        (event,) = await poll.packets()
        assert json.loads(event[2:])[1]["data"] == {"price": 1}
        assert event.endswith(',"epoch.1"]')


# Time


async def test_the_heartbeat_tells_how_the_channels_are(autojump_clock):
    async with daemon() as door:
        client = await joined(door, {"token": token()})
        await client.emit("subscribe", {"channels": ["market_data"]})
        await client.message()

        assert await client.ws.get() == "2"
        beat = await client.message()

        assert trio.current_time() == pytest.approx(25)
        assert beat["type"] == "heartbeat"
        assert beat["data"] == {"lagMs": 0, "skipped": 0, "channels": {"market_data": None}}


async def test_a_poll_brings_ping_and_heartbeat_together(autojump_clock):
    async with daemon() as door:
        query = await door.open()
        await door.post(query, "40")
        await door.poll(query)

        ping, beat = await door.poll(query)

        assert ping == "2"
        assert '"type":"heartbeat"' in beat


async def test_an_anonymous_client_that_subscribes_to_nothing_must_go(autojump_clock):
    async with daemon() as door:
        client = await joined(door)

        assert await client.packet("42")  # a heartbeat
        assert await client.packet("42")
        assert await client.packet("41") == "41"
        assert (await client.ws.closed())[0] == 4001
        assert trio.current_time() == pytest.approx(60)


async def test_a_client_that_does_not_answer_pings_may_come_back(autojump_clock):
    async with daemon() as door:
        client = await joined(door, {"token": token()})

        assert await client.ws.closed() == (4010, "no pong for 20 s")
        assert not door.hub.clients
        assert len(door.mount.recoveries) == 1  # type: ignore[attr-defined]


async def test_a_poller_that_does_not_poll_is_called_silent_and_not_slow(autojump_clock):
    async with daemon() as door:
        query = await door.open()
        await door.post(query, "40" + json.dumps({"token": token()}))
        await door.poll(query)

        await trio.sleep(44)
        assert len(door.hub.clients) == 1
        await trio.sleep(2)

        assert door.hub.counters.disconnects == {4010: 1}
        assert door.hub.gauges().slow_clients == 0


async def test_asking_for_namespaces_that_do_not_exist_counts_as_requests(autojump_clock):
    settings = attrs.evolve(defaults(), limits=Limits(requests=3, strikes=1))
    async with daemon(settings) as door:
        client = await joined(door, {"token": token()})

        for _ in range(5):
            await client.ws.send("40/nope")

        for _ in range(3):
            assert await client.packet("44/nope")
        for _ in range(2):
            assert (await client.message())["data"]["code"] == "rate_limited"
        assert await client.packet("41") == "41"
        assert (await client.ws.closed())[0] == 4029


@pytest.mark.parametrize("post", ["9", b"\x00", None])
async def test_one_that_is_ending_and_then_errs_leaves_nothing_behind(post, autojump_clock):
    async with daemon() as door:
        query = await door.open()
        await door.post(query, "40")
        await door.poll(query)
        await door.post(query, '42["authenticate",{"token":"x"}]')  # it ends, and may poll once

        if post is None:
            stream = await door.stream()
            await stream.send_all(head("POST", query, b"12345", ())[:-2])
            await stream.aclose()
        else:
            octets = (
                () if isinstance(post, str) else (("Content-Type", "application/octet-stream"),)
            )
            await door.post(query, post, *octets)
        await trio.sleep(1)

        assert not door.mount.clients
        assert door.hub.seats.total == 0
        assert not door.hub.behind


# Ends


@pytest.mark.parametrize(("come_back", "left"), [(True, 1), (False, 0)])
async def test_only_who_may_come_back_is_remembered(come_back, left, autojump_clock):
    async with daemon() as door:
        client = await joined(door, {"token": token()})
        (daemons,) = door.hub.clients.values()

        daemons.end(Refusal(4001, "revoked", come_back=come_back))

        if not come_back:
            assert await client.packet("41") == "41"
        assert await client.ws.closed() == (4001, "revoked")
        assert not door.hub.clients
        assert not door.mount.live  # type: ignore[attr-defined]
        assert len(door.mount.recoveries) == left  # type: ignore[attr-defined]
        assert door.hub.counters.disconnects == {4001: 1}


async def test_a_client_may_leave_and_come_back_as_somebody_else(autojump_clock):
    async with daemon() as door:
        client = await joined(door, {"token": token("123")})
        await client.emit("subscribe", {"channels": ["user_123_trades"]})
        await client.message()

        await client.ws.send("41", '40{"token":"' + token("124") + '"}')
        await client.packet("40")
        connection = await client.message()
        await door.publish("trade_execution", {"symbol": "X"}, user_id="123")
        await client.emit("list")
        listed = await client.message()

        assert connection["data"]["userId"] == "124"
        assert (listed["type"], listed["data"]["subscribed"]) == ("list", [])
        assert (door.hub.seats.of_user("123"), door.hub.seats.of_user("124")) == (0, 1)
        assert len(door.hub.clients) == 1
        assert len(door.mount.recoveries) == 0  # type: ignore[attr-defined]


async def test_a_client_may_leave_while_its_history_is_read(autojump_clock):
    async with daemon() as door:
        client = await joined(door, {"token": token("123")})

        await client.emit("subscribe", {"channels": ["user_123_trades"], "since": "epoch.0"})
        await client.emit("history", {"channel": "user_123_trades"})
        await client.ws.send("41", "40", '42["list"]')
        await client.ws.send("3")
        await door.settled()
        await trio.sleep(1)

        (daemons,) = door.hub.clients.values()
        assert daemons.session.identity.user_id is None
        assert not daemons.session.patterns


async def leaving(door: Door) -> Client:
    """Let a client leave whose request is still being carried out."""
    client = await joined(door, {"token": token("123")})
    await door.hub.replaying.acquire()  # what is carried out waits for its turn
    await client.emit("subscribe", {"channels": ["user_123_trades"], "since": "epoch.0"})
    await client.ws.send("41", "40")
    await trio.sleep(1)
    return client


async def test_a_client_that_leaves_waits_for_what_is_carried_out(autojump_clock):
    async with daemon() as door:
        client = await leaving(door)
        assert not door.hub.clients

        door.hub.replaying.release()

        assert json.loads((await client.packet("40"))[2:])
        assert (await client.message())["data"]["userId"] is None
        (daemons,) = door.hub.clients.values()
        assert not daemons.session.patterns


async def test_a_client_that_goes_while_it_leaves_leaves_nothing(autojump_clock):
    async with daemon() as door:
        client = await leaving(door)

        await client.ws.cut()
        door.hub.replaying.release()
        await trio.sleep(1)

        assert not door.mount.clients
        assert door.hub.seats.total == 0
        assert not list(door.hub.routes)


async def test_a_client_that_is_ended_while_it_leaves_goes_at_last(autojump_clock):
    async with daemon() as door:
        client = await leaving(door)

        await trio.sleep(50)  # it owes a pong by now
        door.hub.replaying.release()

        assert (await client.ws.closed())[0] == 1000
        assert not door.mount.clients
        assert door.hub.seats.total == 0


@pytest.mark.parametrize("go", ["close", "cut"])
async def test_a_client_that_goes_leaves_nothing_but_its_memory(go, autojump_clock):
    async with daemon() as door:
        client = await joined(door, {"token": token()})
        await client.emit("subscribe", {"channels": ["market_data"]})
        await client.message()

        await getattr(client.ws, go)()
        await door.settled()

        assert not door.hub.clients
        assert not door.mount.clients
        assert door.hub.seats.total == 0
        assert door.hub.seats.users == 0
        assert not list(door.hub.routes)
        assert len(door.mount.recoveries) == 1  # type: ignore[attr-defined]


async def test_a_slow_client_by_polling_is_let_go_and_may_come_back(autojump_clock):
    delivery = attrs.evolve(defaults().delivery, outbox=4096)
    async with daemon(attrs.evolve(defaults(), delivery=delivery)) as door:
        query = await door.open()
        await door.post(query, '40{"token":"' + token() + '"}')
        await door.poll(query)
        await door.post(query, '42["subscribe",{"channels":["user_123_trades"]}]')
        await door.poll(query)

        for _ in range(10):
            await door.publish("trade_execution", {"symbol": "x" * 900}, user_id="123")
        await trio.sleep(1)

        assert door.hub.counters.disconnects == {4008: 1}
        assert (await door.get(query)).status == 400
