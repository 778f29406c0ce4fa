"""Producers on a real socket: what they get answered, and that none harms another."""

from __future__ import annotations

import errno
import json
import os
import resource
import socket
from typing import Any

import attrs
import pytest
import structlog
import trio

from cryptows.config.load import defaults
from cryptows.model.errors import BadEvent
from cryptows.model.event import Event
from cryptows.tasks import producer as producer_module
from cryptows.tasks.feedsocket import open_feed
from cryptows.tasks.ingest import FeedStats, Ingest, serve_feed
from cryptows.wire import feedanswers

NOW = 1_700_000_000_000
ACKS = b'{"hello":{"producer":"grid-bot","acks":true}}\n'
GOOD = b'{"type":"market_data_update","id":"m-1","data":{"symbol":"BTCUSDT","price":1}}\n'
BAD = b'{"type":"market_data_update","id":"m-2","data":{"symbol":"BTCUSDT","price":"abc"}}\n'


class Feed:
    """The feed on a socket in a temporary folder; the test is the dispatcher."""

    def __init__(self, path, nursery, buffer=8, **feed):
        settings = defaults()
        self.settings = attrs.evolve(
            settings, feed=attrs.evolve(settings.feed, socket=str(path), **feed)
        )
        self.opened = open_feed(self.settings.feed)
        self.opened.socket.setblocking(False)
        self.stats = FeedStats()
        send, self.events_in = trio.open_memory_channel(buffer)
        self.ingest = Ingest(self.settings, send, lambda: NOW, self.stats)
        self.ended = trio.Event()
        nursery.start_soon(self._serve)

    async def _serve(self):
        await self.ingest.serve(self.opened.socket)
        self.ended.set()

    async def connect(self):
        return Bot(await trio.open_unix_socket(self.settings.feed.socket))

    async def events(self, count):
        """The next events, in order, each taken as the dispatcher does."""
        events: list[Event] = []
        while len(events) < count:
            batch = await self.events_in.receive()
            for index, event in enumerate(batch.events):
                n = len(events) + 1
                batch.replies.done_for(index)(b"k3f.%d" % n, 5, None, False)
                events.append(event)
        return events

    async def producers(self, count):
        """Wait until so many are connected."""
        while len(self.stats.producers) != count:  # noqa: ASYNC110 - nothing tells
            await trio.sleep(0.001)
        return [stats.name for stats in self.stats.producers.values()]


class Bot:
    """A producer."""

    def __init__(self, stream):
        self.stream = stream
        self.unread = b""

    async def send(self, data):
        await self.stream.send_all(data)

    async def answer(self):
        """The next answer; None when the daemon has closed the connection."""
        while b"\n" not in self.unread:
            try:
                data = await self.stream.receive_some(65536)
            except trio.BrokenResourceError:
                return None
            if not data:
                return None
            self.unread += data
        line, _, self.unread = self.unread.partition(b"\n")
        return json.loads(line)

    async def close(self):
        await self.stream.aclose()


@pytest.fixture(autouse=True)
def logs():
    with structlog.testing.capture_logs() as entries:
        yield entries


@pytest.fixture
async def feed(tmp_path, nursery):
    made = Feed(tmp_path / "feed.sock", nursery)
    with trio.fail_after(20):
        yield made
    made.opened.close()


@pytest.fixture
def make_feed(tmp_path, nursery):
    made: list[Feed] = []

    def make(**changes):
        made.append(Feed(tmp_path / f"{len(made)}.sock", nursery, **changes))
        return made[-1]

    yield make
    for each in made:
        each.opened.close()


def refused(line, id, code, message):
    answer = {"ok": False, "line": line, "error": {"code": code, "message": message}}
    return answer if id is None else answer | {"id": id}


NOT_A_NUMBER = 'data.price: expected a number, got "abc"'


# answers


