"""Giving memory back: what a crowd of clients took does not stay with the daemon when it has left.

A client is some hundred small objects. When most of many have gone, their pages are empty but still
the process's; once is enough to hand them to the system, and cheap, because few objects are left to
look at. The interpreter's own allocator holds on to whatever lies in between, so `cryptows serve`
runs on that of the C library (`__main__.py`).
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable

import attrs

CROWD = 100  # clients; what fewer leave behind is soon used again
LEFT = 4  # one in so many is still there when the others count as gone


def give_back() -> None:
    """Free what is garbage, and return empty pages to the system where the C library can."""
    gc.collect()
    # glibc only: malloc_trim(3). Other C libraries return pages by themselves, or never.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@attrs.define
class Crowd:
    """Notices when most of many clients, or of what was remembered of them, have gone."""

    give_back: Callable[[], None] = give_back
    _most: int = attrs.field(default=0, init=False)  # since memory was given back

    def note(self, clients: int) -> None:
        """Take note of how many there are."""
        self._most = max(self._most, clients)

    def look(self, clients: int) -> None:
        """Give memory back if most have gone; to be called now and then."""
        self.note(clients)
        if self._most >= CROWD and clients * LEFT <= self._most:
            self._most = clients
            self.give_back()
