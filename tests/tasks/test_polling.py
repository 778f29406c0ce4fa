"""Engine.IO over HTTP: openings, polls, posts and how they end, on an echo application."""

from __future__ import annotations

import json

import attrs
import pytest
import trio

from cryptows.config.load import defaults
from cryptows.config.settings import Cors, Limits
from cryptows.model.errors import Refusal
from cryptows.tasks.engineclient import EngineClient
from cryptows.wire.engineio import ProtocolError, Timing
from cryptows.wire.envelope import Packet
from tests.tasks.door import PAGE, head, opened, read_answer

OPENING = "EIO=4&transport=polling"
OLD = b'{"code":5,"message":"Unsupported protocol version"}'


class Echo(EngineClient):
    """Every message goes back; a few are commands."""

    __slots__ = ()

    async def heard(self, message: str | bytes) -> None:
        if message == "fail":
            raise ProtocolError("as you wish")
        if message == "slow":
            await trio.sleep(1)
        if isinstance(message, bytes):
            self.packet(Packet(message, binary=True))
        else:
            self.packet(Packet(b"4" + message.encode()))


# Openings


async def test_an_opening_tells_sid_and_deadlines(autojump_clock):
    async with opened(Echo, Timing(0.3, 0.2)) as door:
        answer = await door.get(OPENING)

    opening = json.loads(answer.body[1:])
    assert (answer.status, answer.body[:1]) == (200, b"0")
    assert answer.headers["content-type"] == "text/plain; charset=UTF-8"
    assert answer.headers["cache-control"] == "no-store"
    assert opening | {"sid": ""} == {
        "sid": "",
        "upgrades": ["websocket"],
        "pingInterval": 300,
        "pingTimeout": 200,
        "maxPayload": 1_000_000,
    }


async def test_sids_are_unguessable_and_unlike_each_other(autojump_clock):
    async with opened(Echo) as door:
        sids = {await door.open() for _ in range(20)}

        assert len(sids) == 20
        assert all(len(sid.rpartition("=")[2]) >= 20 for sid in sids)
        public = {client.session.id for client in door.mount.clients.values()}
        assert not public & set(door.mount.clients)


@pytest.mark.parametrize("path", ["/io", "/io/"])
async def test_the_trailing_slash_does_not_matter(path, autojump_clock):
    async with opened(Echo) as door, await door.stream() as stream:
        await stream.send_all(f"GET {path}?{OPENING} HTTP/1.1\r\nHost: x\r\n\r\n".encode())

        assert b"HTTP/1.1 200" in await stream.receive_some()


@pytest.mark.parametrize(
    ("method", "query", "status", "body"),
    [
        ("GET", "EIO=4", 400, b'{"code":0,"message":"Transport unknown"}'),
        ("GET", "EIO=4&transport=abc", 400, b'{"code":0,"message":"Transport unknown"}'),
        ("GET", f"{OPENING}&sid=none", 400, b'{"code":1,"message":"Session ID unknown"}'),
        ("POST", OPENING, 400, b'{"code":2,"message":"Bad handshake method"}'),
        ("PUT", OPENING, 400, b'{"code":2,"message":"Bad handshake method"}'),
        ("OPTIONS", OPENING, 400, b'{"code":2,"message":"Bad handshake method"}'),
        ("GET", "EIO=4&transport=websocket", 400, b'{"code":3,"message":"Bad request"}'),
        ("GET", "EIO=3&transport=polling", 400, OLD),
        ("GET", "transport=polling", 400, OLD),
    ],
)
async def test_what_is_no_opening_gets_the_error_of_the_reference(
    method, query, status, body, autojump_clock
):
    async with opened(Echo) as door:
        answer = await door.request(method, query)

        assert (answer.status, answer.body) == (status, body)
        assert answer.headers["content-type"] == "application/json"
        assert not door.mount.clients


