"""Durations and sizes as people write them: `20s`, `5min`, `64KiB`.

A plain number means seconds or bytes. Reading is exact (fractions, rounded once), and what is
written reads back as the same number, so that the output of `config show` can be loaded again.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from fractions import Fraction

# From the largest; writing takes the first that divides the value.
DURATIONS = {
    "d": Fraction(86400),
    "h": Fraction(3600),
    "min": Fraction(60),
    "s": Fraction(1),
    "ms": Fraction(1, 1000),
    "us": Fraction(1, 1_000_000),
}
SIZES = {
    "GiB": 1 << 30,
    "MiB": 1 << 20,
    "KiB": 1 << 10,
    "GB": 10**9,
    "MB": 10**6,
    "KB": 10**3,
    "B": 1,
}
QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)", re.ASCII)
# The smallest positive double takes 1076 digits; Python refuses to read more than 4300.
MAX_QUANTITY = 1200


def parse_duration(value: str | float) -> float:
    """Return seconds; raises ValueError for what is no duration."""
    if isinstance(value, str):
        return float(_quantity(value, DURATIONS, plain="s"))
    if not math.isfinite(value):
        raise ValueError(f"{value} is no duration")
    return float(value)


def format_duration(seconds: float) -> str:
    """Write seconds with the largest unit that divides them; reads back as the same number."""
    for unit, length in DURATIONS.items():
        count = round(Fraction(seconds) / length)
        if float(count * length) == seconds and (count or unit == "s"):
            return f"{count}{unit}"
    return f"{Decimal(repr(seconds)):f}s"


def parse_size(value: str | float) -> int:
    """Return bytes; raises ValueError for what is no size, or no whole number of bytes."""
    if isinstance(value, str):
        size = _quantity(value, SIZES, plain="B")
    elif math.isfinite(value):
        size = Fraction(value)
    else:
        raise ValueError(f"{value} is no size")
    if size.denominator != 1:
        raise ValueError(f"{value} is no whole number of bytes")
    return int(size)


def format_size(size: int) -> str:
    """Write bytes with the largest unit that divides them."""
    for unit, length in SIZES.items():
        if size and size % length == 0:
            return f"{size // length}{unit}"
    return "0B"


def _quantity(text: str, units: dict[str, Fraction] | dict[str, int], plain: str) -> Fraction:
    match = QUANTITY.fullmatch(text.strip()) if len(text) <= MAX_QUANTITY else None
    if match is None or (match[2] or plain) not in units:
        raise ValueError(f"{text[:40]!r} is no number with one of the units {', '.join(units)}")
    return Fraction(match[1]) * units[match[2] or plain]
