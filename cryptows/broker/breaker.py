"""The circuit breaker: when to stop asking something that keeps failing, and when to ask again.

A disk that is full answers with an error, a dying one not at all; whoever waits for either holds up
everyone behind it. After `failures` in a row the breaker opens and nobody asks any more. When the
pause is over one trial passes (half-open): its success closes the breaker, its failure opens it for
twice as long, up to `retry_max`. It knows nothing of what it guards, so that it serves every sink:
the store today. Whoever uses it passes the time in and reports how each attempt ended.
"""

from __future__ import annotations

import enum

import attrs


class BreakerState(enum.StrEnum):
    """What the breaker lets through: everything, nothing, or one trial."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@attrs.define
class Breaker:
    """The breaker of one sink. Times are seconds of whatever clock the caller uses throughout."""

    failures: int = attrs.field(validator=attrs.validators.ge(1))  # in a row that open it
    retry: float = attrs.field(validator=attrs.validators.gt(0))  # the first pause
    retry_max: float = attrs.field()  # the longest pause
    state: BreakerState = attrs.field(default=BreakerState.CLOSED, init=False)
    failed_in_a_row: int = attrs.field(default=0, init=False)
    retry_at: float | None = attrs.field(default=None, init=False)  # while open: end of the pause
    pause: float = attrs.field(init=False)  # how long it stays open the next time

    @retry_max.validator
    def _not_shorter_than_the_first(self, _: object, value: float) -> None:
        if value < self.retry:
            raise ValueError(f"retry_max is {value}; expected at least retry, {self.retry}")

    def __attrs_post_init__(self) -> None:
        self.pause = self.retry

    def allows(self, now: float) -> bool:
        """Whether an attempt may be made now. An attempt that was allowed must be reported.

        The first call after the pause makes the breaker half-open: its caller has the trial, and
        everyone else is refused until the trial was reported.
        """
        if self.state is BreakerState.CLOSED:
            return True
        if self.state is BreakerState.OPEN and self.retry_at is not None and now >= self.retry_at:
            self.state, self.retry_at = BreakerState.HALF_OPEN, None
            return True
        return False

    def succeeded(self) -> None:
        """Report a success. A late one, of an attempt from before it opened, closes nothing.

        It may have been lucky: only the trial tells that the sink is well again.
        """
        if self.state is BreakerState.OPEN:
            return
        self.state, self.failed_in_a_row, self.pause = BreakerState.CLOSED, 0, self.retry

    def failed(self, now: float) -> None:
        """Report a failure: counts while closed, ends the trial while half-open."""
        if self.state is BreakerState.OPEN:
            return  # of an attempt from before it opened; the pause is not made longer for it
        self.failed_in_a_row += 1
        if self.state is BreakerState.HALF_OPEN or self.failed_in_a_row >= self.failures:
            self._open(now)

    def trip(self, now: float) -> None:
        """Open at once, because no further attempt can succeed until something was repaired."""
        if self.state is not BreakerState.OPEN:
            self.failed_in_a_row += 1
            self._open(now)

    def _open(self, now: float) -> None:
        self.state, self.retry_at = BreakerState.OPEN, now + self.pause
        self.pause = min(self.pause * 2, self.retry_max)
