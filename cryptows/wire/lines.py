"""Lines: the feed's bytes, cut at each newline whatever pieces they arrive in.

Memory is bounded: at most `max_line` bytes wait for their newline. A longer line is given up as
soon as it is too long, so that its producer hears of it at once, and skipped to its end.
"""

from __future__ import annotations

import attrs


@attrs.frozen
class TooLong:
    """Stands in the place of a line that was longer than `max_line`."""

    max_line: int


Line = bytes | TooLong


@attrs.define
class LineReader:
    """Cuts one connection's bytes into lines; gives them without their newline."""

    max_line: int
    count: int = attrs.field(default=0, init=False)  # lines given; the number of the last one
    _waiting: bytearray = attrs.field(factory=bytearray, init=False)  # at most max_line bytes
    _skipping: bool = attrs.field(default=False, init=False)  # in a line that was given up

    @property
    def waiting(self) -> int:
        """How many bytes wait for their newline."""
        return len(self._waiting)

    def feed(self, chunk: bytes) -> list[Line]:
        """Return the lines that the chunk completes, empty ones too since they count."""
        first, *rest = chunk.split(b"\n")
        lines: list[Line] = []
        self._add(first, lines)
        if rest:
            self._end(lines)
            *whole, last = rest
            lines += whole
            if len(chunk) > self.max_line:  # else none of them can be too long
                lines = [self._checked(line) for line in lines]
            self._add(last, lines)
        self.count += len(lines)
        return lines

    def rest(self) -> list[Line]:
        """Return what waited for a newline when the connection ended, if there was anything."""
        lines: list[Line] = []
        if self._waiting:
            self._end(lines)
        self.count += len(lines)
        return lines

    def _add(self, piece: bytes, lines: list[Line]) -> None:
        """Take a piece of a line, or give the line up."""
        if self._skipping:
            return
        if len(self._waiting) + len(piece) <= self.max_line:
            self._waiting += piece
            return
        lines.append(TooLong(self.max_line))
        self._waiting.clear()
        self._skipping = True

    def _end(self, lines: list[Line]) -> None:
        """Come to the newline of the line that is waiting, or that was given up."""
        if not self._skipping:
            lines.append(bytes(self._waiting))
        self._waiting.clear()
        self._skipping = False

    def _checked(self, line: Line) -> Line:
        if isinstance(line, bytes) and len(line) > self.max_line:
            return TooLong(self.max_line)
        return line
