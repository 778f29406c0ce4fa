"""The counter where requests are answered, with clients that only collect what they are sent."""

from __future__ import annotations

from typing import Any

import attrs
import msgspec

from cryptows.broker.admission import ConnectionCounts, Seat
from cryptows.broker.answers import Answers
from cryptows.broker.auth import ANONYMOUS, Identity, Verifier, make_token
from cryptows.broker.counters import Counters
from cryptows.broker.dedup import Dedup
from cryptows.broker.freshness import Freshness
from cryptows.broker.journal import Journal
from cryptows.broker.limits import Bans, RequestLimiter
from cryptows.broker.outbox import Outbox
from cryptows.broker.publisher import Publisher
from cryptows.broker.replay import Query, Recover
from cryptows.broker.routes import NOTHING, Audience, Routes
from cryptows.broker.session import Session, Step
from cryptows.broker.targets import TargetFinder
from cryptows.config.load import defaults
from cryptows.config.settings import Settings
from cryptows.model.channel import ChannelTable, Pattern
from cryptows.model.errors import Refusal
from cryptows.model.event import Event
from cryptows.wire.envelope import NATIVE
from cryptows.wire.requests import Request

KEY = b"k" * 32
NOW_MS = 1_700_000_000_000
ADDRESS = "192.0.2.1"


@attrs.define(eq=False)
class Client:
    """A client that is always written to, and tells what it got."""

    session: Session
    seat: Seat
    audience: Audience = attrs.field(init=False)
    outbox: Outbox | None = None
    skipped: int = 0
    sent: list[tuple[bytes, bytes | None]] = attrs.field(factory=list)
    asked: list[Request] = attrs.field(factory=list)  # what was answered
    ending: Refusal | None = None

    def message(self, text: bytes, offset: bytes | None = None) -> None:
        self.sent.append((text, offset))

    def messages(self, texts: Any) -> None:
        self.sent += texts

    def answer(self, request: Request, text: bytes) -> None:
        self.asked.append(request)
        self.message(text)

    def end(self, refusal: Refusal) -> None:
        if self.session.step(Step.END):
            self.ending = refusal

    def seat_as(self, user_id: str | None) -> None:
        self.seat.move(user_id)

    def failed(self, error: Exception) -> None:
        raise error

    def take(self) -> list[dict[str, Any]]:
        """Return the envelopes since the last time."""
        sent, self.sent = self.sent, []
        return [msgspec.json.decode(text) for text, _ in sent]


@attrs.define(eq=False)
class Counter:
    """The answers and the daemon around them. Unix time goes along with `now`."""

    settings: Settings = attrs.field(factory=defaults)
    now: float = 1000.0
    cursors: dict[str, int] = attrs.field(factory=dict)
    journal: Journal = attrs.field(factory=lambda: Journal("k", 1000))
    routes: Routes = attrs.field(factory=Routes)
    counters: Counters = attrs.field(factory=Counters)
    verifier: Verifier = attrs.field(init=False)
    limiter: RequestLimiter = attrs.field(init=False)
    bans: Bans = attrs.field(init=False)
    seats: ConnectionCounts = attrs.field(init=False)
    freshness: Freshness = attrs.field(init=False)
    publisher: Publisher = attrs.field(init=False)
    answers: Answers = attrs.field(init=False)
    _ids: int = 0

    def __attrs_post_init__(self) -> None:
        limits = self.settings.limits
        self.verifier = Verifier(self.settings.auth, [KEY])
        self.limiter = RequestLimiter(limits.requests, limits.window, limits.strikes)
        self.bans = Bans(limits.ban)
        self.seats = ConnectionCounts(limits)
        self.freshness = Freshness(self.journal)
        finder = TargetFinder(self.settings.channels, self.settings.types, self.journal)
        self.publisher = Publisher(
            finder, self.journal, self.routes, self.counters, Dedup(60_000, 100), producer="bot"
        )
        self.answers = Answers(self)

    @classmethod
    def of(cls, **sections: dict[str, Any]) -> Counter:
        """Open a counter with some settings changed: `of(limits={"requests": 3})`."""
        settings = defaults()
        changed = {
            name: attrs.evolve(getattr(settings, name), **values)
            for name, values in sections.items()
        }
        return cls(attrs.evolve(settings, **changed))

    @property
    def table(self) -> ChannelTable:
        return self.settings.channels

    @property
    def now_ms(self) -> int:
        return NOW_MS + round((self.now - 1000) * 1000)

    def set_cursor(self, user_id: str, position: int) -> None:
        self.cursors[user_id] = position

    def token(self, user: str, role: str = "user", ttl: float | None = 3600) -> str:
        return make_token(KEY, "HS256", user, role, ttl, self.now_ms / 1000)

    def client(
        self, identity: Identity = ANONYMOUS, *subscribed: str, address: str = ADDRESS
    ) -> Client:
        """Return a client, with what it is subscribed to."""
        self._ids += 1
        seat = self.seats.acquire(address, identity.user_id)
        session = Session(f"c-{self._ids}", identity, address, since=self.now)
        session.patterns = frozenset(map(Pattern.parse, subscribed))
        client = Client(session, seat)
        self.routes.join(client, NATIVE, session.patterns or NOTHING)
        return client

    def publish(self, event: Event) -> None:
        """Publish an event and write it to whom it is for."""
        self.publisher.accept(event, self.now, self.now_ms)
        for audience in self.publisher.start_pass():
            records, audience.records = audience.records, []
            for member in audience.members:
                assert isinstance(member, Client)
                for record in records:
                    member.message(record.envelope, record.offset)

    def plan(self, client: Client, type_: str, **fields: Any) -> Recover | Query | None:
        """Hand in a request; return the plan of one that takes reading."""
        return self.answers.handle(client, Request(type_, **fields), self.now, self.now_ms)

    def ask(self, client: Client, type_: str, **fields: Any) -> dict[str, Any]:
        """Hand in a request; return its answer, which comes first."""
        client.sent.clear()
        assert self.plan(client, type_, **fields) is None
        text, _ = client.sent.pop(0)
        return dict(msgspec.json.decode(text))
