"""Connection state recovery: a client comes back with its `pid` and gets what it missed.

The wire format is the reference's: the missed events come before the CONNECT answer, which bears
the same `sid` and `pid`, whereupon the official client says `recovered`. Unlike the reference, the
token is verified again and must be the same user's, and a connection that still lives is evicted.
What is replayed comes from the journal and the store, like everything that is made up for.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import trio

from cryptows.broker.recovery import Lost, Recoveries
from cryptows.broker.replay import Recover, read_offset, start_positions
from cryptows.config.settings import Settings
from cryptows.model.errors import Refusal, RequestError
from cryptows.tasks.polling import Mount
from cryptows.tasks.replays import Recovery
from cryptows.wire.engineio import Timing
from cryptows.wire.requests import Request

if TYPE_CHECKING:
    from cryptows.tasks.dashboard import Dashboard
    from cryptows.tasks.hub import Hub


def timing(settings: Settings) -> Timing:
    """Return the deadlines of Engine.IO that the settings say."""
    heartbeat = settings.heartbeat
    return Timing(heartbeat.interval, heartbeat.timeout, max_payload=settings.limits.message)


EVICTED = Refusal(4031, "another connection recovered this session", come_back=False)


@attrs.define(eq=False)
class DashboardMount(Mount):
    """The mount of the dashboards: knows which sessions live, and which were lost."""

    live: dict[str, Dashboard] = attrs.field(factory=dict, init=False)  # by pid
    recoveries: Recoveries = attrs.field(init=False)
    _watched: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.recoveries = Recoveries(self.hub.settings.recovery)

    def take(self, pid: str, user_id: str | None, now: float) -> Lost | None:
        """Return the session of a `pid` if it was that user's; evict who still has it."""
        older = self.live.get(pid)
        if older is None:
            return self.recoveries.take(pid, user_id, now)
        lost = older.to_recover()
        if lost.user_id != user_id:
            return None
        older.end(EVICTED)
        older.seat_as(None)  # the user has it no longer, though its socket may take a while
        self.hub.forget(older, EVICTED.code)
        return lost

    def lose(self, pid: str, lost: Lost) -> None:
        """Remember a session whose transport was lost."""
        self.recoveries.keep(pid, lost, trio.current_time())
        if not self._watched and len(self.recoveries):
            # Should nothing else be lost for a while, what is remembered must not stay for ever.
            self._watched = True
            self.hub.reaper.watch(self, self.recoveries.next_end())

    def tick(self, now: float) -> float | None:
        """Forget what was lost too long ago; return when there is more to forget."""
        self.recoveries.prune(now)
        end = self.recoveries.next_end()
        self._watched = end < math.inf
        return end if self._watched else None

    @property
    def over(self) -> bool:
        """A mount is there as long as the daemon."""
        return False

    def failed(self, error: Exception) -> None:
        """Raise what `tick` raised: it is nobody's fault but ours."""
        raise error


class SocketRecovery(Recovery):
    """One client's way back into its session."""

    client: Dashboard

    def __init__(self, hub: Hub, client: Dashboard, lost: Lost, pid: str) -> None:
        nothing = Recover(Request(""), frozenset(), (), (), None)
        super().__init__(hub, client, nothing)
        self._lost = lost
        self._pid = pid

    async def run(self) -> None:
        """Replay what was missed and let the client in; or begin a new session."""
        client = self.client
        if self._planned() and await self._begins():
            await self._replay()
        elif client.session.open:
            self.hub.counters.not_recovered += 1
            client.begin(client.session.identity)

    async def _begins(self) -> bool:
        self._floors = await self._ask_floors({p.channel for p in self.plan.granted})
        return await self.hub.at_rest(self._start)

    def _planned(self) -> bool:
        """Whether the offset means something here and the user may still have all he had."""
        hub, session = self.hub, self.client.session
        try:
            since = read_offset(self._lost.offset, hub.journal)
        except RequestError:
            return False
        most = hub.settings.limits.subscriptions
        outcome = session.subscribe([str(p) for p in self._lost.patterns], hub.table, most)
        if since is None or outcome.denied:
            return False
        self.plan = Recover(Request(""), outcome.patterns, outcome.granted, (), since)
        return True

    def _start(self) -> bool:
        """Decide, between two passes, whether all that was missed is still kept."""
        client, plan = self.client, self.plan
        if not client.session.open:
            return False
        self._starts, missing = start_positions(
            plan, frozenset(), plan.since, self._floors, self.hub.journal
        )
        if missing:
            return False
        self._unsure = client.session.patterns = plan.patterns
        self._goal = self.hub.journal.n
        return True

    def _step(self) -> bool:
        live = super()._step()
        if live and self.client.session.open:
            self.hub.counters.recovered += 1
            self.client.let_in(self._pid)
        return live
