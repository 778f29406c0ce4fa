"""Who becomes a client on `/ws`, as whom, and what the others are told."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest
import trio

from cryptows.model.errors import Refusal
from cryptows.tasks import clock
from tests.tasks.door import read_answer
from tests.tasks.house import CLIENT, House, Screen, head, house, status, trade, upgrade

PAGE = "http://localhost:3000"


async def refused(home: House, *headers: tuple[str, str], path: str = "/ws", **options):
    """The answer to a handshake that is no 101."""
    return await home.ask(upgrade(path, headers), **options)


# --- before the 101


@pytest.mark.parametrize("origin", [None, PAGE, "HTTP://LOCALHOST:3000"])
async def test_allowed_origins_and_programs_come_in(autojump_clock, origin):
    async with house() as home:
        await home.screen(*([("Origin", origin)] if origin else []))


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:4000", ""])
async def test_a_foreign_origin_is_refused_before_the_101(autojump_clock, origin):
    async with house() as home:
        token = home.token()
        answer = await refused(home, ("Origin", origin), ("Authorization", f"Bearer {token}"))

        assert (answer.status, answer.body) == (403, b"this origin is not in cors.origins\n")
        assert home.hub.counters.refusals == {"origin": 1}
        assert home.hub.seats.total == 0


@pytest.mark.parametrize(
    ("raw", "code", "header"),
    [
        (head("/ws"), 426, ("upgrade", "websocket")),
        (head("/ws", [("Upgrade", "websocket"), ("Connection", "Upgrade")]), 400, None),
        (upgrade().replace(b"-Version: 13", b"-Version: 8"), 426, ("sec-websocket-version", "13")),
        (upgrade().replace(b"GET", b"POST"), 405, ("allow", "GET")),
        (upgrade().replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"short"), 400, None),
    ],
)
async def test_what_is_no_handshake_is_told_why(autojump_clock, raw, code, header):
    async with house() as home:
        raw = raw.replace(b"Host: ", f"Origin: {PAGE}\r\nHost: ".encode())
        answer = await home.ask(raw)

        assert answer.status == code
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert home.hub.counters.refusals == {"handshake": 1}
        if header:
            assert answer.headers[header[0]] == header[1]


async def test_a_daemon_that_drains_takes_nobody(autojump_clock):
    async with house() as home:
        home.hub.draining = True
        answer = await refused(home)

    assert (answer.status, answer.headers["retry-after"]) == (503, "1")


async def test_who_was_shaking_hands_when_the_drain_began_is_told_to_come_back(autojump_clock):
    async with house() as home:
        admit = home.sites["/ws"].answer

        async def slow(connection, request):
            takeover = await admit(connection, request)
            home.hub.draining = True
            return takeover

        home.sites["/slow"] = Answering(slow)
        screen = await home.screen(path="/slow")

        assert await screen.end() == (1012, "the daemon restarts; come back")


@attrs.frozen
class Answering:
    """A site that is a function."""

    answer: Any


# --- tokens


async def test_without_a_token_a_client_is_nobody(autojump_clock):
    async with house() as home:
        screen = await home.screen(welcome=False)
        first = await screen.next()

    assert first["type"] == "connection"
    assert first["data"] == {
        "clientId": first["data"]["clientId"],
        "userId": None,
        "role": "anonymous",
        "epoch": "epoch",
        "heartbeatInterval": 25000,
        "channels": ["system_status"],
    }
    assert first["offset"] == "epoch.0"


async def identity(screen: Screen) -> tuple[str | None, str]:
    first = await screen.next("connection")
    return first["data"]["userId"], first["data"]["role"]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_a_token_may_come_in_the_header(autojump_clock, scheme):
    async with house() as home:
        token = home.token("7", "admin")
        screen = await home.screen(("Authorization", f"{scheme} {token}"), welcome=False)

        assert await identity(screen) == ("7", "admin")


async def test_a_token_may_come_as_a_subprotocol_which_is_not_sent_back(autojump_clock):
    async with house() as home:
        token = home.token("7")
        protocols = ("Sec-WebSocket-Protocol", f"cryptows.v1, bearer.{token}")
        screen = await home.screen(protocols, welcome=False)

        assert await identity(screen) == ("7", "user")
        assert b"Sec-WebSocket-Protocol: cryptows.v1\r\n" in screen.head
        assert token.encode() not in screen.head


async def test_a_subprotocol_that_we_do_not_speak_is_not_agreed_to(autojump_clock):
    async with house() as home:
        screen = await home.screen(("Sec-WebSocket-Protocol", "graphql-ws"))

    assert b"Sec-WebSocket-Protocol" not in screen.head


@pytest.mark.parametrize(("allowed", "user"), [("true", "7"), ("false", None)])
async def test_a_token_in_the_query_counts_only_where_the_config_says_so(
    autojump_clock, allowed, user
):
    async with house(f"auth.query_token={allowed}") as home:
        screen = await home.screen(path=f"/ws?token={home.token('7')}", welcome=False)

        assert (await identity(screen))[0] == user


async def test_a_token_may_come_in_the_first_message(autojump_clock):
    async with house() as home:
        screen = await home.screen()
        denied = await screen.ask("subscribe", channels=["user_7_trades"])
        answer = await screen.ask("authenticate", token=home.token("7", ttl=600))
        confirmed = await screen.ask("subscribe", channels=["user_7_trades"])

        assert denied["data"]["code"] == "forbidden"
        assert answer["type"] == "authenticated"
        assert (answer["data"]["userId"], answer["data"]["role"]) == ("7", "user")
        assert answer["data"]["expiresAt"] == clock.now_ms() + 605_000  # the leeway is granted
        assert "user_7_trades" in answer["data"]["channels"]
        assert confirmed["type"] == "subscription_confirmed"
        assert home.hub.gauges().authenticated == 1
        assert home.hub.seats.of_user("7") == 1


@pytest.mark.parametrize(
    ("token", "code", "name", "why"),
    [
        ("nonsense", 4001, "unauthorized", "jwt malformed: expected header.payload.signature"),
        ("expired", 4002, "token_expired", "jwt expired"),
        ("forged", 4001, "unauthorized", "jwt signature does not match"),
    ],
)
@pytest.mark.parametrize("way", ["header", "subprotocol", "message"])
async def test_a_bad_token_is_told_after_the_101_and_ends_the_connection(
    autojump_clock, way, token, code, name, why
):
    async with house() as home:
        token = {
            "expired": home.token(ttl=-100),
            "forged": home.token()[:-8] + "AAAAAAAA",
        }.get(token, token)
        if way == "header":
            screen = await home.screen(token=token)
        elif way == "subprotocol":
            screen = await home.screen(("Sec-WebSocket-Protocol", f"cryptows.v1, bearer.{token}"))
        else:
            screen = await home.screen()
            await screen.send({"type": "authenticate", "token": token})

        error = await screen.next("error")
        ended = await screen.end()

        assert error["data"] == {"code": name, "message": why}
        assert ended == (code, why)
        await home.settled()
        assert home.hub.counters.disconnects == {code: 1}
        assert home.hub.seats.total == 0
        assert not home.hub.clients


async def test_where_a_token_is_required_nothing_else_is_answered_before(autojump_clock):
    async with house("auth.anonymous=false") as home:
        screen = await home.screen()

        for request in ("subscribe", "list", "history"):
            answer = await screen.ask(request, channels=["system_status"], channel="system_status")
            assert answer["data"]["code"] == "unauthorized"
        assert (await screen.ask("ping"))["type"] == "pong"
        await home.publish(status())
        await screen.ask("authenticate", token=home.token())
        await screen.ask("subscribe", channels=["system_status"])

        assert len(screen.all("system_status")) == 1  # the snapshot, for who may see it now


async def test_where_a_token_is_required_it_must_come_in_time(autojump_clock):
    async with house("auth.anonymous=false", "server.handshake_timeout=10s") as home:
        silent, good = await home.screen(), await home.screen()
        await trio.sleep(5)
        await good.ask("authenticate", token=home.token())

        assert await silent.end() == (4001, "no token in time")
        assert trio.current_time() == pytest.approx(10, abs=0.01)
        assert silent.all("error")[0]["data"]["code"] == "unauthorized"
        await trio.sleep(1000)
        assert good.ended is None


# --- a token's time


async def test_a_token_that_ends_is_announced_and_then_ends_the_connection(autojump_clock):
    async with house("auth.leeway=0s", "auth.expiry_notice=60s") as home:
        expires = clock.now_ms() + 600_000
        screen = await home.screen(token=home.token(ttl=600))

        notice = await screen.next("token_expiring")
        assert trio.current_time() == pytest.approx(540, abs=0.01)
        assert notice["data"]["expiresAt"] == expires
        assert notice["data"]["remainingMs"] == pytest.approx(60_000, abs=10)

        assert await screen.end() == (4002, "token expired")
        assert trio.current_time() == pytest.approx(600, abs=0.01)
        assert screen.all("error")[-1]["data"] == {
            "code": "token_expired", "message": "token expired",
        }  # fmt: skip
        assert len(screen.all("token_expiring")) == 1


async def test_a_token_is_refreshed_in_place(autojump_clock):
    async with house("auth.leeway=0s") as home:
        screen = await home.screen(token=home.token(ttl=600))
        await screen.ask("subscribe", channels=["user_123_trades"])
        await screen.next("token_expiring")

        await screen.ask("authenticate", token=home.token(ttl=1200))
        await trio.sleep(100)
        await home.publish(trade())

        assert screen.ended is None
        assert len(screen.all("trade_execution")) == 1
        await screen.next("token_expiring")  # of the new one
        assert trio.current_time() == pytest.approx(540 + 1140, abs=0.01)


async def test_the_end_of_a_token_that_came_in_a_message_is_kept_to_the_second(autojump_clock):
    async with house("auth.leeway=0s", "auth.expiry_notice=2s") as home:
        screen = await home.screen()
        await trio.sleep(1)

        await screen.ask("authenticate", token=home.token(ttl=5))

        await screen.next("token_expiring")
        assert trio.current_time() == pytest.approx(4, abs=0.01)
        assert await screen.end() == (4002, "token expired")
        assert trio.current_time() == pytest.approx(6, abs=0.01)


async def test_a_fresh_token_that_is_wrong_leaves_the_old_in_force(autojump_clock):
    async with house() as home:
        screen = await home.screen(token=home.token("7"))

        other = await screen.ask("authenticate", token=home.token("8"))
        expired = await screen.ask("authenticate", token=home.token("7", ttl=-100))
        confirmed = await screen.ask("subscribe", channels=["user_7_trades"])

        assert other["data"] == {
            "code": "unauthorized", "message": "the token belongs to another user",
        }  # fmt: skip
        assert expired["data"]["code"] == "token_expired"
        assert confirmed["type"] == "subscription_confirmed"
        assert home.hub.seats.of_user("8") == 0
        assert home.hub.seats.of_user("7") == 1


async def test_a_token_with_fewer_rights_takes_the_others_away(autojump_clock):
    async with house() as home:
        screen = await home.screen(token=home.token("7", "admin"))
        await screen.ask("subscribe", channels=["all_trades", "user_7_trades"])

        await screen.ask("authenticate", token=home.token("7", "user"))
        listed = await screen.ask("list")
        await home.publish(trade("7"))

        assert listed["data"]["subscribed"] == ["user_7_trades"]
        assert [m["channel"] for m in screen.all("trade_execution")] == ["user_7_trades"]


# --- how many


async def test_so_many_of_one_user(autojump_clock):
    async with house("limits.connections_per_user=2") as home:
        token = ("Authorization", f"Bearer {home.token()}")
        first = await home.screen(token)
        await home.screen(token)
        anonymous = await home.screen()

        answer = await refused(home, token, ("Origin", PAGE), address="203.0.113.8")
        late = await anonymous.ask("authenticate", token=home.token())

        assert (answer.status, answer.headers["retry-after"]) == (429, "5")
        assert answer.body == b"too many connections of this user, at most 2\n"
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert late["data"]["code"] == "rate_limited"
        assert (await anonymous.end()) is not None
        await first.close()
        await first.end()
        await home.settled()
        await home.screen(token)
        assert home.hub.counters.refusals == {"connections_user": 1}


async def test_so_many_of_one_address(autojump_clock):
    async with house("limits.connections_per_address=2") as home:
        await home.screen()
        second = await home.screen()

        answer = await refused(home)

        assert answer.status == 429
        assert answer.body == b"too many connections of this address, at most 2\n"
        await home.screen(address="203.0.113.8")
        await second.stream.aclose()
        await home.settled()
        await home.screen()


async def test_behind_a_trusted_proxy_the_clients_address_counts(autojump_clock):
    async with house(
        "limits.connections_per_address=1", 'server.trusted_proxies=["10.0.0.0/8"]'
    ) as home:
        for n in range(5):
            await home.screen(("X-Forwarded-For", f"203.0.113.{n}"), address="10.0.0.1")
        again = await refused(home, ("X-Forwarded-For", "203.0.113.3"), address="10.0.0.2")
        liar = await refused(home, ("X-Forwarded-For", "9.9.9.9, 203.0.113.3"), address="10.0.0.1")
        stranger = await home.screen(("X-Forwarded-For", "203.0.113.3"), address="198.51.100.1")

        assert (again.status, liar.status) == (429, 429)
        addresses = {client.session.address for client in home.hub.clients.values()}
        assert addresses == {f"203.0.113.{n}" for n in range(5)} | {"198.51.100.1"}
        assert stranger.ended is None


async def test_whose_address_is_not_known_has_no_limit_of_one_address(autojump_clock):
    async with house("limits.connections_per_address=1") as home:
        for _ in range(3):
            await home.screen(address=None)
        await home.screen(("X-Forwarded-For", "203.0.113.3"), address=None)
        again = await refused(home, ("X-Forwarded-For", "203.0.113.3"), address=None)

        assert again.status == 429
        assert {c.session.address for c in home.hub.clients.values()} == {"unix", "203.0.113.3"}


async def test_so_many_in_all(autojump_clock):
    async with house("limits.connections=2") as home:
        await home.screen(address="203.0.113.1")
        await home.screen(address="203.0.113.2")

        answer = await refused(home, address="203.0.113.3")

        assert (answer.status, answer.body) == (503, b"too many connections in all, at most 2\n")
        assert (await home.get("/healthz", address="203.0.113.3")).status == 200
        assert home.hub.counters.refusals == {"connections_all": 1}


# --- too many requests


async def test_requests_over_the_limit_are_refused_until_the_window_has_passed(autojump_clock):
    async with house("limits.requests=3", "limits.window=60s") as home:
        screen = await home.screen(token=home.token())
        for _ in range(3):
            assert (await screen.ask("ping"))["type"] == "pong"
        await trio.sleep(20)

        refusal = await screen.ask("ping")
        assert refusal["data"] == {
            "code": "rate_limited", "message": "more than 3 requests in 60 s",
            "retryAfterMs": 40_000,
        }  # fmt: skip
        await trio.sleep(39.999)
        assert (await screen.ask("ping"))["type"] == "error"
        await trio.sleep(0.001)
        assert (await screen.ask("ping"))["type"] == "pong"


async def ask_without_pause(screen: Screen) -> None:
    for _ in range(20):
        await screen.send({"type": "ping"})


async def test_who_will_not_listen_is_banned_by_user_and_address(autojump_clock):
    async with house("limits.requests=3", "limits.strikes=2", "limits.ban=5min") as home:
        screen = await home.screen(token=home.token("7"))
        await ask_without_pause(screen)

        assert await screen.end() == (
            4029, "rate limit broken again and again; come back in 300 s"
        )  # fmt: skip
        last = screen.all("error")[-1]["data"]
        assert (last["code"], last["retryAfterMs"]) == ("rate_limited", 300_000)
        assert len(screen.all("pong")) == 3
        assert len(screen.all("error")) == 3
        await trio.sleep(60)

        user = ("Authorization", f"Bearer {home.token('7')}")
        by_address = await refused(home, ("Origin", PAGE))
        by_user = await refused(home, user, address="203.0.113.99")
        assert (by_address.status, by_user.status) == (429, 429)
        assert by_address.headers["retry-after"] == by_user.headers["retry-after"] == "240"
        assert by_address.headers["access-control-allow-origin"] == PAGE
        assert by_address.body == b"banned for breaking the rate limit\n"
        assert home.hub.counters.refusals == {"banned": 2}

        await home.screen(address="203.0.113.99")  # another user from elsewhere
        await trio.sleep(239.999)
        assert (await refused(home)).status == 429
        await trio.sleep(0.001)
        await home.screen()


async def test_a_ban_hides_no_probe_and_no_page(autojump_clock):
    async with house("limits.requests=1", "limits.strikes=1") as home:
        screen = await home.screen(address="127.0.0.1")
        await ask_without_pause(screen)
        await screen.end()

        for path in ("/healthz", "/readyz", "/metrics", "/stats"):
            assert (await home.get(path, address="127.0.0.1")).status == 200
        assert (await refused(home, address="127.0.0.1")).status == 429


async def test_behind_a_trusted_proxy_only_the_client_is_banned(autojump_clock):
    async with house(
        "limits.requests=1", "limits.strikes=1", 'server.trusted_proxies=["10.0.0.1"]'
    ) as home:
        bad = ("X-Forwarded-For", "203.0.113.66")
        screen = await home.screen(bad, address="10.0.0.1")
        await ask_without_pause(screen)
        await screen.end()

        assert (await refused(home, bad, address="10.0.0.1")).status == 429
        await home.screen(("X-Forwarded-For", "203.0.113.1"), address="10.0.0.1")


async def test_requests_of_one_user_are_counted_over_all_his_connections(autojump_clock):
    async with house("limits.requests=3") as home:
        one = await home.screen(token=home.token("7"))
        other = await home.screen(token=home.token("7"), address="203.0.113.8")
        nobody = await home.screen()

        await one.ask("ping")
        await other.ask("ping")
        await one.ask("ping")

        assert (await other.ask("ping"))["type"] == "error"
        assert (await nobody.ask("ping"))["type"] == "pong"


async def test_what_cannot_be_read_counts_too(autojump_clock):
    async with house("limits.requests=2") as home:
        screen = await home.screen()
        await screen.send("nonsense")
        await screen.send('{"type":"fly","id":"x1"}')

        refusal = await screen.ask("ping")

        codes = [(m["data"]["code"], m.get("id")) for m in screen.all("error")]
        assert codes[:2] == [("bad_request", None), ("bad_request", "x1")]
        assert refusal["data"]["code"] == "rate_limited"


# --- coming and going


async def test_after_churn_nothing_is_left(autojump_clock):
    async with house("limits.connections_per_address=1000") as home:
        for n in range(30):
            screens = [await home.screen(token=home.token(str(i))) for i in range(5)]
            for screen in screens:
                await screen.ask("subscribe", channels=[f"market_data:S{n}", "system_status"])
            await home.publish(status())
            await screens[0].close()
            await screens[1].stream.aclose()
            list(home.hub.clients.values())[2].end(Refusal(4001, "out", come_back=False))
            await screens[2].end()
            screens[3].stream.socket.shutdown(trio.socket.SHUT_WR)
            await screens[4].close()
            await home.settled()

        await home.settled()
        gauges = home.hub.gauges()
        assert gauges.clients == gauges.authenticated == gauges.subscriptions == 0
        assert gauges.subscribers == {}
        assert list(home.hub.routes) == []
        assert home.hub.seats.total == home.hub.seats.users == home.hub.seats.addresses == 0
        assert home.acceptor._sockets.total == 0
        assert home.hub.behind == {}
        assert home.hub.counters.connects == 150
        assert sum(home.hub.counters.disconnects.values()) == 150
        await trio.sleep(30)
        assert len(home.hub.reaper) == 0


async def test_clients_that_went_do_not_wait_in_the_reaper_for_their_next_ping(autojump_clock):
    async with house("heartbeat.interval=1h") as home:
        for _ in range(50):
            screen = await home.handshake()
            await screen.stream.aclose()
        await home.settled()

        assert len(home.hub.reaper) <= 1


async def test_the_page_of_statistics_counts_clients(autojump_clock):
    async with house() as home:
        await home.screen()
        screen = await home.screen(token=home.token())
        await screen.ask("subscribe", channels=["market_data:A", "market_data:B"])
        stream = home.dial("127.0.0.1")
        await stream.send_all(head("/stats"))

        stats = json.loads((await read_answer(stream)).body)

    assert stats["clients"] == {
        "totalClients": 2,
        "authenticatedClients": 1,
        "anonymousClients": 1,
        "channelDistribution": {"market_data": 1},
    }
    assert CLIENT not in json.dumps(stats)
