"""HTTP on the daemon's port: deadlines, sizes, keep-alive, errors, and who is asking."""

from __future__ import annotations

import contextlib
import json
import socket

import attrs
import pytest
import trio

from cryptows.broker.health import State
from cryptows.tasks.connection import KEEP_ALIVE, LINGER, WRITE_DEADLINE, Connection
from tests.tasks.door import read_answer
from tests.tasks.house import CLIENT, head, house, upgrade

PAGE = "http://localhost:3000"
FROM_PAGE = ("Origin", PAGE)
HEALTH = head("/healthz")


async def rest(stream: trio.SocketStream) -> bytes:
    """What comes until the end."""
    data = b""
    with trio.fail_after(10_000):
        while chunk := await stream.receive_some():
            data += chunk
    return data


# --- heads that come slowly, or never


async def test_who_says_nothing_is_let_go_without_a_word(autojump_clock):
    async with house("server.handshake_timeout=10s") as home:
        stream = home.dial()

        assert await rest(stream) == b""
        assert trio.current_time() == 10


async def test_a_head_that_drips_has_its_deadline(autojump_clock):
    async with house("server.handshake_timeout=10s") as home:
        stream = home.dial()

        async def drip():
            while True:
                await stream.send_all(b"X-A: b\r\n")
                await trio.sleep(1)

        await stream.send_all(b"GET /ws HTTP/1.1\r\n")
        home.nursery.start_soon(drip)
        with trio.fail_after(11):
            answer = await read_answer(stream)
        home.nursery.cancel_scope.cancel()

        assert (answer.status, answer.body) == (408, b"the request took too long\n")
        assert answer.headers["connection"] == "close"
        assert trio.current_time() == 10


async def test_the_next_head_on_a_connection_has_the_same_deadline(autojump_clock):
    async with house("server.handshake_timeout=10s") as home:
        stream = home.dial()
        await stream.send_all(HEALTH)
        assert (await read_answer(stream)).status == 200
        await trio.sleep(KEEP_ALIVE - 5)

        await stream.send_all(HEALTH[:9])
        answer = await read_answer(stream)

        assert answer.status == 408
        assert trio.current_time() == KEEP_ALIVE  # it began 5 s before the connection's end


async def test_a_connection_that_is_kept_alive_is_let_go_in_the_end(autojump_clock):
    async with house() as home:
        stream = home.dial()
        await stream.send_all(HEALTH)
        await read_answer(stream)

        assert await rest(stream) == b""
        assert trio.current_time() == KEEP_ALIVE


async def test_a_head_may_come_byte_by_byte(autojump_clock):
    async with house() as home:
        stream = home.dial()

        for byte in HEALTH:
            await stream.send_all(bytes([byte]))
            await trio.sleep(0.01)

        assert (await read_answer(stream)).status == 200


@pytest.mark.parametrize("pieces", [1, 50])
async def test_a_head_has_its_size(autojump_clock, pieces):
    async with house("server.max_head=1KiB") as home:
        stream = home.dial()
        raw = head("/healthz", [("X-A", "b" * 2000)])
        step = len(raw) // pieces

        for at in range(0, len(raw), step):
            await stream.send_all(raw[at : at + step])
        answer = await read_answer(stream)

        assert (answer.status, answer.body) == (431, b"request head over 1024 bytes\n")
        assert home.hub.counters.refusals == {"http": 1}


async def test_a_head_without_end_is_cut_off_while_it_comes(autojump_clock):
    async with house() as home:
        stream = home.dial()

        async def pour():
            with contextlib.suppress(trio.BrokenResourceError):
                while True:
                    await stream.send_all(b"x" * 65536)
                    await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pour)
            answer = await read_answer(stream)

        assert (answer.status, answer.headers["connection"]) == (431, "close")
        assert trio.current_time() <= LINGER + 0.01


# --- requests that make no sense


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),  # TLS
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET  /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nX y: z\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ],
)
async def test_a_malformed_request_is_answered_and_ends_the_connection(autojump_clock, raw, status):
    async with house() as home:
        stream = home.dial()
        await stream.send_all(raw + HEALTH)
        answer = await read_answer(stream)

        assert answer.status == status
        assert answer.headers["connection"] == "close"
        assert await rest(stream) == b""


async def test_a_body_over_the_limit_is_refused_and_the_connection_goes_on(autojump_clock):
    async with house("limits.message=1KiB") as home:
        stream = home.dial()
        await stream.send_all(head("/nowhere", [("Content-Length", "1025"), FROM_PAGE], "POST"))
        await stream.send_all(b"x" * 1025 + HEALTH)

        refused, health = await read_answers(stream, 2)

        assert b"413" in refused
        assert b"Access-Control-Allow-Origin: " + PAGE.encode() in refused
        assert b"200 OK" in health


async def test_a_body_that_is_announced_far_too_long_ends_the_connection(autojump_clock):
    async with house() as home:
        stream = home.dial()
        await stream.send_all(head("/nowhere", [("Content-Length", "999999999")], "POST"))

        answer = await read_answer(stream)

        assert (answer.status, answer.headers["connection"]) == (413, "close")
        assert await rest(stream) == b""


