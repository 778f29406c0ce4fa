"""Everything the daemon has to open before it serves anybody: keys, sockets, the store.

What can fail fails here, with one clear line, and leaves nothing open behind.
"""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import MutableMapping
from contextlib import ExitStack, closing
from pathlib import Path

import attrs
import structlog

from cryptows.broker.revocations import Revocations
from cryptows.config.keys import read_keys
from cryptows.config.load import Loaded
from cryptows.files import read_key_file
from cryptows.model.errors import StartError
from cryptows.notify import listen_fds
from cryptows.redact import protect
from cryptows.store import revocations
from cryptows.store.sqlite import Database
from cryptows.tasks.acceptor import prepare
from cryptows.tasks.control import MODE
from cryptows.tasks.feedsocket import FeedSocket, check_names, open_feed
from cryptows.tasks.listeners import adopt, open_listeners, open_unix
from cryptows.tasks.sending import UNKNOWN_PACE

log = structlog.get_logger()

SPARE_FILES = 400  # descriptors beside the clients': requests, producers, the store


@attrs.define
class Opened:
    """What is open before anything runs."""

    http: list[socket.socket]
    feed: FeedSocket
    control: socket.socket
    database: Database
    revocations: Revocations
    keys: tuple[bytes, ...]


def open_all(loaded: Loaded, environ: MutableMapping[str, str], stack: ExitStack) -> Opened:
    """Open everything, or nothing: raises ConfigError or StartError."""
    settings = loaded.settings
    passed = listen_fds(environ)
    # The group is for a socket file of our own making.
    named = attrs.evolve(settings.feed, group="") if "feed" in passed else settings.feed
    check_names(named, loaded.origins)
    keys = read_keys(settings, loaded.origins, read_key_file, environ)
    protect(keys.all)
    raise_file_limit(settings.limits.connections + SPARE_FILES)
    make_folder(settings.feed.socket, 0o755)
    make_folder(settings.server.control_socket, 0o700)
    feed = stack.enter_context(closing(open_feed(settings.feed, passed.get("feed", []))))
    http = adopt(passed.get("http", [])) or open_listeners(
        settings.server.listen, settings.server.backlog
    )
    for listener in http:
        stack.enter_context(listener)
        prepare(
            listener,
            min(UNKNOWN_PACE, settings.delivery.kernel_buffer),
            settings.heartbeat.timeout * 2,
        )
    control = stack.enter_context(open_unix(settings.server.control_socket, MODE, 16))
    stack.callback(Path(settings.server.control_socket).unlink, missing_ok=True)
    for address in settings.server.listen if "http" not in passed else ():
        if address.startswith("unix:"):
            stack.callback(Path(address.removeprefix("unix:")).unlink, missing_ok=True)
    database = Database(settings)
    revoked = revocations.load(Path(settings.server.state_dir))
    return Opened(http, feed, control, database, revoked, tuple(keys.all))


def raise_file_limit(wanted: int) -> None:
    """Take as many descriptors as the system gives us; a client is one. Warns if they are few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < wanted:
        log.warning("few file descriptors", limit=hard, wanted=wanted, setting="limits.connections")


def make_folder(socket_path: str, mode: int) -> None:
    """Make the folder of a socket if there is none; raise StartError."""
    folder = Path(socket_path).parent
    previous = os.umask(0o022)  # parents, too, are for nobody else to write
    try:
        folder.mkdir(mode, parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"cannot make the folder {folder}: {error.strerror}") from None
    finally:
        os.umask(previous)
