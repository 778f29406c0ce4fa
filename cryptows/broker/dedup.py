"""Event ids that were seen lately: a second event with the same id is acknowledged, not sent again.

Bounded in time (`feed.dedup`) and number (`feed.dedup_ids`); beyond either the oldest id is
forgotten, and an event that repeats it counts as new.
"""

from __future__ import annotations

from collections import OrderedDict

import attrs


@attrs.define
class Dedup:
    """Seen ids and the offset each event got. Times are Unix ms."""

    window_ms: int
    capacity: int
    # Not a dict, whose first key is sought behind the places of all that were deleted: at the bound
    # each event would take 150 µs.
    _seen: OrderedDict[str, tuple[int, bytes]] = attrs.field(factory=OrderedDict, init=False)

    def find(self, id_: str, now_ms: int) -> bytes | None:
        """Return the offset of an id that was seen within the window; None: it is new."""
        seen = self._seen.get(id_)
        if seen is None or now_ms - seen[0] >= self.window_ms:
            return None
        return seen[1]

    def add(self, id_: str, offset: bytes, now_ms: int) -> None:
        """Remember an id."""
        self._seen.pop(id_, None)  # so that the dict stays in order of time
        self._seen[id_] = (now_ms, offset)
        while self._seen:
            oldest = next(iter(self._seen))
            if len(self._seen) <= self.capacity and now_ms - self._seen[oldest][0] < self.window_ms:
                break
            del self._seen[oldest]

    def __len__(self) -> int:
        return len(self._seen)
