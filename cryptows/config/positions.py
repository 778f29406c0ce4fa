"""Lines."""

from __future__ import annotations


def find_positions(text: str) -> dict[tuple[str, ...], int]:
    return {}