async def test_without_acks_good_lines_get_no_answer_and_bad_ones_cost_only_themselves(feed):
    bot = await feed.connect()

    await bot.send(GOOD + b"\n \r\n" + BAD + GOOD + b"{\n")

    assert [event.id for event in await feed.events(2)] == ["m-1", "m-1"]
    assert await bot.answer() == refused(4, "m-2", "invalid_event", NOT_A_NUMBER)
    assert await bot.answer() == refused(
        6, None, "invalid_json", "not JSON: Input data was truncated"
    )
    await bot.close()


async def test_with_acks_every_line_is_answered_in_order(feed):
    bot = await feed.connect()

    await bot.send(ACKS + GOOD + BAD + b'{"keepalive":["market_data:BTCUSDT"]}\n' + GOOD)
    await feed.events(2)

    assert [await bot.answer() for _ in range(5)] == [
        {"ok": True, "line": 1},
        {"ok": True, "line": 2, "id": "m-1", "offset": "k3f.1", "delivered_to": 5},
        refused(3, "m-2", "invalid_event", NOT_A_NUMBER),
        {"ok": True, "line": 4},
        {"ok": True, "line": 5, "id": "m-1", "offset": "k3f.2", "delivered_to": 5},
    ]
    await bot.close()


async def test_an_answer_may_come_after_the_commit(feed):
    bot = await feed.connect()
    await bot.send(ACKS + GOOD + GOOD)
    batch = await feed.events_in.receive()

    batch.replies.done_for(1)(b"k3f.2", 1, None, False)
    assert await bot.answer() == {"ok": True, "line": 1}
    with trio.move_on_after(0.05) as waiting:
        await bot.answer()
    batch.replies.done_for(0)(None, 0, BadEvent("not_stored", "disk full"), False)

    assert waiting.cancelled_caught
    assert await bot.answer() == refused(2, "m-1", "not_stored", "disk full")
    assert (await bot.answer())["offset"] == "k3f.2"
    await bot.close()


async def test_a_batch_is_all_or_nothing_and_gets_one_answer(feed):
    bot = await feed.connect()
    good, bad = GOOD.decode().strip(), BAD.decode().strip()

    await bot.send(ACKS + f'{{"batch":[{good},{good}],"id":"b-1"}}\n'.encode())
    await bot.send(f'{{"batch":[{good},{bad}],"id":"b-2"}}\n'.encode())

    assert len(await feed.events(2)) == 2
    assert [await bot.answer() for _ in range(3)] == [
        {"ok": True, "line": 1},
        {"ok": True, "line": 2, "id": "b-1", "offset": "k3f.2", "delivered_to": 10},
        refused(3, "b-2", "invalid_event", f"batch[1].{NOT_A_NUMBER}"),
    ]
    await bot.close()


async def test_without_acks_a_batch_is_just_its_events(feed):
    bot = await feed.connect()
    await bot.send(b'{"batch":[' + GOOD.strip() + b"," + GOOD.strip() + b"]}\n")

    batch = await feed.events_in.receive()
    batch.replies.done_for(1)(None, 0, BadEvent("too_many_streams", "full"), False)

    assert len(batch.events) == 2
    assert await bot.answer() == refused(1, "m-1", "too_many_streams", "full")
    await bot.close()


async def test_keepalives_reach_the_dispatcher_with_the_name_of_the_producer(feed):
    bot = await feed.connect()

    await bot.send(b'{"hello":{"producer":"quiet"}}\n{"keepalive":["market_data:BTCUSDT"]}\n')
    batch = await feed.events_in.receive()

    assert (batch.events, batch.keepalives) == ([], ["market_data:BTCUSDT"])
    assert batch.producer == "quiet#1"
    assert batch.producer in feed.stats.producers
    await bot.close()
    await feed.producers(0)


async def test_hello_comes_before_the_first_event(feed):
    bot = await feed.connect()

    await bot.send(b'{"hello":{"producer":"x"}}\n' + ACKS + GOOD + ACKS)
    await feed.events(1)

    assert await bot.answer() == {"ok": True, "line": 2}
    assert (await bot.answer())["line"] == 3
    assert await bot.answer() == refused(
        4, None, "invalid_event", "hello: it must come before the first event"
    )
    await bot.close()


