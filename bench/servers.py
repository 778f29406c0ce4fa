"""The servers that are measured: how each is started, and how clients and producers speak to it.

A server takes events as JSON lines on a Unix socket, except NATS, which has its own protocol. Every
one makes an envelope with its own timestamp of an event, as the daemon does.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import jwt

from bench.work import CHANNEL, Work

HERE = Path(__file__).resolve().parent
PEERS = HERE / "peers"
STAMP = "@T" + "0" * 19  # load.c writes the time over the digits
KEY = "bench-key-of-no-worth-on-loopback-only"
SOCKETIO_PATH = "/socket.io/?EIO=4&transport=websocket"


@attrs.frozen
class Place:
    """Where one server runs: its ports, and a folder of its own."""

    folder: Path
    port: int
    side_port: int

    @property
    def feed(self) -> Path:
        """The Unix socket that takes events."""
        return self.folder / "feed.sock"


@attrs.frozen
class Dialect:
    """What clients and the producer say to a server."""

    options: tuple[str, ...]  # of the load client
    ready: str  # what an answer holds once a client is subscribed
    inits: Callable[[list[str]], list[str]]  # a client's topics -> its messages
    event: Callable[[str, bool], str]  # symbol, whether clients choose symbols -> what is fed


@attrs.frozen
class Server:
    """One server."""

    name: str
    title: str
    dialect: Dialect
    command: Callable[[Place], list[str]]
    missing: Callable[[], str] = lambda: ""  # why it cannot run here
    feed: Callable[[Place], str] = lambda place: f"unix:{place.feed}"
    fans_only: bool = False  # gives everyone everything, and no client may be slow

    def can(self, work: Work) -> bool:
        """Whether it is made for that work."""
        return not self.fans_only or not (work.routed or work.slow)


# --- what is said --------------------------------------------------------------------------------


def data_of(symbol: str) -> dict[str, object]:
    """Return the `data` of an event."""
    return {
        "symbol": symbol, "price": 50123.45, "volume": 1234.5678, "change24h": 2.51,
        "high24h": 51000.0, "t": STAMP,
    }  # fmt: skip


def compact(value: object) -> str:
    """Return JSON as a program would send it."""
    return json.dumps(value, separators=(",", ":"))


def own_event(symbol: str, by_symbol: bool) -> str:
    """Return a line of the daemon's feed; it routes by `data.symbol`."""
    return compact({"type": "market_data_update", "data": data_of(symbol)}) + "\n"


def peer_event(symbol: str, by_symbol: bool) -> str:
    """Return a line of a peer's feed: its rooms are named in full."""
    room = f"{CHANNEL}:{symbol}" if by_symbol else CHANNEL
    event = {"type": "market_data_update", "channel": room, "data": data_of(symbol)}
    return compact(event) + "\n"


def nats_event(symbol: str, by_symbol: bool) -> str:
    """Return a PUB with its payload."""
    subject = f"{CHANNEL}:{symbol}" if by_symbol else CHANNEL
    payload = peer_event(symbol, by_symbol).rstrip()
    return f"PUB {subject} {len(payload)}\r\n{payload}\r\n"


def subscribe(topics: list[str]) -> list[str]:
    """Return the request of a plain WebSocket client."""
    return [compact({"type": "subscribe", "channels": topics})]


def socketio_subscribe(connect: str) -> Callable[[list[str]], list[str]]:
    """Return what a Socket.IO client says, with its CONNECT packet."""
    return lambda topics: [connect, "42" + compact(["subscribe", {"channels": topics}])]


def nats_subscribe(topics: list[str]) -> list[str]:
    """Return what a NATS client says, in one frame; PONG answers it."""
    subscriptions = "".join(f"SUB {topic} {n}\r\n" for n, topic in enumerate(topics, 1))
    return [f'CONNECT {{"verbose":false,"pedantic":false}}\r\n{subscriptions}PING\r\n']


def token() -> str:
    """Return a token that the daemon accepts, for the hour that a run may take."""
    now = int(time.time())
    claims = {"sub": "bench", "role": "user", "iat": now, "exp": now + 3600}
    return jwt.encode(claims, KEY, algorithm="HS256")


# --- how they are started ------------------------------------------------------------------------


