"""In which line of a TOML file each key stands; `tomllib` reads values but forgets places.

A small scanner that knows only as much TOML as it takes to find keys: headers, dotted and quoted
keys, inline tables, arrays, and the strings that may hide any of them. It runs on text that
`tomllib` has accepted. Should it lose its way all the same, it returns what it found until then: a
line number missing in an error message is not worth failing for.
"""

from __future__ import annotations

import re
import tomllib

import attrs

Key = tuple[str, ...]  # an array's elements are "0", "1", …

MAX_DEPTH = 100  # of arrays and inline tables in each other
BLANKS = re.compile(r"[ \t]*")
BETWEEN = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
KEY_PART = re.compile(r"[A-Za-z0-9_-]+|\"(?:\\.|[^\"\\\n])*\"|'[^'\n]*'", re.ASCII)
STRING = re.compile(
    r'"""(?:\\.|[^\\])*?""""{0,2}' r"|'''.*?''''{0,2}" r'|"(?:\\.|[^"\\\n])*"' r"|'[^'\n]*'",
    re.DOTALL,
)
BARE = re.compile(r"[^,\]}#\n]+")  # numbers, booleans, dates; a date may hold a space


class _Lost(Exception):
    """The text is not what the scanner takes it for."""


def find_positions(text: str) -> dict[Key, int]:
    """Return the line of each key and table, by its path; never raises."""
    scanner = _Scanner(text)
    try:
        scanner.scan()
    except (_Lost, tomllib.TOMLDecodeError):
        pass
    return scanner.lines


@attrs.define
class _Scanner:
    text: str
    lines: dict[Key, int] = attrs.field(factory=dict)
    _at: int = 0
    _counted_to: int = 0  # line breaks are counted once, as the scanner goes on
    _line: int = 1
    _lengths: dict[Key, int] = attrs.field(factory=dict)  # of arrays of tables

    def scan(self) -> None:
        table: Key = ()
        while True:
            self._skip(BETWEEN)
            if self._at == len(self.text):
                return
            if self.text.startswith("[", self._at):
                table = self._header()
            else:
                self._pair(table, 0)

    def _header(self) -> Key:
        array = self.text.startswith("[[", self._at)
        line = self._current_line()
        self._at += 2 if array else 1
        parts = self._dotted_key()
        self._expect("]]" if array else "]")
        path: Key = ()
        for number, part in enumerate(parts):
            path = (*path, part)
            self.lines.setdefault(path, line)
            if array and number == len(parts) - 1:
                self._lengths[path] = self._lengths.get(path, 0) + 1
            if path in self._lengths:  # further headers speak of the last element
                path = (*path, str(self._lengths[path] - 1))
                self.lines.setdefault(path, line)
        return path

    def _pair(self, table: Key, depth: int) -> None:
        line = self._current_line()
        path = table
        for part in self._dotted_key():
            path = (*path, part)
            self.lines.setdefault(path, line)
        self._expect("=")
        self._skip(BLANKS)
        self._value(path, depth)

    def _value(self, path: Key, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise _Lost
        match self.text[self._at : self._at + 1]:
            case "[":
                self._items(path, depth, "]")
            case "{":
                self._items(path, depth, "}")
            case '"' | "'":
                self._take(STRING)
            case _:
                self._take(BARE)

    def _items(self, path: Key, depth: int, end: str) -> None:
        self._at += 1
        count = 0
        while True:
            self._skip(BETWEEN)
            if self.text.startswith(end, self._at):
                self._at += 1
                return
            if end == "}":
                self._pair(path, depth + 1)
            else:
                self.lines.setdefault((*path, str(count)), self._current_line())
                self._value((*path, str(count)), depth + 1)
                count += 1
            self._skip(BETWEEN)
            if not self.text.startswith(end, self._at):
                self._expect(",")

    def _dotted_key(self) -> list[str]:
        parts = []
        while True:
            self._skip(BLANKS)
            part = self._take(KEY_PART)
            parts.append(tomllib.loads(f"v={part}")["v"] if part[0] in "\"'" else part)
            self._skip(BLANKS)
            if not self.text.startswith(".", self._at):
                return parts
            self._at += 1

    def _current_line(self) -> int:
        self._line += self.text.count("\n", self._counted_to, self._at)
        self._counted_to = self._at
        return self._line

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self._at)
        assert match is not None  # these patterns match nothing, too
        self._at = match.end()

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self._at)
        if match is None:
            raise _Lost
        self._at = match.end()
        return match[0]

    def _expect(self, mark: str) -> None:
        self._skip(BLANKS)
        if not self.text.startswith(mark, self._at):
            raise _Lost
        self._at += len(mark)
