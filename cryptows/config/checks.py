"""What settings must be to each other, and what is allowed but unwise.

A problem stops the start. A warning is logged at each start and fails `check --strict`; the
built-in defaults give none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from cryptows.config.keys import too_short, wrong_credential
from cryptows.config.settings import Settings
from cryptows.config.units import format_duration, format_size
from cryptows.config.values import MASK, MAX_SOCKET_PATH

# nginx's proxy_read_timeout and many load balancers cut a silent connection after this.
PROXY_PATIENCE = 60.0
# Below this the pings of ten thousand clients are a load of their own.
BUSY_HEARTBEAT = 1.0


def find_problems(settings: Settings, origins: Mapping[str, str]) -> list[str]:
    """Return what does not go together, one line each with its place."""
    checks = (_secrets, _sockets, _order)
    return [
        f"{origins.get(key, 'default')}: {key} {text}"
        for check in checks
        for key, text in check(settings)
    ]


def find_warnings(settings: Settings, origins: Mapping[str, str]) -> list[str]:
    """Return what an operator should know at each start, one line each with its place."""
    checks = (_inline_secret(settings, origins), _openness(settings), _timing(settings))
    return [
        f"{origins.get(key, 'default')}: {key} {text}" for check in checks for key, text in check
    ]


def _secrets(settings: Settings) -> Iterator[tuple[str, str]]:
    auth = settings.auth
    if auth.secret == MASK:
        yield "auth.secret", f"is {MASK}, as `config show` masks it; expected the key itself"
    elif auth.secret:
        length = len(auth.secret.encode())
        short = too_short(auth.secret.encode(), auth)
        if short:
            yield "auth.secret", f"is {MASK} ({length} bytes); {short}"
    for name in ("secret_file", "previous_secret_file"):
        reference = getattr(auth, name)
        if wrong_credential(reference):
            yield f"auth.{name}", f"is {json.dumps(reference)}; expected credential:NAME"


def _sockets(settings: Settings) -> Iterator[tuple[str, str]]:
    used: dict[str, str] = {}
    places = [
        ("feed.socket", f"unix:{settings.feed.socket}"),
        ("server.control_socket", f"unix:{settings.server.control_socket}"),
        *(("server.listen", address) for address in settings.server.listen),
    ]
    for key, address in places:
        length = len(address.removeprefix("unix:").encode())
        if address.startswith("unix:") and length > MAX_SOCKET_PATH:
            yield key, f"has {length} bytes; a socket's path holds at most {MAX_SOCKET_PATH}"
        if address in used and not address.endswith(":0"):  # port 0: a free one each time
            shown = json.dumps(address.removeprefix("unix:"))
            yield key, f"has {shown}, which {used[address]} uses already; expected another one"
        used[address] = key


def _order(settings: Settings) -> Iterator[tuple[str, str]]:
    delivery, store = settings.delivery, settings.store
    if delivery.batch >= delivery.max_lag:
        yield (
            "delivery.batch",
            f"is {format_duration(delivery.batch)}; "
            f"expected less than delivery.max_lag ({format_duration(delivery.max_lag)})",
        )
    if store.retry > store.retry_max:
        yield (
            "store.retry",
            f"is {format_duration(store.retry)}; "
            f"expected at most store.retry_max ({format_duration(store.retry_max)})",
        )


def _inline_secret(settings: Settings, origins: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    place = origins.get("auth.secret", "")
    if settings.auth.secret and place == "--set":
        yield "auth.secret", "shows in the list of processes; better auth.secret_file"
    elif settings.auth.secret and not place.startswith("environment"):
        yield "auth.secret", "stands in the file and in its backups; better auth.secret_file"


def _openness(settings: Settings) -> Iterator[tuple[str, str]]:
    auth, cors, feed = settings.auth, settings.cors, settings.feed
    if auth.insecure_short_key:
        yield "auth.insecure_short_key", "is on: a short key can be found by trying"
    if auth.query_token:
        yield "auth.query_token", "is on: tokens end up in the logs of proxies and browsers"
    if "*" in cors.origins and cors.credentials:
        yield "cors.origins", 'has "*" while cors.credentials is on: any page may act for a user'
    if feed.mode & 0o002 and not feed.allow_users and not feed.allow_groups:
        yield "feed.mode", f"is {feed.mode:04o}: every user of this machine may feed events"


def _timing(settings: Settings) -> Iterator[tuple[str, str]]:
    interval = settings.heartbeat.interval
    if interval >= PROXY_PATIENCE:
        yield (
            "heartbeat.interval",
            f"is {format_duration(interval)}: many proxies cut a connection that is silent for "
            f"{format_duration(PROXY_PATIENCE)}",
        )
    if interval < BUSY_HEARTBEAT:
        yield "heartbeat.interval", f"is {format_duration(interval)}: pings become the main load"
    outbox, line = settings.delivery.outbox, settings.feed.max_line
    if outbox < line:
        yield (
            "delivery.outbox",
            f"is {format_size(outbox)}, less than feed.max_line ({format_size(line)}): one long "
            "event closes all its subscribers with 4008",
        )
