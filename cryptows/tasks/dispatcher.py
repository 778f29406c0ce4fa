"""The dispatcher: takes what producers sent and writes it to the clients, one write each a pass.

A pass takes all that waits in `events_in`, lets the publisher decide who gets what, and writes it
with one non-blocking send for each client. While it writes, the next events gather: batches grow by
themselves under load. It never waits for a client: whoever takes less than was offered has an
outbox and a task for that. After about a millisecond of writes the other tasks get a turn.
"""

from __future__ import annotations

import contextlib
import math
import time
from typing import TYPE_CHECKING, cast

import attrs
import trio

from cryptows.broker.publisher import nobody
from cryptows.broker.routes import Audience
from cryptows.model.errors import BadEvent
from cryptows.tasks.client import Client
from cryptows.tasks.clock import now_ms
from cryptows.tasks.ingest import FeedBatch
from cryptows.tasks.keeper import Keeper
from cryptows.wire.envelope import joined
from cryptows.wire.feedanswers import Done

if TYPE_CHECKING:
    from cryptows.tasks.hub import Hub

SLICE = 0.001  # seconds of writing before the other tasks get a turn
# Seconds from one pass to the next while events keep coming. A pass costs about as much as 60
# sends; at 1000 events/s to 30 clients each this saves half of the CPU, for 2 ms of latency.
# An event that comes alone goes out at once.
PACE = 0.004
LOOK = 32  # writes between two looks at the clock
MOST = 256  # events of one pass; with usual ones that is less than a socket takes at once


class _Nobody:
    """The replies of a batch without events."""

    wants_all = False

    def done_for(self, index: int) -> Done:
        raise AssertionError("a batch without events")


NOTHING_NEW = FeedBatch([], _Nobody(), "")


