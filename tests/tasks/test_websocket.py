"""The WebSocket of a client: what comes in, how it is answered, and how it ends on either side."""

from __future__ import annotations

import ast
import contextlib
import inspect
import socket
import struct
from pathlib import Path

import pytest
import trio
import trio.testing
import trio_websocket
import wsproto
from wsproto.events import BytesMessage, Ping, TextMessage

from cryptows.broker.answers import Answers
from cryptows.broker.session import State
from cryptows.model.errors import Refusal
from cryptows.tasks import websocket
from cryptows.tasks.client import Client
from cryptows.wire.envelope import Packet
from tests.tasks.house import House, Screen, house, quote

LIBRARY = trio_websocket.WebSocketConnection
MASK = b"\x01\x02\x03\x04"


def frame(first: int, payload: bytes = b"") -> bytes:
    """A masked frame as clients send them."""
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 1 << 16:
        length = b"\xfe" + struct.pack("!H", size)
    else:
        length = b"\xff" + struct.pack("!Q", size)
    masked = bytes(byte ^ MASK[at % 4] for at, byte in enumerate(payload))
    return bytes([first]) + length + MASK + masked


# --- what is overridden is there


def own_names() -> tuple[set[str], set[str]]:
    """The library's private names that our subclass overrides, and those that it uses."""
    tree = ast.parse(Path(websocket.__file__).read_text())
    (ours,) = (
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "WebSocket"
    )
    defined = {node.name for node in ours.body if isinstance(node, ast.AsyncFunctionDef)}
    overridden = {name for name in defined if hasattr(LIBRARY, name)}
    used = {
        node.attr
        for node in ast.walk(ours)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
        and node.attr.startswith("_")
    }
    return overridden, used - {"_owner", "_take"}


def test_the_installed_library_has_every_private_name_that_we_override_or_use():
    overridden, used = own_names()
    stream, _ = trio.testing.memory_stream_pair()
    connection = LIBRARY(stream, wsproto.WSConnection(wsproto.ConnectionType.SERVER))

    assert overridden == {
        "_send", "_handle_request_event", "_handle_message_event", "_handle_ping_event",
        "_handle_pong_event", "_handle_close_connection_event",
    }  # fmt: skip
    for name in overridden:
        assert inspect.iscoroutinefunction(getattr(LIBRARY, name)), name
        assert list(inspect.signature(getattr(LIBRARY, name)).parameters) == ["self", "event"]
    for name in used:
        assert hasattr(connection, name), name
    assert used >= {"_reader_task", "_wsproto", "_close_reason", "_message_parts", "_stream"}


def test_the_librarys_reader_calls_what_we_override_by_name():
    source = inspect.getsource(LIBRARY._reader_task)

    for name in own_names()[0] - {"_send"}:
        assert f"self.{name}" in source
    assert "self._stream.receive_some" in source
    for method in (LIBRARY._accept, LIBRARY._aclose, LIBRARY._handle_close_connection_event):
        assert "await self._send(" in inspect.getsource(method)


def test_what_replaces_the_handshake_is_asked_for_nothing_but_events():
    source = inspect.getsource(wsproto.WSConnection)

    after = [line for line in source.splitlines() if "self.handshake." in line]
    guarded = [line for line in after if "self.handshake.events()" not in line]
    # all others stand behind `if self.connection is None`
    assert len(after) - len(guarded) == 1
    assert source.count("if self.connection is None") >= 3
    assert list(websocket._OPENED.events()) == []


# --- messages


