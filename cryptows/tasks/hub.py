"""What the tasks share: one object that holds the daemon's state, and no decisions of its own.

Everything runs on one thread, and shared state changes only between awaits. The one thing to wait
for is the dispatcher's pass: while it is being written, `between_passes` puts changes of the routes
off to its end, so that a client's confirmation never overtakes an event it should have got before.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from functools import partial
from typing import Protocol, TypeVar

import attrs
import msgspec
import trio

from cryptows.broker.admission import ConnectionCounts
from cryptows.broker.answers import Answers
from cryptows.broker.auth import Verifier
from cryptows.broker.counters import Counters, Gauges
from cryptows.broker.dedup import Dedup
from cryptows.broker.freshness import Freshness
from cryptows.broker.health import Health
from cryptows.broker.journal import Journal
from cryptows.broker.limits import Bans, RequestLimiter
from cryptows.broker.origins import Origins
from cryptows.broker.peer import Peer
from cryptows.broker.pieces import Copies
from cryptows.broker.publisher import Publisher
from cryptows.broker.revocations import Revocations
from cryptows.broker.routes import Routes
from cryptows.broker.targets import TargetFinder
from cryptows.config.settings import Settings
from cryptows.model.channel import Access, ChannelTable
from cryptows.model.errors import Refusal
from cryptows.model.event import Event
from cryptows.store.writer import StoreTask
from cryptows.tasks.client import Client
from cryptows.tasks.clock import now_ms
from cryptows.tasks.memory import Crowd
from cryptows.tasks.reaper import Reaper
from cryptows.tasks.sending import Sender
from cryptows.wire.envelope import WIRES

RESTARTING = Refusal(1012, "the daemon restarts; come back", come_back=True)

T = TypeVar("T")


class FeedState(Protocol):
    """What the statistics need of the ingest."""

    @property
    def producers(self) -> int:
        """Feed connections."""
        ...

    @property
    def queued(self) -> int:
        """Batches accepted and not yet dispatched."""
        ...

    @property
    def names(self) -> Container[str]:
        """What the connected producers are called."""
        ...


@attrs.define(eq=False)
class Hub:
    """The daemon's state. `settings` is exchanged as a whole by a reload."""

    settings: Settings
    keys: tuple[bytes, ...]
    nursery: trio.Nursery
    journal: Journal
    counters: Counters = attrs.field(factory=Counters)
    revocations: Revocations = attrs.field(factory=Revocations)
    routes: Routes = attrs.field(factory=Routes)
    reaper: Reaper = attrs.field(factory=Reaper)
    clients: dict[str, Client] = attrs.field(factory=dict)  # at most limits.connections
    crowd: Crowd = attrs.field(factory=Crowd)  # how many there were, for the housekeeper
    behind: dict[Sender, None] = attrs.field(factory=dict)  # those with an outbox and a socket
    health: Health = attrs.field(factory=Health)
    feed: FeedState | None = None  # the ingest, once it runs
    store: StoreTask | None = None
    wake: Callable[[], None] | None = None  # makes the dispatcher begin a pass
    draining: bool = False
    writing: bool = attrs.field(default=False, init=False)
    replaying: trio.Lock = attrs.field(factory=trio.Lock, init=False)  # who sends a piece has it
    copies: Copies = attrs.field(init=False)
    _deferred: list[tuple[Callable[[], None], Peer | None]] = attrs.field(factory=list, init=False)
    _notices: list[Event] = attrs.field(factory=list, init=False)
    verifier: Verifier = attrs.field(init=False)
    limiter: RequestLimiter = attrs.field(init=False)
    bans: Bans = attrs.field(init=False)
    seats: ConnectionCounts = attrs.field(init=False)
    origins: Origins = attrs.field(init=False)
    publisher: Publisher = attrs.field(init=False)
    freshness: Freshness = attrs.field(init=False)
    answers: Answers = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        limits, feed = self.settings.limits, self.settings.feed
        self.verifier = Verifier(self.settings.auth, self.keys, self.revocations)
        self.limiter = RequestLimiter(limits.requests, limits.window, limits.strikes)
        self.bans = Bans(limits.ban)
        self.seats = ConnectionCounts(limits)
        self.origins = Origins(self.settings.cors)
        finder = TargetFinder(self.settings.channels, self.settings.types, self.journal)
        dedup = Dedup(int(feed.dedup * 1000), feed.dedup_ids)
        self.publisher = Publisher(finder, self.journal, self.routes, self.counters, dedup)
        self.freshness = Freshness(self.journal)
        self.copies = Copies(self.journal)
        self.answers = Answers(self)

    @property
    def table(self) -> ChannelTable:
        """The channels there are."""
        return self.settings.channels

    def announce_store(self, state: str, reason: str, now_ms: int) -> None:
        """Publish on `system_status` that durable events are (not) being stored."""
        data = {"component": "store", "status": state, "reason": reason}
        # Published by the dispatcher: noted between two passes, an event could reach a client that
        # subscribes in between twice, in its snapshot and live.
        self._notices.append(Event("system_status", msgspec.json.encode(data), now_ms))
        if self.wake is not None:
            self.wake()

    def take_notices(self) -> list[Event]:
        """Return the daemon's own events that wait to be published; the dispatcher asks."""
        notices, self._notices = self._notices, []
        return notices

    def is_durable(self, channel: str) -> bool:
        """Whether a channel's events are stored."""
        found = self.table.find(channel)
        return found is not None and found[0].durable

    def set_cursor(self, user_id: str, position: int) -> None:
        """Remember how far a user acknowledged."""
        if self.store is not None:
            self.store.set_cursor(user_id, position)

    def reconfigure(self, settings: Settings) -> None:
        """Take over what a reload changed; clients stay, with what they still may have."""
        before, self.settings = self.settings, settings
        limits = settings.limits
        self.verifier = Verifier(settings.auth, self.keys, self.revocations)
        self.limiter.configure(limits.requests, limits.window, limits.strikes)
        self.bans.configure(limits.ban)
        self.seats.limits = limits
        self.origins = Origins(settings.cors)
        self.publisher.reconfigure(settings.channels, settings.types)
        if access_of(settings.channels) != access_of(before.channels):
            for client in list(self.clients.values()):
                self.between_passes(partial(self.answers.review, client, now_ms()), client)
        if self.wake is not None:
            self.wake()  # throttled events may be due earlier

    def gauges(self) -> Gauges:
        """Count what is the case now; cheap enough for every scrape, not for every event."""
        connections = dict.fromkeys((wire.name for wire in WIRES), 0)
        subscriptions = 0
        for audience in self.routes:
            connections[audience.wire.name] += len(audience.members)
            subscriptions += len(audience.patterns) * len(audience.members)
        throttlers, kept = self.publisher.throttled(trio.current_time())
        outboxes = [c.outbox for c in self.behind if c.outbox is not None and c.session.open]
        return Gauges(
            connections=connections,
            authenticated=sum(c.session.authenticated for c in self.clients.values()),
            subscribers=self.routes.counts(),
            subscriptions=subscriptions,
            streams=len(self.journal.streams),
            throttlers=throttlers,
            cached=kept,
            producers=0 if self.feed is None else self.feed.producers,
            queued_events=0 if self.feed is None else self.feed.queued,
            slow_clients=len(outboxes),
            outbox_bytes=sum(outbox.size for outbox in outboxes),
            banned=len(self.bans),
        )

    # passes

    def between_passes(self, change: Callable[[], None], peer: Peer | None = None) -> None:
        """Make a change to the routes now, or at the end of the pass that is being written.

        Should it fail then, that ends the client it is for.
        """
        if self.writing:
            self._deferred.append((change, peer))
        else:
            change()

    async def at_rest(self, decide: Callable[[], T]) -> T:
        """Return what `decide` returns, or raise what it raises, when called between two passes."""
        if not self.writing:
            return decide()
        done = trio.Event()
        results: list[T] = []
        errors: list[Exception] = []

        def change() -> None:
            try:
                results.append(decide())
            except Exception as error:
                errors.append(error)
            done.set()

        self._deferred.append((change, None))
        await done.wait()
        if errors:
            raise errors[0]
        return results[0]

    def end_pass(self) -> None:
        """Make the changes that were put off; the dispatcher calls it after each pass."""
        self.writing = False
        while self._deferred:
            changes, self._deferred = self._deferred, []
            for change, peer in changes:
                try:
                    change()
                except Exception as error:
                    if peer is None:
                        raise
                    peer.failed(error)

    # clients

    def welcome(self, client: Client, now: float) -> None:
        """Take in a client whose handshake is done: its first message, its heartbeat."""
        self.counters.connects += 1
        client.session.since = now
        self.clients[client.session.id] = client
        self.crowd.note(len(self.clients))
        self.answers.welcome(client, now_ms())
        client.tick_soon()
        if self.draining:  # its handshake was under way when the others were told
            client.end(RESTARTING)

    def forget(self, client: Client, code: int) -> None:
        """A client is gone; `code` is how it ended."""
        # A recovered session keeps its id, so another client may stand there by now.
        if self.clients.get(client.session.id) is client:
            del self.clients[client.session.id]
            self.counters.disconnected(code)
        self.between_passes(lambda: self.routes.leave(client))


def access_of(table: ChannelTable) -> dict[str, Access]:
    """Return who may subscribe to each channel."""
    return {rules.name: rules.access for rules in table.classes}
