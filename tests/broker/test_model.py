"""The broker as a whole, beside a naive one: the same feed, subscriptions, readers and clocks.

What clients see is read off the bytes they were sent. Each stream must come in order and without a
gap that `skipped` did not tell; the private lane is complete; the newest value always arrives;
snapshot and live follow each other without a gap or a double; and whoever comes back with `since`
misses nothing that is kept.
"""

from __future__ import annotations

from typing import Any

import attrs
import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cryptows.broker.auth import ANONYMOUS, Identity
from cryptows.broker.dedup import Dedup
from cryptows.broker.journal import Journal, Stream
from cryptows.broker.outbox import Outbox
from cryptows.broker.publisher import Held, Publisher
from cryptows.broker.replay import (
    Recover,
    confirmation,
    marked,
    snapshot_of,
    start_positions,
)
from cryptows.broker.routes import NOTHING, Audience
from cryptows.broker.session import Session, Step
from cryptows.broker.targets import TargetFinder
from cryptows.config.load import defaults
from cryptows.model.channel import ChannelTable, Pattern, Role
from cryptows.model.errors import Refusal
from cryptows.model.event import Event, EventType, Record, UserField
from cryptows.wire.envelope import NATIVE, WIRES, Packet, Wire, joined
from cryptows.wire.requests import Request
from tests.broker.counter import ADDRESS, Counter
from tests.broker.events import channel, keeping, market
from tests.broker.naive import Entry, Key, Naive, Rules
from tests.effort import effort
from tests.wire.reading import TEXT, split_frames

KEPT = 12  # events that a ring keeps
CLASSES = (
    market("prices", snapshot=True, history=keeping(events=KEPT)),
    market("slow", snapshot=True, throttle=1.0, history=keeping(events=KEPT)),
    channel("news", snapshot=True, history=keeping(events=KEPT)),
    channel("all", history=keeping(events=KEPT)),
    channel("own_{id}", durable=True, history=keeping(events=KEPT)),
)
TYPES = {
    "tick": EventType("tick", ("prices",)),
    "rare": EventType("rare", ("slow",)),
    "news": EventType("news", ("news",)),
    "wide": EventType("wide", ("news", "prices", "slow")),
    "fill": EventType("fill", ("own_{id}", "all"), UserField.REQUIRED),
    "slip": EventType("slip", ("own_{id}", "slow"), UserField.REQUIRED),
}
RULES = {
    "prices": Rules(), "slow": Rules(interval=1.0), "news": Rules(),
    "all": Rules(), "own": Rules(durable=True),
}  # fmt: skip
MARKET = ("prices", "slow")
WISHES = [
    "prices", "prices:A", "prices:B", "prices:[AB]", "slow", "slow:A", "slow:*B", "news", "all",
    "own_1", "own_2", "nonsense",
]  # fmt: skip


@attrs.define
class NotingJournal(Journal):
    """A journal that writes down the position of everything."""

    noted: list[tuple[int, tuple[str, str | None], int]] = attrs.field(factory=list, init=False)

    def append(self, stream: Stream, record: Record) -> None:
        assert record.n > self.n, "positions only grow"
        self.noted.append((record.n, record.stream, record.seq))
        super().append(stream, record)