async def test_errors_are_readable_for_allowed_pages(autojump_clock):
    async with opened(Echo) as door:
        answer = await door.get("EIO=3&transport=polling", ("Origin", PAGE))

    assert answer.status == 400
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert answer.headers["vary"] == "Origin"


async def test_a_preflight_is_answered(autojump_clock):
    async with opened(Echo) as door:
        answer = await door.request(
            "OPTIONS",
            OPENING,
            headers=[
                ("Origin", PAGE),
                ("Access-Control-Request-Method", "POST"),
                ("Access-Control-Request-Headers", "x-mine"),
            ],
        )

    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["access-control-allow-headers"] == "x-mine"
    assert answer.headers["vary"] == "Origin, Access-Control-Request-Headers"


async def test_a_foreign_page_gets_no_session_on_either_transport(autojump_clock):
    foreign = ("Origin", "https://evil.example")
    async with opened(Echo) as door:
        polling = await door.get(OPENING, foreign)
        websocket = await upgrade_answer(door, "EIO=4&transport=websocket", foreign)
        known = await door.get(await door.open(), foreign)

        for answer in (polling, websocket, known):
            assert (answer.status, answer.body) == (403, b'{"code":4,"message":"Forbidden"}')
            assert "access-control-allow-origin" not in answer.headers
        assert len(door.mount.clients) == 1


async def upgrade_answer(door, query, *headers):
    """Ask for an upgrade that is refused."""
    handshake = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ]
    return await door.get(query, *handshake, *headers)


@pytest.mark.parametrize(
    ("query", "body"),
    [
        ("EIO=3&transport=websocket", b"Unsupported protocol version"),
        ("transport=websocket", b"Unsupported protocol version"),
        ("EIO=4", b"Transport unknown"),
        ("EIO=4&transport=polling", b"Bad request"),
        ("EIO=4&transport=websocket&sid=none", b"Session ID unknown"),
    ],
)
async def test_a_refused_upgrade_is_refused_before_the_101(query, body, autojump_clock):
    async with opened(Echo) as door:
        answer = await upgrade_answer(door, query)

        assert (answer.status, answer.body) == (400, body)
        assert answer.headers["content-type"] == "text/html"
        assert not door.mount.clients


async def test_an_upgrade_without_a_key_is_refused(autojump_clock):
    async with opened(Echo) as door:
        for query in ("EIO=4&transport=websocket", f"transport=websocket&{await door.open()}"):
            answer = await door.get(query, ("Connection", "Upgrade"), ("Upgrade", "websocket"))
            assert answer.status in (400, 426)


async def test_connections_are_counted_over_both_transports(autojump_clock):
    settings = attrs.evolve(defaults(), limits=Limits(connections=2))
    async with opened(Echo, settings=settings) as door:
        await door.open()
        ws = await door.websocket()

        full = await door.get(OPENING)
        assert (full.status, full.headers["retry-after"]) == (503, "5")
        assert (await upgrade_answer(door, "EIO=4&transport=websocket")).status == 503
        await ws.close()
        await door.settled()
        await door.open()


async def test_a_stopping_daemon_takes_nobody_in(autojump_clock):
    async with opened(Echo) as door:
        door.hub.draining = True

        answer = await door.get(OPENING)

    assert (answer.status, answer.json["message"]) == (503, "the daemon is stopping")
    assert answer.headers["retry-after"] == "1"


# Messages


@pytest.mark.parametrize(
    "packets",
    [
        ["4hello"],
        ["4test1", "4test2", "4test3"],
        ["4hällo €"],
        ["4hello", "bAQIDBA=="],
        ["4"],
        ["4" + "x" * 60_000],
    ],
)
async def test_what_is_posted_comes_back_with_the_next_poll(packets, autojump_clock):
    async with opened(Echo) as door:
        query = await door.open()

        posted = await door.post(query, "\x1e".join(packets))

        assert (posted.status, posted.body) == (200, b"ok")
        assert posted.headers["content-type"] == "text/html"
        assert await door.poll(query) == packets


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "text/plain;charset=UTF-8", "text/plain; charset=utf-8"]
)
async def test_the_charset_of_a_post_does_not_matter(content_type, autojump_clock):
    headers = [] if content_type is None else [("Content-Type", content_type)]
    async with opened(Echo) as door:
        query = await door.open()

        await door.post(query, "4hello", *headers)

        assert await door.poll(query) == ["4hello"]


