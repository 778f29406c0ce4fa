"""A plot as SVG, written by hand: p99 latency against offered load, both logarithmic.

No plotting library would be worth its weight here, and the file stays small enough to read in a
diff.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

import attrs

WIDTH, HEIGHT = 860, 470
LEFT, RIGHT, TOP, BOTTOM = 70, 210, 50, 60  # margins; the legend stands in the right one
# Told apart in print and by the colour-blind (Okabe and Ito), the daemon's first.
COLOURS = (
    "#d55e00", "#e69f00", "#000000", "#0072b2", "#56b4e9", "#009e73", "#8fbc3f", "#cc79a7",
    "#999999",
)  # fmt: skip


@attrs.frozen
class Series:
    """One server's line: its name and (load, latency) points; `behind` are drawn hollow."""

    name: str
    points: tuple[tuple[float, float], ...]
    behind: frozenset[float] = frozenset()


@attrs.frozen
class Axis:
    """A logarithmic axis from `low` to `high` on pixels `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, values: Sequence[float], start: float, end: float) -> Axis:
        """Return the axis that holds the values and begins and ends at 1, 2 or 5 times ten^n."""
        low, high = min(values), max(values)
        below = max(t for t in _steps(low / 10, low) if t <= low * 1.0001)
        above = min(t for t in _steps(high, high * 10) if t >= high * 0.9999)
        return cls(below, above if above > below else below * 10, start, end)

    def at(self, value: float) -> float:
        """Return the pixel of a value."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """Return the values that get a line and a label."""
        return [
            t for t in _steps(self.low, self.high) if self.low <= t * 1.0001 <= self.high * 1.001
        ]


def _steps(low: float, high: float) -> list[float]:
    """Return 1, 2, 5 times the powers of ten around a range."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [float(f"{m}e{power}") for power in range(first, last + 1) for m in (1, 2, 5)]


def plot(series: Sequence[Series], title: str, x_label: str, y_label: str) -> str:
    """Return the SVG; points must be positive, and there must be one."""
    points = [point for line in series for point in line.points]
    x = Axis.around([p[0] for p in points], LEFT, WIDTH - RIGHT)
    y = Axis.around([p[1] for p in points], HEIGHT - BOTTOM, TOP)
    body = [*_grid(x, y), *_labels(title, x_label, y_label)]
    for number, line in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        body += [*_line(line, colour, x, y), *_legend(line.name, colour, number)]
    if any(line.behind for line in series):
        body.append(
            _text(
                WIDTH - RIGHT + 20, TOP + 22 * len(series) + 14, "hollow: did not keep up", size=11
            )
        )
    return "\n".join([_head(title), *body, "</svg>\n"])


def _head(title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="system-ui, sans-serif" role="img">\n'
        f"<title>{escape(title)}</title>\n"
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>'
    )


def _grid(x: Axis, y: Axis) -> list[str]:
    lines = []
    for value in x.ticks():
        at = x.at(value)
        lines.append(_rule(at, y.start, at, y.end))
        lines.append(_text(at, y.start + 18, f"{value:g}", anchor="middle"))
    for value in y.ticks():
        at = y.at(value)
        lines.append(_rule(x.start, at, x.end, at))
        lines.append(_text(x.start - 8, at + 4, f"{value:g}", anchor="end"))
    return lines


def _labels(title: str, x_label: str, y_label: str) -> list[str]:
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    turned = f'transform="rotate(-90 18 {middle_y:g})"'
    return [
        _text(LEFT, 28, title, size=16),
        _text(middle_x, HEIGHT - 16, x_label, anchor="middle"),
        _text(18, middle_y, y_label, anchor="middle", more=turned),
    ]


def _line(line: Series, colour: str, x: Axis, y: Axis) -> list[str]:
    dots = [(x.at(load), y.at(latency), load) for load, latency in sorted(line.points)]
    path = " ".join(f"{px:g},{py:g}" for px, py, _ in dots)
    drawn = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>']
    for px, py, load in dots:
        fill = "#ffffff" if load in line.behind else colour
        drawn.append(
            f'<circle cx="{px:g}" cy="{py:g}" r="3.5" fill="{fill}" stroke="{colour}" '
            'stroke-width="1.5"/>'
        )
    return drawn


def _legend(name: str, colour: str, number: int) -> list[str]:
    left, at = WIDTH - RIGHT + 20, TOP + 8 + 22 * number
    return [
        f'<line x1="{left}" y1="{at}" x2="{left + 22}" y2="{at}" stroke="{colour}" '
        'stroke-width="3"/>',
        _text(left + 30, at + 4, name),
    ]


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="#e4e4e4"/>'


def _text(
    x: float, y: float, text: str, *, size: int = 12, anchor: str = "start", more: str = ""
) -> str:
    place = f'x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="#333333"'
    return f"<text {place}{' ' if more else ''}{more}>{escape(text)}</text>"
