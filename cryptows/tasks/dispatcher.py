"""The dispatcher: takes what producers sent and writes it to the clients, one write each a pass.

A pass takes all that waits in `events_in`, lets the publisher decide who gets what, and writes it
with one non-blocking send for each client. While it writes, the next events gather: batches grow by
themselves under load. It never waits for a client: whoever takes less than was offered has an
outbox and a task for that. After about a millisecond of writes the other tasks get a turn.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import attrs
import trio

from cryptows.broker.routes import Audience
from cryptows.model.event import Event
from cryptows.tasks.client import Client, now_ms

if TYPE_CHECKING:
    from cryptows.tasks.hub import Hub
    from cryptows.tasks.ingest import FeedBatch

SLICE = 0.001  # seconds of writing before the other tasks get a turn
LOOK = 32  # writes between two looks at the clock
MOST = 256  # events of one pass; with usual ones that is less than a socket takes at once


@attrs.define(eq=False)
class Dispatcher:
    """The task that reads the memory channel `events_in`."""

    hub: Hub
    events_in: trio.MemoryReceiveChannel[FeedBatch]
    _pause_at: float = attrs.field(default=0.0, init=False)

    async def run(self) -> None:
        """Dispatch until `events_in` is closed and empty."""
        while True:
            try:
                batch = await self._wait()
            except trio.EndOfChannel:
                return
            if batch is not None:
                await self._take(batch)
            self.hub.publisher.release(trio.current_time())
            await self._write()

    async def _wait(self) -> FeedBatch | None:
        """Return the next batch, or None when a throttled event is due before."""
        due = self.hub.publisher.next_due
        if due == math.inf:
            return await self.events_in.receive()
        with trio.move_on_at(due):
            return await self.events_in.receive()
        return None

    async def _take(self, batch: FeedBatch) -> None:
        """Publish a batch and all that waits behind it, in passes of at most MOST events."""
        if self.hub.settings.delivery.batch:
            await trio.sleep(self.hub.settings.delivery.batch)
        room = MOST
        while True:
            for index, event in enumerate(batch.events):
                if not room:
                    await self._write()
                    room = MOST
                room -= 1
                self._publish(batch, index, event)
            try:
                batch = self.events_in.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel):
                return
            if len(batch.events) > room:
                await self._write()
                room = MOST

    def _publish(self, batch: FeedBatch, index: int, event: Event) -> None:
        done = batch.replies.done_for(index)
        self.hub.publisher.accept(event, trio.current_time(), now_ms(), done)

    async def _write(self) -> None:
        """Write what the publisher noted to everybody it is for."""
        hub = self.hub
        touched = hub.publisher.start_pass()
        if not touched:
            await trio.lowlevel.checkpoint()
            return
        hub.counters.passes += 1
        hub.writing = True
        self._pause_at = time.perf_counter() + SLICE
        try:
            for audience in touched:
                await self._write_audience(audience)
        finally:
            hub.end_pass()

    async def _write_audience(self, audience: Audience) -> None:
        records, audience.records = audience.records, []
        encode = audience.wire.record
        data = encode(records[0]) if len(records) == 1 else b"".join([encode(r) for r in records])
        size = len(data)
        count = 0
        client: Client
        for client in tuple(audience.members):  # type: ignore[assignment]
            if client.outbox is None:
                try:
                    sent = client.send(data)
                except BlockingIOError:
                    sent = 0
                except OSError:
                    client.broken()
                    continue
                if sent != size:
                    client.fall_behind(records, sent)
            else:
                client.queue(records)
            count += 1
            if not count % LOOK:
                await self._breathe()
        await self._breathe()
        self.hub.counters.sends += count
        self.hub.counters.bytes_out += size * count

    async def _breathe(self) -> None:
        """Let the other tasks run when this one has written long enough."""
        if time.perf_counter() > self._pause_at:
            await trio.lowlevel.checkpoint()
            self._pause_at = time.perf_counter() + SLICE