async def test_an_overlong_line_is_refused_once_and_skipped(make_feed):
    feed = make_feed(max_line=1024)
    bot = await feed.connect()

    with trio.fail_after(10):
        await bot.send(b"x" * 5000)
        assert await bot.answer() == refused(1, None, "line_too_long", "longer than 1024 bytes")
        await bot.send(b"x" * 5000 + b"\n" + GOOD)

        assert len(await feed.events(1)) == 1
    await bot.close()


# ends


async def test_a_last_line_without_newline_counts_and_half_a_one_is_refused(feed):
    whole, half = await feed.connect(), await feed.connect()

    await whole.send(GOOD[:-1])
    await whole.stream.send_eof()
    await half.send(GOOD[:-9])
    await half.stream.send_eof()

    assert len(await feed.events(1)) == 1
    assert await half.answer() == refused(
        1, None, "invalid_json", "not JSON: Input data was truncated"
    )
    assert await half.answer() is None
    assert await whole.answer() is None
    await whole.close()
    await half.close()


async def test_a_producer_that_has_finished_still_gets_its_answers(feed):
    bot = await feed.connect()
    await bot.send(ACKS + GOOD)
    await bot.stream.send_eof()
    await trio.testing.wait_all_tasks_blocked(0.01)

    await feed.events(1)

    assert [(await bot.answer())["line"] for _ in range(2)] == [1, 2]
    assert await bot.answer() is None
    await bot.close()


async def test_what_a_producer_wrote_before_it_went_away_counts(feed):
    bot = await feed.connect()
    await bot.send(ACKS + GOOD * 1000)
    await bot.close()

    assert len(await feed.events(1000)) == 1000
    await feed.producers(0)


async def test_a_producer_that_never_reads_its_answers_is_not_waited_for_long(feed, monkeypatch):
    monkeypatch.setattr(producer_module, "LINGER", 0.05)
    bot = await feed.connect()
    await bot.send(ACKS + GOOD)
    await bot.stream.send_eof()

    await feed.producers(0)  # its event was never answered

    await bot.close()


async def test_stopping_answers_what_was_read_and_ends(feed):
    bot = await feed.connect()
    await bot.send(ACKS + GOOD + GOOD[:-9])
    batch = await feed.events_in.receive()

    feed.ingest.stop()
    await trio.testing.wait_all_tasks_blocked(0.01)
    batch.replies.done_for(0)(b"k3f.1", 1, None, False)

    assert [(await bot.answer())["line"] for _ in range(2)] == [1, 2]
    assert await bot.answer() is None
    await feed.ended.wait()
    assert feed.stats.producers == {}
    await bot.close()


async def test_stopping_does_not_wait_for_a_producer_that_does_not_read(feed, monkeypatch):
    monkeypatch.setattr(producer_module, "LINGER", 0.05)
    bot = await feed.connect()
    await bot.send(ACKS + GOOD)
    await feed.events_in.receive()

    feed.ingest.stop()

    await feed.ended.wait()
    await bot.close()


async def test_a_stopped_producer_reads_no_more(feed):
    bot = await feed.connect()
    await bot.send(ACKS)
    await bot.answer()
    (producer,) = feed.ingest._producers

    producer.stop()
    assert await producer._receive() == b""

    assert await bot.answer() is None
    await bot.close()


async def test_producers_end_when_the_dispatcher_is_gone(feed):
    bot = await feed.connect()
    feed.events_in.close()

    await bot.send(GOOD)

    assert await bot.answer() is None
    await bot.close()


# bounds


async def test_a_slow_dispatcher_stops_the_reading_and_nothing_is_lost(make_feed):
    feed = make_feed(buffer=0)
    bot = await feed.connect()
    lines = [GOOD.replace(b"m-1", b"%d" % n) for n in range(20_000)]
    sent = False

    async def send():
        nonlocal sent
        await bot.send(b"".join(lines))
        sent = True

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked(0.05)
            held = not sent
            events = await feed.events(len(lines))

    assert held
    assert [event.id for event in events] == [str(n) for n in range(20_000)]
    await bot.close()


