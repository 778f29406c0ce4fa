"""Replays: the part of an answer that takes reading and waiting.

Runs in a task of its own beside a client, which must go on reading to see its pongs. It sends a
piece, waits until the client has taken it, and goes on from there; meanwhile the client takes no
part in the routes, so a replay cannot run into live events. The last piece and the entry into the
routes happen at one moment between two passes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio

from cryptows.broker.replay import (
    Query,
    Recover,
    Text,
    confirmation,
    replayed,
    snapshot_of,
    start_positions,
)
from cryptows.broker.routes import NOTHING
from cryptows.model.channel import Pattern
from cryptows.model.errors import RequestError
from cryptows.model.event import Record
from cryptows.store.jobs import StoreError
from cryptows.store.rows import StoredEvent
from cryptows.tasks.clock import now_ms
from cryptows.wire import envelope

if TYPE_CHECKING:
    from cryptows.tasks.client import Client
    from cryptows.tasks.hub import Hub

log = structlog.get_logger()

PIECE = 500  # events of one write
PIECE_BYTES = 64 * 1024  # likewise; a slow client gets them within delivery.max_lag
WAIT = 0.02  # seconds between two looks at a client that is still reading a piece


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
        self._starts: dict[Pattern, int] = {}
        self._stored: dict[Pattern, int] = {}  # those of `_starts` that the rings do not reach
        self._until = 0  # up to where the store was asked

    async def run(self) -> None:
        """Replay what was missed, then let the client in."""
        since = await self._since()
        floors = await self._floors()
        await self.hub.at_rest(partial(self._begin, since, floors))
        await self._replay()

    async def _replay(self) -> None:
        """Send what was missed piece by piece; returns when the client is live, or gone."""
        while self.client.session.open:
            await self._taken()
            stored = await self._read_stored()
            if await self.hub.at_rest(partial(self._step, stored)):
                return

    async def _since(self) -> int | None:
        store, user_id = self.hub.store, self.client.session.identity.user_id
        if self.plan.last and store is not None and user_id is not None:
            return await store.cursor(user_id) or 0
        return self.plan.since

    async def _floors(self) -> dict[str, int]:
        """Return for each new channel the position above which nothing of it is missing."""
        hub = self.hub
        floors = {}
        for channel in {p.channel for p in self.plan.granted}:
            found = hub.table.find(channel)
            floors[channel] = hub.journal.lost(channel)
            if hub.store is not None and found is not None and found[0].durable:
                try:
                    floors[channel] = await hub.store.floor([channel])
                except StoreError as error:
                    log.warning("recovery without the store", error=str(error))
        return floors

    def _begin(self, since: int | None, floors: dict[str, int]) -> None:
        hub, client, plan = self.hub, self.client, self.plan
        if not client.session.open:
            return
        old = client.session.patterns
        self._starts, missing = start_positions(plan, old, since, floors, hub.journal)
        hub.counters.recovered += not missing
        hub.counters.not_recovered += bool(missing)
        client.session.patterns = plan.patterns
        hub.routes.move(client, NOTHING)
        values = snapshot_of(hub.journal, hub.table, plan.granted, self._starts)
        client.answer(plan.request, confirmation(plan, since, missing, now_ms()))
        if values:
            client.messages(replayed(values, "snapshot"))

    async def _taken(self) -> None:
        """Wait until the client has read what it was sent."""
        while self.client.session.open and self.client.waiting > PIECE_BYTES:  # noqa: ASYNC110
            await trio.sleep(WAIT)

    async def _read_stored(self) -> list[StoredEvent] | None:
        """Return the next events of the channels whose rings do not reach back far enough.

        None: no channel needs the store. An empty list: the store has no more of them.
        """
        hub = self.hub
        if hub.store is None:
            return None
        self._stored = {
            p: n for p, n in self._starts.items()
            if n < hub.journal.lost(p.channel) and hub.is_durable(p.channel)
        }  # fmt: skip
        if not self._stored:
            return None
        channels = sorted({p.channel for p in self._stored})
        since, self._until = min(self._stored.values()), hub.journal.n
        try:
            return list(await hub.store.read(channels, since, PIECE, until=self._until))
        except StoreError as error:
            log.warning("recovery cut short", error=str(error))
            self._tell_cut(error)
            return []

    def _step(self, stored: list[StoredEvent] | None) -> bool:
        """Send the next piece; return whether the client is live now."""
        hub, client = self.hub, self.client
        if not client.session.open:
            return True
        if stored is not None and not stored:
            # What came in since it was asked is in the rings.
            self._starts |= dict.fromkeys(self._stored, self._until)
            return False
        self._tell_overtaken(stored)
        live = {p: n for p, n in self._starts.items() if stored is None or p not in self._stored}
        records, end = hub.journal.after(live, PIECE)
        found: dict[int, Text] = {}
        if stored:
            end = min(end, stored[-1].n)
            found = {e.n: self._text(e) for e in stored if e.n <= end and self._wants(e)}
        found |= {r.n: t for r, t in zip(records, replayed(records, "replay"), strict=True)}
        texts, end = _cut([(n, found[n]) for n in sorted(found) if n <= end], end)
        client.messages(texts)
        self._starts = {p: max(n, end) for p, n in self._starts.items()}
        if end < hub.journal.n or stored:
            return False
        hub.routes.move(client, client.session.patterns)
        return True

    def _text(self, event: StoredEvent) -> Text:
        return envelope.marked(event.envelope, "replay"), self.hub.journal.offset_of(event.n)

    def _wants(self, event: StoredEvent) -> bool:
        return any(
            p.channel == event.channel and n < event.n and p.matches(event.symbol)
            for p, n in self._stored.items()
        )

    def _tell_overtaken(self, stored: list[StoredEvent] | None) -> None:
        """A ring moved on while the client was reading: say so rather than leave a silent gap."""
        for pattern, n in self._starts.items():
            lost = self.hub.journal.lost(pattern.channel)
            if n < lost and (stored is None or pattern not in self._stored):
                self._starts[pattern] = lost
                self._tell(pattern, n, lost, "overtaken while recovering")

    def _tell_cut(self, error: StoreError) -> None:
        for pattern, n in self._stored.items():
            lost = self.hub.journal.lost(pattern.channel)
            self._tell(pattern, n, lost, str(error))

    def _tell(self, pattern: Pattern, after: int, until: int, reason: str) -> None:
        offset_of = self.hub.journal.offset_of
        data = {
            "channel": pattern.channel, "symbol": pattern.symbol, "count": None,
            "fromSeq": None, "toSeq": None, "reason": reason,
            "after": offset_of(after).decode(), "until": offset_of(until).decode(),
        }  # fmt: skip
        self.client.message(envelope.message("skipped", data, now_ms()))


def _cut(found: list[tuple[int, Text]], end: int) -> tuple[list[Text], int]:
    """Take as much as one write should hold; return it and up to where it is complete."""
    texts: list[Text] = []
    size = 0
    for n, text in found:
        if size > PIECE_BYTES:
            return texts, n - 1
        texts.append(text)
        size += len(text[0])
    return texts, end


async def _history(hub: Hub, client: Client, query: Query) -> None:
    pattern, journal = query.pattern, hub.journal
    texts: dict[int, bytes] = {}
    if hub.store is not None and hub.is_durable(pattern.channel):
        newest = query.newest or query.request.since is None
        stored = await hub.store.read(
            [pattern.channel], query.since, query.limit, until=journal.n, newest=newest
        )
        texts = {e.n: e.envelope for e in stored if pattern.matches(e.symbol)}
    kept: list[Record] = journal.after({pattern: query.since}, 1 << 30)[0]
    texts |= {r.n: r.envelope for r in kept}
    chosen = sorted(texts)
    if query.newest or query.request.since is None:
        chosen = chosen[-query.limit :]
    else:
        chosen = chosen[: query.limit]
    if query.newest:
        chosen.reverse()
    hub.answers.history(
        client, query, [texts[n] for n in chosen], len(texts) > len(chosen), now_ms()
    )
