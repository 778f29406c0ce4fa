"""Every setting, once: its type, default, unit, bounds and why it exists.

`config/cryptows.toml`, `config show`, the error messages and the README's table all derive from
these declarations. Durations are seconds and sizes are bytes once loaded. Protocol section 8.
"""

from __future__ import annotations

import ipaddress
from typing import Any

import attrs

from cryptows.model.channel import ChannelTable
from cryptows.model.event import EventType

KIB, MIB, GIB, MINUTE, HOUR, DAY = 1 << 10, 1 << 20, 1 << 30, 60.0, 3600.0, 86400.0
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def setting(
    default: Any,
    doc: str,
    *,
    kind: str = "plain",
    min: float | None = None,
    max: float | None = None,
    choices: tuple[str, ...] = (),
    secret: bool = False,
    live: bool = False,
) -> Any:
    """Declare a setting. `kind`: plain, duration, size, mode (octal), networks, addresses,
    origins, path (in a file: relative to the folder of the main config file).

    `live` settings take effect on reload, the others at the next start.
    `min` of a list is its least length.
    """
    metadata = {
        "doc": doc, "kind": kind, "min": min, "max": max,
        "choices": choices, "secret": secret, "live": live,
    }  # fmt: skip
    # A secret must not show in a traceback or a log line that prints the settings.
    return attrs.field(default=default, metadata=metadata, repr=not secret)


@attrs.frozen
class Server:
    listen: tuple[str, ...] = setting(
        ("127.0.0.1:3000",), "addresses of the one HTTP port; TLS ends in the proxy in front",
        kind="addresses", min=1,
    )  # fmt: skip
    state_dir: str = setting(
        "/var/lib/cryptows", "where the store and the revocations live", kind="path"
    )
    control_socket: str = setting(
        "/run/cryptows/private/control.sock",
        "where status, reload and drain ask the daemon",
        kind="path",
    )
    drain: float = setting(
        20.0, "how long goodbyes may take at a stop; keep it below systemd's TimeoutStopSec",
        kind="duration", min=0, max=600,
    )  # fmt: skip
    trusted_proxies: tuple[Network, ...] = setting(
        (), "networks whose X-Forwarded-For is believed", kind="networks"
    )
    handshake_timeout: float = setting(
        10.0, "how long a connection may take to send a request head (slowloris)",
        kind="duration", min=0.1, max=300,
    )  # fmt: skip
    max_head: int = setting(
        16 * KIB, "the longest request head", kind="size", min=1 * KIB, max=256 * KIB
    )
    backlog: int = setting(4096, "connections the kernel may hold before accept", min=1, max=65535)


@attrs.frozen
class Feed:
    socket: str = setting("/run/cryptows/feed.sock", "where producers write events", kind="path")
    mode: int = setting(0o660, "permissions of the socket file", kind="mode")
    group: str = setting("", "group of the socket file; empty: the daemon's own")
    allow_users: tuple[str, ...] = setting(
        (), "users (names or ids) that may feed; both lists empty: whoever may open the file"
    )
    allow_groups: tuple[str, ...] = setting((), "groups (names or ids) whose members may feed")
    dedup: float = setting(
        300.0, "how long a seen event id is remembered", kind="duration", min=0, max=DAY
    )
    dedup_ids: int = setting(
        100_000, "how many ids are remembered; beyond it the oldest is forgotten",
        min=1, max=10_000_000,
    )  # fmt: skip
    max_line: int = setting(
        1 * MIB, "the longest line; a longer one is refused and skipped to its end",
        kind="size", min=1 * KIB, max=64 * MIB,
    )  # fmt: skip
    producers: int = setting(64, "feed connections at once", min=1, max=10_000)


@attrs.frozen
class Auth:
    secret: str = setting(
        "", "the key itself; better a file, as this one shows up in backups", secret=True, live=True
    )
    secret_file: str = setting(
        "",
        "file with the key, or credential:NAME for one of systemd's LoadCredential=",
        kind="path",
        live=True,
    )
    previous_secret_file: str = setting(
        "", "the key before, still accepted while clients move over", kind="path", live=True
    )
    algorithms: tuple[str, ...] = setting(
        ("HS256",), "accepted signatures", min=1, choices=("HS256", "HS384", "HS512"), live=True
    )
    audience: str = setting("", "required `aud` claim; empty: not checked", live=True)
    issuer: str = setting("", "required `iss` claim; empty: not checked", live=True)
    leeway: float = setting(
        5.0, "clock difference forgiven for exp, nbf and iat",
        kind="duration", min=0, max=300, live=True,
    )  # fmt: skip
    anonymous: bool = setting(True, "whether clients without a token may connect", live=True)
    user_claims: tuple[str, ...] = setting(
        ("sub", "userId", "id"), "claims that may hold the user id, first found wins",
        min=1, live=True,
    )  # fmt: skip
    role_claim: str = setting("role", "the claim that holds the role", live=True)
    query_token: bool = setting(
        False, "whether ?token= is read; URLs end up in logs of proxies and browsers", live=True
    )
    expiry_notice: float = setting(
        60.0, "how long before its end a token is called token_expiring",
        kind="duration", min=0, max=HOUR, live=True,
    )  # fmt: skip
    insecure_short_key: bool = setting(
        False,
        "whether to take a key that is shorter than its signature (32 bytes for HS256)",
        live=True,
    )