@pytest.mark.parametrize("kind", [str, bytes])
async def test_a_message_in_pieces_is_joined(autojump_clock, kind):
    text = '{"type":"ping","id":"ä€"}'
    async with house() as home:
        screen = await home.screen()
        parts = [text[:9], "", text[9:]] if kind is str else [text.encode()[:9], text.encode()[9:]]
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            event = TextMessage(part, True, last) if kind is str else BytesMessage(part, True, last)  # type: ignore[arg-type]
            await screen.stream.send_all(screen.ws.send(event))
            await screen.stream.send_all(screen.ws.send(Ping(b"between")))

        answer = await screen.next()

        if kind is str:
            assert (answer["type"], answer["id"]) == ("pong", "ä€")
        else:
            assert answer["data"]["code"] == "bad_request"
            assert answer["data"]["message"] == "expected JSON in a text frame, got binary"
        await home.settled()
        assert screen.ponged == [b"between"] * len(parts)


async def test_a_message_may_come_byte_by_byte(autojump_clock):
    async with house() as home:
        screen = await home.screen()

        for byte in screen.ws.send(TextMessage('{"type":"ping","id":1}')):
            await screen.stream.send_all(bytes([byte]))
            await trio.lowlevel.checkpoint()

        assert (await screen.next())["type"] == "pong"


async def test_a_message_may_be_as_long_as_the_limit_and_no_longer(autojump_clock):
    async with house("limits.message=1KiB") as home:
        fits, exceeds = await home.screen(), await home.screen()
        room = 1024 - len('{"type":"ping","id":1,"x":"€"}') - 2  # the sign has three bytes

        await fits.send(f'{{"type":"ping","id":1,"x":"€{"." * room}"}}')
        await exceeds.send(f'{{"type":"ping","id":1,"x":"€{"." * (room + 1)}"}}')

        assert (await fits.next())["type"] == "pong"
        assert await exceeds.end() == (1009, "message over 1024 bytes")
        await home.settled()
        assert home.hub.counters.disconnects == {1009: 1}


async def test_a_message_without_end_is_cut_off_while_it_comes(autojump_clock):
    async with house("limits.message=1KiB") as home:
        screen = await home.screen()

        # One frame that announces 200 MB, and fragments of which none is the last.
        await screen.stream.send_all(b"\x81\xff" + struct.pack("!Q", 200_000_000) + MASK)
        while screen.ended is None:
            with contextlib.suppress(trio.BrokenResourceError):
                await screen.stream.send_all(b"x" * 4096)
            await trio.sleep(0.1)

        assert await screen.end() == (1009, "message over 1024 bytes")


async def test_empty_fragments_are_not_kept(autojump_clock):
    async with house() as home:
        screen = await home.screen()
        (client,) = home.hub.clients.values()

        await screen.stream.send_all(frame(0x01) + frame(0x00) * 5000)
        await home.settled()

        assert client._ws._message_parts == []  # type: ignore[attr-defined]
        await screen.stream.send_all(frame(0x80, b'{"type":"ping","id":3}'))
        assert (await screen.next())["id"] == 3


async def test_a_ping_is_answered_with_what_it_says(autojump_clock):
    async with house() as home:
        screen = await home.screen()

        await screen.stream.send_all(frame(0x89, b"are you there") + frame(0x89))
        await home.settled()

        assert screen.ponged == [b"are you there", b""]


# --- the end


async def test_a_client_that_says_goodbye_is_answered_and_gone(autojump_clock):
    async with house() as home:
        screen = await home.screen()

        await screen.close(1001, "the page is left")

        assert await screen.end() == (1001, "the page is left")
        await home.settled()
        assert not home.hub.clients
        assert home.hub.counters.disconnects == {1001: 1}
        assert trio.current_time() == 0


async def test_a_close_without_a_code_is_answered_without_one(autojump_clock):
    async with house() as home:
        screen = await home.screen()

        await screen.stream.send_all(frame(0x88))

        assert await screen.end() == (1005, "")
        await home.settled()
        assert home.hub.counters.disconnects == {1005: 1}


