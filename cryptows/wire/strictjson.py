"""JSON from strangers: read what the RFC allows and nothing that cannot be written again.

Python's own `json` takes NaN, Infinity and lone surrogates, and some inputs make it raise errors
that nobody expects (deep nesting, numbers of thousands of digits). msgspec is strict in most of
that; the depth is bounded here, because a value that could just be read deep in one call stack may
not be writable in a deeper one.
"""

from __future__ import annotations

from typing import Any

import msgspec

MAX_DEPTH = 64  # lists and objects inside each other; a request of ours needs three

encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class BadJson(ValueError):
    """The text is not JSON, or nests too deep."""


def decode(text: str | bytes) -> Any:
    """Return the value of a JSON text; raise BadJson if there is anything wrong with it."""
    try:
        value = _decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise BadJson(str(error)) from None
    # Counting brackets also counts those inside strings, so it only tells when to look closer.
    opened = (
        text.count("[") + text.count("{")
        if isinstance(text, str)
        else text.count(b"[") + text.count(b"{")
    )
    if opened > MAX_DEPTH and _deeper_than(value, MAX_DEPTH):
        raise BadJson(f"nested deeper than {MAX_DEPTH}")
    return value


def _deeper_than(value: Any, limit: int) -> bool:
    """Whether lists and objects nest deeper than `limit`; level by level, without recursion."""
    level = [value]
    for _ in range(limit):
        level = [
            inner
            for outer in level
            if isinstance(outer, list | dict)
            for inner in (outer if isinstance(outer, list) else outer.values())
        ]
        if not level:
            return False
    return any(isinstance(inner, list | dict) for inner in level)
