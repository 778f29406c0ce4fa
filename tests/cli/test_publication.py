import json
import os
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
from trio.testing import memory_stream_pair

from cryptows.cli.feed_progress import NoProgress
from cryptows.cli.feeding import Refused
from cryptows.cli.pacing import parse_pace
from cryptows.cli.publication import Publication, describe, is_hello, open_source
from cryptows.cli.terminal import Failure, NotRunning


@attrs.define
class Pieces:
    """A source that reads from memory, in the pieces that are given."""

    pieces: list[bytes]
    name: str = "events.ndjson"
    wait: float = 0.0
    _next: int = 0

    def rewind(self):
        self._next = 0

    async def read(self):
        await trio.sleep(self.wait)
        self._next += 1
        return self.pieces[self._next - 1] if self._next <= len(self.pieces) else b""


@attrs.define
class FakeFeed:
    """A daemon's feed that keeps lines with their times, and answers each as `answer` says."""

    nursery: trio.Nursery
    answer: Callable[[int, str], dict[str, Any] | None] = lambda line, text: {
        "ok": True, "line": line, "delivered_to": 2,
    }  # fmt: skip
    hangs: bool = False
    stop_after: int | None = None
    answers_before_stop: bool = False
    lines: list[tuple[float, str]] = attrs.field(factory=list)

    async def connect(self, path):
        here, there = memory_stream_pair()
        self.nursery.start_soon(self.serve, there)
        return here

    async def serve(self, stream):
        rest, number = b"", 0
        async for chunk in stream:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                number += 1
                if number > 1:
                    self.lines.append((trio.current_time(), line.decode()))
                stops = self.stop_after == number
                if (not stops or self.answers_before_stop) and (
                    answer := self.answer(number, line.decode())
                ):
                    await stream.send_all(json.dumps(answer).encode() + b"\n")
                if stops:
                    await stream.aclose()
                    return
        if self.hangs:
            await trio.sleep_forever()
        await stream.aclose()


async def publish(pieces, pace="asap", repeat=1, wait=0.0, **feed):
    async with trio.open_nursery() as nursery:
        fake = FakeFeed(nursery, **feed)
        publication = Publication(
            Pieces(pieces, wait=wait),
            parse_pace(pace),
            repeat,
            "feed.sock",
            NoProgress(),
            fake.connect,
        )
        await publication.run()
    return publication, [line for _, line in fake.lines], [round(at, 3) for at, _ in fake.lines]


async def test_lines_arrive_whole_however_the_file_was_read(autojump_clock):
    publication, lines, _ = await publish([b'{"a"', b":1}\n\n{}\n  \n[", b"1]"])

    assert lines == ['{"a":1}', "{}", "[1]"]
    assert publication.summary(True) == (
        "published 3 lines in 0.0 s: 3 accepted, 0 refused, 6 deliveries"
    )


async def test_a_pace_is_kept(autojump_clock):
    lines = b"".join(b'{"ts":%d}\n' % ts for ts in (5000, 5250, 5250, 7000))

    _, _, times = await publish([lines], pace="recorded")

    assert times == [0, 0.25, 0.25, 2.0]


async def test_a_file_is_repeated_at_its_pace(autojump_clock):
    publication, lines, times = await publish([b"1\n2\n"], pace="2/s", repeat=2)

    assert lines == ["1", "2", "1", "2"]
    assert times == [0, 0.5, 1, 1.5]
    assert publication.summary(True).startswith("published 4 lines in 1.5 s")


async def test_an_empty_file_for_ever_ends(autojump_clock):
    publication, lines, _ = await publish([], repeat=0)

    assert lines == []
    assert publication.summary(True).startswith("published 0 lines")


async def test_blank_lines_for_ever_end(autojump_clock):
    publication, lines, _ = await publish([b"\n \n"], repeat=0)

    assert lines == []
    assert publication.summary(True).startswith("published 0 lines")


async def test_a_hello_in_the_file_is_left_out_and_told_once(autojump_clock, capsys):
    publication, lines, times = await publish(
        [b'{"hello":{"producer":"bot"}}\n1\n2'], pace="1/s", repeat=2
    )

    assert (lines, times) == (["1", "2"] * 2, [0, 1, 2, 3])
    assert capsys.readouterr().err == "events.ndjson:1: a hello, left out: publish says its own\n"
    assert publication.counts.accepted == 4


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"hello":{"producer":"bot","acks":false}}', True),
        (b' { "v" : 1, "hello" : 5 }\r', True),
        (b'{"h\\u0065llo":{}}', True),
        (b'{"hello":{"type":"bot"}}', True),
        (b'{"type":"user_alert","data":{"text":"hello"}}', False),
        (b'{"type":"user_alert","hello":1,"data":{}}', False),
        (b'{"keepalive":["hello"]}', False),
        (b'"hello"', False),
        (b'{"hello":', False),
    ],
)
def test_what_the_daemon_would_take_for_a_hello(line, expected):
    assert is_hello(line) is expected


