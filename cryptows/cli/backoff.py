"""How long a client waits before it comes back.

Twice as long each time up to a limit, and by chance between half of it and all of it: after a
restart of the daemon not all its clients shall return at the same moment.
"""

from __future__ import annotations

import random

import attrs

FIRST = 1.0  # seconds
LIMIT = 30.0
GOOD = 10.0  # seconds; a connection that lasted so long was a success, and the count begins anew


@attrs.define
class Backoff:
    """The waits of one client."""

    chance: random.Random = attrs.field(factory=random.Random)
    _failures: int = attrs.field(default=0, init=False)

    def wait(self, lasted: float, asked: float | None = None) -> float:
        """Return the seconds to wait after a connection that lasted so long.

        `asked` is what the daemon wants at least; the chance comes on top of it.
        """
        if lasted >= GOOD:
            self._failures = 0
        longest = min(FIRST * 2**self._failures, LIMIT)
        self._failures = min(self._failures + 1, 16)
        if asked is not None:
            return asked + self.chance.uniform(0, FIRST)
        return self.chance.uniform(longest / 2, longest)