async def test_a_client_that_vanishes_is_gone_at_once(autojump_clock):
    async with house() as home:
        screen = await home.screen()

        await screen.stream.aclose()
        await home.settled()

        assert not home.hub.clients
        assert home.hub.counters.disconnects == {1006: 1}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(0x83), 1002),  # a reserved opcode
        (frame(0xC1, b"x"), 1002),  # a reserved bit
        (b"\x81\x01x", 1002),  # not masked
        (frame(0x80, b"x"), 1002),  # continues nothing
        (frame(0x01, b"x") + frame(0x81, b"y"), 1002),  # begins within another
        (frame(0x09, b"x"), 1002),  # a ping in pieces
        (frame(0x88, b"\x03"), 1002),  # half a code
        (frame(0x88, b"\x03\xed"), 1002),  # 1005 may not be sent
        (frame(0x81, b"\xff"), 1007),  # not UTF-8
        (frame(0x88, b"\x03\xe8\xff"), 1007),
    ],
)
async def test_who_breaks_the_protocol_is_told_so(autojump_clock, data, code):
    async with house() as home:
        screen, other = await home.screen(), await home.screen()

        await screen.stream.send_all(data)
        ended = await screen.end()

        assert ended is not None
        assert ended[0] == code
        await home.settled()
        assert (await other.ask("ping"))["type"] == "pong"
        assert home.hub.counters.disconnects == {code: 1}


@pytest.mark.parametrize(("data", "code"), [(frame(0x88, b"\x03\xe8"), 1000), (frame(0x83), 1002)])
async def test_the_close_frame_reaches_a_client_that_is_behind(autojump_clock, data, code):
    async with house() as home:
        screen = await home.screen(token=home.token("123"))
        await screen.ask("subscribe", channels=["market_data"])
        client = await far_behind(home, screen)

        await screen.stream.send_all(data)
        await home.settled()
        await home.publish(quote("BTCUSDT", 50000))  # is not sent after the close frame
        await trio.sleep(1)
        screen.resume()
        ended = await screen.end()

        assert ended is not None
        assert ended[0] == code
        assert len(screen.seen) < 20  # nor what had not yet begun
        await home.settled()
        assert client.session.state is State.ENDED
        assert home.hub.counters.disconnects == {code: 1}
        assert not home.hub.behind


async def test_who_closes_and_reads_no_more_is_cut_off(autojump_clock):
    async with house() as home:
        screen = await home.screen()
        await far_behind(home, screen)

        await screen.close(1000)
        await trio.sleep(2.9)
        assert home.hub.clients
        await trio.sleep(0.2)

        assert not home.hub.clients
        assert home.hub.counters.disconnects == {1000: 1}


async def test_who_closes_and_vanishes_is_gone_at_once(autojump_clock):
    async with house() as home:
        screen = await home.screen()
        await far_behind(home, screen)

        await screen.close(1000)
        await home.settled()
        await screen.stream.aclose()
        await home.settled()

        assert not home.hub.clients
        assert home.hub.counters.disconnects == {1000: 1}
        assert trio.current_time() == 0


async def far_behind(home: House, screen: Screen) -> Client:
    """Let a client that has stopped reading have much to read."""
    await home.settled()
    (client,) = home.hub.clients.values()
    screen.pause()
    for _ in range(40):
        client.packet(Packet(b'{"type":"x","data":"%s"}' % (b"y" * 20_000)))
    assert client.outbox
    return client


async def test_pings_and_messages_during_our_goodbye_do_no_harm(autojump_clock):
    async with house() as home:
        screen = await home.screen()
        screen.pause()
        (client,) = home.hub.clients.values()

        client.end(Refusal(1012, "restart", come_back=True))
        await home.settled()
        await screen.stream.send_all(frame(0x89, b"late") + frame(0x81, b'{"type":"ping"}'))
        await screen.stream.send_all(frame(0x01, b"half"))
        await home.settled()
        screen.resume()

        assert await screen.end() == (1012, "restart")
        assert screen.ponged == []
        await home.settled()
        assert home.hub.counters.disconnects == {1012: 1}
        assert trio.current_time() == 0  # the peer's close was awaited, and no deadline


