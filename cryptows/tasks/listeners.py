"""Listening sockets: bound from the settings, or taken over from systemd.

A Unix socket's file may be left from a daemon that crashed. It is removed only when nobody answers
on it; a second daemon on the same path is refused instead.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Sequence
from pathlib import Path

from cryptows.model.errors import StartError

UNIX = "unix:"


def open_listeners(addresses: Sequence[str], backlog: int) -> list[socket.socket]:
    """Bind every address of `server.listen`; raise StartError, leaving none open."""
    opened: list[socket.socket] = []
    try:
        for address in addresses:
            if address.startswith(UNIX):
                opened.append(open_unix(address.removeprefix(UNIX), 0o666, backlog))
            else:
                opened += _open_tcp(address, backlog)
    except StartError:
        for listener in opened:
            listener.close()
        raise
    return opened


def adopt(descriptors: Sequence[int]) -> list[socket.socket]:
    """Take over sockets that systemd has bound and listens on."""
    return [socket.socket(fileno=fd) for fd in descriptors]


def open_unix(path: str, mode: int, backlog: int) -> socket.socket:
    """Bind a Unix socket with these permissions from its first moment on; raise StartError."""
    remove_stale(path)
    listener = socket.socket(socket.AF_UNIX)
    previous = os.umask(0o777 & ~mode)
    try:
        listener.bind(path)
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise StartError(f"cannot listen on {path}: {_why(error)}") from None
    finally:
        os.umask(previous)
    return listener


def remove_stale(path: str) -> None:
    """Remove a socket's file that nobody listens on; raise StartError if somebody does."""
    try:
        if not stat.S_ISSOCK(Path(path).stat().st_mode):
            raise StartError(f"cannot listen on {path}: there is a file that is no socket")
    except FileNotFoundError:
        return
    except OSError as error:
        raise StartError(f"cannot listen on {path}: {_why(error)}") from None
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # else a full backlog would hold us up
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass
        except OSError as error:
            raise StartError(f"cannot listen on {path}: {_why(error)}") from None
    raise StartError(f"cannot listen on {path}: already running, somebody answers there")


def _open_tcp(address: str, backlog: int) -> list[socket.socket]:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        found = socket.getaddrinfo(
            host or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise StartError(f"cannot listen on {address}: {error.strerror}") from None
    opened: list[socket.socket] = []
    for family, kind, protocol, _, where in dict.fromkeys(found):
        listener = socket.socket(family, kind, protocol)
        opened.append(listener)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(where)
            listener.listen(backlog)
        except OSError as error:
            for each in opened:
                each.close()
            raise StartError(f"cannot listen on {address}: {_why(error)}") from None
    return opened


def _why(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "address already in use; is another daemon running?"
    return error.strerror or str(error)
