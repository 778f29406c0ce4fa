"""The official clients on Node against the daemon: unchanged, as the dashboards use them."""

from __future__ import annotations

import json
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.e2e.agents import Agent, needs_node, node
from tests.e2e.daemon import Daemon, running

pytestmark = [pytest.mark.e2e, needs_node]

TRANSPORTS = {
    "default": {},
    "polling": {"transports": ["polling"]},
    "websocket": {"transports": ["websocket"]},
}
FAST = ["channels.market_data.throttle=0s"]


async def connected(client: Agent, daemon: Daemon, **options: Any) -> dict[str, Any]:
    """Connect with a token, unless told otherwise; return the `connection` message."""
    options.setdefault("auth", {"token": daemon.token()})
    await client.do("open", url=daemon.http, options=options)
    await client.until("connect")
    return await client.message("connection")


def price(number: int, symbol: str = "BTCUSDT") -> dict[str, Any]:
    data = {"symbol": symbol, "price": number, "volume": 1}
    return {"type": "market_data_update", "data": data}


async def publish(daemon: Daemon, events: list[dict[str, Any]]) -> None:
    await trio.to_thread.run_sync(daemon.publish, events)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_the_seed_systems_client_works_unchanged(transport, tmp_path: Path):
    async with running(tmp_path, FAST) as daemon, node("sio_agent.mjs") as client:
        connection = await connected(client, daemon, **TRANSPORTS[transport])
        wanted = ["market_data", "trading_signals", "user_123_trades"]

        await client.do("emit", args=["subscribe", {"channels": wanted}])
        confirmed = await client.message("subscription_confirmed")
        await publish(daemon, [price(n) for n in range(1, 201)])
        trade = {"symbol": "BTCUSDT", "side": "buy", "quantity": 1, "price": 5}
        await publish(daemon, [{"type": "trade_execution", "user_id": "123", "data": trade}])
        fill = await client.message("trade_execution")

        assert connection["data"]["userId"] == "123"
        assert confirmed["data"] == {"channels": wanted, "denied": []}
        assert (fill["channel"], fill["data"]) == ("user_123_trades", trade)
        prices = client.envelopes("market_data_update")
        assert [e["data"]["price"] for e in prices] == list(range(1, 201))
        assert [e["seq"] for e in prices] == list(range(1, 201))
        assert {"upgrade"} & {told["on"] for told in client.seen} == (
            {"upgrade"} if transport == "default" else set()
        )


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_answers_come_by_the_ack_and_as_a_message(transport, tmp_path: Path):
    async with running(tmp_path) as daemon, node("sio_agent.mjs") as client:
        await connected(client, daemon, **TRANSPORTS[transport])

        answer = await client.answer("subscribe", {"channels": ["market_data"], "id": 7})

        assert answer["type"] == "subscription_confirmed"
        assert answer["id"] == 7
        await trio.sleep(0.2)
        assert client.envelopes("subscription_confirmed") == [answer]
        assert (await client.answer("ping", {}))["type"] == "pong"
        assert (await client.answer("nonsense"))["data"]["code"] == "bad_request"


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    ("token", "message", "code"),
    [
        ("garbage", "jwt malformed: expected header.payload.signature", "unauthorized"),
        (None, "jwt expired", "token_expired"),
    ],
)
async def test_a_bad_token_is_a_connect_error_and_the_client_stays_away(
    transport, token, message, code, tmp_path: Path
):
    async with running(tmp_path) as daemon, node("sio_agent.mjs") as client:
        auth = {"token": token or daemon.token(ttl=-60)}
        await client.do("open", url=daemon.http, options={"auth": auth, **TRANSPORTS[transport]})

        error = await client.until("connect_error")

        assert (error["message"], error["data"], error["active"]) == (
            message,
            {"code": code},
            False,
        )
        await client.quiet("reconnect_attempt", 0.5)


async def test_without_a_token_a_client_is_anonymous(tmp_path: Path):
    async with running(tmp_path) as daemon, node("sio_agent.mjs") as client:
        connection = await connected(client, daemon, auth={})

        assert (connection["data"]["userId"], connection["data"]["role"]) == (None, "anonymous")
        answer = await client.answer("subscribe", {"channels": ["market_data"]})
        assert answer["data"]["code"] == "forbidden"