@attrs.define(eq=False)
class Dispatcher:
    """The task that reads the memory channel `events_in`."""

    hub: Hub
    events_in: trio.MemoryReceiveChannel[FeedBatch]
    keeper: Keeper | None = None  # set before it runs, where there is a store
    wake_in: trio.MemorySendChannel[FeedBatch] | None = None  # the other end, for `wake`
    _busy: bool = attrs.field(default=False, init=False)
    _pause_at: float = attrs.field(default=0.0, init=False)
    _paced_until: float = attrs.field(default=0.0, init=False)  # on Trio's clock
    _read_at: float = attrs.field(default=math.inf, init=False)  # of the oldest event of a pass

    async def run(self) -> None:
        """Dispatch until `events_in` is closed and empty."""
        while True:
            self._busy = False
            try:
                batch = await self._wait()
            except trio.EndOfChannel:
                return
            self._busy, self._pause_at = True, time.perf_counter() + SLICE
            if batch is not None:
                await self._take(batch)
            await self._pass()

    @property
    def idle(self) -> bool:
        """Whether all that came in was written, and stored where it had to be."""
        queue = self.events_in.statistics()
        waiting = queue.current_buffer_used or queue.tasks_waiting_send
        return not (self._busy or waiting or (self.keeper is not None and self.keeper.busy))

    def wake(self) -> None:
        """Begin a pass though no event came in. If none can be queued, one is due anyway."""
        if self.wake_in is not None:
            with contextlib.suppress(trio.WouldBlock, trio.BrokenResourceError):
                self.wake_in.send_nowait(NOTHING_NEW)

    async def _wait(self) -> FeedBatch | None:
        """Return the next batch, or None when something else has to be done before."""
        due = self.hub.publisher.next_due
        if due == math.inf:
            return await self.events_in.receive()
        with trio.move_on_at(due):
            return await self.events_in.receive()
        return None

    async def _take(self, batch: FeedBatch) -> None:
        """Publish a batch and all that waits behind it, in passes of at most MOST events."""
        if batch is not NOTHING_NEW:  # whoever wakes us has waited already
            await self._gather()
        room = MOST
        while True:
            self._begin(batch)
            at = 0
            while at < len(batch.events):
                if not room:
                    await self._pass()
                    await self._breathe()
                    room = MOST
                some = min(room, len(batch.events) - at)
                self._publish(batch, at, at + some)
                at, room = at + some, room - some
            try:
                batch = self.events_in.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel):
                return
            if len(batch.events) > room:
                await self._pass()
                await self._breathe()
                room = MOST

    def rests_until(self) -> float:
        """When the next pass comes, at the earliest, on Trio's clock."""
        if self.keeper is not None and self.keeper.busy:
            return -math.inf  # a producer waits for his answer
        return self._paced_until

    async def _gather(self) -> None:
        """Let further events come in where that saves passes: as told, or right after a pass."""
        batch = self.hub.settings.delivery.batch
        pause = max(batch, self.rests_until() - trio.current_time())
        if pause > 0:
            await trio.sleep(pause)

    async def _breathe(self) -> None:
        """Let the other tasks run when this one has worked long enough."""
        if time.perf_counter() > self._pause_at:
            await trio.lowlevel.checkpoint()
            self._pause_at = time.perf_counter() + SLICE

    def _begin(self, batch: FeedBatch) -> None:
        if batch.keepalives:
            now = trio.current_time()
            self.hub.freshness.keep_alive(batch.keepalives, batch.producer, now)
        self.hub.publisher.producer = batch.producer
        if batch.events:
            self._read_at = min(self._read_at, batch.read_at)

    def _publish(self, batch: FeedBatch, first: int, end: int) -> None:
        """Publish some events of a batch; their producer is told what he wants to know."""
        accept, replies = self.hub.publisher.accept, batch.replies
        now, unix_ms = trio.current_time(), now_ms()
        for index in range(first, end):
            if index in batch.wholes:
                self._check_whole(batch, index)
            if index < batch.refused_to:
                continue
            done = replies.done_for(index) if replies.wants_all else None
            try:
                accept(batch.events[index], now, unix_ms, done)
            except BadEvent as error:
                replies.done_for(index)(None, 0, error, False)

    def _check_whole(self, batch: FeedBatch, first: int) -> None:
        """Refuse all events of a batch line unless all can be published."""
        end, replies = batch.wholes[first], batch.replies
        try:
            self.hub.publisher.check(batch.events[first:end])
        except BadEvent as error:
            batch.refused_to = end
            # One answer a line: an ack waits for each of its events, a complaint for none.
            for index in range(first, end if replies.wants_all else first + 1):
                replies.done_for(index)(None, 0, error, False)

    async def _pass(self) -> None:
        """Add what has become due to what was published, and write it all."""
        hub, keeper = self.hub, self.keeper
        while True:
            hub.publisher.producer = ""
            for event in hub.take_notices():
                hub.publisher.accept(event, trio.current_time(), now_ms(), nobody)
            if keeper is not None:
                keeper.turn(trio.current_time(), now_ms())
            hub.publisher.release(trio.current_time())
            await self._write()
            if keeper is None or not keeper.overfull:
                return
            await keeper.wait()

    async def _write(self) -> None:
        """Write what the publisher noted to everybody it is for."""
        hub = self.hub
        touched = hub.publisher.start_pass()
        before, read_at = hub.counters.sends, self._read_at
        self._read_at = math.inf
        if not touched:
            await trio.lowlevel.checkpoint()
            return
        hub.counters.passes += 1
        hub.writing = True
        self._paced_until = trio.current_time() + PACE
        try:
            await self._write_to(touched)
        finally:
            hub.end_pass()
        if read_at < math.inf:
            took = trio.current_time() - read_at
            hub.counters.latency.add(took, hub.counters.sends - before)

    async def _write_to(self, touched: list[Audience]) -> None:
        """Give every member of these audiences its records: the innermost loop of the daemon."""
        clock, counters = time.perf_counter, self.hub.counters
        pause_at, looked = clock() + SLICE, 0
        for audience in touched:
            records, audience.records = audience.records, []
            data = joined(audience.wire, records)
            size = len(data)
            members = cast("tuple[Client, ...]", tuple(audience.members))
            for client in members:
                try:
                    if client.outbox is not None:
                        client.queue(records)
                    else:
                        try:
                            sent = client.send(data)
                        except BlockingIOError:
                            sent = 0
                        if sent != size:
                            client.fall_behind(records, sent)
                except OSError:
                    client.broken()
                except Exception as error:
                    client.failed(error)
                looked += 1
                if looked >= LOOK:
                    looked = 0
                    if clock() > pause_at:
                        await trio.lowlevel.checkpoint()
                        pause_at = clock() + SLICE
            counters.sends += len(members)
            counters.bytes_out += size * len(members)
