"""`cryptows demo`: the daemon, a simulated bot and real clients, and what they see."""

from __future__ import annotations

import click

from cryptows.cli.terminal import say


@click.command(short_help="See it work: a daemon, a simulated bot, live clients.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1),
    metavar="N",
    help="End after N seconds; without it Ctrl-C ends it.",
)
def demo(seconds: float | None) -> None:
    """See it work: nothing to configure, no root, no other server.

    Starts the daemon on a free loopback port with its sockets in a temporary folder and a generated
    key, a simulated trading bot that feeds every type of event through the Unix socket, and two
    WebSocket clients; prints how to connect your own, then a live table of what the clients get.
    Nothing is left behind at the end. Without a terminal it prints plain lines, once a second.

    \b
    $ cryptows demo --seconds 10
    """
    from cryptows.cli.running import run_until_signal
    from cryptows.cli.show import Show

    show = Show(seconds)
    run_until_signal(show.run)
    say(show.summary())