async def test_a_poll_waits_for_the_first_message(autojump_clock):
    async with opened(Echo) as door:
        query = await door.open()
        poll = door.start_poll(query)
        await trio.sleep(5)
        assert not poll.done.is_set()

        await door.post(query, "4hello")

        assert await poll.packets() == ["4hello"]
        assert poll.at == trio.current_time()


async def test_one_poll_brings_at_most_sixteen_packets(autojump_clock):
    async with opened(Echo) as door:
        query = await door.open()

        await door.post(query, "\x1e".join(f"4{n}" for n in range(40)))
        polls = [await door.poll(query) for _ in range(3)]

        assert [len(poll) for poll in polls] == [16, 16, 8]
        assert [packet for poll in polls for packet in poll] == [f"4{n}" for n in range(40)]


async def test_polls_and_posts_may_share_a_connection(autojump_clock):
    async with opened(Echo) as door, await door.stream() as stream:
        query = await door.open()
        for number in range(3):
            await stream.send_all(head("POST", query, b"4%d" % number, ()))
            assert (await read_answer(stream)).body == b"ok"
            await stream.send_all(head("GET", query, b"", ()))
            assert (await read_answer(stream)).body == b"4%d" % number


async def test_a_client_that_never_polls_is_too_slow_in_the_end(autojump_clock):
    delivery = attrs.evolve(defaults().delivery, outbox=4096)
    async with opened(Echo, settings=attrs.evolve(defaults(), delivery=delivery)) as door:
        query = await door.open()

        await door.post(query, "\x1e".join(["4" + "x" * 1000] * 6))

        assert (await door.get(query)).json == {"code": 1, "message": "Session ID unknown"}
        assert not door.mount.clients


# Ends


@pytest.mark.parametrize("body", ["abc", "", "\x1e", "2", "4a\x1e²", "b!", b"4\xff", "4fail"])
async def test_a_bad_packet_ends_the_session(body, autojump_clock):
    async with opened(Echo) as door:
        query = await door.open()
        poll = door.start_poll(query)
        await door.settled()

        posted = await door.post(query, body)

        assert (posted.status, posted.body) == (200, b"ok")
        assert (await poll.packets())[-1] == "1"
        assert (await door.get(query)).json == {"code": 1, "message": "Session ID unknown"}
        assert not door.mount.clients


async def test_packets_before_a_bad_one_count(autojump_clock):
    async with opened(Echo) as door:
        query = await door.open()
        poll = door.start_poll(query)
        await door.settled()

        await door.post(query, "4good\x1eabc\x1e4late")

        assert await poll.packets() == ["4good", "1"]


async def test_binary_posts_are_refused_like_in_the_reference(autojump_clock):
    async with opened(Echo) as door:
        query = await door.open()

        posted = await door.post(query, b"\x04x", ("Content-Type", "application/octet-stream"))

        assert (posted.status, posted.body) == (400, b"")
        assert (await door.get(query)).status == 400


async def test_a_body_over_the_limit_costs_only_itself(autojump_clock):
    settings = attrs.evolve(defaults(), limits=Limits(message=1024))
    async with opened(Echo, Timing(max_payload=1024), settings) as door:
        query = await door.open()

        refused = await door.post(query, "4" + "x" * 1024, ("Origin", PAGE))
        assert (refused.status, refused.body) == (413, b"")
        assert refused.headers["access-control-allow-origin"] == PAGE
        assert (await door.post(query, "4" + "x" * 1023)).status == 200
        assert await door.poll(query) == ["4" + "x" * 1023]


