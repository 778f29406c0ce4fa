"""The housekeeper: what has to be looked at now and then, apart from the clients' own deadlines.

Streams that went silent, clients that have been behind too long, and everything bounded in age: the
journal's rings, request records, bans. Long walks are cut into slices.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import trio

from cryptows.model.errors import Refusal
from cryptows.tasks.client import now_ms

if TYPE_CHECKING:
    from cryptows.tasks.hub import Hub

SLICE = 2000  # streams looked at before the other tasks get a turn
ROUND = 1.0  # seconds between two looks at streams and records
LOOKS = 10  # at a slow client, within `delivery.max_lag`


async def run(hub: Hub) -> None:
    """Keep house until cancelled."""
    next_round = trio.current_time() + ROUND
    while True:
        await trio.sleep(min(ROUND, hub.settings.delivery.max_lag / LOOKS))
        end_the_late(hub, trio.current_time())
        if trio.current_time() >= next_round:
            next_round = trio.current_time() + ROUND
            prune(hub, trio.current_time())
            await check_freshness(hub)


def end_the_late(hub: Hub, now: float) -> None:
    """Close the clients whose oldest waiting byte is too old."""
    for client in list(hub.behind):
        if client.outbox is not None:
            try:
                client.outbox.check(now)
            except Refusal as refusal:
                client.end(refusal)


def prune(hub: Hub, now: float) -> None:
    """Forget what is too old."""
    hub.limiter.prune(now)
    hub.bans.prune(now)
    hub.journal.expire(now)


async def check_freshness(hub: Hub) -> None:
    """Tell subscribers which streams fell silent and which speak again."""
    connected = () if hub.feed is None else hub.feed.names
    streams = iter(hub.freshness.watched())
    while some := list(itertools.islice(streams, SLICE)):
        changed = hub.freshness.check(some, connected, trio.current_time(), now_ms())
        for stream, text in changed:
            for audience in hub.routes.audiences(stream.channel, stream.symbol):
                for client in tuple(audience.members):
                    client.message(text)  # type: ignore[attr-defined]
        await trio.lowlevel.checkpoint()