async def test_a_producer_that_reads_no_answers_is_not_read_from_and_holds_up_nobody(feed):
    deaf, other = await feed.connect(), await feed.connect()
    await feed.producers(2)

    with trio.move_on_after(0.3) as stuck:
        while True:
            await deaf.send(BAD * 1000)
    first, _ = feed.stats.producers.values()
    errors = -1
    while errors != first.errors:  # what was read before is still being answered
        errors = first.errors
        await trio.sleep(0.3)
    await other.send(BAD)

    assert stuck.cancelled_caught
    assert (await other.answer())["line"] == 1
    assert first.errors == errors
    # What waits: answers up to the bound, those of one slice more, and what the kernel took.
    assert errors * 110 < feedanswers.MAX_READY + producer_module.MOST * 110 + 2**20
    for expected in range(1, errors + 1):
        assert (await deaf.answer())["line"] == expected
    await deaf.close()
    await other.close()


async def test_too_many_open_answers_stop_the_reading(feed, monkeypatch):
    monkeypatch.setattr(feedanswers, "MAX_PLACES", 90)
    monkeypatch.setattr(producer_module, "MOST", 50)
    bot = await feed.connect()
    await bot.send(ACKS + GOOD * 300)

    batches = [await feed.events_in.receive() for _ in range(2)]
    with trio.move_on_after(0.05) as waiting:
        await feed.events_in.receive()
    for batch in batches:
        for index in range(len(batch.events)):
            batch.replies.done_for(index)(b"k3f.1", 0, None, False)

    assert waiting.cancelled_caught
    assert sum(len(batch.events) for batch in batches) == 99
    assert len(await feed.events(201)) == 201
    assert [(await bot.answer())["line"] for _ in range(301)] == list(range(1, 302))
    await bot.close()


async def test_lines_that_would_wait_for_the_next_pass_are_read_together(feed):
    bot = await feed.connect()
    await feed.producers(1)
    rested = trio.current_time() + 0.1
    feed.ingest.rests_until = lambda: rested

    for _ in range(5):
        await bot.send(GOOD)
        await trio.sleep(0.001)
    batch = await feed.events_in.receive()

    assert len(batch.events) == 5
    assert trio.current_time() >= rested
    await bot.close()


async def test_many_bad_lines_leave_the_others_their_turn(feed):
    bad, good = await feed.connect(), await feed.connect()
    await feed.producers(2)

    await bad.send(b'{"type":"markt_data_update","data":{}}\n' * 3000)
    await good.send(GOOD)
    assert len(await feed.events(1)) == 1
    unfinished = next(iter(feed.stats.producers.values())).errors < 3000
    for _ in range(3000):
        await bad.answer()

    assert unfinished
    await bad.close()
    await good.close()


async def test_megabytes_without_a_newline_cost_bounded_memory(feed):
    bot = await feed.connect()
    chunk = b"x" * (1 << 20)
    await bot.send(chunk)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    for _ in range(199):
        await bot.send(chunk)
    await bot.send(b"\n" + GOOD)

    assert await bot.answer() == refused(1, None, "line_too_long", "longer than 1048576 bytes")
    assert len(await feed.events(1)) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024  # KiB
    await bot.close()


async def test_no_more_producers_than_the_settings_allow(make_feed):
    feed = make_feed(producers=1)
    with trio.fail_after(10):
        first = await feed.connect()
        await feed.producers(1)
        second = await feed.connect()

        assert await second.answer() == {
            "ok": False,
            "error": {
                "code": "too_many_producers",
                "message": "1 producers are connected, as many as feed.producers allows",
            },
        }
        assert await second.answer() is None
        await first.close()
        await feed.producers(0)
        third = await feed.connect()
        await feed.producers(1)

    assert feed.stats.refused == 1
    await second.close()
    await third.close()


