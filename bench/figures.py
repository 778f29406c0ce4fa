"""What a measurement gave: the load client's report, and the figures that follow from it."""

from __future__ import annotations

import attrs
import msgspec

from bench.work import Work

KEPT_UP = 0.97  # of what was offered within the window; the rest is its two ends


class Report(msgspec.Struct, frozen=True):
    """The line that the load client prints. What is about events is zero when there were none."""

    clients: int
    connect_seconds: float
    connect_cpu: float  # CPU seconds of the server
    idle_kib: float  # growth of the server's RSS by all clients
    seconds: float = 0.0  # the window
    server_cpu: float = 0.0
    client_cpu: float = 0.0
    rss_kib: float = 0.0
    published: int = 0
    published_in_window: int = 0
    delivered: int = 0
    delivered_in_window: int = 0
    disorder: int = 0  # deliveries that were older than the one before, or came again
    closed: int = 0
    p50_ms: float = 0.0
    p90_ms: float = 0.0
    p99_ms: float = 0.0
    p999_ms: float = 0.0
    max_ms: float = 0.0


@attrs.frozen
class Figures:
    """One server on one work."""

    server: str
    work: Work
    report: Report

    @property
    def per_second(self) -> float:
        """Deliveries a second."""
        return ratio(self.report.delivered_in_window, self.report.seconds)

    @property
    def per_cpu_second(self) -> float:
        """Deliveries for each CPU second of the server."""
        return ratio(self.report.delivered_in_window, self.report.server_cpu)

    @property
    def taken_per_second(self) -> float:
        """Events a second that the server took."""
        return ratio(self.report.published_in_window, self.report.seconds)

    @property
    def lost(self) -> int:
        """Deliveries that are missing; with slow clients only what the others miss, at least."""
        return max(0, self.work.expected(self.report.published) - self.report.delivered)

    @property
    def kib_per_client(self) -> float:
        """Memory of one idle connection."""
        return ratio(self.report.idle_kib, self.report.clients)

    @property
    def connects_per_second(self) -> float:
        """Connections a second, from the first byte to the confirmed subscription."""
        return ratio(self.report.clients, self.report.connect_seconds)

    @property
    def connect_cpu_ms(self) -> float:
        """CPU of the server for one connection."""
        return 1000 * ratio(self.report.connect_cpu, self.report.clients)

    @property
    def overloaded(self) -> bool:
        """Whether the server took or passed on less than was offered."""
        offered = (self.work.rate or 0) * self.report.seconds
        taken = self.report.published_in_window
        due = self.work.expected(taken)
        return taken < KEPT_UP * offered or self.report.delivered_in_window < KEPT_UP * due


def read_report(text: bytes) -> Report:
    """Read the load client's line; raises msgspec.DecodeError if it is none."""
    return msgspec.json.decode(text, type=Report)


def ratio(part: float, whole: float) -> float:
    """Return part / whole, 0 of nothing."""
    return part / whole if whole else 0.0
