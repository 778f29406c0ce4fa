"""The producer's side of the feed: lines go in over the Unix socket, answers come back.

Every line is numbered twice: as the daemon counts (the `hello` is its line 1) and as the person who
published it does (a line of the file, the same again with `--repeat`). Acks are always asked for:
only they say that the daemon has taken a line. Protocol section 1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import attrs
import msgspec
import trio

WRITE = 64 * 1024  # bytes gathered for one write
EXCERPT = 200  # bytes shown of a line that was refused; one more is kept until its answer comes


class _Error(msgspec.Struct):
    code: str = ""
    message: str = ""


class Answer(msgspec.Struct):
    """One answer line of the daemon."""

    ok: bool
    line: int | None = None
    delivered_to: int = 0
    duplicate: bool = False
    error: _Error | None = None


@attrs.frozen
class Sent:
    """A line on its way."""

    wire_line: int  # as the daemon counts
    number: int  # as the person counts
    excerpt: bytes


@attrs.frozen
class Refused:
    """A line that the daemon could not use, or (number 0) what it says about the connection."""

    number: int
    excerpt: bytes
    code: str
    message: str


@attrs.define
class Counts:
    """What has happened so far."""

    sent: int = 0
    sent_bytes: int = 0
    accepted: int = 0
    refused: int = 0
    delivered: int = 0
    duplicates: int = 0


@attrs.define
class FeedClient:
    """One connection to the feed."""

    stream: trio.abc.HalfCloseableStream
    producer: str
    on_refused: Callable[[Refused], None]
    counts: Counts = attrs.field(factory=Counts)
    unanswered: deque[Sent] = attrs.field(factory=deque)  # the daemon stops reading at its limit
    _buffer: bytearray = attrs.field(factory=bytearray, init=False)
    _wire_line: int = attrs.field(default=1, init=False)  # of the hello
    _decode: msgspec.json.Decoder[Answer] = attrs.field(
        factory=lambda: msgspec.json.Decoder(Answer), init=False
    )

    async def greet(self) -> None:
        """Ask for acks; the answer comes like any other."""
        name = self.producer.encode()
        self.unanswered.append(Sent(1, 0, b""))
        await self.stream.send_all(b'{"hello":{"producer":"%b","acks":true}}\n' % name)

    async def send(self, number: int, line: bytes) -> None:
        """Take a line without its newline; it is written by flush(), or when there are enough."""
        self._wire_line += 1
        self.unanswered.append(Sent(self._wire_line, number, line[: EXCERPT + 1]))
        self._buffer += line
        self._buffer += b"\n"
        self.counts.sent += 1
        self.counts.sent_bytes += len(line) + 1
        if len(self._buffer) >= WRITE:
            await self.flush()

    async def flush(self) -> None:
        """Write what was taken; raises trio.BrokenResourceError when the daemon has gone."""
        data, self._buffer = self._buffer, bytearray()
        if data:
            await self.stream.send_all(data)

    async def finish(self) -> None:
        """Write the rest and say that nothing more comes; the daemon answers, then closes."""
        await self.flush()
        await self.stream.send_eof()

    async def read_answers(self) -> None:
        """Take the answers; ends when the daemon closes the connection."""
        rest = b""
        while True:
            try:
                chunk = await self.stream.receive_some(WRITE)
            except trio.BrokenResourceError:
                return
            if not chunk:
                return
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._take(self._decode.decode(line))

    def _take(self, answer: Answer) -> None:
        sent = self._find(answer.line)
        if answer.ok:
            if sent is not None and sent.number:
                self.counts.accepted += 1
                self.counts.delivered += answer.delivered_to
                self.counts.duplicates += answer.duplicate
            return
        self.counts.refused += 1
        error = answer.error or _Error()
        number, excerpt = (sent.number, sent.excerpt) if sent else (0, b"")
        self.on_refused(Refused(number, excerpt, error.code, error.message))

    def _find(self, wire_line: int | None) -> Sent | None:
        """Return the line an answer is for. Answers keep the order of the lines."""
        while wire_line is not None and self.unanswered:
            if self.unanswered[0].wire_line > wire_line:
                return None
            sent = self.unanswered.popleft()
            if sent.wire_line == wire_line:
                return sent
        return None