async def test_a_peer_that_does_not_answer_our_close_is_cut_off(autojump_clock):
    async with house() as home:
        screen = await home.handshake()
        await home.settled()
        (client,) = home.hub.clients.values()

        client.end(Refusal(4001, "go", come_back=False))
        await trio.sleep(2.9)
        assert home.hub.clients
        await trio.sleep(0.2)

        assert not home.hub.clients
        assert home.hub.seats.total == 0
        assert home.hub.counters.disconnects == {4001: 1}
        await screen.stream.aclose()


async def test_both_may_say_goodbye_at_once(autojump_clock):
    async with house() as home:
        screen = await home.handshake()
        await home.settled()
        (client,) = home.hub.clients.values()

        client.end(Refusal(4001, "go", come_back=False))
        await screen.close(1000, "me too")
        home.nursery.start_soon(screen.read)

        assert await screen.end() in ((4001, "go"), (1000, "me too"))
        await home.settled()
        assert home.hub.counters.disconnects == {4001: 1}


async def test_a_reason_that_is_too_long_is_cut(autojump_clock):
    async with house() as home:
        screen = await home.screen()
        (client,) = home.hub.clients.values()

        client.end(Refusal(4001, "ä" * 100, come_back=False))

        assert await screen.end() == (4001, "ä" * 61)


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("x")])
async def test_a_bug_ends_its_client_and_nobody_else(autojump_clock, monkeypatch, error):
    async with house(bugs=1) as home:
        screen, other = await home.screen(), await home.screen()
        first = next(iter(home.hub.clients.values()))

        def handle(self, peer, *_):
            if peer is first:
                raise error

        monkeypatch.setattr(Answers, "handle", handle)
        await screen.send({"type": "ping"})

        assert await screen.end() is None
        await home.settled()
        assert home.hub.counters.disconnects == {1011: 1}
        assert other.ended is None
        assert len(home.hub.clients) == 1


async def test_a_bug_in_the_welcome_ends_its_client_too(autojump_clock, monkeypatch):
    def raise_(*_):
        raise KeyError("x")

    async with house(bugs=1) as home:
        with monkeypatch.context() as patched:
            patched.setattr(Answers, "welcome", raise_)
            screen = await home.screen(welcome=False)
            assert await screen.end() is None
        await home.settled()

        assert home.hub.seats.total == 0
        assert not home.hub.clients


# --- the stream below


class Deaf:
    """An owner that only notes."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def control(self, frame: bytes) -> None:
        self.frames.append(frame)


async def test_reading_from_a_stream_that_is_closed_raises_and_never_waits():
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with ours:
        stream = websocket.ClientStream(theirs, b"head", Deaf())  # type: ignore[arg-type]
        assert await stream.receive_some() == b"head"
        stream.close()

        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some()
        stream.close()


async def test_a_stream_closed_while_it_is_read_wakes_its_reader(nursery):
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with ours:
        stream = websocket.ClientStream(theirs, b"", Deaf())  # type: ignore[arg-type]

        async def read():
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some()
            done.set()

        done = trio.Event()
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        await stream.aclose()
        await done.wait()


async def test_what_came_with_the_handshake_is_read_after_it():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream = websocket.ClientStream(ours, b"GET /\r\n\r\nframe\r\n\r\nmore", websocket._NOBODY)

        read = [await stream.receive_some() for _ in range(3)]

    assert read == [b"GET /\r\n\r\n", b"frame\r\n\r\n", b"more"]


async def test_what_is_sent_goes_to_the_owner():
    ours, theirs = socket.socketpair()
    owner = Deaf()
    with ours, theirs:
        stream = websocket.ClientStream(theirs, b"", owner)  # type: ignore[arg-type]
        await stream.send_all(bytearray(b"\x88\x00"))
        await stream.send_all(b"")
        await stream.wait_send_all_might_not_block()

    assert owner.frames == [b"\x88\x00"]
