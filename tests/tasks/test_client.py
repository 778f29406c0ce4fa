"""A connected client: its requests, its heartbeat, and what it gets while others come and go."""

from __future__ import annotations

import json

import pytest
import trio

from cryptows.model.errors import Refusal
from cryptows.tasks import clock
from tests.tasks.house import House, Screen, house, quote, status, trade


async def subscribed(home: House, *channels: str, **options) -> Screen:
    """A client with a token that has subscribed."""
    screen = await home.screen(token=home.token(**options))
    answer = await screen.ask("subscribe", channels=list(channels))
    assert answer["type"] == "subscription_confirmed", answer
    return screen


# --- requests


async def test_a_subscription_is_confirmed_channel_by_channel(autojump_clock):
    async with house() as home:
        screen = await home.screen(token=home.token("7"))
        wanted = ["market_data:BTC*", "nonsense", "user_8_trades", "user_7_trades", "all_trades"]

        answer = await screen.ask("subscribe", channels=wanted)

        assert answer == {
            "type": "subscription_confirmed",
            "data": {
                "channels": ["market_data:BTC*", "user_7_trades"],
                "denied": [
                    {"channel": "nonsense", "code": "unknown_channel",
                     "message": "there is no such channel"},
                    {"channel": "user_8_trades", "code": "forbidden",
                     "message": "this channel is not for role user"},
                    {"channel": "all_trades", "code": "forbidden",
                     "message": "this channel is not for role user"},
                ],
            },
            "timestamp": clock.now_ms(),
            "id": 1,
        }  # fmt: skip


async def test_if_all_were_denied_the_answer_is_an_error(autojump_clock):
    async with house() as home:
        screen = await home.screen()
        answer = await screen.ask("subscribe", channels=["market_data", "nonsense"])

    assert answer["type"] == "error"
    assert answer["data"]["code"] == "forbidden"
    assert answer["data"]["message"] == "market_data: this channel needs a token"
    assert [denied["code"] for denied in answer["data"]["denied"]] == [
        "forbidden", "unknown_channel",
    ]  # fmt: skip


async def test_to_subscribe_again_changes_nothing(autojump_clock):
    async with house() as home:
        screen = await subscribed(home, "market_data", "market_data:BTCUSDT")
        again = await screen.ask("subscribe", channels=["market_data", "market_data:BTC*"])
        await home.publish(quote("BTCUSDT", 1))
        await screen.ask("unsubscribe", channels=["market_data:ETHUSDT"])

        assert again["data"]["channels"] == ["market_data", "market_data:BTC*"]
        assert len(screen.all("market_data_update")) == 1
        assert home.hub.gauges().subscriptions == 3


async def test_symbols_and_globs_choose(autojump_clock):
    async with house() as home:
        screen = await subscribed(home, "market_data:ETHUSDT", "market_data:BTC*")
        for symbol in ("BTCUSDT", "ETHUSDT", "BTCEUR", "SOLUSDT", "ETHEUR"):
            await home.publish(quote(symbol, 1))

        symbols = [m["data"]["symbol"] for m in screen.all("market_data_update")]
        assert symbols == ["BTCUSDT", "ETHUSDT", "BTCEUR"]


async def test_after_unsubscribing_nothing_more_comes(autojump_clock):
    async with house() as home:
        screen = await subscribed(home, "market_data", "trading_signals")
        answer = await screen.ask("unsubscribe", channels=["market_data", "never_had"])
        await home.publish(quote("BTCUSDT", 1))
        listed = await screen.ask("list")

        assert answer["type"] == "unsubscription_confirmed"
        assert answer["data"] == {"channels": ["market_data", "never_had"]}
        assert screen.all("market_data_update") == []
        assert listed["data"]["subscribed"] == ["trading_signals"]


async def test_the_list_tells_what_there_is_for_this_client(autojump_clock):
    async with house() as home:
        screen = await home.screen(token=home.token("7"))
        listed = await screen.ask("list")

    assert listed["data"] == {
        "subscribed": [],
        "channels": [
            "system_status", "market_data", "price_updates", "trading_signals",
            "user_7_trades", "user_7_positions", "user_7_alerts",
        ],
    }  # fmt: skip


async def test_there_are_so_many_subscriptions(autojump_clock):
    async with house("limits.subscriptions=2") as home:
        screen = await home.screen(token=home.token())
        answer = await screen.ask("subscribe", channels=[f"market_data:S{n}" for n in range(3)])

    assert answer["data"]["channels"] == ["market_data:S0", "market_data:S1"]
    assert answer["data"]["denied"] == [
        {
            "channel": "market_data:S2",
            "code": "too_many_subscriptions",
            "message": "a client may have 2",
        }
    ]


