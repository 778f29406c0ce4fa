"""The wall clock, read in one place. Deadlines go by Trio's clock, which never steps."""

from __future__ import annotations

import time


def now_ms() -> int:
    """The daemon's clock in Unix ms."""
    return time.time_ns() // 1_000_000


def unix_now() -> float:
    """The daemon's clock in Unix seconds."""
    return time.time()
