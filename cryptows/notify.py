"""Talking to systemd: sd_notify(3), socket activation and the watchdog, in the stdlib alone.

Each is a few lines over environment variables and one datagram; without systemd every call does
nothing, so the daemon does not ask where it runs. Deliberately not here: FDSTORE, MAINPID and
BARRIER, which a daemon that does not fork has no use for.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Mapping, MutableMapping

import attrs

FIRST_FD = 3  # SD_LISTEN_FDS_START
MAX_STATUS = 200  # characters; `systemctl status` shows one line


@attrs.frozen
class Notifier:
    """Sends state to the service manager; `address` is $NOTIFY_SOCKET, empty without one."""

    address: str = ""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> Notifier:
        """Return the notifier of this process."""
        return cls(environ.get("NOTIFY_SOCKET", ""))

    def send(self, **fields: str | int) -> bool:
        """Send fields in one datagram, e.g. send(READY=1, STATUS="..."); whether it was sent."""
        if self.address[:1] not in ("/", "@"):
            return False
        message = "\n".join(f"{key}={_one_line(str(value))}" for key, value in fields.items())
        # An abstract socket's name starts with a null byte, written as "@" (sd_notify(3)).
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)  # a manager that does not read must not stop the loop
                sock.sendto(message.encode(), address)
        except OSError:
            return False  # the manager went away; the daemon has other things to do
        return True

    def ready(self, status: str) -> bool:
        """All listeners accept: the start, or a reload, is done."""
        return self.send(READY=1, STATUS=status)

    def reloading(self, status: str) -> bool:
        """A reload begins; ready() ends it. The clock must be systemd's: CLOCK_MONOTONIC."""
        usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        return self.send(RELOADING=1, MONOTONIC_USEC=usec, STATUS=status)

    def stopping(self, status: str) -> bool:
        """The stop begins."""
        return self.send(STOPPING=1, STATUS=status)

    def status(self, status: str) -> bool:
        """One line for `systemctl status`."""
        return self.send(STATUS=status)

    def watchdog(self) -> bool:
        """The loop turns."""
        return self.send(WATCHDOG=1)


def _one_line(text: str) -> str:
    """A newline would start another assignment."""
    return " ".join(text.split())[:MAX_STATUS]


def listen_fds(environ: MutableMapping[str, str] = os.environ) -> dict[str, list[int]]:
    """Return the sockets that systemd passed, by the name of their .socket unit's descriptor.

    Takes the variables away, so that neither a second call nor a child takes them for its own.
    Unnamed ones are called "unknown", as sd_listen_fds_with_names(3) has it.
    """
    pid, count, names = (
        environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
    )
    if pid != str(os.getpid()) or not count.isdecimal():
        return {}
    named = names.split(":") if names else []
    found: dict[str, list[int]] = {}
    for n in range(int(count)):
        name = named[n] if n < len(named) and named[n] else "unknown"
        fcntl.fcntl(FIRST_FD + n, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        found.setdefault(name, []).append(FIRST_FD + n)
    return found


def watchdog_interval(environ: Mapping[str, str] = os.environ) -> float | None:
    """Return how often to ping in seconds, or None when no watchdog waits for us.

    Half of what is allowed, as sd_watchdog_enabled(3) recommends.
    """
    usec = environ.get("WATCHDOG_USEC", "")
    for_us = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    if not for_us or not usec.isdecimal() or int(usec) == 0:
        return None
    return int(usec) / 2_000_000