async def test_refusals_are_told_with_their_line_in_the_file(autojump_clock, capsys):
    def answer(line, text):
        if "bad" not in text:
            return {"ok": True, "line": line}
        return {"ok": False, "line": line, "error": {"code": "invalid_event", "message": "no type"}}

    publication, _, _ = await publish([b'{}\n\n{"bad":1}\n'], repeat=2, answer=answer)

    told = 'events.ndjson:3: no type (invalid_event)\n    {"bad":1}\n'
    assert capsys.readouterr().err == told * 2
    assert (publication.counts.accepted, publication.counts.refused) == (2, 2)


async def test_a_daemon_that_goes_away_is_told_with_the_first_line_it_did_not_answer(
    autojump_clock,
):
    with pytest.raises(BaseExceptionGroup) as caught:
        await publish([b"1\n2\n", b"3\n4\n"], pace="1/s", stop_after=3)

    [failure] = caught.value.exceptions
    assert str(failure) == (
        "events.ndjson:2: the daemon closed the connection without an answer to this line; "
        "1 was accepted, the rest was not sent"
    )


@pytest.mark.parametrize(
    ("pieces", "repeat", "stop_after", "told"),
    [
        ([b"1\n2\n3\n4\n"], 1, 3, "after line 2; 2 were accepted, the rest was not sent"),
        ([b"1\n2\n"], 0, 6, "after line 1; 5 were accepted, the rest was not sent"),
    ],
)
async def test_a_daemon_that_goes_away_in_the_middle_of_the_file_is_told_though_it_answered_all(
    autojump_clock, pieces, repeat, stop_after, told
):
    with pytest.raises(BaseExceptionGroup) as caught:
        await publish(
            pieces, pace="1/s", repeat=repeat, answers_before_stop=True, stop_after=stop_after
        )

    [failure] = caught.value.exceptions
    assert str(failure) == f"events.ndjson: the daemon closed the connection {told}"


async def test_a_daemon_that_goes_away_before_the_first_line_is_told(autojump_clock):
    with pytest.raises(BaseExceptionGroup) as caught:
        await publish([b"1\n"], wait=1, answers_before_stop=True, stop_after=1)

    [failure] = caught.value.exceptions
    assert str(failure) == (
        "events.ndjson: the daemon closed the connection before the first line; "
        "0 were accepted, the rest was not sent"
    )


async def test_a_daemon_that_goes_away_after_the_last_answer_lost_nothing(autojump_clock):
    publication, _, _ = await publish([b"1\n2\n"], answers_before_stop=True, stop_after=3)

    assert publication.counts.accepted == 2


async def test_a_daemon_that_never_answers_is_not_waited_for_without_end(autojump_clock):
    with pytest.raises(BaseExceptionGroup) as caught:
        await publish([b"1\n2\n"], answer=lambda line, text: None, hangs=True)

    assert caught.group_contains(
        Failure, match="events.ndjson:1: no answer .* to this line and 1 more"
    )


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (FileNotFoundError(2, "No such file"), NotRunning, "no daemon listens on feed.sock"),
        (ConnectionRefusedError(111, "refused"), NotRunning, "no daemon listens on feed.sock"),
        (PermissionError(13, "denied"), Failure, "permission denied; feed.mode and feed.group"),
        (OSError(91, "Protocol wrong type"), Failure, "feed.sock: Protocol wrong type"),
        (ValueError("path too long"), Failure, "feed.sock: path too long"),
    ],
)
async def test_a_socket_that_cannot_be_reached_says_why(error, kind, text):
    async def connect(path):
        raise error

    publication = Publication(Pieces([]), parse_pace("asap"), 1, "feed.sock", NoProgress(), connect)

    with pytest.raises(kind, match=text):
        await publication.run()


def test_a_source_knows_its_size_and_rewinds(tmp_path):
    path = tmp_path / "events.ndjson"
    path.write_bytes(b"12345")
    source = open_source(str(path))

    async def read_twice():
        first = await source.read()
        source.rewind()
        return first, await source.read()

    assert source.size == 5
    assert trio.run(read_twice) == (b"12345", b"12345")
    source.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(source.descriptor)


def test_a_file_that_cannot_be_read_says_why(tmp_path):
    with pytest.raises(Failure, match="nothing: No such file or directory"):
        open_source(str(tmp_path / "nothing"))
    with pytest.raises(Failure, match="is a directory"):
        open_source(str(tmp_path))


def test_a_pipe_has_no_size(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_RDWR)
    try:
        source = open_source(str(path))
        assert source.size is None
        source.close()
    finally:
        os.close(reader)
        os.close(writer)


def test_stdin_is_named_and_stays_open():
    source = open_source("-")
    source.close()

    assert (source.name, source.descriptor) == ("stdin", 0)
    os.fstat(0)


def test_an_answer_is_shown_with_the_line_it_is_about():
    refused = Refused(17, b'{"price":"abc"}', "invalid_event", "data.price: expected a number")
    cut = Refused(2, b"\xff" + b"x" * 200, "invalid_json", "not UTF-8")
    no_line = Refused(0, b"", "forbidden", "uid 7 may not feed")

    assert describe("f", refused) == (
        'f:17: data.price: expected a number (invalid_event)\n    {"price":"abc"}'
    )
    assert describe("f", cut) == "f:2: not UTF-8 (invalid_json)\n    \\xff" + "x" * 199 + "…"
    assert describe("f", no_line) == "f: uid 7 may not feed (forbidden)"
