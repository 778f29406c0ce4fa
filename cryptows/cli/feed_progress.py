"""How far `cryptows publish` is: a bar on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Protocol, Self

import attrs

from cryptows.cli.feeding import Counts
from cryptows.cli.terminal import fancy, note


class Progress(Protocol):
    """Something that shows progress while it is entered."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def update(self, counts: Counts) -> None:
        """Show the counts of now."""
        ...

    def note(self, text: str) -> None:
        """Write to stderr, above what is drawn."""
        ...


@attrs.define
class NoProgress:
    """Shows nothing but notes."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def update(self, counts: Counts) -> None:
        pass

    def note(self, text: str) -> None:
        note(text)


class Bar:
    """A bar on the terminal that stderr leads to. `total`: bytes, None where it is not known."""

    def __init__(self, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
        )

        self._console = Console(stderr=True)
        known = [BarColumn(), TaskProgressColumn()] if total is not None else []
        self._progress = Progress(
            *known,
            TextColumn("{task.fields[lines]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            auto_refresh=False,
        )
        self._task = self._progress.add_task("publish", total=total, lines="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def update(self, counts: Counts) -> None:
        lines = f"{counts.sent} lines, {counts.accepted} accepted, {counts.refused} refused"
        self._progress.update(self._task, completed=counts.sent_bytes, lines=lines)
        self._progress.refresh()

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def progress_on_stderr(size: int | None, repeat: int) -> Progress:
    """Return a bar if stderr is a terminal; `repeat` 0 has no end to show."""
    if not fancy(sys.stderr):
        return NoProgress()
    return Bar(size * repeat if size is not None and repeat else None)
