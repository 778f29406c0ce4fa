"""The feed's listening socket: opened without taking it from a running daemon, and who may use it.

Permissions of the file come from the umask at bind(), never from a chmod after it, so there is no
moment when more people may connect than should. Who connected is known from the kernel
(SO_PEERCRED), not from what he says.
"""

from __future__ import annotations

import grp
import os
import pwd
import socket
import stat
import struct
from collections.abc import Sequence
from pathlib import Path

import attrs

from cryptows.config.settings import Feed
from cryptows.model.errors import StartError

BACKLOG = 128
SO_PEERGROUPS = 59  # asm-generic/socket.h; Python does not name it
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
        """Look the names up; raise StartError for one that this machine does not know."""
        return cls(
            frozenset(_user(name) for name in feed.allow_users),
            frozenset(_group("feed.allow_groups", name) for name in feed.allow_groups),
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


def open_feed(feed: Feed, passed: Sequence[int] = ()) -> FeedSocket:
    """Open the socket, or take the one whose descriptor systemd passed; raises StartError."""
    if passed:
        return FeedSocket(_adopt(passed))
    path = Path(feed.socket)
    gid = _group("feed.group", feed.group) if feed.group else None
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


def _user(name: str) -> int:
    if name.isdecimal():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise StartError(f'feed.allow_users: there is no user "{name}"') from None


def _group(setting: str, name: str) -> int:
    if name.isdecimal():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise StartError(f'{setting}: there is no group "{name}"') from None
