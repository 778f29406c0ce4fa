"""Replays: the part of an answer that takes reading and waiting.

Runs in a task of its own beside a client, which must go on reading to see its pongs. It sends a
piece, waits until the client has taken it, and goes on from there; meanwhile the client takes no
part in the routes, so a replay cannot run into live events. The last piece and the entry into the
routes happen at one moment between two passes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio

from cryptows.broker.pieces import Kept, Pace, cut
from cryptows.broker.replay import (
    Query,
    Recover,
    confirmation,
    snapshot_of,
    start_positions,
)
from cryptows.broker.routes import NOTHING
from cryptows.model.channel import Lane, Pattern
from cryptows.model.errors import RequestError
from cryptows.model.event import Record
from cryptows.store.jobs import StoreCounters, StoreError
from cryptows.store.rows import StoredEvent
from cryptows.tasks.clock import now_ms
from cryptows.wire import envelope
from cryptows.wire.envelope import Packet

if TYPE_CHECKING:
    from cryptows.tasks.client import Client
    from cryptows.tasks.hub import Hub

log = structlog.get_logger()

PAGE = 500  # events that are read at once

Stream = tuple[str, str | None]  # channel, symbol


async def run(hub: Hub, client: Client, plan: Recover | Query) -> None:
    """Carry out a plan; ends early when the client does. Nothing but Cancelled escapes."""
    try:
        if isinstance(plan, Query):
            await _history(hub, client, plan)
        else:
            await Recovery(hub, client, plan).run()
    except StoreError as error:
        refusal = RequestError("bad_request", f"history is not available now: {error}")
        hub.answers.reject(client, refusal, plan.request, now_ms())


class Recovery:
    """One client's way from its confirmation to live events."""

    def __init__(self, hub: Hub, client: Client, plan: Recover) -> None:
        self.hub, self.client, self.plan = hub, client, plan
        self._pace = Pace(hub.settings.delivery.outbox // 2)
        self._values: list[Record] = []  # of the snapshot, still to be sent
        self._starts: dict[Pattern, int] = {}
        self._stored: dict[Pattern, int] = {}  # those of `_starts` that the rings do not reach
        self._page: list[StoredEvent] = []  # what was read of them and is still to be sent
        self._read_to = 0  # up to where that is all there is
        self._floors: dict[str, int] = {}  # of channels: above it the store has everything
        self._losses = (0, 0, 0) if hub.store is None else hub.store.counters.losses  # as of then
        self._begun = trio.current_time()
        self._goal = 0  # up to there events were missed; what came after, came in meanwhile
        self._late: dict[Stream, Record] = {}  # the newest of streams of which others were skipped
        self._seqs: dict[Stream, int] = {}  # what the client has of each stream, where known
        self._gaps = False  # whether some of it may be left out
        self._reasons: dict[str, str] = {}  # by channel: why, if not because the client is slow

    async def run(self) -> None:
        """Replay what was missed, then let the client in."""
        since = await self._since()
        self._floors = await self._ask_floors({p.channel for p in self.plan.granted})
        async with self.hub.replaying:
            await self.hub.at_rest(partial(self._begin, since))
        await self._replay()

    async def _replay(self) -> None:
        """Send what was missed piece by piece; returns when the client is live, or gone."""
        hub, client = self.hub, self.client
        with hub.copies.in_use():
            while client.session.open:
                sent_at = trio.current_time()
                await client.taken()
                self._pace.took(trio.current_time() - sent_at)
                if not self._values:
                    await self._read_stored()
                # One piece at a time, whoever it is for: live events pass in between.
                async with hub.replaying:
                    if await hub.at_rest(self._step):
                        return

    async def _since(self) -> int | None:
        store, user_id = self.hub.store, self.client.session.identity.user_id
        if self.plan.last and store is not None and user_id is not None:
            return await store.cursor(user_id) or 0
        return self.plan.since

    async def _ask_floors(self, channels: set[str]) -> dict[str, int]:
        """Return for each channel that the store has, above which position it has everything."""
        hub = self.hub
        floors = {}
        for channel in channels:
            if hub.store is not None and hub.is_durable(channel):
                try:
                    floors[channel] = await hub.store.floor([channel])
                except StoreError as error:
                    log.warning("recovery without the store", error=str(error))
        return floors

    def _begin(self, since: int | None) -> None:
        """Confirm, and decide at one moment what the client has and what it will get."""
        hub, client, plan = self.hub, self.client, self.plan
        if not client.session.open:
            return
        # As of now: an earlier request may have been carried out since this one was planned.
        old = client.session.patterns
        self._starts, missing = start_positions(plan, old, since, self._floors, hub.journal)
        hub.counters.recovered += since is not None and not missing
        hub.counters.not_recovered += bool(missing)
        client.session.patterns = old.union(plan.granted)
        hub.routes.move(client, NOTHING)
        self._goal = hub.journal.n
        new = [p for p in plan.granted if p not in old or since is not None]
        self._values = snapshot_of(hub.journal, hub.table, new, self._starts)
        self._know([*old, *new], () if since is None else plan.granted)
        client.answer(plan.request, confirmation(plan, since, missing, now_ms()))

    def _know(self, live: Iterable[Pattern], recovering: Collection[Pattern]) -> None:
        """Note up to where the client has each stream, as far as the rings tell.

        What comes from the store alone is noted when the first of it is sent.
        """
        journal, seqs = self.hub.journal, self._seqs
        for pattern in live:
            for s in journal.covered(pattern):
                seqs[s.channel, s.symbol] = s.delivered
        starts = {pattern.channel: self._starts[pattern] for pattern in recovering}  # one for each
        before = {channel: journal.seqs_at(channel, n) for channel, n in starts.items()}
        for pattern in recovering:
            known = before[pattern.channel]
            for s in journal.covered(pattern):
                if known is None:
                    seqs.pop((s.channel, s.symbol), None)
                else:
                    seqs[s.channel, s.symbol] = known.get(s.symbol, s.delivered)

    # reading

    async def _read_stored(self) -> None:
        """Have a page at hand of the channels whose rings do not reach back far enough."""
        hub, journal = self.hub, self.hub.journal
        needed = self._beyond_rings()
        if self._page and needed.keys() == self._stored.keys():
            return
        self._stored, self._page = needed, []
        if hub.store is None or not needed:
            return
        channels = {p.channel for p in needed}
        # What comes in after it is asked is in the rings.
        since, until = min(needed.values()), max(map(journal.lost, channels))
        try:
            read = await hub.store.read(sorted(channels), since, PAGE, until=until)
            await self._look_for_losses(hub.store.counters, channels)
        except StoreError as error:
            log.warning("recovery cut short", error=str(error))
            read = []
            for pattern, n in self._stored.items():
                self._leave_out(pattern, n, until, str(error))
        self._page = self._select(read)
        self._read_to = read[-1].n if read else until

    def _beyond_rings(self) -> dict[Pattern, int]:
        """Return the patterns, and their positions, whose next events only the store has."""
        hub = self.hub
        if hub.store is None:
            return {}
        return {
            p: n for p, n in self._starts.items()
            if n < hub.journal.lost(p.channel) and hub.is_durable(p.channel)
        }  # fmt: skip

    # one piece: between two passes of the dispatcher

    def _step(self) -> bool:
        """Send the next piece; return whether the client is live now."""
        hub, client = self.hub, self.client
        if not client.session.open:
            return True
        self._drop_forbidden()
        if self._values:
            count = cut(self._values, self._pace.size)
            client.records(hub.copies.of(self._values[:count], "snapshot"))
            del self._values[:count]
            return False
        if self._beyond_rings().keys() != self._stored.keys():
            return False  # a ring has moved on since the store was read
        self._catch_up()
        events, end = self._collect()
        count = cut(events, self._pace.size)
        if (count < len(events) or end < hub.journal.n) and self._is_behind:
            self._conflate()
            events, end = self._collect()
            count = cut(events, self._pace.size)
        if count < len(events):
            events, end = events[:count], events[count - 1].n
        self._send(events)
        self._starts = {p: max(n, end) for p, n in self._starts.items()}
        self._page = [e for e in self._page if e.n > end]
        self._late = {stream: r for stream, r in self._late.items() if r.n > end}
        if end < hub.journal.n:
            return False
        self._enter()
        return True

    def _drop_forbidden(self) -> None:
        """Stop sending what a reload has taken away meanwhile."""
        patterns = self.client.session.patterns
        if self._starts.keys() <= patterns:
            return
        self._starts = {p: n for p, n in self._starts.items() if p in patterns}
        self._values = [r for r in self._values if self._covers(r)]
        self._page = [e for e in self._page if self._covers(e)]
        self._late = {stream: r for stream, r in self._late.items() if self._covers(r)}

    def _covers(self, event: Kept) -> bool:
        return any(p.channel == event.channel and p.matches(event.symbol) for p in self._starts)

    def _collect(self) -> tuple[Sequence[Kept], int]:
        """Return what comes next of rings and store, in order, and up to where it is complete."""
        live = self._starts
        if self._stored:
            live = {p: n for p, n in live.items() if p not in self._stored}
        records, end = self.hub.journal.after(live, PAGE)
        if not self._late and not self._stored:
            return records, end
        if self._stored:
            end = min(end, self._read_to)
        if not self._late and not records:
            return self._page, end
        # By position: two patterns may bring the same event, one of the store, one of the ring.
        found: dict[int, Kept] = {record.n: record for record in records}
        found |= {record.n: record for record in self._late.values()}
        found |= {event.n: event for event in self._page}
        return [found[n] for n in sorted(found) if n <= end], end

    def _select(self, events: Sequence[StoredEvent]) -> list[StoredEvent]:
        """Return those of the events read that the patterns cover after their positions."""
        whole = {p.channel: n for p, n in self._stored.items() if p.symbol is None}
        rest = [(p, n) for p, n in self._stored.items() if p.symbol is not None]
        return [
            e for e in events
            if e.n > whole.get(e.channel, e.n)
            or any(p.channel == e.channel and e.n > n and p.matches(e.symbol) for p, n in rest)
        ]  # fmt: skip

    def _send(self, events: Sequence[Kept]) -> None:
        """Send events marked `replay`, each after what of its stream has to be told as skipped."""
        if not events:
            return
        seqs, told = self._seqs, list[Record | Packet]()
        for event in self.hub.copies.of(events, "replay"):
            stream, seq = event.stream, event.seq
            known = seqs.get(stream, seq)
            if seq > known + 1:
                text = self._skipped(stream, known + 1, seq - 1)
                told.append(self.client.wire.message(text))
            seqs[stream] = seq
            told.append(event)
        self.client.records(told)

    def _skipped(self, stream: Stream, first: int, last: int) -> bytes:
        self.hub.counters.skipped += last - first + 1
        reason = self._reasons.get(stream[0], "slow")
        return envelope.skipped(*stream, first, last, reason, now_ms())

    def _enter(self) -> None:
        """Let the client in: from here on it is live."""
        hub, client = self.hub, self.client
        for pattern in self._starts if self._gaps else ():
            for s in hub.journal.covered(pattern):
                known = self._seqs.get((s.channel, s.symbol), s.delivered)
                if known < s.delivered:  # and no event of it came after, to tell that with
                    self._seqs[s.channel, s.symbol] = s.delivered
                    client.message(self._skipped((s.channel, s.symbol), known + 1, s.delivered))
        hub.routes.move(client, client.session.patterns)
        for text in hub.freshness.notices(self.plan.granted, now_ms()):
            client.message(text)

    # what was lost meanwhile

    def _catch_up(self) -> None:
        """Skip what rings have lost while the client was reading."""
        journal = self.hub.journal
        for pattern, n in self._starts.items():
            lost = journal.lost(pattern.channel)
            if n < lost and pattern not in self._stored:
                self._skip(pattern, n, lost)

    def _conflate(self) -> None:
        """Skip what is left of the market lane: the client reads more slowly than it comes in."""
        table, journal = self.hub.table, self.hub.journal
        self._goal = journal.n
        for pattern, n in self._starts.items():
            found = table.find(pattern.channel)
            if found is not None and found[0].lane is Lane.MARKET:
                self._skip(pattern, n, journal.n)

    @property
    def _is_behind(self) -> bool:
        """Whether the client has had its time for what it missed, and is still not live."""
        if self._late:
            return False  # it is being sent the newest; so nothing is put off for ever
        late = trio.current_time() > self._begun + self.hub.settings.delivery.max_lag
        return late or min(self._starts.values(), default=0) >= self._goal

    def _skip(self, pattern: Pattern, after: int, until: int) -> None:
        """Send only the newest of each stream of a stretch, as to any client that is behind.

        What it skips is told with that event.
        """
        journal = self.hub.journal
        streams = journal.covered(pattern)
        self._gaps = True
        for s in streams:
            self._seqs.setdefault((s.channel, s.symbol), 0)  # it was born meanwhile
        newest = {r.symbol: r for r in journal.oldest(pattern, after) if r.n <= until}
        newest |= {
            s.symbol: s.last for s in streams if s.last is not None and after < s.last.n <= until
        }
        self._late |= {record.stream: record for record in newest.values()}
        self._starts[pattern] = until

    async def _look_for_losses(self, counters: StoreCounters, channels: set[str]) -> None:
        """Leave out what the store has lost since it was asked, or could not take in the while."""
        before, self._losses = self._losses, counters.losses
        if self._losses == before:
            return
        reason = "pruned" if self._losses[1:] == before[1:] else "not_stored"
        floors = self._floors
        self._floors = floors | await self._ask_floors(channels)
        for pattern, n in self._stored.items():
            floor = self._floors.get(pattern.channel, 0)
            if floor > max(n, floors.get(pattern.channel, 0)):
                self._leave_out(pattern, n, floor, reason)

    def _leave_out(self, pattern: Pattern, after: int, until: int, reason: str) -> None:
        """Note that events of a stretch may be missing in what is sent.

        Which ones, a stream's next event tells, or the end. Unless the client was sent none of
        some stream: then nobody knows what it has, and the stretch is told as a whole.
        """
        self._gaps = True
        self._reasons[pattern.channel] = reason
        if not self.hub.journal.known(pattern) <= self._seqs.keys():
            self._tell(pattern, after, until, reason)

    def _tell(self, pattern: Pattern, after: int, until: int, reason: str) -> None:
        offset_of = self.hub.journal.offset_of
        data = {
            "channel": pattern.channel, "symbol": pattern.symbol, "count": None,
            "fromSeq": None, "toSeq": None, "reason": reason,
            "after": offset_of(after).decode(), "until": offset_of(until).decode(),
        }  # fmt: skip
        self.client.message(envelope.message("skipped", data, now_ms()))


async def _history(hub: Hub, client: Client, query: Query) -> None:
    """Answer with what rings and store have; one more is sought, to say whether there is more."""
    newest = query.newest or query.request.since is None
    found = await (_latest if newest else _following)(hub, query, query.limit + 1)
    chosen = [envelope.marked(event.envelope, "replay") for event in found[: query.limit]]
    if newest and not query.newest:
        chosen.reverse()
    hub.answers.history(client, query, chosen, len(found) > query.limit, now_ms())


async def _latest(hub: Hub, query: Query, most: int) -> list[Kept]:
    """Return the last events of a pattern, newest first."""
    pattern, journal = query.pattern, hub.journal
    until = journal.lost(pattern.channel)  # before it is asked: all above is in the ring
    found: list[Kept] = [*journal.newest(pattern, query.since, most)]
    if hub.store is not None and hub.is_durable(pattern.channel):
        while len(found) < most and until > query.since:
            page = await hub.store.read(
                [pattern.channel], query.since, most, until=until, newest=True
            )
            if not page:
                break
            found += [event for event in page if pattern.matches(event.symbol)]
            until = page[-1].n - 1
    return found


async def _following(hub: Hub, query: Query, most: int) -> list[Kept]:
    """Return the first events of a pattern after a position."""
    pattern, since, journal = query.pattern, query.since, hub.journal
    found: list[Kept] = []
    if hub.store is not None and hub.is_durable(pattern.channel):
        while len(found) < most and (lost := journal.lost(pattern.channel)) > since:
            page = await hub.store.read([pattern.channel], since, most, until=lost)
            found += [event for event in page if pattern.matches(event.symbol)]
            since = page[-1].n if page else lost
    if len(found) < most:
        found += journal.oldest(pattern, since, most - len(found))
    return found
