"""Health: whether the daemon is alive, whether it should get new clients, and what ails it.

`/healthz` only says that the loop turns: whoever restarts a daemon because of a slow disk makes
things worse. `/readyz` is for a balancer: 503 while starting, draining or overloaded. A failed
store is told in both forms of `/readyz` but does not turn it: live delivery goes on (design.md).
Protocol section 7.
"""

from __future__ import annotations

import enum
import json

import attrs

# How late the loop may be. A second of lag is felt by everybody; one sample may be an accident.
LAG_HIGH = 0.5  # seconds
LAG_LOW = 0.1
SAMPLES_TO_OVERLOAD = 3
SAMPLES_TO_RECOVER = 5  # more than to get there, so that the balancer's new clients do not flap it


class State(enum.StrEnum):
    """Where the daemon is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"


@attrs.frozen
class Answer:
    """An HTTP answer to a probe; never to be cached."""

    status: int
    body: bytes
    content_type: str = "application/json"


@attrs.define
class Health:
    """How the daemon is; the tasks that know set what they know."""

    state: State = State.STARTING
    store: str = "closed"  # the state of the store's circuit breaker: closed, open, half_open
    store_error: str = ""  # why it is not closed
    reload_ok: bool = True
    reloaded_at: float = 0.0  # Unix seconds of the last good (re)load
    pending_restart: tuple[str, ...] = ()  # changed settings that wait for the next start
    lag: float = 0.0  # of the last sample, seconds
    overloaded: bool = False
    _samples: int = attrs.field(default=0, init=False)  # in a row that speak for a change

    def observe_lag(self, lag: float) -> bool:
        """Take a sample of the loop's lag; return whether `overloaded` changed."""
        self.lag = lag
        speaks_for_change = lag < LAG_LOW if self.overloaded else lag >= LAG_HIGH
        self._samples = self._samples + 1 if speaks_for_change else 0
        if self._samples < (SAMPLES_TO_RECOVER if self.overloaded else SAMPLES_TO_OVERLOAD):
            return False
        self.overloaded, self._samples = not self.overloaded, 0
        return True

    @property
    def status(self) -> str:
        """One word: starting, draining, overloaded or ready."""
        if self.state is not State.RUNNING:
            return str(self.state)
        return "overloaded" if self.overloaded else "ready"

    def healthz(self) -> Answer:
        """Return 200: whoever can run this turns."""
        return Answer(200, b'{"status":"ok"}\n')

    def readyz(self, *, verbose: bool = False) -> Answer:
        """Return 200 if new clients are welcome, else 503; `verbose` is a list for people."""
        code = 200 if self.status == "ready" else 503
        if verbose:
            return Answer(code, self._list().encode(), "text/plain; charset=utf-8")
        body = {"status": self.status, "store": "ok" if self.store == "closed" else self.store}
        return Answer(code, json.dumps(body, separators=(",", ":")).encode() + b"\n")

    def _list(self) -> str:
        checks = [
            (self.state is State.RUNNING, "state", str(self.state)),
            (not self.overloaded, "loop", f"{self.lag * 1000:.1f} ms late"),
            (self.store == "closed", "store", self.store_error or f"breaker {self.store}"),
            (self.reload_ok, "config", "last reload was " + ("good" if self.reload_ok else "bad")),
        ]
        lines = [f"[{'+' if ok else '-'}] {name}: {what}" for ok, name, what in checks]
        if self.pending_restart:
            lines.append(f"[ ] waiting for a restart: {', '.join(self.pending_restart)}")
        return "\n".join([*lines, self.status, ""])
