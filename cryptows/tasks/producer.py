"""One producer: its lines become batches of events, and the answers go back in their order.

Two tasks: one reads, decodes and waits for the dispatcher to take the events; the other writes
answers whenever some are ready. They meet in `Answers`, which says when so much is unanswered or
unread that reading must stop. They end when the producer has finished and has its answers.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

import attrs
import trio

from cryptows.broker.counters import Counters
from cryptows.model.errors import BadEvent
from cryptows.model.event import Event
from cryptows.tasks.feedsocket import Peer
from cryptows.wire.feed import Decoded, Keepalive
from cryptows.wire.feedanswers import Acks, Answers, Complaints, Place, Replies
from cryptows.wire.feedfields import Hello, line_id
from cryptows.wire.lines import Line, LineReader, TooLong

if TYPE_CHECKING:
    from cryptows.tasks.ingest import Ingest

CHUNK = 64 * 1024  # bytes of one read: some 300 events, 1.5 ms of decoding
MOST = 512  # lines decoded before other tasks get a turn
SLICE = 0.002  # seconds likewise, where lines are slow: bad ones, batches
LINGER = 10.0  # seconds a producer that has finished may take to read its last answers


@attrs.define(eq=False)
class FeedBatch:
    """Events of one producer on their way to the dispatcher, in order."""

    events: list[Event]
    replies: Replies  # to be told, once, what became of each event
    producer: str  # a key of `FeedStats.producers` while it is connected
    keepalives: list[str] = attrs.field(factory=list)  # streams that are quiet, not dead
    read_at: float = 0.0  # on Trio's clock
    # Of each batch line: the index of its first event, and that behind its last.
    wholes: dict[int, int] = attrs.field(factory=dict)
    refused_to: int = 0  # before this index all events of a batch line were refused


@attrs.define(eq=False)
class ProducerStats:
    """One connected producer."""

    name: str  # unique among the connected
    pid: int
    uid: int
    since: int  # Unix ms, as is last_event
    acks: bool = False
    events: int = 0
    errors: int = 0
    last_event: int | None = None


@attrs.define(eq=False)
class FeedStats:
    """What the feed shows of itself; counts that outlive a producer are in `counters`."""

    counters: Counters = attrs.field(factory=Counters)
    producers: dict[str, ProducerStats] = attrs.field(factory=dict)  # at most feed.producers
    refused: int = 0  # connections that were not let in


@attrs.define(eq=False)
class _Slice:
    """What a few lines came to."""

    events: list[Event] = attrs.field(factory=list)
    lines: list[int] = attrs.field(factory=list)  # of each event
    places: list[Place] = attrs.field(factory=list)  # of each event, with acks
    keepalives: list[str] = attrs.field(factory=list)
    wholes: dict[int, int] = attrs.field(factory=dict)  # as in FeedBatch


class Producer:
    """The daemon's side of one feed connection."""

    def __init__(
        self,
        ingest: Ingest,
        sock: socket.socket,
        stream: trio.SocketStream,
        peer: Peer,
        number: int,
    ) -> None:
        """`stream` is the same socket, to write to."""
        self._ingest = ingest
        self._socket = sock
        self._stream = stream
        self._number = number
        self._reader = LineReader(ingest.settings.feed.max_line)
        self._ready = trio.lowlevel.ParkingLot()  # the writer, waiting for answers
        self._room = trio.lowlevel.ParkingLot()  # the reader, waiting for fewer answers
        self._answers = Answers(self._ready.unpark_all, self._count_error)
        self._stopped = False  # by us
        self._finished = False  # nothing more will be read
        self._begun = False  # something was sent on: it is too late for a hello
        self._flooding = False  # the last read was full: there is more already
        self._receiving = trio.CancelScope()
        self._scope = trio.CancelScope()
        self.stats = ProducerStats(str(number), peer.pid, peer.uid, ingest.now_ms())

    async def run(self) -> None:
        """Read until the producer ends or is stopped, then write what is still to be said."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                await self._read()
                self._finished = True
                self._ready.unpark_all()
                self._scope.deadline = min(self._scope.deadline, trio.current_time() + LINGER)

    def stop(self) -> None:
        """Read no more; `run` returns once what was read is answered, or after LINGER."""
        self._stopped = True
        self._receiving.cancel()
        self._scope.deadline = trio.current_time() + LINGER

    # reading

    async def _read(self) -> None:
        """Take all lines. At the end of the stream the newline of the last one may be missing."""
        while chunk := await self._receive():
            self._flooding = len(chunk) == CHUNK
            self._ingest.stats.counters.feed_bytes += len(chunk)
            await self._take(self._reader.feed(chunk))
        if not self._stopped:
            # Safe to use: an object that is cut off does not parse.
            await self._take(self._reader.rest())

    async def _receive(self) -> bytes:
        """Return the next bytes, none at the end."""
        with trio.CancelScope() as self._receiving:
            while not self._stopped:
                await trio.lowlevel.wait_readable(self._socket)
                # Read now, each line would wake us only to wait for the next pass.
                rests_until = self._ingest.rests_until()
                if rests_until > trio.current_time() and not self._flooding:
                    await trio.sleep_until(rests_until)
                try:
                    return self._socket.recv(CHUNK)
                except BlockingIOError:
                    continue
                except OSError:
                    break  # it went away without reading its answers
        return b""

    async def _take(self, lines: list[Line]) -> None:
        """Hand the events of these lines to the dispatcher, a slice at a time."""
        before = self._reader.count - len(lines)
        at = 0
        while at < len(lines):
            while self._answers.is_full:
                await self._room.park()
            slice_ = _Slice()
            at = self._decode(lines, at, before, slice_)
            await self._send(slice_)

    def _decode(self, lines: list[Line], at: int, before: int, into: _Slice) -> int:
        """Decode lines from index `at` on, for about SLICE; return the index to go on from."""
        decode = self._ingest.decoder.decode
        now_ms = self._ingest.now_ms()
        until = time.perf_counter() + SLICE
        stop = min(len(lines), at + MOST)
        while at < stop:
            line = lines[at]
            at += 1
            try:
                if isinstance(line, TooLong):
                    raise BadEvent("line_too_long", f"longer than {line.max_line} bytes")
                found = decode(line, now_ms)
                if type(found) is Event:
                    into.events.append(found)
                    into.lines.append(before + at)
                    if self._answers.acks:
                        into.places.append(self._answers.expect(before + at, found.id))
                    continue
                self._take_other(found, line, before + at, into)
            except BadEvent as error:
                self._refuse(line, before + at, error)
            if time.perf_counter() > until:
                break
        return at

    def _take_other(self, found: Decoded, line: bytes, number: int, into: _Slice) -> None:
        """Take what is not a single event."""
        answers = self._answers
        if isinstance(found, list):
            into.wholes[len(into.events)] = len(into.events) + len(found)
            into.events += found
            into.lines += [number] * len(found)
            if answers.acks:
                into.places += [answers.expect(number, line_id(line), len(found))] * len(found)
            return
        if isinstance(found, Hello):
            if into.events or into.keepalives or self._begun:
                raise BadEvent("invalid_event", "hello: it must come before the first event")
            answers.acks = self.stats.acks = found.acks
            self._rename(found.producer)
        elif isinstance(found, Keepalive):
            into.keepalives += found.streams
        answers.accept(number)

    def _rename(self, name: str | None) -> None:
        producers = self._ingest.stats.producers
        del producers[self.stats.name]
        self.stats.name = f"{name}#{self._number}" if name else str(self._number)
        producers[self.stats.name] = self.stats

    def _refuse(self, line: Line, number: int, error: BadEvent) -> None:
        """Answer a line that cannot be used; blank ones only count."""
        if isinstance(line, TooLong):
            self._answers.refuse(number, None, error)
        elif line and not line.isspace():
            self._answers.refuse(number, line_id(line), error)

    def _count_error(self, code: str) -> None:
        self.stats.errors += 1
        self._ingest.stats.counters.feed_failed(code)

    async def _send(self, slice_: _Slice) -> None:
        """Give the dispatcher its share, which waits while it is behind."""
        if not slice_.events and not slice_.keepalives:
            await trio.lowlevel.checkpoint()
            return
        replies: Replies
        if slice_.places:
            replies = Acks(slice_.places)
        else:
            replies = Complaints(self._answers, slice_.lines, slice_.events)
        self._begun = True
        if slice_.events:
            self.stats.events += len(slice_.events)
            self.stats.last_event = self._ingest.now_ms()
        batch = FeedBatch(
            slice_.events, replies, self.stats.name, slice_.keepalives, trio.current_time(),
            slice_.wholes,
        )  # fmt: skip
        try:
            await self._ingest.events_in.send(batch)
        except trio.BrokenResourceError:  # the dispatcher is gone: the daemon ends
            self._scope.cancel()

    # writing

    async def _write(self) -> None:
        """Write answers as they become ready, until there will be no more."""
        while not (self._finished and self._answers.is_empty):
            data = self._answers.take()
            if data:
                try:
                    await self._stream.send_all(data)
                except trio.BrokenResourceError:
                    self._answers.stop_listening()
            self._room.unpark_all()
            if not data:
                await self._ready.park()