async def test_another_namespace_is_invalid(tmp_path: Path):
    async with running(tmp_path) as daemon, node("sio_agent.mjs") as client:
        await connected(client, daemon)

        await client.do("open2", path="/admin")

        error = await client.until("connect_error")
        assert (error["name"], error["message"]) == ("/admin", "Invalid namespace")
        assert (await client.answer("ping", {}))["type"] == "pong"


@pytest.mark.parametrize("path", ["/socket.io", "/socket.io/"])
async def test_the_trailing_slash_does_not_matter(path, tmp_path: Path):
    async with running(tmp_path) as daemon, node("sio_agent.mjs") as client:
        await connected(client, daemon, path=path, addTrailingSlash=path.endswith("/"))

        assert (await client.answer("ping", {}))["type"] == "pong"


async def test_binary_arguments_and_odd_events_do_no_harm(tmp_path: Path):
    async with running(tmp_path) as daemon, node("sio_agent.mjs") as client:
        await connected(client, daemon)

        answer = await client.answer("subscribe", {"bytes": [1, 2, 3]})
        assert answer["data"]["code"] == "bad_request"
        assert (await client.answer(5, "x"))["data"]["code"] == "bad_request"
        assert (await client.answer("ping", {}))["type"] == "pong"


# How connections end


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_restarted_daemon_gets_its_clients_back(transport, tmp_path: Path):
    async with running(tmp_path, FAST) as daemon, node("sio_agent.mjs") as client:
        await connected(client, daemon, **TRANSPORTS[transport])
        if transport == "default":
            await client.ever("upgrade")

        await trio.to_thread.run_sync(daemon.restart)

        gone = await client.until("disconnect")
        assert gone["reason"] in ("transport close", "transport error")
        assert gone["active"]
        if transport != "polling":
            assert gone["code"] == 1012
        again = await client.until("connect")
        assert not again["recovered"]
        await client.answer("subscribe", {"channels": ["market_data"]})
        await publish(daemon, [price(7)])
        assert (await client.message("market_data_update"))["data"]["price"] == 7


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_ban_keeps_the_client_away(transport, tmp_path: Path):
    limits = ["limits.requests=5", "limits.strikes=1", "limits.ban=1min"]
    async with running(tmp_path, limits) as daemon, node("sio_agent.mjs") as client:
        await connected(client, daemon, **TRANSPORTS[transport])
        if transport == "default":
            await client.ever("upgrade")
        for _ in range(8):
            await client.do("emit", args=["ping", {}])

        gone = await client.until("disconnect")

        assert (gone["reason"], gone["active"]) == ("io server disconnect", False)
        limited = client.envelopes("error")
        assert [error["data"]["code"] for error in limited] == ["rate_limited"] * len(limited)
        await client.quiet("reconnect_attempt", 0.5)
        await client.do("connect")
        refused = await client.until("connect_error")
        assert refused.get("status") in (None, 429)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_an_expired_token_ends_the_client_which_may_come_back_with_a_new_one(
    transport, tmp_path: Path
):
    sets = ["auth.leeway=0s", "heartbeat.interval=500ms"]
    async with running(tmp_path, sets) as daemon, node("sio_agent.mjs") as client:
        auth = {"token": daemon.token(ttl=3)}
        await connected(client, daemon, auth=auth, **TRANSPORTS[transport])
        await client.message("token_expiring")
        await client.do("auth", auth={"token": daemon.token()})

        gone = await client.until("disconnect")

        assert gone["active"]
        if transport != "polling":
            assert gone["code"] == 4002
        assert client.envelopes("error")[-1]["data"]["code"] == "token_expired"
        await client.until("connect")
        assert (await client.answer("ping", {}))["type"] == "pong"


async def test_a_slow_client_is_let_go_and_comes_back(tmp_path: Path):
    sets = [*FAST, "delivery.outbox=64KiB", "delivery.kernel_buffer=8KiB"]
    async with running(tmp_path, sets) as daemon, node("sio_agent.mjs") as client:
        await connected(client, daemon, transports=["websocket"])
        await client.answer("subscribe", {"channels": ["user_123_alerts"]})
        client.process.send_signal(19)  # SIGSTOP: it reads nothing more
        alert = {"type": "user_alert", "user_id": "123", "data": {"message": "x" * 1000}}
        for _ in range(40):
            await publish(daemon, [alert] * 200)
            if daemon.metrics().get('cryptows_disconnects_total{code="4008"}'):
                break
        client.process.send_signal(18)

        gone = await client.until("disconnect")

        assert gone["code"] in (4008, 1006)
        await client.until("connect")


