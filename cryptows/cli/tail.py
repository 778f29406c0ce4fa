"""`cryptows tail`: what a client of some channels receives, one line of JSON a message."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import click

from cryptows.cli.options import config_options, load_settings
from cryptows.cli.terminal import Failure, note

if TYPE_CHECKING:
    from cryptows.cli.listening import Ending, Message

VARIABLE = "CRYPTOWS_TOKEN"


@click.command(short_help="Subscribe, and print every event as a line of JSON.")
@click.argument("channels", nargs=-1, required=True, metavar="CHANNEL…")
@click.option("--url", metavar="URL", help="ws:// or wss:// of /ws, else from server.listen.")
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
    from cryptows.cli.running import run_until_signal

    if token is not None and token_file is not None:
        raise click.UsageError("--token and --token-file exclude each other")
    if url is None:
        url = default_url(load_settings(config_file, sets).server.listen)
    job = Tail(url, channels, Tokens(token, token_file), since, count, everything)
    run_until_signal(job.run)


@attrs.define
class Tokens:
    """Where the token comes from: an option, a file, or the environment."""

    given: str | None
    file: str | None

    def read(self) -> str | None:
        """Return the token of now; a file may have a fresh one. Raises Failure."""
        if self.file is not None:
            try:
                return Path(self.file).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise Failure(f"{self.file}: {getattr(error, 'strerror', error)}") from None
        token = self.given or os.environ.get(VARIABLE)
        return token.strip() if token else None


@attrs.define
class Tail:
    """Listens over as many connections as it takes."""

    url: str
    channels: tuple[str, ...]
    tokens: Tokens
    since: str | None
    count: int | None
    everything: bool
    _lines: int = attrs.field(default=0, init=False)

    async def run(self) -> None:
        """Return when `count` messages were printed; raises Failure when coming back is in vain."""
        import trio

        from cryptows.cli.backoff import Backoff
        from cryptows.cli.listening import Listener

        backoff = Backoff()
        while True:
            token = self.tokens.read()
            listener = Listener(self.url, self.channels, self._take, self.since, token)
            ending = await listener.listen()
            if ending is None:
                return
            if not ending.come_back and not self._has_another_token(ending, token):
                raise Failure(f"{self.url}: {ending.why}")
            wait = backoff.wait(ending.lasted, ending.wait)
            note(f"cryptows: {self.url}: {ending.why}; again in {wait:.1f} s")
            await trio.sleep(wait)

    def _has_another_token(self, ending: Ending, token: str | None) -> bool:
        return ending.token_refused and self.tokens.read() != token

    def _take(self, text: str, message: Message) -> bool:
        # A snapshot's offset is from before; that of `connection` is where the session begins.
        if message.offset is not None and not message.snapshot:
            self.since = message.offset if message.channel else self.since or message.offset
        wanted = message.channel is not None or message.type == "skipped"
        if not wanted and not self.everything:
            for line in remarks(message):
                note(f"cryptows: {line}")
            return False
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
        self._lines += 1
        return self._lines == self.count


def remarks(message: Message) -> list[str]:
    """Return what a person should know of a message that is no event."""
    from cryptows.cli.listening import data_of

    data = data_of(message)
    raw = bytes(message.data).decode()
    match message.type:
        case "subscription_confirmed":
            names = data.channels if isinstance(data.channels, list) else []
            denied = [
                f"{d.get('channel')}: denied: {d.get('message')} ({d.get('code')})"
                for d in data.denied
            ]
            return [f"subscribed to {', '.join(names)}", *denied]
        case "error":
            return [f"error: {data.message} ({data.code})"]
        case "connection" | "heartbeat":
            return []
        case other:
            return [f"{other} {raw}"]


def default_url(listen: tuple[str, ...]) -> str:
    """Return the URL of the first TCP address that the daemon listens on."""
    for address in listen:
        if not address.startswith("unix:"):
            host, _, port = address.rpartition(":")
            # A wildcard is no address to connect to.
            host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "": "127.0.0.1", "*": "127.0.0.1"}.get(
                host, host
            )
            return f"ws://{host}:{port}/ws"
    raise Failure("server.listen has no TCP address; say where with --url")
