"""Answers to one producer, in the order of its lines.

An answer may be known late: a durable event is acknowledged after its commit. Every line that is
still to be answered holds its place in a queue, and what stands at the front with its answer known
is ready to be written. Without acks good lines have no place and bad ones are answered at once.

Protocol section 1. Bounded by the reader of the lines, which stops while `is_full`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import attrs
import msgspec

from cryptows.model.errors import BadEvent
from cryptows.model.event import Event

MAX_PLACES = 10_000  # lines that wait for their answer, e.g. for a commit
MAX_READY = 64 * 1024  # bytes of answers that the producer has not taken

Done = Callable[[bytes | None, int, BadEvent | None, bool], None]
"""Called once for an event: its offset, how many clients get it, what went wrong, a duplicate?"""

_encode = msgspec.json.Encoder().encode


class Replies(Protocol):
    """Where the dispatcher says what became of the events of one batch."""

    @property
    def wants_all(self) -> bool:
        """Whether to tell of every event, or only of those that could not be used."""
        ...

    def done_for(self, index: int) -> Done:
        """Return what to call, once, for the event at that index."""
        ...


def refusal(error: BadEvent, line: int | None = None, id: str | None = None) -> bytes:
    """Return the answer to a line that cannot be used, or to a producer that is not let in."""
    answer: dict[str, Any] = {"ok": False}
    if line is not None:
        answer["line"] = line
    if id is not None:
        answer["id"] = id
    answer["error"] = {"code": error.code, "message": error.message}
    return _encode(answer) + b"\n"


class Place:
    """A line that is to be answered; a batch line waits for all of its events."""

    __slots__ = (
        "_answers", "_delivered", "_duplicates", "_events", "_left", "_offset",
        "error", "id", "line", "text",
    )  # fmt: skip

    def __init__(self, answers: Answers, line: int, id: str | None, events: int) -> None:
        self._answers = answers
        self._events = self._left = events
        self._offset: bytes | None = None
        self._delivered = 0
        self._duplicates = 0
        self.line = line
        self.id = id
        self.error: BadEvent | None = None
        self.text: bytes | None = None  # the answer, once it is known

    def done(
        self, offset: bytes | None, delivered_to: int, error: BadEvent | None, duplicate: bool
    ) -> None:
        """Take note of one event; the answer tells the last offset and the first error."""
        self._left -= 1
        self._delivered += delivered_to
        self._duplicates += duplicate
        self._offset = offset or self._offset
        self.error = self.error or error
        if not self._left:
            self.text = self._answer()
            self._answers.settle(self)

    def _answer(self) -> bytes:
        if self.error is not None:
            return refusal(self.error, self.line, self.id)
        id = b"" if self.id is None else b',"id":' + _encode(self.id)
        offset = b"" if self._offset is None else b',"offset":"%b"' % self._offset
        extra = b',"duplicate":true' if self._duplicates == self._events else b""
        return b'{"ok":true,"line":%d%b%b,"delivered_to":%d%b}\n' % (
            self.line, id, offset, self._delivered, extra,
        )  # fmt: skip


@attrs.define(eq=False)
class Answers:
    """The answers of one connection. `on_ready` is called when there is something to `take`."""

    on_ready: Callable[[], object]
    on_error: Callable[[str], None]  # gets the code of each error that is answered
    acks: bool = False
    _places: deque[Place] = attrs.field(factory=deque, init=False)
    _ready: list[bytes] = attrs.field(factory=list, init=False)
    _size: int = attrs.field(default=0, init=False)
    _deaf: bool = attrs.field(default=False, init=False)

    @property
    def is_full(self) -> bool:
        """Whether so much is unanswered or unread that no more lines should be taken."""
        return len(self._places) >= MAX_PLACES or self._size >= MAX_READY

    @property
    def is_empty(self) -> bool:
        """Whether every line is answered and every answer taken."""
        return not self._places and not self._ready

    def expect(self, line: int, id: str | None, events: int = 1) -> Place:
        """Hold the place of a good line whose answer is not known yet."""
        place = Place(self, line, id, events)
        self._places.append(place)
        return place

    def accept(self, line: int) -> None:
        """Answer a good line that holds no event, to a producer that wants acks."""
        if self.acks:
            self._answer(b'{"ok":true,"line":%d}\n' % line)

    def refuse(self, line: int, id: str | None, error: BadEvent) -> None:
        """Answer a line that cannot be used."""
        self.on_error(error.code)
        self._answer(refusal(error, line, id))

    def settle(self, place: Place) -> None:
        """A place got its answer: move what is now ready at the front."""
        if place.error is not None:
            self.on_error(place.error.code)
        places = self._places
        if places[0] is not place:
            return
        while places and (text := places[0].text) is not None:
            places.popleft()
            self._push(text)

    def take(self) -> bytes:
        """Return the answers that are ready, to be written."""
        data = b"".join(self._ready)
        self._ready.clear()
        self._size = 0
        return data

    def stop_listening(self) -> None:
        """The producer reads no more: forget its answers from now on."""
        self._deaf = True
        self.take()

    def _answer(self, text: bytes) -> None:
        if self._places:
            place = self.expect(0, None)
            place.text = text
        else:
            self._push(text)

    def _push(self, text: bytes) -> None:
        if not self._deaf:
            self._ready.append(text)
            self._size += len(text)
        self.on_ready()


@attrs.define(eq=False)
class Acks:
    """The replies of a producer that wants acks: each event has its place, a batch line one."""

    places: Sequence[Place]
    wants_all = True

    def done_for(self, index: int) -> Done:
        """Return what to call, once, for the event at that index."""
        return self.places[index].done


@attrs.define(eq=False)
class Complaints:
    """The replies of a producer that wants no acks: it hears only of what could not be used."""

    answers: Answers
    lines: Sequence[int]
    events: Sequence[Event]
    wants_all = False

    def done_for(self, index: int) -> Done:
        """Return what to call, once, for the event at that index."""
        return _Complaint(self, index).done


class _Complaint:
    __slots__ = ("_complaints", "_index")

    def __init__(self, complaints: Complaints, index: int) -> None:
        self._complaints = complaints
        self._index = index

    def done(self, _offset: object, _delivered: int, error: BadEvent | None, _dup: bool) -> None:
        # An event that could not be stored was delivered all the same; only an ack promises more.
        if error is not None and error.code != "not_stored":
            all_ = self._complaints
            all_.answers.refuse(all_.lines[self._index], all_.events[self._index].id, error)