async def test_a_second_poll_ends_the_session(autojump_clock):
    async with opened(Echo) as door:
        query = await door.open()
        first = door.start_poll(query)
        await door.settled()

        second = await door.get(query)

        assert (second.status, second.body) == (400, b"")
        assert await first.packets() == ["1"]
        assert (await door.get(query)).status == 400


async def test_a_second_post_while_one_is_read_ends_the_session(autojump_clock):
    async with opened(Echo) as door:
        query = await door.open()
        poll = door.start_poll(query)
        door.nursery.start_soon(door.post, query, "4slow")
        await door.settled()

        second = await door.post(query, "4hello")

        assert second.status == 400
        assert await poll.packets() == ["1"]
        assert (await door.get(query)).status == 400


async def begun_post(door, query):
    """Send a post but for its last byte."""
    stream = await door.stream()
    await stream.send_all(head("POST", query, b"4slowly", ())[:-1])
    await door.settled()
    return stream


async def test_a_second_post_while_the_first_is_coming_in_ends_the_session(autojump_clock):
    async with opened(Echo) as door:
        query = await door.open()
        first = await begun_post(door, query)

        second = await door.post(query, "4hello")

        assert second.status == 400
        await first.send_all(b"y")
        assert (await read_answer(first)).status == 400
        assert not door.mount.clients


async def test_a_post_may_take_its_time(autojump_clock):
    async with opened(Echo) as door:
        query = await door.open()
        stream = await begun_post(door, query)
        await trio.sleep(5)

        await stream.send_all(b"y")

        assert (await read_answer(stream)).body == b"ok"
        assert await door.poll(query) == ["4slowly"]
        await door.post(query, "4next")
        assert await door.poll(query) == ["4next"]


async def test_a_post_that_breaks_off_ends_the_session(autojump_clock):
    async with opened(Echo) as door:
        query = await door.open()
        stream = await begun_post(door, query)

        await stream.aclose()
        await door.settled()

        assert not door.mount.clients


async def test_a_poll_given_up_by_the_client_ends_the_session(autojump_clock):
    async with opened(Echo) as door:
        query = await door.open()
        poll = door.start_poll(query)
        await door.settled()

        poll.scope.cancel()
        await door.settled()

        assert not door.mount.clients
        assert (await door.get(query)).status == 400


async def test_a_poll_given_up_before_it_was_served_ends_the_session(autojump_clock):
    async with opened(Echo) as door:
        query = await door.open()
        later = door.start_poll(query)
        await door.settled()

        async with await door.stream() as stream:
            await stream.send_all(head("GET", query, b"", ()))

        await later.done.wait()
        assert later.answer is not None
        assert later.answer.status == 400
        assert not door.mount.clients


async def test_a_client_that_closes_gets_its_poll_back(autojump_clock):
    async with opened(Echo) as door:
        query = await door.open()
        poll = door.start_poll(query)
        await door.settled()

        await door.post(query, "1")

        assert await poll.packets() == ["6"]
        assert (await door.get(query)).status == 400


async def test_a_close_that_overtakes_the_poll_on_another_connection_waits_for_it(autojump_clock):
    async with opened(Echo) as door:
        query = await door.open()
        door.nursery.start_soon(door.post, query, "1")
        await door.settled()

        assert await door.poll(query) == ["6"]
        await trio.sleep(0.1)
        assert (await door.get(query)).status == 400


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
async def test_other_methods_are_not_allowed(method, autojump_clock):
    async with opened(Echo) as door:
        query = await door.open()

        answer = await door.request(method, query)

        assert (answer.status, answer.headers["allow"]) == (405, "GET, POST")
        await door.post(query, "4alive")
        assert await door.poll(query) == ["4alive"]


async def test_everything_is_given_back_at_the_end(autojump_clock):
    async with opened(Echo) as door:
        queries = [await door.open() for _ in range(5)]
        polls = [door.start_poll(query) for query in queries]
        await door.settled()
        for query in queries:
            await door.post(query, "1")
        for poll in polls:
            await poll.packets()
        await door.settled()

        assert not door.mount.clients
        assert door.hub.seats.total == 0
        assert not list(door.hub.routes)
        assert not door.hub.behind


