"""`cryptows tail`: what a client of some channels receives, one line of JSON a message."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

import click

from cryptows.cli.options import config_options, load_settings

VARIABLE = "CRYPTOWS_TOKEN"
EXAMPLE = "ws://127.0.0.1:3000/ws"


def _url(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    """Check what else would fail in the middle of connecting."""
    if value is None:
        return None
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("ws", "wss") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise click.BadParameter(f'"{value}" is no URL of a WebSocket, such as {EXAMPLE}')
    return value


@click.command(short_help="Subscribe, and print every event as a line of JSON.")
@click.argument("channels", nargs=-1, required=True, metavar="CHANNEL…")
@click.option(
    "--url", callback=_url, metavar="URL", help="Where to connect, else from server.listen."
)
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False),
    help="A file with the token; read again for each connection.",
)
@click.option(
    "--token", metavar="TOKEN", help=f"The token; others can see it in `ps`, so prefer ${VARIABLE}."
)
@click.option("--since", metavar="OFFSET", help="Begin after this offset, or after `last`.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N messages.")
@click.option("--all", "everything", is_flag=True, help="Also connection, heartbeat and the like.")
@config_options
def tail(
    channels: tuple[str, ...],
    url: str | None,
    token_file: str | None,
    token: str | None,
    since: str | None,
    count: int | None,
    everything: bool,
    config_file: str | None,
    sets: tuple[str, ...],
) -> None:
    """Subscribe to channels and print every event, one JSON object a line.

    A CHANNEL is a name (market_data), one symbol of it (market_data:BTCUSDT) or a glob
    (market_data:BTC*). Without a token only public channels are open. When the connection is lost
    it comes back by itself and asks for what it missed; `skipped` messages say what was left out
    because this client was too slow. What else happens is told on stderr.

    \b
    $ export CRYPTOWS_TOKEN=$(cryptows token make --user 123 -q)
    $ cryptows tail market_data:BTCUSDT --count 1
    {"type":"market_data_update","channel":"market_data","data":{"symbol":"BTCUSDT",…
    """
    from cryptows.cli.following import Following, Tokens, default_url
    from cryptows.cli.running import run_until_signal

    if token is not None and token_file is not None:
        raise click.UsageError("--token and --token-file exclude each other")
    if url is None:
        url = default_url(load_settings(config_file, sets).server.listen)
    tokens = Tokens(token or os.environ.get(VARIABLE), token_file)
    run_until_signal(Following(url, channels, tokens, since, count, everything).run)