@attrs.frozen
class Cors:
    origins: tuple[str, ...] = setting(
        ("http://localhost:3000",),
        "origins of the pages that may connect; * for all",
        kind="origins",
        live=True,
    )
    credentials: bool = setting(True, "whether browsers may send cookies along", live=True)


@attrs.frozen
class Limits:
    requests: int = setting(
        100, "requests of one client in a window", min=1, max=1_000_000, live=True
    )
    window: float = setting(
        60.0, "the window of requests", kind="duration", min=0.1, max=HOUR, live=True
    )
    strikes: int = setting(
        3, "how often the limit may be broken before a ban", min=1, max=1000, live=True
    )
    ban: float = setting(
        300.0, "how long user and address stay out", kind="duration", min=1, max=DAY, live=True
    )
    connections: int = setting(
        10_000, "connections in all; further ones are refused", min=1, max=1_000_000, live=True
    )
    connections_per_address: int = setting(
        100,
        "connections of one address, as trusted_proxies report it",
        min=1,
        max=1_000_000,
        live=True,
    )
    connections_per_user: int = setting(
        20, "connections of one user", min=1, max=1_000_000, live=True
    )
    accept_rate: int = setting(
        500, "new connections a second; more wait in the backlog", min=1, max=100_000, live=True
    )
    subscriptions: int = setting(128, "subscriptions of one client", min=1, max=100_000, live=True)
    message: int = setting(
        64 * KIB,
        "the longest message of a client; a longer one closes it with 1009",
        kind="size",
        min=256,
        max=16 * MIB,
    )
    anonymous_idle: float = setting(
        60.0, "how long a client may stay without a token and without a subscription",
        kind="duration", min=1, max=DAY, live=True,
    )  # fmt: skip
    streams: int = setting(
        100_000, "streams (channel and symbol) that may exist; events of further ones are refused",
        min=1, max=10_000_000,
    )  # fmt: skip


@attrs.frozen
class Heartbeat:
    interval: float = setting(
        25.0,
        "time between two pings of a client; shorter than what proxies in between forgive",
        kind="duration",
        min=0.05,
        max=HOUR,
    )
    timeout: float = setting(
        20.0, "how long a pong may take; then 4010", kind="duration", min=0.05, max=HOUR
    )


@attrs.frozen
class Delivery:
    batch: float = setting(
        0.0, "wait this long for more events before a pass; 0: send at once",
        kind="duration", min=0, max=1,
    )  # fmt: skip
    outbox: int = setting(
        1 * MIB, "what may wait for one client; then 4008", kind="size", min=4 * KIB, max=64 * MIB
    )
    max_lag: float = setting(
        10.0, "how old the oldest waiting byte may get; then 4008",
        kind="duration", min=0.1, max=HOUR,
    )  # fmt: skip
    kernel_buffer: int = setting(
        64 * KIB, "unsent bytes the kernel may hold for one client (TCP_NOTSENT_LOWAT)",
        kind="size", min=4 * KIB, max=16 * MIB,
    )  # fmt: skip


@attrs.frozen
class Recovery:
    window: float = setting(
        120.0, "how long a lost Socket.IO connection may be recovered",
        kind="duration", min=0, max=DAY,
    )  # fmt: skip
    sessions: int = setting(
        10_000, "lost connections that are remembered; the oldest is forgotten first",
        min=0, max=1_000_000,
    )  # fmt: skip


@attrs.frozen
class Store:
    synchronous: str = setting(
        "normal", "what commits survive: normal a crash of the daemon, full also of the machine",
        choices=("normal", "full"),
    )  # fmt: skip
    keep: float = setting(
        7 * DAY, "how long durable events are kept", kind="duration", min=60, max=3650 * DAY
    )
    keep_events: int = setting(10_000, "durable events kept per channel", min=1, max=10_000_000)
    timeout: float = setting(
        2.0, "how long a commit may take before the store counts as failed",
        kind="duration", min=0.05, max=60,
    )  # fmt: skip
    failures: int = setting(
        3, "failed commits in a row that open the circuit breaker", min=1, max=100
    )
    retry: float = setting(
        1.0, "the breaker's first pause; doubles up to retry_max", kind="duration", min=0.05, max=60
    )
    retry_max: float = setting(
        60.0, "the breaker's longest pause", kind="duration", min=0.05, max=HOUR
    )


@attrs.frozen
class Log:
    level: str = setting(
        "info", "the least level that is written",
        choices=("debug", "info", "warning", "error"), live=True,
    )  # fmt: skip
    format: str = setting(
        "auto", "form of a line; auto: text on a terminal, JSON with <N> under journald, else JSON",
        choices=("auto", "text", "json", "journald"),
    )  # fmt: skip


@attrs.frozen
class Settings:
    """All settings. `channels` and `types` hold the seed's and what the config adds."""

    server: Server = Server()
    feed: Feed = Feed()
    auth: Auth = Auth()
    cors: Cors = Cors()
    limits: Limits = Limits()
    heartbeat: Heartbeat = Heartbeat()
    delivery: Delivery = Delivery()
    recovery: Recovery = Recovery()
    store: Store = Store()
    log: Log = Log()
    channels: ChannelTable = attrs.field(factory=lambda: ChannelTable(()))
    types: dict[str, EventType] = attrs.field(factory=dict)