# Heartbeats


async def test_a_poll_brings_the_ping(autojump_clock):
    async with opened(Echo, Timing(25, 20)) as door:
        query = await door.open()

        for number in range(1, 4):
            assert await door.poll(query) == ["2"]
            assert trio.current_time() == pytest.approx(25 * number)
            await door.post(query, "3")

        assert (door.hub.counters.pings, door.hub.counters.pongs) == (3, 3)


async def test_a_silent_client_is_reaped(autojump_clock):
    async with opened(Echo, Timing(25, 20)) as door:
        query = await door.open()
        poll = door.start_poll(query)
        assert await poll.packets() == ["2"]

        assert await door.poll(query) == ["1"]

        assert trio.current_time() == pytest.approx(45)
        assert door.hub.counters.pong_timeouts == 1
        assert not door.mount.clients
        assert door.hub.seats.total == 0


async def test_a_client_that_vanished_after_its_opening_is_reaped(autojump_clock):
    async with opened(Echo, Timing(25, 20)) as door:
        query = await door.open()
        await trio.sleep(45)

        assert (await door.get(query)).status == 400
        assert not door.mount.clients


async def test_the_ping_is_kept_for_a_client_between_two_polls(autojump_clock):
    async with opened(Echo, Timing(25, 20)) as door:
        query = await door.open()
        await door.post(query, "4first")
        await trio.sleep(30)

        assert await door.poll(query) == ["2", "4first"]
        await door.post(query, "3")
        assert await door.poll(query) == ["2"]
        assert trio.current_time() == pytest.approx(55)


async def test_data_is_no_pong(autojump_clock):
    async with opened(Echo, Timing(0.3, 0.2)) as door:
        query = await door.open()
        for _ in range(20):
            if (await door.post(query, "4busy")).status != 200:
                break
            await trio.sleep(0.05)

        assert trio.current_time() == pytest.approx(0.5, abs=0.06)


# Ends from our side


@pytest.mark.parametrize(("come_back", "last"), [(True, (400, b"{")), (False, (200, b"1"))])
async def test_the_last_packets_wait_for_the_next_poll(come_back, last, autojump_clock):
    async with opened(Echo) as door:
        query = await door.open()
        await door.post(query, "4late")
        (client,) = door.mount.clients.values()

        client.end(Refusal(1012, "restart", come_back=come_back))
        await trio.sleep(10)

        assert await door.poll(query) == ["4late"]
        answer = await door.get(query)
        assert (answer.status, answer.body[:1]) == last
        assert (await door.get(query)).status == 400
        assert door.hub.seats.total == 0


@pytest.mark.parametrize(("come_back", "status"), [(True, 400), (False, 200)])
async def test_a_poll_that_waits_ends_with_the_session(come_back, status, autojump_clock):
    async with opened(Echo) as door:
        query = await door.open()
        poll = door.start_poll(query)
        await door.settled()
        (client,) = door.mount.clients.values()

        client.end(Refusal(1012, "restart", come_back=come_back))
        await door.settled()

        assert poll.answer is not None
        assert poll.answer.status == status
        assert not door.mount.clients


async def test_an_end_does_not_wait_for_ever(autojump_clock):
    async with opened(Echo, Timing(linger=30)) as door:
        query = await door.open()
        (client,) = door.mount.clients.values()
        client.end(Refusal(1012, "restart", come_back=True))

        await trio.sleep(31)

        assert not door.mount.clients
        assert (await door.get(query)).status == 400


async def test_cors_may_allow_every_origin(autojump_clock):
    settings = attrs.evolve(defaults(), cors=Cors(origins=("*",)))
    async with opened(Echo, settings=settings) as door:
        answer = await door.get(OPENING, ("Origin", "https://any.example"))

    assert answer.headers["access-control-allow-origin"] == "https://any.example"