def start_own(place: Place) -> list[str]:
    """Start the daemon with limits that let many clients of one address and user in."""
    key = place.folder / "key"
    key.touch(mode=0o600)
    key.write_text(KEY)
    settings = {
        "server.listen": f"127.0.0.1:{place.port}",
        "server.state_dir": place.folder / "state",
        "server.control_socket": place.folder / "control.sock",
        "feed.socket": place.feed,
        "auth.secret_file": key,
        "limits.connections": 100_000,
        "limits.connections_per_address": 100_000,
        "limits.connections_per_user": 100_000,
        "limits.accept_rate": 100_000,
        "limits.requests": 1_000_000,
        "channels.market_data.throttle": "0s",
    }
    sets = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    return [sys.executable, "-m", "cryptows", "serve", *sets]


def start_nats(place: Place) -> list[str]:
    """Start NATS with its WebSocket listener, and room for bursts."""
    config = place.folder / "nats.conf"
    config.write_text(
        f"listen: 127.0.0.1:{place.side_port}\nmax_pending: 64MB\n"
        f'websocket {{ listen: "127.0.0.1:{place.port}", no_tls: true }}\n'
    )
    return ["nats-server", "-c", str(config)]


def script(interpreter: str, name: str) -> Callable[[Place], list[str]]:
    """Start one of the peers in this folder."""
    return lambda place: [interpreter, str(PEERS / name), str(place.port), str(place.feed)]


def without_node(package: str) -> Callable[[], str]:
    """Say what a Node peer lacks."""

    def missing() -> str:
        if not shutil.which("node"):
            return "no node"
        return "" if (PEERS / "node_modules" / package).exists() else f"no {package}: npm ci"

    return missing


def without_module(name: str) -> Callable[[], str]:
    """Say what a Python peer lacks."""
    return lambda: "" if importlib.util.find_spec(name) else f"no Python package {name}"


PLAIN = Dialect(("--path", "/"), "subscription_confirmed", subscribe, peer_event)
SOCKETIO = Dialect(
    ("--path", SOCKETIO_PATH, "--socketio"),
    "subscription_confirmed",
    socketio_subscribe("40"),
    peer_event,
)
NATS = Dialect(
    ("--path", "/", "--binary", "--greeting", 'CONNECT {"verbose":false}\r\n'),
    "PONG",
    nats_subscribe,
    nats_event,
)


def servers() -> list[Server]:
    """Return every server that can be measured, the daemon first."""
    bearer = token()
    own = Dialect(
        ("--path", "/ws", "--headers", f"Authorization: Bearer {bearer}\r\n"),
        "subscription_confirmed",
        subscribe,
        own_event,
    )
    own_socketio = Dialect(
        ("--path", SOCKETIO_PATH, "--socketio"),
        "subscription_confirmed",
        socketio_subscribe("40" + compact({"token": bearer})),
        own_event,
    )
    return [
        Server("cryptows", "cryptows `/ws`", own, start_own),
        Server("cryptows-sio", "cryptows Socket.IO", own_socketio, start_own),
        Server(
            "floor", "floor (C, only `send()`)", PLAIN,
            lambda place: [str(place.folder / "floor"), str(place.port), str(place.feed)],
            fans_only=True,
        ),
        Server(
            "nats", "NATS (Go)", NATS, start_nats,
            missing=lambda: "" if shutil.which("nats-server") else "no nats-server",
            feed=lambda place: f"tcp:{place.side_port}",
        ),
        Server(
            "uws", "uWebSockets (C++)", PLAIN, script(sys.executable, "py_uwebsockets.py"),
            missing=without_module("socketify"),
        ),
        Server("node-ws", "ws (Node)", PLAIN, script("node", "ws.js"), without_node("ws")),
        Server(
            "node-sio", "Socket.IO (Node)", SOCKETIO, script("node", "socketio.js"),
            without_node("socket.io"),
        ),
        Server(
            "py-ws", "websockets (Python)", PLAIN, script(sys.executable, "py_websockets.py"),
            without_module("websockets"),
        ),
        Server(
            "py-sio", "python-socketio (aiohttp)", SOCKETIO,
            script(sys.executable, "py_socketio.py"), without_module("socketio"),
        ),
    ]  # fmt: skip