@attrs.define
class View:
    """What one user knows from what he read; he keeps it when his connection breaks."""

    naive: Naive
    patterns: set[Pattern] = attrs.field(factory=set)
    have: dict[Key, int] = attrs.field(factory=dict)  # received, or told as skipped
    got: dict[Key, int] = attrs.field(factory=dict)  # received
    unsure: set[Key] = attrs.field(factory=set)  # of which something is no longer kept
    offset: str = ""  # where to come back to
    skipped: int = 0
    last: int = 0  # the position of the last event
    snapshots: list[tuple[Key, int]] = attrs.field(factory=list)  # that must come next
    cuts: dict[int, Cut] = attrs.field(factory=dict)  # of requests that are not answered yet

    def covers(self, stream: Key) -> bool:
        return any(p.channel == stream[0] and p.matches(stream[1]) for p in self.patterns)

    def see(self, envelope: dict[str, Any]) -> None:
        """Check one message."""
        kind, data = envelope["type"], envelope["data"]
        if self.snapshots:
            assert envelope.get("snapshot"), "between confirmation and snapshot comes nothing"
        match kind:
            case "connection" | "error":
                pass
            case "subscription_confirmed":
                self.see_confirmed(envelope["id"], data)
            case "unsubscription_confirmed":
                self.patterns -= set(map(Pattern.parse, data["channels"]))
                self.forget()
            case "skipped":
                self.see_skipped(data)
            case _:
                stream = (envelope["channel"], data.get("symbol"))
                self.see_event(stream, envelope)

    def see_confirmed(self, id_: int, data: dict[str, Any]) -> None:
        cut = self.cuts.pop(id_)
        before = {stream for stream in cut.seqs if self.covers(stream)}
        self.patterns |= set(map(Pattern.parse, data["channels"]))
        for stream, seq in cut.seqs.items():
            if self.covers(stream) and stream not in before and not cut.recovery:
                self.have[stream] = seq  # what was before is nothing to this client
        self.snapshots = list(cut.snapshots)
        for lost in data.get("missing", ()):
            pattern = Pattern.parse(lost["channel"])
            self.unsure |= {
                s for s in cut.seqs if s[0] == pattern.channel and pattern.matches(s[1])
            }

    def see_skipped(self, data: dict[str, Any]) -> None:
        stream = (data["channel"], data["symbol"])
        assert stream[0] in MARKET, "the private lane skips nothing"
        assert data["fromSeq"] == self.have.get(stream, 0) + 1
        assert data["count"] == data["toSeq"] - data["fromSeq"] + 1 > 0
        self.have[stream] = data["toSeq"]
        self.skipped += data["count"]

    def see_event(self, stream: Key, envelope: dict[str, Any]) -> None:
        seq, n = envelope["seq"], position(envelope["offset"])
        entry = self.naive.streams[stream][seq - 1]
        assert envelope["data"]["event"] == entry.event, "not what was published"
        assert envelope.get("conflated", {"count": 0})["count"] == entry.replaced
        assert self.covers(stream), "nobody subscribed to that"
        if envelope.get("snapshot"):
            assert self.snapshots.pop(0) == (stream, seq)
            if stream in self.unsure:
                self.unsure.discard(stream)
                self.have[stream] = seq
            self.got[stream] = max(self.got.get(stream, 0), seq)
            return
        assert n > self.last, "positions only grow"
        self.last = n
        have = self.have.get(stream, 0)
        if stream in self.unsure:
            self.unsure.discard(stream)
        elif envelope.get("replay"):
            # What was told as skipped may come after all.
            assert self.got.get(stream, 0) < seq <= have + 1
        else:
            assert seq == have + 1, "a gap that nobody told of, or a double"
        self.have[stream] = max(have, seq)
        self.got[stream] = seq

    def forget(self) -> None:
        for known in (self.have, self.got):
            for stream in [s for s in known if not self.covers(s)]:
                del known[stream]
        self.unsure = {s for s in self.unsure if self.covers(s)}


@attrs.frozen
class Cut:
    """How things stood when a request was answered."""

    seqs: dict[Key, int]
    snapshots: list[tuple[Key, int]]
    recovery: bool = False


