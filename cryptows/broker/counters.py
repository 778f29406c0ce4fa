"""What happened since the start, as plain integers.

The hot path adds to an attribute and nothing more; `tasks/stats.py` reads the attributes when
somebody scrapes. What is the case now (how many are connected, how much waits) is not counted up
and down: `Gauges` are filled from the objects that hold the truth, so they cannot drift from it.

Everything that becomes a label is bounded: a client may close with any of thousands of codes and
a label must never grow with what clients send.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping

import attrs

# RFC 6455 7.4.1 and protocol section 6. Codes outside of it are counted as OTHER_CODE.
KNOWN_CODES = frozenset(
    {1000, 1001, 1002, 1003, 1005, 1006, 1007, 1008, 1009, 1010, 1011, 1012, 1013}
    | {4001, 4002, 4008, 4010, 4029, 4031}
)
OTHER_CODE = 0
MAX_REASONS = 64  # our own reasons are fewer; beyond it is a mistake, which costs no memory
OTHER_REASON = "other"

# Seconds. A pass takes under a millisecond when nobody is behind; 10 s is `delivery.max_lag`.
LATENCY_BOUNDS = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
)  # fmt: skip


class Buckets:
    """A histogram of plain integers: how many values lay at or below each bound, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Iterable[float] = LATENCY_BOUNDS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)  # the last one: above every bound
        self.sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Count a value, e.g. the age of an event at the end of the pass that delivered it."""
        self.counts[bisect.bisect_left(self.bounds, value)] += times
        self.sum += value * times

    @property
    def total(self) -> int:
        """How many values were counted."""
        return sum(self.counts)

    def quantile(self, share: float) -> float:
        """Return the bound below which that share lies: the last one if above, 0 if none came."""
        wanted, seen = share * self.total, 0
        if not wanted:
            return 0.0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            seen += count
            if seen >= wanted:
                return bound
        return self.bounds[-1]


@attrs.define
class Counters:
    """The daemon's counters; whoever sees a thing happen adds to them."""

    # clients coming and going
    connects: int = 0  # sessions that began, on any transport
    disconnects: dict[int, int] = attrs.field(factory=dict)  # through disconnected()
    refusals: dict[str, int] = attrs.field(factory=dict)  # through refused()
    bans: int = 0
    recovered: int = 0  # sessions that came back and got what they missed
    not_recovered: int = 0  # those that asked for more than is kept

    # what clients ask
    requests: int = 0
    request_errors: dict[str, int] = attrs.field(factory=dict)  # through request_failed()
    rate_limited: int = 0
    http_requests: int = 0  # everything on the port that is not an upgrade
    pings: int = 0
    pongs: int = 0
    pong_timeouts: int = 0

    # the feed
    events_in: int = 0  # accepted
    feed_errors: dict[str, int] = attrs.field(factory=dict)  # through feed_failed()
    feed_bytes: int = 0
    duplicates: int = 0  # events whose id was seen already
    undeliverable: int = 0  # events that no client was subscribed to

    # fan-out
    deliveries: int = 0  # an event to a client
    passes: int = 0  # rounds of the dispatcher
    sends: int = 0  # calls of send()
    short_sends: int = 0  # those that took less than was offered, so that the client's task drains
    bytes_out: int = 0
    throttled: int = 0  # events held back at the source, for all clients
    skipped: int = 0  # events skipped for one client that is behind
    conflated: int = 0  # events that were sent with the extremes of the skipped ones
    latency: Buckets = attrs.field(factory=Buckets)  # from reading the event to the end of its pass

    # the loop
    reloads: int = 0
    reload_failures: int = 0
    bugs: int = 0  # exceptions that ended a client and should not have been raised

    def disconnected(self, code: int) -> None:
        """Count a session's end by its close code."""
        known = code if code in KNOWN_CODES else OTHER_CODE
        self.disconnects[known] = self.disconnects.get(known, 0) + 1

    def refused(self, reason: str) -> None:
        """Count a connection that did not become a session: a short constant reason."""
        _tally(self.refusals, reason)

    def request_failed(self, code: str) -> None:
        """Count a request that was answered with an error of that code."""
        _tally(self.request_errors, code)

    def feed_failed(self, code: str) -> None:
        """Count a feed line that was answered with an error of that code."""
        _tally(self.feed_errors, code)


@attrs.frozen(kw_only=True)
class Gauges:
    """What is the case at the moment somebody asks; the hub makes one for each answer."""

    connections: Mapping[str, int] = attrs.field(factory=dict)  # by transport, of all sessions
    authenticated: int = 0  # sessions with a token
    subscribers: Mapping[str, int] = attrs.field(factory=dict)  # by channel: its clients
    subscriptions: int = 0  # patterns of all clients
    streams: int = 0  # (channel, symbol) pairs that have a `seq`
    throttlers: int = 0  # streams whose throttle is in force
    cached: int = 0  # events that throttles keep
    producers: int = 0  # feed connections
    queued_events: int = 0  # accepted and not yet dispatched
    slow_clients: int = 0  # those that are behind
    outbox_bytes: int = 0  # what waits for them
    banned: int = 0  # users and addresses

    @property
    def clients(self) -> int:
        """All sessions."""
        return sum(self.connections.values())


def _tally(counts: dict[str, int], key: str) -> None:
    if key not in counts and len(counts) >= MAX_REASONS:
        key = OTHER_REASON
    counts[key] = counts.get(key, 0) + 1
