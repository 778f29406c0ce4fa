"""The client's side of `/ws`: one connection that subscribes and listens, until it ends.

How it ended says whether to come back, and when: section 6 of the protocol, as a client has to
read it. Whoever uses this decides what to do about it (`tail` comes back, the demo does not).
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Sequence

import attrs
import msgspec
import trio
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    ConnectionTimeout,
    DisconnectionTimeout,
    HandshakeError,
    WebSocketConnection,
    connect_websocket_url,
)

HANDSHAKE = 10.0  # seconds until somebody must have answered
GOODBYE = 1.0  # seconds for the closing handshake; nothing depends on it
# A feed line may have 64 MiB, the highest feed.max_line, and the envelope comes on top.
MAX_MESSAGE = 65 << 20
Headers = list[tuple[bytes, bytes]]
Dial = Callable[[trio.Nursery, str, Headers], Awaitable[WebSocketConnection]]
SILENCE = 3  # heartbeat intervals; a lost one may be chance

# Close codes after which the same again would end the same way (protocol section 6), and why.
FINAL = {
    1009: "our subscription is longer than limits.message",
    4001: "the token is missing, wrong or revoked",
    4002: "the token has expired",
    4031: "another connection took over this session",
}
TOKEN_CODES = (4001, 4002)


class Data(msgspec.Struct):
    """What this side needs of the `data` of messages that are no events."""

    channels: list[str] | dict[str, float | None] = []
    denied: list[dict[str, str]] = []
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


@attrs.frozen
class Ending:
    """How a connection ended. `wait`: what the daemon asked for, in seconds."""

    why: str
    come_back: bool = True
    wait: float | None = None
    token_refused: bool = False  # another token might do
    lasted: float = 0.0  # seconds since the subscription was confirmed


async def dial(nursery: trio.Nursery, url: str, headers: Headers) -> WebSocketConnection:
    """Connect over the network; its reading task goes into the nursery."""
    return await connect_websocket_url(
        nursery, url, extra_headers=headers, max_message_size=MAX_MESSAGE
    )


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
        ending: Ending | None = None
        async with trio.open_nursery() as nursery:
            # Everything expected is caught in here, so that no exception group comes out.
            connection = await self._connect(nursery)
            if isinstance(connection, Ending):
                ending = connection
            else:
                ending = await self._converse(connection)
            nursery.cancel_scope.cancel()
        if ending is None or self._confirmed is None:
            return ending
        return attrs.evolve(ending, lasted=trio.current_time() - self._confirmed)

    async def _connect(self, nursery: trio.Nursery) -> WebSocketConnection | Ending:
        headers = []
        if self.token is not None:
            headers.append((b"Authorization", b"Bearer " + self.token.encode()))
        try:
            with trio.fail_after(HANDSHAKE):
                return await self.dial(nursery, self.url, headers)
        except ConnectionRejected as error:
            return rejected(error)
        except (trio.TooSlowError, ConnectionTimeout):
            return Ending(f"no answer within {HANDSHAKE:g} s")
        except HandshakeError as error:
            return Ending(f"the handshake failed: {error}", come_back=False)
        except ssl.SSLError as error:
            return Ending(f"TLS failed: {error.strerror or error}", come_back=False)
        except OSError as error:
            return Ending(f"cannot connect: {error.strerror or error}")

    async def _converse(self, connection: WebSocketConnection) -> Ending | None:
        try:
            await connection.send_message(self._subscription())
            return await self._receive(connection)
        except ConnectionClosed as error:
            reason = error.reason
            return closed(
                reason.code if reason else 1006,
                (reason.reason if reason else None) or "",
                self._retry_after,
            )
        finally:
            with trio.move_on_after(GOODBYE) as scope:
                scope.shield = True
                try:
                    await connection.aclose()
                except DisconnectionTimeout:
                    pass

    def _subscription(self) -> str:
        request: dict[str, object] = {"type": "subscribe", "channels": self.channels, "id": 1}
        if self.since is not None:
            request["since"] = self.since
        return msgspec.json.encode(request).decode()

    async def _receive(self, connection: WebSocketConnection) -> Ending | None:
        decode = msgspec.json.Decoder(Message).decode
        while self._refused is None:
            with trio.move_on_after(self._silence) as patience:
                text = await connection.get_message()
            if patience.cancelled_caught:
                return Ending(f"nothing heard for {self._silence:g} s")
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


def closed(code: int, reason: str, retry_after: float | None = None) -> Ending:
    """Return what a close frame means (protocol section 6)."""
    why = f"closed with {code}" + (f": {reason}" if reason else "")
    if code in FINAL:
        if not reason:
            why += f": {FINAL[code]}"
        return Ending(why, come_back=False, token_refused=code in TOKEN_CODES)
    return Ending(why, wait=retry_after if code == 4029 else None)


def rejected(error: ConnectionRejected) -> Ending:
    """Return what an HTTP answer instead of the 101 means."""
    status = error.status_code
    body = (error.body or b"").decode(errors="replace").strip()
    why = f"refused with HTTP {status}" + (f": {body[:200]}" if body else "")
    wait = _retry_after(error)
    # Anything else of 4xx is about what we ask, and that stays the same.
    come_back = status in (408, 429) or status >= 500
    return Ending(why, come_back=come_back, wait=wait, token_refused=status == 401)


def _retry_after(error: ConnectionRejected) -> float | None:
    for name, value in error.headers or ():
        if name.lower() == b"retry-after" and value.isdigit():
            return float(value)
    return None