async def test_who_expects_100_is_told_to_go_on(autojump_clock):
    async with house() as home:
        stream = home.dial()
        asked = [("Content-Length", "3"), ("Expect", "100-continue")]
        await stream.send_all(head("/nowhere", asked, "POST"))

        with trio.fail_after(5):
            assert await stream.receive_some() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await stream.send_all(b"abc")

        assert (await read_answer(stream)).status == 404


async def read_answers(stream: trio.SocketStream, count: int) -> list[bytes]:
    """Read answers that have a length, as they are on the wire."""
    answers: list[bytes] = []
    data = b""
    with trio.fail_after(1000):
        while len(answers) < count:
            at, end, after = data.partition(b"\r\n\r\n")
            size = int(at.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
            if end and len(after) >= size:
                answers.append(at + end + after[:size])
                data = after[size:]
            else:
                data += await stream.receive_some()
    return answers


# --- several requests on a connection


async def test_requests_may_follow_each_other_before_their_answers(autojump_clock):
    async with house() as home:
        stream = home.dial()
        await stream.send_all(HEALTH + head("/nowhere") + HEALTH + head("/readyz"))

        answers = await read_answers(stream, 4)

        assert [answer[9:12] for answer in answers] == [b"200", b"404", b"200", b"200"]
        assert home.hub.counters.http_requests == 4


@pytest.mark.parametrize(
    "raw",
    [
        head("/healthz", [("Connection", "close")]),
        b"GET /healthz HTTP/1.0\r\nHost: a\r\n\r\n",
    ],
)
async def test_a_connection_ends_when_its_client_wants_it(autojump_clock, raw):
    async with house() as home:
        stream = home.dial()
        await stream.send_all(raw)

        answer = await read_answer(stream)

        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await rest(stream) == b""


async def test_an_upgrade_may_follow_on_the_same_connection(autojump_clock):
    async with house() as home:
        stream = home.dial()
        await stream.send_all(HEALTH)
        assert (await read_answer(stream)).status == 200

        await stream.send_all(upgrade())

        assert (await stream.receive_some(12)) == b"HTTP/1.1 101"
        await home.settled()
        assert len(home.hub.clients) == 1


async def test_frames_may_follow_the_handshake_at_once(autojump_clock):
    async with house() as home:
        stream = home.dial()
        ping = b"\x81\x8f\x00\x00\x00\x00" + b'{"type":"ping"}'
        await stream.send_all(upgrade() + ping)
        await home.settled()

        data = await stream.receive_some()

        assert data.index(b'"type":"connection"') < data.index(b'"type":"pong"')


async def test_while_it_drains_a_connection_serves_one_request_only(autojump_clock):
    async with house() as home:
        home.hub.draining = True
        home.hub.health.state = State.DRAINING
        stream = home.dial()
        await stream.send_all(head("/readyz") + HEALTH)

        answer = await read_answer(stream)

        assert (answer.status, json.loads(answer.body)["status"]) == (503, "draining")
        assert answer.headers["connection"] == "close"


# --- pages


async def test_an_unknown_path_is_not_found_and_pages_may_read_that(autojump_clock):
    async with house() as home:
        answer = await home.get("/nowhere", FROM_PAGE)

    assert (answer.status, answer.body) == (404, b"not found\n")
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert answer.headers["vary"] == "Origin"


async def test_a_foreign_page_reads_no_error(autojump_clock):
    async with house() as home:
        answer = await home.get("/nowhere", ("Origin", "https://evil.example"))

    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["vary"] == "Origin"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "BREW"])
async def test_pages_are_for_reading(autojump_clock, method):
    async with house() as home:
        answer = await home.get("/healthz", FROM_PAGE, method=method)

    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert answer.headers["access-control-allow-origin"] == PAGE


async def test_a_head_request_has_the_same_head_and_no_body(autojump_clock):
    async with house() as home:
        stream = home.dial()
        await stream.send_all(head("/healthz", method="HEAD") + HEALTH)
        await home.settled()

        first, second = (await stream.receive_some()).split(b"HTTP/1.1 ")[1:]

    assert first.partition(b"\r\n\r\n")[2] == b""
    assert second.partition(b"\r\n\r\n")[0] == first.partition(b"\r\n\r\n")[0]
    assert second.endswith(b'{"status":"ok"}\n')


async def test_a_preflight_is_answered(autojump_clock):
    async with house() as home:
        good = await home.get("/stats", FROM_PAGE, method="OPTIONS")
        bad = await home.get("/stats", ("Origin", "https://evil.example"), method="OPTIONS")

    assert (good.status, good.headers["access-control-allow-origin"]) == (204, PAGE)
    assert bad.status == 403


@pytest.mark.parametrize("path", ["/healthz", "/livez", "/readyz", "/metrics", "/stats"])
async def test_no_page_is_cached(autojump_clock, path):
    async with house() as home:
        answer = await home.get(path, address="127.0.0.1")

    assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")


