"""`cryptows publish`: a file of events goes to the daemon, as fast or as slowly as wanted."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import click

from cryptows.cli.options import config_options, load_settings
from cryptows.cli.terminal import FAILURE, note, say

if TYPE_CHECKING:
    from cryptows.cli.pacing import Pace


def _pace(_ctx: click.Context, _param: click.Parameter, value: str) -> Pace:
    from cryptows.cli.pacing import parse_pace

    try:
        return parse_pace(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command(short_help="Send events to the daemon, from a file or stdin.")
@click.argument("file", default="-", metavar="[FILE|-]")
@click.option(
    "--pace",
    callback=_pace,
    default="asap",
    metavar="PACE",
    help="asap (the default); N/s, e.g. 100/s; or recorded: keep the distances that `ts` (else "
    "`timestamp`) of the lines have.",
)
@click.option(
    "--repeat",
    type=click.IntRange(min=0),
    default=1,
    metavar="N",
    help="Publish the file N times; 0: until interrupted.",
)
@click.option("--socket", "socket_path", metavar="PATH", help="The feed socket, else feed.socket.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no summary, only errors.")
@config_options
def publish(
    file: str,
    pace: Pace,
    repeat: int,
    socket_path: str | None,
    quiet: bool,
    config_file: str | None,
    sets: tuple[str, ...],
) -> None:
    """Send events to the daemon: one JSON object a line, from FILE or from stdin.

    Every line that the daemon cannot use is shown on stderr with its answer, and the exit code is 1
    if there was any, or if the daemon went away before it had all lines. Lines that it took are
    stored where their channel is durable. A hello in FILE is left out: publish says its own.

    \b
    $ cryptows publish events.ndjson --pace recorded
    published 704 lines in 30.1 s: 704 accepted, 0 refused, 1408 deliveries
    \b
    $ echo '{"type":"system_status","data":{"status":"ok"}}' | cryptows publish
    published 1 line in 0.0 s: 1 accepted, 0 refused, 3 deliveries
    """
    from cryptows.cli.feed_progress import NoProgress, progress_on_stderr
    from cryptows.cli.publication import Publication, open_source
    from cryptows.cli.running import run_until_signal

    with closing(open_source(file)) as source:
        if source.is_terminal and not quiet:
            note("type an event a line; Ctrl-D ends")
        if repeat != 1 and source.size is None:
            raise click.UsageError("--repeat needs a file: what came through a pipe is gone")
        path = socket_path or load_settings(config_file, sets).feed.socket
        view = NoProgress() if quiet else progress_on_stderr(source.size, repeat)
        publication = Publication(source, pace, repeat, path, view)
        finished = run_until_signal(publication.run)
    if not quiet:
        say(publication.summary(finished))
    if publication.counts.refused:
        raise SystemExit(FAILURE)