async def test_who_is_not_on_the_list_is_refused_with_a_reason(make_feed):
    feed = make_feed(allow_users=(str(os.geteuid() + 1),))
    bot = await feed.connect()

    with trio.fail_after(10):
        assert await bot.answer() == {
            "ok": False,
            "error": {
                "code": "forbidden",
                "message": f"uid {os.geteuid()} may not feed: see feed.allow_users and "
                "feed.allow_groups",
            },
        }
        assert await bot.answer() is None
    await bot.close()


async def test_a_refused_producer_that_is_already_gone_is_no_trouble(make_feed):
    feed = make_feed(allow_users=(str(os.geteuid() + 1),))

    for _ in range(20):
        await (await feed.connect()).close()

    with trio.fail_after(10):
        while feed.stats.refused < 20:  # noqa: ASYNC110 - nothing tells
            await trio.sleep(0.001)


async def test_who_is_on_the_list_may_feed(make_feed):
    feed = make_feed(allow_groups=(str(os.getegid()),))
    bot = await feed.connect()

    with trio.fail_after(10):
        await bot.send(GOOD)
        assert len(await feed.events(1)) == 1
    await bot.close()


# what it shows


async def test_counts_are_kept_for_each_producer_and_in_all(feed):
    bot = await feed.connect()
    await bot.send(ACKS + GOOD + BAD + b"{\n")
    await feed.events(1)
    for _ in range(4):
        await bot.answer()

    (stats,) = feed.stats.producers.values()
    assert attrs.asdict(stats) == {
        "name": "grid-bot#1",
        "pid": os.getpid(),
        "uid": os.geteuid(),
        "since": NOW,
        "acks": True,
        "events": 1,
        "errors": 2,
        "last_event": NOW,
    }
    assert feed.stats.counters.feed_errors == {"invalid_event": 1, "invalid_json": 1}
    assert feed.stats.counters.feed_bytes == len(ACKS + GOOD + BAD) + 2
    await bot.close()


async def test_a_reload_brings_new_types(feed):
    bot = await feed.connect()
    feed.ingest.reconfigure(attrs.evolve(feed.settings, types={}))

    await bot.send(GOOD)

    assert (await bot.answer())["error"]["code"] == "unknown_type"
    await bot.close()


# trouble


async def test_a_bug_ends_one_producer_and_not_the_others(feed, monkeypatch, logs):
    first, second = await feed.connect(), await feed.connect()
    await feed.producers(2)
    decode = feed.ingest.decoder.decode

    def buggy(line, now_ms):
        if b"bug" in line:
            raise ZeroDivisionError
        return decode(line, now_ms)

    monkeypatch.setattr(feed.ingest.decoder, "decode", buggy)
    await first.send(b"bug\n")
    assert await first.answer() is None
    await second.send(GOOD)

    assert len(await feed.events(1)) == 1
    assert feed.stats.counters.bugs == 1
    assert "producer failed" in [entry["event"] for entry in logs]
    await first.close()
    await second.close()


class Listener:
    """Somebody waits there, and cannot be accepted in the given ways, one after the other."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.ends = socket.socketpair()
        self.ends[1].send(b"!")

    def fileno(self):
        return self.ends[0].fileno()

    def accept(self):
        raise OSError(self.errors.pop(0), "no")

    def close(self):
        for end in self.ends:
            end.close()


async def test_running_out_of_descriptors_is_waited_out(autojump_clock):
    send, _ = trio.open_memory_channel(0)
    listener: Any = Listener(errno.EMFILE, errno.ENOBUFS, errno.EBADF)

    with pytest.raises(ExceptionGroup) as caught:
        await serve_feed(listener, defaults(), send, lambda: NOW, FeedStats())

    listener.close()
    assert caught.value.subgroup(lambda error: getattr(error, "errno", 0) == errno.EBADF)
    assert trio.current_time() == pytest.approx(0.2)


async def test_a_connection_that_ends_between_accept_and_the_first_look_is_no_trouble(feed):
    for _ in range(50):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(feed.settings.feed.socket)
        sock.close()
    bot = await feed.connect()

    await bot.send(GOOD)

    assert len(await feed.events(1)) == 1
    await bot.close()
