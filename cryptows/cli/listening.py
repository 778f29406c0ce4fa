"""The client's side of `/ws`: one connection that subscribes and listens, until it ends.

How it ended says whether to come back, and when: section 6 of the protocol, as a client has to
read it. Whoever uses this decides what to do about it (`tail` comes back, the demo does not).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import msgspec
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection

from cryptows.cli.dialing import Dial, NotConnectedError, converse, dial
from cryptows.cli.endings import Ending, closed

GOODBYE = 1.0  # seconds for the closing handshake; nothing depends on it
SILENCE = 3  # heartbeat intervals; a lost one may be chance
ABNORMAL = 1006  # RFC 6455 7.4.1: there was no close frame


class Data(msgspec.Struct):
    """What this side needs of the `data` of messages that are no events."""

    channels: list[str] | dict[str, float | None] = []
    denied: list[dict[str, str]] = []
    missing: list[dict[str, Any]] = []
    code: str = ""
    message: str = ""
    retryAfterMs: float | None = None  # noqa: N815 - the contract's name
    heartbeatInterval: float | None = None  # noqa: N815


class Message(msgspec.Struct):
    """What every message has; `data` is decoded where it is needed."""

    type: str
    data: msgspec.Raw = msgspec.Raw(b"{}")
    timestamp: int = 0
    channel: str | None = None
    seq: int | None = None
    offset: str | None = None
    id: int | str | None = None
    snapshot: bool = False
    replay: bool = False


@attrs.define
class Listener:
    """Connects, subscribes and hands over every message, as text and decoded.

    `on_message` returns True when it has seen enough.
    """

    url: str
    channels: Sequence[str]
    on_message: Callable[[str, Message], bool]
    since: str | None = None
    token: str | None = None
    dial: Dial = dial
    _confirmed: float | None = attrs.field(default=None, init=False)
    _retry_after: float | None = attrs.field(default=None, init=False)
    _refused: Ending | None = attrs.field(default=None, init=False)
    _silence: float = attrs.field(default=float("inf"), init=False)

    async def listen(self) -> Ending | None:
        """Return how the connection ended, None if `on_message` has seen enough."""
        headers = []
        if self.token is not None:
            headers.append((b"Authorization", b"Bearer " + self.token.encode()))
        try:
            ending = await converse(self.url, headers, self.dial, self._converse)
        except NotConnectedError as error:
            return error.ending
        if ending is None or self._confirmed is None:
            return ending
        return attrs.evolve(ending, lasted=trio.current_time() - self._confirmed)

    async def _converse(self, connection: WebSocketConnection) -> Ending | None:
        try:
            await connection.send_message(self._subscription())
            return await self._receive(connection)
        except ConnectionClosed as error:
            reason = error.reason
            return closed(
                reason.code if reason else ABNORMAL,
                (reason.reason if reason else None) or "",
                self._retry_after,
            )
        finally:
            with trio.move_on_after(GOODBYE) as scope:
                scope.shield = True
                await connection.aclose()

    def _subscription(self) -> str:
        request: dict[str, object] = {"type": "subscribe", "channels": self.channels, "id": 1}
        if self.since is not None:
            request["since"] = self.since
        return msgspec.json.encode(request).decode()

    async def _receive(self, connection: WebSocketConnection) -> Ending | None:
        decode = msgspec.json.Decoder(Message).decode
        with trio.CancelScope() as patience:
            while self._refused is None:
                patience.deadline = trio.current_time() + self._silence
                text = await connection.get_message()
                if isinstance(text, bytes):
                    continue  # nothing in the contract is binary
                try:
                    message = decode(text)
                except msgspec.MsgspecError as error:
                    return Ending(f"this is no cryptows: {error}", come_back=False)
                if message.channel is None:
                    self._note(message)
                if self.on_message(text, message):
                    return None
            return self._refused
        return Ending(f"nothing heard for {self._silence:g} s")

    def _note(self, message: Message) -> None:
        """Take from a message that is no event what concerns the connection."""
        if message.type not in ("connection", "subscription_confirmed", "error"):
            return
        data = data_of(message)
        if message.type == "connection" and data.heartbeatInterval:
            self._silence = SILENCE * data.heartbeatInterval / 1000
        elif message.type == "subscription_confirmed" and message.id == 1:
            self._confirmed = trio.current_time()
        elif message.type == "error":
            if data.retryAfterMs is not None:
                self._retry_after = data.retryAfterMs / 1000
            if message.id == 1:
                limited = data.code == "rate_limited"
                why = f"{data.message} ({data.code})"
                self._refused = Ending(why, come_back=limited, wait=self._retry_after)


def data_of(message: Message) -> Data:
    """Return the `data` of a message that is no event; empty where it is not as expected."""
    try:
        return msgspec.json.decode(message.data, type=Data)
    except msgspec.MsgspecError:
        return Data()
