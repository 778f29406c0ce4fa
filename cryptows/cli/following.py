"""Listening for as long as it takes: a lost connection comes back, a refused one says why.

Protocol section 6 says after which ends coming back makes sense. What was missed meanwhile is asked
for with `since`, the offset of the last event that was printed.
"""

from __future__ import annotations

from pathlib import Path

import attrs
import trio

from cryptows.cli.backoff import Backoff
from cryptows.cli.dialing import Dial, dial
from cryptows.cli.endings import Ending
from cryptows.cli.listening import Listener, Message, data_of
from cryptows.cli.terminal import Failure, note, say


@attrs.define
class Tokens:
    """Where the token comes from: given once, or in a file that may get a fresh one."""

    given: str | None
    file: str | None

    def read(self) -> str | None:
        """Return the token of now; raises Failure."""
        if self.file is not None:
            try:
                return Path(self.file).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise Failure(f"{self.file}: {getattr(error, 'strerror', error)}") from None
        return self.given.strip() if self.given else None


@attrs.define
class Following:
    """Listens over as many connections as it takes."""

    url: str
    channels: tuple[str, ...]
    tokens: Tokens
    since: str | None
    count: int | None
    everything: bool
    backoff: Backoff = attrs.field(factory=Backoff)
    dial: Dial = dial
    _lines: int = attrs.field(default=0, init=False)

    async def run(self) -> None:
        """Return when `count` messages were printed; raises Failure when coming back is in vain."""
        while True:
            token = self.tokens.read()
            listener = Listener(self.url, self.channels, self._take, self.since, token, self.dial)
            ending = await listener.listen()
            if ending is None:
                return
            if not ending.come_back and not self._has_another_token(ending, token):
                raise Failure(f"{self.url}: {ending.why}")
            wait = self.backoff.wait(ending.lasted, ending.wait)
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
        say(text)
        self._lines += 1
        return self._lines == self.count


def remarks(message: Message) -> list[str]:
    """Return what a person should know of a message that is no event."""
    data = data_of(message)
    raw = bytes(message.data).decode()
    match message.type:
        case "subscription_confirmed":
            names = data.channels if isinstance(data.channels, list) else []
            denied = [
                f"{d.get('channel')}: denied: {d.get('message')} ({d.get('code')})"
                for d in data.denied
            ]
            missing = [
                f"{m.get('channel')}: what came before {m.get('from')} is no longer kept"
                for m in data.missing
            ]
            return [f"subscribed to {', '.join(names)}", *denied, *missing]
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