async def test_an_event_comes_with_its_bytes_as_they_were_fed(autojump_clock):
    async with house() as home:
        screen = await home.handshake(token=home.token())
        text = '{"type":"subscribe","channels":["market_data"]}'
        await screen.send(text)
        await home.settled()
        await screen.stream.receive_some()
        await home.publish(quote("BTCUSDT", 50000.5, note="ä€ \u2028", deep={"a": [1, 2.50]}))

        data = await screen.stream.receive_some()

        assert data[2:4] != b""
        assert json.loads(data[4:])["data"]["note"] == "ä€ \u2028"


async def test_history_is_read_beside_and_what_was_asked_meanwhile_waits_its_turn(autojump_clock):
    async with house() as home:
        await home.publish(*[quote("BTCUSDT", n) for n in range(5)])
        screen = await home.screen(token=home.token())
        await screen.send({"type": "history", "channel": "market_data", "id": "h"})
        for number in range(3):
            await screen.send({"type": "ping", "id": number})

        answers = [await screen.next() for _ in range(4)]

        assert [answer["id"] for answer in answers] == ["h", 0, 1, 2]
        assert [e["data"]["price"] for e in answers[0]["data"]["events"]] == [0, 1, 2, 3, 4]


async def test_not_more_requests_wait_than_there_may_be(autojump_clock, monkeypatch):
    async with house("limits.requests=5") as home:
        screen = await home.screen(token=home.token())
        (client,) = home.hub.clients.values()
        never = trio.Event()

        async def run(*_):
            await never.wait()

        monkeypatch.setattr("cryptows.tasks.replays.run", run)
        for _ in range(7):
            await screen.send({"type": "history", "channel": "market_data"})

        assert await screen.end() == (4029, "too many requests at once")
        assert client.over


async def test_a_bug_while_a_request_is_carried_out_ends_that_client_only(
    autojump_clock, monkeypatch
):
    async def run(*_):
        raise LookupError("bug")

    async with house(bugs=1) as home:
        screen, other = await home.screen(token=home.token()), await home.screen()
        monkeypatch.setattr("cryptows.tasks.replays.run", run)

        await screen.send({"type": "history", "channel": "market_data"})

        assert await screen.end() is None
        assert other.ended is None
        await home.settled()
        assert home.hub.counters.disconnects == {1011: 1}
        assert [line["event"] for line in home.logs] == ["client failed"]


# --- its heartbeat


async def test_a_client_is_pinged_at_its_interval_and_told_how_things_are(autojump_clock):
    async with house() as home:
        screen = await subscribed(home, "market_data:BTCUSDT", "system_status")
        await trio.sleep(10)
        await home.publish(quote("BTCUSDT", 1))
        await trio.sleep(90.1)

        assert screen.pings == pytest.approx([25, 50, 75, 100], abs=0.01)
        assert [at for at, m in screen.seen if m["type"] == "heartbeat"] == screen.pings
        assert screen.all("heartbeat")[0]["data"] == {
            "lagMs": 0,
            "skipped": 0,
            "channels": {
                "market_data:BTCUSDT": pytest.approx(15000, abs=10),
                "system_status": None,
            },
        }
        assert (home.hub.counters.pings, home.hub.counters.pongs) == (4, 4)


async def test_a_client_without_a_pong_is_closed(autojump_clock):
    async with house("heartbeat.interval=25s", "heartbeat.timeout=20s") as home:
        screen, other = await subscribed(home, "market_data"), await subscribed(home, "market_data")
        screen.pongs = False

        assert await screen.end() == (4010, "no pong for 20 s")
        assert trio.current_time() == pytest.approx(45, abs=0.01)
        await home.settled()
        assert home.hub.counters.pong_timeouts == 1
        assert home.hub.counters.disconnects == {4010: 1}
        assert other.ended is None


async def test_a_client_that_vanished_is_let_go(autojump_clock):
    async with house() as home:
        screen = await home.handshake()  # which reads nothing from now on
        await trio.sleep(45 + 2.9)
        assert home.hub.seats.total == 1
        await trio.sleep(0.2)

        assert home.hub.seats.total == 0
        assert home.hub.counters.disconnects == {4010: 1}
        await screen.stream.aclose()


async def test_nothing_but_a_pong_is_a_sign_of_life(autojump_clock):
    async with house() as home:
        screen = await home.screen(token=home.token())
        screen.pongs = False

        async def talk():
            while screen.ended is None:
                await screen.send({"type": "ping"})
                await trio.sleep(1)

        home.nursery.start_soon(talk)

        ended = await screen.end()

        assert ended is not None
        assert ended[0] == 4010