async def test_readyz_tells_more_to_people(autojump_clock):
    async with house() as home:
        answer = await home.get("/readyz?verbose")

    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.body.endswith(b"\nready\n")


# --- who may read the statistics


@pytest.mark.parametrize(
    ("address", "headers", "status"),
    [
        ("127.0.0.1", [], 200),
        ("127.8.9.1", [], 200),
        ("::1", [], 200),
        ("::ffff:127.0.0.1", [], 200),
        (None, [], 200),  # a Unix socket: its file says who may
        (CLIENT, [], 401),
        ("10.0.0.1", [("X-Forwarded-For", "127.0.0.1")], 200),  # asked on the proxy's machine
        ("10.0.0.1", [("X-Forwarded-For", CLIENT)], 401),
        ("10.0.0.1", [("X-Forwarded-For", f"127.0.0.1, {CLIENT}")], 401),  # made up
        ("10.0.0.1", [], 401),
        (None, [("X-Forwarded-For", CLIENT)], 401),
        (None, [("X-Real-IP", CLIENT)], 401),  # a proxy that does not say it as we understand
        # A proxy on this machine that we were not told of must not open them to everybody.
        ("127.0.0.1", [("X-Forwarded-For", CLIENT)], 401),
        ("127.0.0.1", [("Forwarded", f"for={CLIENT}")], 401),
        ("127.0.0.1", [("X-Real-IP", CLIENT)], 401),
    ],
)
async def test_statistics_are_for_the_machine_itself(autojump_clock, address, headers, status):
    async with house('server.trusted_proxies=["10.0.0.0/8"]') as home:
        answer = await home.get("/stats", *headers, address=address)

    assert answer.status == status


@pytest.mark.parametrize(
    ("role", "status"), [("user", 401), ("admin", 200), ("super_admin", 200), ("expired", 401)]
)
async def test_statistics_are_for_admins(autojump_clock, role, status):
    async with house() as home:
        token = home.token(role="admin", ttl=-100) if role == "expired" else home.token(role=role)
        answer = await home.get("/stats", ("Authorization", f"Bearer {token}"))

    assert answer.status == status
    if status == 200:
        assert set(json.loads(answer.body)) == {"server", "clients", "broadcast"}


async def test_an_admins_token_is_not_taken_from_the_query(autojump_clock):
    async with house("auth.query_token=true") as home:
        answer = await home.get(f"/stats?token={home.token(role='admin')}")

    assert answer.status == 401


# --- writing


class Stuck:
    """A socket that takes a little at a time, and then nothing more."""

    def __init__(self, sock: socket.socket, takes: int) -> None:
        self._sock, self._left = sock, takes

    def send(self, data: memoryview) -> int:
        if not self._left:
            raise BlockingIOError
        self._left -= 1
        return self._sock.send(data[:3])

    def fileno(self) -> int:
        return self._sock.fileno()


async def test_an_answer_is_written_whole_however_little_the_socket_takes(autojump_clock):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with house() as home:
            connection = Connection(home.hub, Stuck(theirs, 100), CLIENT)  # type: ignore[arg-type]
            await connection.respond(None, 200, b"x" * 50)

        assert ours.recv(1000).endswith(b"\r\n\r\n" + b"x" * 50)


async def test_who_does_not_read_his_answer_is_given_up(autojump_clock):
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with ours, theirs:
        async with house() as home:
            connection = Connection(home.hub, theirs, CLIENT)
            with pytest.raises(trio.BrokenResourceError, match="does not read"):
                await connection.respond(None, 200, b"x" * 10_000_000)

        assert trio.current_time() == WRITE_DEADLINE


async def test_who_hung_up_is_given_up_at_once(autojump_clock):
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    ours.close()
    with theirs:
        async with house() as home:
            connection = Connection(home.hub, theirs, CLIENT)
            with pytest.raises(trio.BrokenResourceError):
                await connection.respond(None, 200)
            await connection.hung_up()

    assert trio.current_time() == 0


async def test_who_sends_his_next_request_has_not_hung_up(autojump_clock):
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with ours, theirs:
        async with house() as home:
            connection = Connection(home.hub, theirs, CLIENT)
            ours.sendall(b"GET")
            with trio.move_on_after(5) as waited:
                await connection.hung_up()
            assert waited.cancelled_caught
            assert theirs.recv(10) == b"GET"

            ours.close()
            with trio.fail_after(5):
                await connection.hung_up()


async def test_a_bug_in_a_site_ends_its_connection_and_is_logged(autojump_clock):
    @attrs.define(eq=False)
    class Broken:
        async def answer(self, connection, request):
            raise LookupError("a secret")

    async with house(bugs=1) as home:
        home.sites["/broken"] = Broken()
        stream = home.dial()
        await stream.send_all(head("/broken"))

        assert await rest(stream) == b""
        assert [line["event"] for line in home.logs] == ["connection failed"]
        assert (await home.get("/healthz")).status == 200