async def test_a_client_that_vanished_is_reaped(tmp_path: Path):
    sets = ["heartbeat.interval=300ms", "heartbeat.timeout=300ms"]
    async with running(tmp_path, sets) as daemon, AsyncExitStack() as stack:
        for options in TRANSPORTS.values():
            client = await stack.enter_async_context(node("sio_agent.mjs"))
            await connected(client, daemon, **options)
            client.process.kill()

        def nobody() -> bool:
            stats: bool = daemon.stats()["server"]["connectedClients"] == 0
            return stats

        await trio.to_thread.run_sync(daemon.wait_until, nobody)


# Recovery


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_lost_connection_is_recovered_with_what_was_missed(transport, tmp_path: Path):
    async with running(tmp_path, FAST) as daemon, node("sio_agent.mjs") as client:
        await connected(client, daemon, reconnectionDelay=300, **TRANSPORTS[transport])
        await client.answer("subscribe", {"channels": ["market_data:BTCUSDT", "user_123_alerts"]})
        if transport == "default":
            await client.ever("upgrade")
        first = client.told("connect")[0]["id"]
        for round_ in range(3):
            await publish(daemon, [price(10 * round_ + n) for n in range(3)])
            await client.do("drop")
            assert (await client.until("disconnect"))["active"]
            alert = {"type": "user_alert", "user_id": "123", "data": {"n": round_}}
            await publish(daemon, [price(10 * round_ + n) for n in range(3, 6)])
            await publish(daemon, [alert])

            again = await client.until("connect")

            assert (again["recovered"], again["id"]) == (True, first)
        await publish(daemon, [price(99)])
        await client.until("message", lambda told: told["envelope"]["data"].get("price") == 99)
        prices = [e["data"]["price"] for e in client.envelopes("market_data_update")]
        assert prices == [*range(6), *range(10, 16), *range(20, 26), 99]
        assert [e["data"]["n"] for e in client.envelopes("user_alert")] == [0, 1, 2]


async def test_a_copy_of_the_page_evicts_the_older_connection(tmp_path: Path):
    async with (
        running(tmp_path) as daemon,
        node("sio_agent.mjs") as older,
        node("raw_agent.mjs") as newer,
    ):
        await newer.do("open", url=daemon.http, transports=["websocket"])
        token = daemon.token()
        await newer.until("open")
        await newer.do("send", data=f"0{json.dumps({'token': token})}")
        granted = await newer.until("data", lambda told: told["data"].startswith("0"))
        pid = json.loads(granted["data"][1:])["pid"]
        offset = json.loads((await newer.until("data"))["data"][1:])[2]

        await connected(older, daemon, auth={"token": token, "pid": pid, "offset": offset})

        assert (await newer.until("data"))["data"] == "1"
        assert (await newer.until("close"))["code"] == 4031


# Load


@pytest.mark.slow
async def test_two_hundred_clients_upgrade_while_a_thousand_events_a_second_flow(tmp_path: Path):
    # On a busy machine one Node process with so many clients may well be slow for seconds.
    sets = [*FAST, "delivery.max_lag=60s"]
    async with running(tmp_path, sets) as daemon, node("crowd_agent.mjs") as crowd:
        opening = {"url": daemon.http, "token": daemon.token(), "clients": 200, "symbols": 20}
        await crowd.do("open", **opening)
        stop = trio.Event()
        count = 0

        async def feed() -> None:
            nonlocal count
            with daemon.producer(acks=False) as producer:
                started = time.monotonic()
                while not stop.is_set():
                    numbers = range(count, count + 10)
                    producer.send([price(n, f"S{n % 20}") for n in numbers])
                    count += 10
                    await trio.sleep(max(0.0, started + count / 1000 - time.monotonic()))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed)
            await crowd.until("upgraded")
            await trio.sleep(1)
            stop.set()
        last = {f"S{n % 20}": n for n in range(count - 20, count)}
        await crowd.do("expect", last=last)
        result = await crowd.until("result")

        assert result["faults"] == []
        assert (result["upgraded"], result["told"]) == (200, 0)
        assert daemon.logs("client task failed") == []
