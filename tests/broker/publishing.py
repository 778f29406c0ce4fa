"""A publisher with listeners: what is accepted, and what each of them is to be sent."""

from __future__ import annotations

from typing import Any

import attrs
import msgspec

from cryptows.broker.counters import Counters
from cryptows.broker.dedup import Dedup
from cryptows.broker.journal import Journal
from cryptows.broker.publisher import Publisher
from cryptows.broker.routes import Audience, Routes
from cryptows.broker.targets import TargetFinder
from cryptows.model.channel import ChannelClass, ChannelTable, Pattern
from cryptows.model.errors import BadEvent
from cryptows.model.event import Event, EventType, Record
from cryptows.wire.envelope import NATIVE

NOW_MS = 1_700_000_000_000


@attrs.define(eq=False)
class Listener:
    """A client that is always written to."""

    audience: Audience = attrs.field(init=False)
    records: list[Record] = attrs.field(factory=list)

    def take(self) -> list[dict[str, Any]]:
        """Return the envelopes since the last time."""
        records, self.records = self.records, []
        return [msgspec.json.decode(record.envelope) for record in records]

    def takes(self, *fields: str) -> list[tuple[Any, ...]]:
        """Return these fields of the envelopes since the last time."""
        return [tuple(envelope.get(field) for field in fields) for envelope in self.take()]


@attrs.frozen
class Answer:
    """What a producer was told of an event."""

    offset: str | None
    delivered_to: int = 0
    error: str | None = None
    duplicate: bool = False


@attrs.define(eq=False)
class Desk:
    """Where events are handed in. `now` is the steady clock."""

    publisher: Publisher
    now: float = 100.0
    answers: list[Answer] = attrs.field(factory=list)

    @classmethod
    def of(
        cls,
        *classes: ChannelClass,
        types: dict[str, EventType] | None = None,
        store: bool = False,
        max_streams: int = 100,
    ) -> Desk:
        """Open a desk for these channels. Without `types`, each channel has a type of its name."""
        if types is None:
            types = {rules.name: EventType(rules.name, (rules.name,)) for rules in classes}
        journal = Journal("k", max_streams)
        finder = TargetFinder(ChannelTable(classes), types, journal)
        publisher = Publisher(
            finder, journal, Routes(), Counters(), Dedup(60_000, 100), store, "bot"
        )
        return cls(publisher)

    @property
    def counters(self) -> Counters:
        return self.publisher.counters

    @property
    def journal(self) -> Journal:
        return self.publisher.journal

    @property
    def now_ms(self) -> int:
        return NOW_MS + round((self.now - 100) * 1000)

    def listen(self, *texts: str) -> Listener:
        """Return a listener that is subscribed to these channels."""
        listener = Listener()
        self.publisher.routes.join(listener, NATIVE, frozenset(map(Pattern.parse, texts)))
        return listener

    def accept(self, event: Event) -> None:
        """Hand in an event whose answer goes to `answers`."""
        self.publisher.accept(event, self.now, self.now_ms, self.note)

    def note(
        self, offset: bytes | None, delivered_to: int, error: BadEvent | None, duplicate: bool
    ) -> None:
        text = None if offset is None else offset.decode()
        self.answers.append(
            Answer(text, delivered_to, None if error is None else error.code, duplicate)
        )

    def write(self) -> list[Audience]:
        """Write what has become due, as the dispatcher does; return whom it was for."""
        self.publisher.release(self.now)
        touched = self.publisher.start_pass()
        for audience in touched:
            records, audience.records = audience.records, []
            for member in audience.members:
                assert isinstance(member, Listener)
                member.records += records
        return touched

    def publish(self, event: Event) -> Answer:
        """Hand in an event, write, and return its answer."""
        self.accept(event)
        self.write()
        return self.answers.pop()

    def commit(self, stored: bool = True) -> None:
        """Number what is held, commit it (or not), and write."""
        batch = self.publisher.number_held()
        self.publisher.settle(batch, stored, self.now, self.now_ms)
        self.write()
