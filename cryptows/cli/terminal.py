"""What the commands write: plain lines for pipes and files, rich output for terminals.

Results go to stdout, everything else to stderr. `rich` is imported only where something is drawn,
because importing it takes longer than most commands run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import IO, Any, TextIO

import click

FAILURE = 1
NOT_RUNNING = 3  # as LSB has it for `status`
CONFIGURATION = 78  # EX_CONFIG of sysexits.h; systemd does not restart after it


class Failure(click.ClickException):
    """Ends a command with one line on stderr."""

    exit_code = FAILURE

    def show(self, file: IO[Any] | None = None) -> None:
        note(f"cryptows: {self.format_message()}")


class NotRunning(Failure):
    """There is no daemon to talk to."""

    exit_code = NOT_RUNNING


class ConfigFailure(Failure):
    """The configuration cannot be used: all its problems, a line each."""

    exit_code = CONFIGURATION

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))

    def show(self, file: IO[Any] | None = None) -> None:
        note(self.format_message())


def say(text: str) -> None:
    """Write a result; raises BrokenPipeError when nobody reads it, Failure when it has no place."""
    try:
        click.echo(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        forget_stdout()
        raise Failure(f"cannot write: {error.strerror}") from None


def note(text: str) -> None:
    """Write what is no result: an error, a warning, what is going on."""
    click.echo(text, err=True)


def fancy(stream: TextIO | None = None) -> bool:
    """Whether to draw on a stream (stdout by default), instead of plain lines."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return not plain and (stream or sys.stdout).isatty()


def forget_stdout() -> None:
    """Send what is still written to a closed stdout nowhere, so that no flush at the end fails."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, sys.stdout.fileno())
    finally:
        os.close(nowhere)


def show_pairs(pairs: Iterable[tuple[str, object]]) -> None:
    """Write names and values below each other."""
    rows = [(name, str(value)) for name, value in pairs]
    if not fancy():
        width = max((len(name) for name, _ in rows), default=0) + 1
        for name, value in rows:
            say(f"{name + ':':{width}} {value}".rstrip())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    Console().print(table)
