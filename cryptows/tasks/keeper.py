"""The keeper: takes durable events to the store and back to the dispatcher.

One batch is on its way at a time; what comes in meanwhile gathers into the next, so batches grow by
themselves under load, up to what one transaction takes: more would have to be encoded at once, and
be lost at once if it came back unstored. When the store refuses (its breaker is open) a batch comes
back at once, and is delivered live but unstored: the acknowledgements say so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from cryptows.broker.publisher import Held
from cryptows.store.jobs import BATCH_BYTES, BATCH_EVENTS, Append
from cryptows.store.writer import StoreTask
from cryptows.tasks.clock import now_ms

if TYPE_CHECKING:
    from cryptows.tasks.hub import Hub

# What may gather behind a commit before the feed has to wait: durable events, and bytes of them.
MOST_HELD = 20_000
MOST_BYTES = 16 << 20


@attrs.define(eq=False)
class Keeper:
    """Between the publisher and the store. `wake`: make the dispatcher begin a pass."""

    hub: Hub
    store: StoreTask
    wake: Callable[[], None]
    _flying: list[Held] | None = attrs.field(default=None, init=False)
    _outcome: bool | None = attrs.field(default=None, init=False)  # whether it was stored
    _came_back: trio.Event = attrs.field(factory=trio.Event, init=False)

    def turn(self, now: float, unix_ms: int) -> None:
        """Deliver the batch that came back, and send the next on its way; called in each pass."""
        self.store.used(self.hub.journal.n)
        if self._flying is not None and self._outcome is not None:
            batch, self._flying = self._flying, None
            self.hub.publisher.settle(batch, self._outcome, now, unix_ms)
            self._outcome = None
        if self._flying is None and self.hub.publisher.held:
            self._send()

    def _send(self) -> None:
        batch = self._flying = self.hub.publisher.number_held(BATCH_EVENTS, BATCH_BYTES)
        records = tuple(record for held in batch for _, record in held.records)
        ids = tuple(
            (held.event.id, held.records[-1][1].n)
            for held in batch
            if held.event.id is not None and held.records
        )
        if not self.store.put(Append(records, ids, self._done, partial(self._stored_late, ids))):
            self._done(False)

    def _stored_late(self, ids: tuple[tuple[str, int], ...]) -> None:
        """Know events that were answered `not_stored` when they are sent again."""
        for id_, n in ids:
            self.hub.publisher.dedup.add(id_, self.hub.journal.offset_of(n), now_ms())

    def _done(self, stored: bool) -> None:
        self._outcome = stored
        self._came_back.set()
        self.wake()

    @property
    def busy(self) -> bool:
        """Whether durable events are on their way."""
        return self._flying is not None or bool(self.hub.publisher.held)

    @property
    def overfull(self) -> bool:
        """Whether so much waits, or numbers are so scarce, that nothing further may be taken."""
        publisher = self.hub.publisher
        too_much = len(publisher.held) >= MOST_HELD or publisher.held_bytes >= MOST_BYTES
        return too_much or self.hub.journal.full

    async def wait(self) -> None:
        """Wait until the batch under way has come back; at most about `store.timeout`."""
        if self._flying is not None and self._outcome is None:
            self._came_back = trio.Event()
            await self._came_back.wait()
