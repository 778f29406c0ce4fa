"""The housekeeper: what has to be looked at now and then, apart from the clients' own deadlines.

Streams that went silent, clients that have been behind too long, and everything bounded in age: the
journal's rings, request records, bans; and the memory that a crowd has left behind. Long walks are
cut into slices.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import trio

from cryptows.tasks.clock import now_ms
from cryptows.tasks.memory import Crowd

if TYPE_CHECKING:
    from cryptows.broker.routes import Audience
    from cryptows.tasks.client import Client
    from cryptows.tasks.hub import Hub

SLICE = 2000  # streams looked at before the other tasks get a turn
TURN = 0.001  # seconds of telling clients likewise
ROUND = 1.0  # seconds between two looks at streams and records
LOOKS = 10  # at a slow client, within `delivery.max_lag`


async def run(hub: Hub, remembered: Callable[[], int] = lambda: 0) -> None:
    """Keep house until cancelled. `remembered`: how many lost connections may still come back."""
    next_round = trio.current_time() + ROUND
    lost = Crowd()
    while True:
        await trio.sleep(min(ROUND, hub.settings.delivery.max_lag / LOOKS))
        end_the_late(hub, trio.current_time())
        if trio.current_time() >= next_round:
            next_round = trio.current_time() + ROUND
            prune(hub, trio.current_time())
            hub.crowd.look(len(hub.clients))
            lost.look(remembered())
            await check_freshness(hub)


def end_the_late(hub: Hub, now: float) -> None:
    """Close the clients whose oldest waiting byte is too old."""
    for client in list(hub.behind):
        client.check_age(now)


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
            await _tell(hub.routes.audiences(stream.channel, stream.symbol), text)
        await trio.lowlevel.checkpoint()


async def _tell(audiences: list[Audience], text: bytes) -> None:
    """Send a message to clients, who may be thousands: the other tasks get turns between."""
    pause_at = time.perf_counter() + TURN
    for audience in audiences:
        for client in cast("tuple[Client, ...]", tuple(audience.members)):
            try:
                client.message(text)
            except Exception as error:
                client.failed(error)
            if time.perf_counter() > pause_at:
                await trio.lowlevel.checkpoint()
                pause_at = time.perf_counter() + TURN