async def test_an_anonymous_client_that_subscribes_to_nothing_is_closed(autojump_clock):
    async with house("limits.anonymous_idle=60s") as home:
        idle = await home.screen()
        busy = await home.screen()
        known = await home.screen(token=home.token())
        await busy.ask("subscribe", channels=["system_status"])

        assert await idle.end() == (4001, "no token and no subscription")
        assert trio.current_time() == pytest.approx(60, abs=0.01)
        await trio.sleep(1000)
        assert (busy.ended, known.ended) == (None, None)

        await busy.ask("unsubscribe", channels=["system_status"])
        assert (await busy.end()) == (4001, "no token and no subscription")


async def test_a_hundred_clients_are_pinged_by_one_task(autojump_clock):
    async with house("limits.connections_per_address=1000") as home:
        for _ in range(100):
            await home.screen(token=home.token(str(_)))
        await trio.sleep(100.5)

        assert home.hub.counters.pings == home.hub.counters.pongs == 400
        assert len(home.hub.reaper) == 100


# --- its end


async def test_who_is_ended_during_a_pass_gets_nothing_after_its_close(autojump_clock):
    async with house() as home:
        screen, other = await subscribed(home, "market_data"), await subscribed(home, "market_data")
        (client, _) = home.hub.clients.values()

        home.hub.writing = True
        client.end(Refusal(4001, "out", come_back=False))
        client.message(b'{"type":"late","data":{},"timestamp":0}')
        client.queue([])
        assert client in client.audience.members
        home.hub.end_pass()
        await home.publish(quote("BTCUSDT", 1))

        assert await screen.end() == (4001, "out")
        assert [m["type"] for _, m in screen.seen][-1] == "subscription_confirmed"
        assert client not in client.audience.members
        assert len(other.all("market_data_update")) == 1


async def test_to_be_ended_twice_is_to_be_ended_once(autojump_clock):
    async with house() as home:
        screen = await home.screen()
        (client,) = home.hub.clients.values()

        client.end(Refusal(4001, "first", come_back=False))
        client.end(Refusal(4002, "second", come_back=False))

        assert await screen.end() == (4001, "first")
        await home.settled()
        client.gone(1000)
        client.end(Refusal(4002, "third", come_back=False))
        client.message(b"{}")
        client.control(b"\x89\x00")
        assert home.hub.counters.disconnects == {4001: 1}


async def test_requests_that_come_after_our_close_are_not_answered(autojump_clock):
    async with house() as home:
        screen = await home.screen()
        screen.pause()
        (client,) = home.hub.clients.values()
        client.end(Refusal(4001, "out", come_back=False))
        await screen.send({"type": "ping"})
        await home.settled()
        screen.resume()
        await screen.end()

        assert screen.all("pong") == []
        assert home.hub.counters.requests == 0


async def test_the_private_channels_of_one_are_not_anothers(autojump_clock):
    async with house() as home:
        one = await subscribed(home, "user_1_trades", user="1")
        other = await subscribed(home, "user_2_trades", user="2")
        boss = await subscribed(home, "user_1_trades", "user_2_trades", role="super_admin")

        await home.publish(trade("1"), trade("2"), trade("2"))
        await home.settled()

        counts = [len(screen.all("trade_execution")) for screen in (one, other, boss)]
        assert counts == [1, 2, 3]


async def test_confirmation_snapshot_and_live_events_follow_each_other(autojump_clock):
    async with house() as home:
        await home.publish(*[quote(symbol, 1) for symbol in "ABC"])
        screen = await home.screen(token=home.token())

        for n in range(2, 30):
            if n == 10:
                await screen.send({"type": "subscribe", "channels": ["market_data"]})
            await home.publish(*[quote(symbol, n) for symbol in "ABC"])
        await home.settled()

        types = [m["type"] for _, m in screen.seen[1:]]
        assert types[0] == "subscription_confirmed"
        events = screen.all("market_data_update")
        assert [e.get("snapshot") for e in events[:3]] == [True] * 3
        assert not any(e.get("snapshot") for e in events[3:])
        for symbol in "ABC":
            seqs = [e["seq"] for e in events if e["data"]["symbol"] == symbol]
            assert seqs == list(range(seqs[0], 30))


async def test_the_stores_state_reaches_everybody_once(autojump_clock):
    async with house() as home:
        screen = await home.screen()
        await screen.ask("subscribe", channels=["system_status"])

        home.hub.announce_store("open", "disk full", clock.now_ms())
        late = await home.screen()
        await late.ask("subscribe", channels=["system_status"])
        await home.publish(status())

        for each in (screen, late):
            told = [m for m in each.all("system_status") if m["data"].get("component") == "store"]
            assert len(told) == 1
            assert told[0]["data"] == {
                "component": "store", "status": "open", "reason": "disk full",
            }  # fmt: skip
