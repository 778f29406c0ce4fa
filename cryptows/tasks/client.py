"""One client at the daemon: who it is, what it asks, how it is and how it ends.

What is sent to it is in `tasks/sending.py`. `Client` is common to both dialects; plain WebSocket is
in `tasks/nativeclient.py`, Socket.IO in `tasks/dashboard.py`. A goodbye has a deadline.
"""

from __future__ import annotations

import math
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio

from cryptows.broker.admission import Seat
from cryptows.broker.pulse import Pulse
from cryptows.broker.replay import Query, Recover
from cryptows.broker.routes import NOTHING
from cryptows.broker.session import Session, State, Step
from cryptows.model.errors import Refusal, RequestError
from cryptows.tasks import replays
from cryptows.tasks.clock import now_ms, unix_now
from cryptows.tasks.sending import Sender
from cryptows.wire import requests
from cryptows.wire.envelope import Wire

if TYPE_CHECKING:
    from cryptows.tasks.hub import Hub

log = structlog.get_logger()

FAILED = 1011  # RFC 6455 7.4.1: an unexpected condition
BUG = Refusal(FAILED, "an internal error", come_back=True)


class Client(Sender):
    """What the daemon holds of a client, whatever its dialect. Times are Trio's clock."""

    __slots__ = ("__weakref__", "_queued", "_ticks_at", "ending", "pulse", "seat")

    def __init__(
        self, hub: Hub, session: Session, seat: Seat, sock: socket.socket | None, wire: Wire
    ) -> None:
        super().__init__(hub, session, sock, wire)
        self.seat = seat
        self.ending: Refusal | None = None
        self.pulse: Pulse
        self._ticks_at = math.inf  # when the reaper comes next
        # Requests behind one that is carried out, with the session they were for.
        self._queued: deque[tuple[requests.Request, Session]] | None = None
        hub.routes.join(self, wire, NOTHING)

    def answer(self, request: requests.Request, text: bytes) -> None:
        """Send or queue the envelope that answers a request."""
        self.message(text)

    # requests

    def request(self, request: requests.Request) -> None:
        """Answer a request, in the order they come and between two passes.

        One that takes reading is carried out beside; those behind it wait.
        """
        self.hub.between_passes(partial(self._ask, request, self.session), self)

    def _ask(self, request: requests.Request, session: Session) -> None:
        if self._queued is not None:
            if len(self._queued) < self.hub.settings.limits.requests:
                self._queued.append((request, session))
            else:
                self.end(Refusal(4029, "too many requests at once", come_back=True))
            return
        plan = self._handle(request, session)
        if plan is not None:
            self._queued = deque()
            self.beside(self._carry_out, plan)

    def _handle(self, request: requests.Request, session: Session) -> Recover | Query | None:
        if session is not self.session or not session.open:
            return None  # what was asked before the end of a session is not for the next one
        if request.type == "authenticate":
            self.tick_soon()  # the new token may end before the next ping
        return self.hub.answers.handle(self, request, trio.current_time(), now_ms())

    async def _carry_out(self, plan: Recover | Query | None) -> None:
        """Carry out a plan and the requests that came in meanwhile."""
        queued = self._queued
        assert queued is not None
        while True:
            if plan is not None:
                await replays.run(self.hub, self, plan)
            if not queued or not self.session.open:
                break
            plan = await self.hub.at_rest(partial(self._handle, *queued.popleft()))
        self._queued = None

    def seat_as(self, user_id: str | None) -> None:
        """Count the connection as this user's; raises Full."""
        self.seat.move(user_id)

    def refuse_request(self, error: RequestError) -> None:
        """Answer a request that could not be read. It counts against the limits like any other."""
        self.hub.answers.refuse(self, error, trio.current_time(), now_ms())

    # the end

    def end(self, refusal: Refusal) -> None:
        """Say goodbye, once; the client leaves all channels at once."""
        if not self.session.step(Step.END):
            return
        self.ending = refusal
        self._fall_silent()
        self.beside(self.say_goodbye, refusal)

    async def say_goodbye(self, refusal: Refusal) -> None:
        """Close the connection as the dialect does; has its own deadline."""
        raise NotImplementedError

    def gone(self, code: int) -> None:
        """Forget the client; called once by its task, whatever ended it."""
        if self.session.state is State.ENDED:
            return
        self.session.step(Step.LOSE)
        self.seat.release()
        self.hub.forget(self, self.ending.code if self.ending is not None else code)
        if self._behind is not None:
            self._behind.close()
        if self._taken is not None:
            self._taken.set()
        if self.outbox is not None:
            self.skipped += self.outbox.skipped
            self.outbox = None
        self.hub.behind.pop(self, None)
        self.hub.reaper.let_go()

    # bugs

    def beside(self, work: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Run something for this client in a task of its own; a failure ends the client."""
        self.hub.nursery.start_soon(self._guard, work, arguments)

    async def _guard(
        self, work: Callable[..., Awaitable[None]], arguments: tuple[object, ...]
    ) -> None:
        try:
            await work(*arguments)
        except Exception as error:
            self.failed(error)

    def failed(self, error: Exception) -> None:
        """Note an exception that should not have been raised: it ends this client, nobody else."""
        self.hub.counters.bugs += 1
        log.error("client failed", client=self.session.id, exc_info=error)
        if self.ending is None:
            self.ending = BUG
        self.broken()
        if self._socket is None:  # else its reader notices and cleans up
            self.gone(FAILED)

    # heartbeats: the reaper calls tick when it returned the time to

    @property
    def over(self) -> bool:
        """Whether the client has gone for good."""
        return self.session.state is State.ENDED

    def tick(self, now: float) -> float | None:
        """Do what is due and return when to come again; entries that were overtaken are let go."""
        if now < self._ticks_at:
            return None
        self._ticks_at = math.inf
        again = self._ticks_at = min(self.tend(now), self._ticks_at)
        return again if again < math.inf else None

    def tick_soon(self, at: float | None = None) -> None:
        """Be ticked now, or at a time earlier than was planned."""
        at = trio.current_time() if at is None else at
        if at < self._ticks_at:
            self._ticks_at = at
            self.hub.reaper.watch(self, at)

    def tend(self, now: float) -> float:
        """Do what is due; return when there is more to do, infinity if never."""
        if not self.session.open:
            return math.inf
        due = self.pulse.tick(now)
        if due.overdue:
            self.hub.counters.pong_timeouts += 1
            waited = self.hub.settings.heartbeat.timeout
            self.end(Refusal(4010, f"no pong for {waited:g} s", come_back=True))
            return math.inf
        if due.ping:
            self.ping(now)
        return min(due.next, self.hub.answers.check_session(self, now, unix_now()))

    def ping(self, now: float) -> None:
        """Ask for a sign of life, and tell how the channels are."""
        raise NotImplementedError
