"""The feed's listening socket: opened without taking it from a running daemon, and who may use it.

Permissions of the file come from the umask at bind(), never from a chmod after it, so there is no
moment when more people may connect than should. Who connected is known from the kernel
(SO_PEERCRED), not from what he says. Names in the settings are looked up here and not where the
settings are checked, as that may be on another machine.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import socket
import stat
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from cryptows.config.settings import Feed
from cryptows.model.errors import ConfigError, StartError

BACKLOG = 128
SO_PEERGROUPS = 59  # asm-generic/socket.h; Python does not name it
MAX_ID = 2**32 - 2  # the one above it says "none" to chown(2)
MAX_GROUPS = 256  # Python reads at most 1 KiB; beyond it only the primary group counts


@attrs.frozen
class Peer:
    """Who is at the other end of a connection, as of its connect()."""

    pid: int
    uid: int
    gids: frozenset[int]

    @classmethod
    def of(cls, sock: socket.socket) -> Peer:
        """Ask the kernel."""
        size = struct.calcsize("iII")
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        pid, uid, gid = struct.unpack("iII", credentials)
        try:
            raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * MAX_GROUPS)
        except OSError:
            raw = b""
        return cls(pid, uid, frozenset({gid, *(gid for (gid,) in struct.iter_unpack("I", raw))}))


@attrs.frozen
class Guard:
    """Who may feed. Without any name: whoever may open the socket file."""

    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()

    @classmethod
    def of(cls, feed: Feed) -> Guard:
        """Look the names up; raise ConfigError for those that this machine does not know."""
        check_names(attrs.evolve(feed, group=""))
        return cls(
            frozenset(map(_user, feed.allow_users)), frozenset(map(_group, feed.allow_groups))
        )

    def admits(self, peer: Peer) -> bool:
        """Whether this peer may feed."""
        if not self.uids and not self.gids:
            return True
        return peer.uid in self.uids or not self.gids.isdisjoint(peer.gids)


@attrs.frozen
class FeedSocket:
    """The listening socket, and the file it made, which goes when it is closed."""

    socket: socket.socket
    path: Path | None = None  # None: systemd's, not ours to remove
    _inode: tuple[int, int] | None = None

    def close(self) -> None:
        """Stop listening; remove the file, unless it is by now another daemon's."""
        if self.path is not None and _inode(self.path) == self._inode:
            self.path.unlink(missing_ok=True)
        self.socket.close()


def check_names(feed: Feed, origins: Mapping[str, str] | None = None) -> None:
    """Raise ConfigError with every user and group that this machine does not know."""
    problems = [
        f"{(origins or {}).get(key, 'default')}: {key} {text}" for key, text in _unknown(feed)
    ]
    if problems:
        raise ConfigError(problems)


def open_feed(feed: Feed, passed: Sequence[int] = ()) -> FeedSocket:
    """Open the socket, or take the one whose descriptor systemd passed.

    Raises StartError, and ConfigError for a group that there is not.
    """
    if passed:
        return FeedSocket(_adopt(passed))
    path = Path(feed.socket)
    check_names(Feed(group=feed.group))
    gid = _group(feed.group) if feed.group else None
    _clear(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o777 & ~feed.mode)
    try:
        sock.bind(str(path))
        if gid is not None:
            os.chown(path, -1, gid)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _cannot(path, error) from error
    finally:
        os.umask(umask)
    return FeedSocket(sock, path, _inode(path))


def _adopt(passed: Sequence[int]) -> socket.socket:
    first, *others = [socket.socket(fileno=fd) for fd in passed]
    if others or first.family != socket.AF_UNIX or first.type != socket.SOCK_STREAM:
        for sock in (first, *others):
            sock.close()
        raise StartError("the feed's socket from systemd: expected one Unix stream socket")
    return first


def _clear(path: Path) -> None:
    """Remove the file of a daemon that is gone; raise StartError if it is anything else."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise StartError(f"feed.socket: {path} exists and is not a socket")
        if _is_served(path):
            raise StartError(f"feed.socket: already running, somebody listens on {path}")
        path.unlink(missing_ok=True)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _cannot(path, error) from error


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # else a full backlog would hold us up
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except BlockingIOError:
            pass
    return True


def _cannot(path: Path, error: OSError) -> StartError:
    return StartError(f"feed.socket: cannot listen on {path}: {error.strerror or error}")


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _unknown(feed: Feed) -> Iterator[tuple[str, str]]:
    """Return what no user or group is called: the setting to blame, and the text."""
    if feed.group and not _is_known(_group, feed.group):
        found = json.dumps(feed.group)
        yield "feed.group", f"is {found}, which is no group here; expected a group's name or id"
    for name in feed.allow_users:
        if not _is_known(_user, name):
            found = json.dumps(name)
            yield "feed.allow_users", f"has {found}, which is no user here; expected names or ids"
    for name in feed.allow_groups:
        if not _is_known(_group, name):
            found = json.dumps(name)
            yield "feed.allow_groups", f"has {found}, which is no group here; expected names or ids"


def _is_known(find: Callable[[str], int], name: str) -> bool:
    try:
        return 0 <= find(name) <= MAX_ID
    except (KeyError, ValueError):  # ValueError: more digits than Python takes for a number
        return False


def _user(name: str) -> int:
    return int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid


def _group(name: str) -> int:
    return int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