@attrs.define(eq=False)
class Client:
    """A connection: a socket that takes what there is room for, and the outbox before it."""

    session: Session
    view: View
    max_bytes: int
    patience: float
    room: int = 1 << 20
    audience: Audience = attrs.field(init=False)
    outbox: Outbox | None = None
    skipped: int = 0
    ending: Refusal | None = None
    now: float = 0.0
    _stream: bytes = b""

    # what the broker does

    def message(self, text: bytes, offset: bytes | None = None) -> None:
        self.messages([(text, offset)])

    def messages(self, texts: Any) -> None:
        wire = self.audience.wire
        self.write([wire.message(text, offset) for text, offset in texts])

    def answer(self, request: Request, text: bytes) -> None:
        self.message(text)

    def end(self, refusal: Refusal) -> None:
        if self.session.step(Step.END):
            self.ending = refusal

    def seat_as(self, user_id: str | None) -> None: ...

    def failed(self, error: Exception) -> None:
        raise error

    def write(self, items: list[Record | Packet] | list[Packet] | list[Record]) -> None:
        """Write items as the client of a task does."""
        if not self.session.open:
            return
        wire = self.audience.wire
        try:
            if self.outbox is not None:
                self.outbox.put_all(items, self.now)
                return
            data = b"".join(
                wire.record(i) if isinstance(i, Record) else wire.packet(i) for i in items
            )
            sent = self.send(data)
            if sent < len(data):
                self.outbox = Outbox(wire, self.max_bytes, 1e9, self.patience)
                self.outbox.put_rest(items, sent, self.now)
        except Refusal as refusal:
            self.end(refusal)

    def send(self, data: bytes) -> int:
        count = min(self.room, len(data))
        self.room -= count
        self._stream += data[:count]
        frames, self._stream = split_frames(self._stream)
        for frame in frames:
            assert frame.opcode == TEXT
            self.read(frame.payload)
        return count

    # what the client does

    def drain(self, room: int, now_ms: int) -> None:
        self.room = room
        while self.outbox is not None and self.session.open:
            chunk = self.outbox.next_bytes(300, self.now, now_ms)
            if not chunk:
                self.skipped += self.outbox.skipped
                self.outbox = None
                return
            sent = self.send(chunk)
            self.outbox.wrote(sent)
            if sent < len(chunk):
                return

    def read(self, payload: bytes) -> None:
        """Take a message; note the highest offset, or over Socket.IO, as its library, the last."""
        view = self.view
        if self.audience.wire is NATIVE:
            envelope = msgspec.json.decode(payload)
            view.offset = max(view.offset, envelope.get("offset", ""), key=position)
        else:
            assert payload.startswith(b"42")
            name, envelope, *rest = msgspec.json.decode(payload[2:])
            assert name == "message"
            if rest:
                (view.offset,) = rest
        view.see(envelope)


def position(offset: str) -> int:
    """Return the position of an offset, -1 of none."""
    return int(offset.removeprefix("k.") or -1)


