"""One run of `cryptows publish`: lines are read, waited for, sent, and their answers awaited.

Reading, waiting and writing are one task, so that the file is read no faster than the daemon takes
it. Answers are read by another task: the daemon stops reading when nobody takes them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

import attrs
import trio

from cryptows.cli.feed_progress import Progress
from cryptows.cli.feeding import EXCERPT, Counts, FeedClient, Refused
from cryptows.cli.pacing import Pace
from cryptows.cli.terminal import Failure, NotRunning
from cryptows.model.errors import BadEvent
from cryptows.wire.feedfields import object_of

READ = 64 * 1024
STDIN = 0
PRODUCER = "cryptows-publish"
LAST_ANSWERS = 30.0  # seconds without any answer, after the last line; a commit takes milliseconds
REDRAW = 0.1  # seconds


@attrs.define
class Source:
    """A file of lines. `size` is None where it cannot be read again."""

    name: str
    descriptor: int
    size: int | None = None

    @property
    def is_terminal(self) -> bool:
        """Whether somebody types the lines."""
        return os.isatty(self.descriptor)

    def close(self) -> None:
        """Close the file, but not stdin."""
        if self.descriptor != STDIN:
            os.close(self.descriptor)

    def rewind(self) -> None:
        """Begin anew."""
        os.lseek(self.descriptor, 0, os.SEEK_SET)

    async def read(self) -> bytes:
        """Return the next piece, nothing at the end.

        A pipe may block, so a thread reads. It does without sys.stdin, whose lock it would still
        hold if the interpreter ended meanwhile.
        """
        read = partial(os.read, self.descriptor, READ)
        return await trio.to_thread.run_sync(read, abandon_on_cancel=True)


def open_source(file: str) -> Source:
    """Open a file, or stdin for `-`; raises Failure."""
    try:
        descriptor = STDIN if file == "-" else os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        state = os.fstat(descriptor)
    except OSError as error:
        raise Failure(f"{file}: {error.strerror}") from None
    source = Source("stdin" if file == "-" else file, descriptor)
    if stat.S_ISDIR(state.st_mode):
        source.close()
        raise Failure(f"{file}: is a directory")
    if stat.S_ISREG(state.st_mode):
        source.size = state.st_size
    return source


class Lines(Protocol):
    """What Publication needs of a source."""

    name: str

    def rewind(self) -> None:
        """Begin anew."""
        ...

    async def read(self) -> bytes:
        """Return the next piece, nothing at the end."""
        ...


@attrs.define
class Publication:
    """Publishes a source `repeat` times (0: for ever) to the feed socket at `path`."""

    source: Lines
    pace: Pace
    repeat: int
    path: str
    view: Progress
    connect: Callable[[str], Awaitable[trio.abc.HalfCloseableStream]] = trio.open_unix_socket
    counts: Counts = attrs.field(factory=Counts, init=False)
    _closed: bool = attrs.field(default=False, init=False)
    _all_sent: bool = attrs.field(default=False, init=False)
    _number: int = attrs.field(default=0, init=False)  # of the line sent last
    _started: float = attrs.field(default=0.0, init=False)
    _ended: float = attrs.field(default=0.0, init=False)

    async def run(self) -> None:
        """Return when every line was answered; raises Failure if that will not happen."""
        async with await self._connect() as stream:
            client = FeedClient(stream, PRODUCER, self._show, self.counts)
            self._started = trio.current_time()
            try:
                with self.view:
                    await self._converse(client)
            finally:
                self._ended = trio.current_time()
        if trouble := self._trouble(client):
            raise Failure(trouble)

    def summary(self, finished: bool) -> str:
        """Return what was achieved, in one line."""
        counts, seconds = self.counts, self._ended - self._started
        duplicates = f", {counts.duplicates} seen before" if counts.duplicates else ""
        lines = "line" if counts.sent == 1 else "lines"
        return (
            f"{'published' if finished else 'interrupted:'} {counts.sent} {lines} "
            f"in {seconds:.1f} s: {counts.accepted} accepted, {counts.refused} refused, "
            f"{counts.delivered} deliveries{duplicates}"
        )

    def _trouble(self, client: FeedClient) -> str | None:
        """Return what became of lines that were not answered or not sent, if there are any."""
        missing = [sent for sent in client.unanswered if sent.number]
        if self._all_sent and not missing:
            return None
        accepted = self.counts.accepted
        taken = f"{accepted} {'was' if accepted == 1 else 'were'} accepted"
        if not self._all_sent:
            taken += ", the rest was not sent"
        if not missing:
            after = f"after line {self._number}" if self._number else "before the first line"
            return f"{self.source.name}: the daemon closed the connection {after}; {taken}"
        what = (
            "the daemon closed the connection without an answer"
            if self._closed
            else f"no answer within {LAST_ANSWERS:g} s"
        )
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        return f"{self.source.name}:{missing[0].number}: {what} to this line{more}; {taken}"

    async def _connect(self) -> trio.abc.HalfCloseableStream:
        try:
            return await self.connect(self.path)
        except (FileNotFoundError, ConnectionRefusedError):
            raise NotRunning(
                f"no daemon listens on {self.path}; start one with `cryptows serve`"
            ) from None
        except PermissionError:
            raise Failure(
                f"{self.path}: permission denied; feed.mode and feed.group say who may write to it"
            ) from None
        except (OSError, ValueError) as error:
            raise Failure(f"{self.path}: {getattr(error, 'strerror', error)}") from None

    async def _converse(self, client: FeedClient) -> None:
        feeding = trio.CancelScope()
        answered = trio.Event()

        async def read_answers() -> None:
            await client.read_answers()
            self._closed = True
            feeding.cancel()  # a daemon that has gone reads no more lines
            answered.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_answers)
            nursery.start_soon(self._redraw)
            with feeding:
                try:
                    await self._feed(client)
                except trio.BrokenResourceError:
                    pass  # its last answers may say why
            await self._await_last_answers(client, answered)
            nursery.cancel_scope.cancel()

    async def _feed(self, client: FeedClient) -> None:
        await client.greet()
        passes = 0
        while passes == 0 or self.repeat == 0 or passes < self.repeat:
            if passes:
                self.source.rewind()
                self.pace.again()
            before = self.counts.sent
            await self._feed_once(client, first=passes == 0)
            if self.counts.sent == before:
                break  # an empty file for ever would be a busy loop
            passes += 1
        self._all_sent = True
        await client.finish()

    async def _feed_once(self, client: FeedClient, *, first: bool) -> None:
        """Send all lines of the source."""
        number, rest = 0, b""
        while piece := await self.source.read():
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                number += 1
                await self._send(client, number, line, first=first)
            await client.flush()  # the next piece of a pipe may be long in coming
        if rest:
            await self._send(client, number + 1, rest, first=first)
            await client.flush()

    async def _send(self, client: FeedClient, number: int, line: bytes, *, first: bool) -> None:
        if not line.strip():
            return  # the daemon would count it and say nothing
        if is_hello(line):
            # Ours was sent, and this one, of whoever was recorded, could switch the acks off.
            if first:
                place = f"{self.source.name}:{number}"
                self.view.note(f"{place}: a hello, left out: publish says its own")
            return
        wait = self._started + self.pace.due(line) - trio.current_time()
        if wait > 0:
            await client.flush()
            await trio.sleep(wait)
        self._number = number
        await client.send(number, line)

    async def _await_last_answers(self, client: FeedClient, answered: trio.Event) -> None:
        while not answered.is_set():
            before = len(client.unanswered)
            with trio.move_on_after(LAST_ANSWERS):
                await answered.wait()
            if len(client.unanswered) == before:
                return

    async def _redraw(self) -> None:
        while True:
            self.view.update(self.counts)
            await trio.sleep(REDRAW)

    def _show(self, refused: Refused) -> None:
        self.view.note(describe(self.source.name, refused))


def is_hello(line: bytes) -> bool:
    """Whether the daemon would read this line as a producer's introduction of itself."""
    if b'"type"' in line and b'"hello"' not in line:
        return False  # nearly every line, and decoding each would cost as much as sending it
    try:
        fields = object_of(line)
    except BadEvent:
        return False
    return "hello" in fields and "type" not in fields


def describe(name: str, refused: Refused) -> str:
    """Return the answer to a line, and below it the line."""
    place = f"{name}:{refused.number}" if refused.number else name
    text = f"{place}: {refused.message} ({refused.code})"
    if not refused.number:
        return text
    excerpt = refused.excerpt[:EXCERPT].decode(errors="backslashreplace")
    return f"{text}\n    {excerpt}{'…' if len(refused.excerpt) > EXCERPT else ''}"