class BrokerMachine(RuleBasedStateMachine):
    """One walk: everything that may happen to a broker, in any order."""

    @initialize(patience=st.sampled_from([0.0, 0.5]), max_bytes=st.sampled_from([2500, 1 << 20]))
    def start(self, patience, max_bytes):
        self.naive = Naive(RULES)
        settings = attrs.evolve(defaults(), channels=ChannelTable(CLASSES), types=TYPES)
        self.counter = Counter(settings, journal=NotingJournal("k", 1000))
        finder = TargetFinder(settings.channels, TYPES, self.counter.journal)
        self.publisher = Publisher(
            finder, self.counter.journal, self.counter.routes, self.counter.counters,
            Dedup(60_000, 100), store=True,
        )  # fmt: skip
        self.patience, self.max_bytes = patience, max_bytes
        self.clients: list[Client] = []
        self.events = self.ids = 0
        self.step = 0  # ms by which the Unix clock was set
        self.flying: list[Held] | None = None

    @property
    def journal(self) -> NotingJournal:
        journal = self.counter.journal
        assert isinstance(journal, NotingJournal)
        return journal

    @property
    def now(self) -> float:
        return self.counter.now

    @property
    def now_ms(self) -> int:
        return self.counter.now_ms + self.step

    # the feed

    @rule(
        what=st.lists(
            st.tuples(
                st.sampled_from(sorted(TYPES)), st.sampled_from(["A", "B", "AB", None]),
                st.sampled_from(["1", "2"]),
            ),
            min_size=1, max_size=6,
        ),
    )  # fmt: skip
    def publish(self, what):
        for name, symbol, user in what:
            self.events += 1
            fields = {"event": self.events, "symbol": symbol}
            data = msgspec.json.encode({k: v for k, v in fields.items() if v is not None})
            needs_user = TYPES[name].user is UserField.REQUIRED
            event = Event(name, data, self.now_ms, symbol, user_id=user if needs_user else None)
            self.publisher.accept(event, self.now, self.now_ms)
            streams = [(c.replace("{id}", user), symbol) for c in TYPES[name].channels]
            self.naive.accept(self.events, streams, self.now)
        self.write()

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 3.0]), late=st.booleans())
    def wait(self, seconds, late):
        """Let time pass; a `late` dispatcher is still busy when throttled events are due."""
        self.counter.now += seconds
        for client in self.clients:
            client.now = self.now
        if not late:
            self.write()

    @rule(ms=st.sampled_from([-3_600_000, 60_000]))
    def set_the_clock(self, ms):
        self.step += ms

    @precondition(lambda self: self.flying is None and self.publisher.held)
    @rule()
    def begin_commit(self):
        self.flying = self.publisher.number_held()
        self.naive.send_to_store()

    @precondition(lambda self: self.flying is not None)
    @rule(stored=st.booleans())
    def end_commit(self, stored):
        batch, self.flying = self.flying, None
        assert batch is not None
        self.publisher.settle(batch, stored, self.now, self.now_ms)
        self.naive.settle(self.now)
        self.write()

    def write(self):
        """A pass of the dispatcher."""
        self.publisher.release(self.now)
        self.naive.release(self.now)
        for audience in self.publisher.start_pass():
            records, audience.records = audience.records, []
            assert joined(audience.wire, records)
            for client in tuple(audience.members):
                assert isinstance(client, Client)
                client.write(records)
        for client in self.clients:
            if client.ending is not None:
                self.counter.routes.leave(client)

    # clients

    @precondition(lambda self: len(self.clients) < 4)
    @rule(user=st.sampled_from([None, "1", "2"]), wire=st.sampled_from(WIRES[:2]))
    def connect(self, user, wire):
        self.clients.append(self.connection(user, wire, View(self.naive)))

    def connection(self, user: str | None, wire: Wire, view: View) -> Client:
        identity = ANONYMOUS if user is None else Identity(user, Role.USER)
        self.ids += 1
        session = Session(f"c-{self.ids}", identity, f"{ADDRESS}-{self.ids}")
        client = Client(session, view, self.max_bytes, self.patience, now=self.now)
        self.counter.routes.join(client, wire, NOTHING)
        self.counter.answers.welcome(client, self.now_ms)
        return client

    def anyone(self, data) -> Client | None:
        there = [c for c in self.clients if c.session.open]
        return data.draw(st.sampled_from(there)) if there else None

    @rule(data=st.data(), wishes=st.lists(st.sampled_from(WISHES), min_size=1, max_size=3))
    def subscribe(self, data, wishes):
        client = self.anyone(data)
        if client is None:
            return
        session, seqs = client.session, self.naive.seqs()
        new = [
            p for p in session.subscribe(wishes, self.counter.table, 100).granted
            if p not in session.patterns
        ]  # fmt: skip
        cut = Cut(seqs, self.last_values(new, seqs))
        assert self.ask(client, "subscribe", cut, channels=wishes) is None

    @rule(data=st.data(), wishes=st.lists(st.sampled_from(WISHES), min_size=1, max_size=3))
    def unsubscribe(self, data, wishes):
        client = self.anyone(data)
        if client is not None:
            self.ask(client, "unsubscribe", Cut({}, []), channels=wishes)

    def ask(self, client: Client, type_: str, cut: Cut, **fields: Any) -> Any:
        self.ids += 1
        if client.session.open:
            client.view.cuts[self.ids] = cut
        request = Request(type_, self.ids, **fields)
        return self.counter.answers.handle(client, request, self.now, self.now_ms)

    def last_values(self, patterns: list[Pattern], seqs: dict[Key, int]) -> list[tuple[Key, int]]:
        """The last event of each stream that is covered, in the order they were published."""
        snapshots = ("prices", "slow", "news")
        last = {
            (stream, seq)
            for stream, seq in seqs.items()
            if stream[0] in snapshots
            and any(p.channel == stream[0] and p.matches(stream[1]) for p in patterns)
        }
        return [entry for entry in self.naive.log if entry in last]

    @rule(data=st.data(), room=st.sampled_from([0, 1, 40, 300, 2000, 1 << 20]))
    def read(self, data, room):
        client = self.anyone(data)
        if client is not None:
            client.drain(room, self.now_ms)

    @rule(data=st.data())
    def come_back(self, data):
        """Lose a connection, whatever was still on its way, and come back with `since`."""
        if not self.clients:
            return
        old = data.draw(st.sampled_from(self.clients))
        self.clients.remove(old)
        self.counter.routes.leave(old)
        old.session.step(Step.LOSE)
        view = old.view
        view.cuts.clear()
        view.snapshots.clear()
        wishes, since = sorted(map(str, view.patterns)), view.offset
        client = self.connection(old.session.identity.user_id, old.audience.wire, view)
        self.clients.append(client)
        if not since:  # not even the first message came through
            assert not wishes
        elif wishes:
            self.recover(client, wishes, since)

    def recover(self, client: Client, wishes: list[str], since: str) -> None:
        """What `tasks/replays.py` does, in one go."""
        journal, table = self.counter.journal, self.counter.table
        cut = Cut(self.naive.seqs(), [], recovery=True)
        plan = self.ask(client, "subscribe", cut, channels=wishes, since=since)
        assert isinstance(plan, Recover)
        starts, missing = start_positions(plan, NOTHING, plan.since, {}, journal)
        client.session.patterns = plan.patterns
        values = snapshot_of(journal, table, plan.granted, starts)
        cut.snapshots.extend((r.stream, r.seq) for r in values)
        client.answer(plan.request, confirmation(plan, plan.since, missing, self.now_ms))
        if values:
            client.messages([(text, None) for text, _ in marked(values, "snapshot")])
        position = min(starts.values())
        while position < journal.n:
            records, position = journal.after(starts, 5)
            client.messages(marked(records, "replay"))
            starts = {pattern: max(n, position) for pattern, n in starts.items()}
        self.counter.routes.move(client, plan.patterns)

    # what is always so

    @invariant()
    def both_published_the_same_in_the_same_order(self):
        if hasattr(self, "naive"):
            assert [(stream, seq) for _, stream, seq in self.journal.noted] == self.naive.log

    @invariant()
    def the_throttles_wait_for_the_same(self):
        if hasattr(self, "naive"):
            kept = sum(bool(gate.waiting) for gate in self.naive.gates.values())
            assert self.publisher.throttled(self.now)[1] == kept

    def teardown(self):
        if not hasattr(self, "naive"):
            return
        if self.flying is not None:
            self.end_commit(True)
        if self.publisher.held:
            self.begin_commit()
            self.end_commit(True)
        self.wait(3.0, late=False)
        assert self.publisher.next_due == float("inf")
        for client in self.clients:
            client.drain(1 << 30, self.now_ms)
            if client.session.open:
                self.has_everything(client)

    def has_everything(self, client: Client) -> None:
        """A client that has caught up has the newest of all that it subscribed to."""
        view = client.view
        assert client.outbox is None
        assert view.snapshots == []
        for stream, seq in self.naive.seqs().items():
            if view.covers(stream) and stream not in view.unsure:
                have, got = view.have.get(stream, 0), view.got.get(stream)
                assert have == seq, stream
                assert got in (None, seq), stream


TestBroker = BrokerMachine.TestCase
TestBroker.settings = effort(examples=60, steps=40)


def test_the_naive_broker_is_right_about_a_small_example():
    broker = Naive(RULES)
    for event, now in [(1, 0.0), (2, 0.1), (3, 0.2)]:
        broker.accept(event, [("slow", "A")], now)
    broker.accept(4, [("own_1", None), ("all", None)], 0.3)
    broker.accept(5, [("all", None)], 0.3)
    broker.release(1.0)
    broker.send_to_store()
    broker.settle(1.0)

    assert broker.log == [
        (("slow", "A"), 1), (("slow", "A"), 2), (("own_1", None), 1), (("all", None), 1),
        (("all", None), 2),
    ]  # fmt: skip
    assert broker.streams["slow", "A"] == [Entry(1), Entry(3, replaced=1)]
    with pytest.raises(KeyError):
        broker.accept(6, [("nowhere", None)], 2.0)
