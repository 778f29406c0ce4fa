"""Listening sockets that systemd opened and passed on, found by their name.

With socket activation a restart refuses nobody and the daemon needs no rights of its own. The
protocol is sd_listen_fds(3): descriptors from 3 on, named by `FileDescriptorName=` of the units.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

FIRST = 3  # SD_LISTEN_FDS_START


def inherited(name: str, environ: Mapping[str, str] | None = None) -> list[socket.socket]:
    """Return the sockets passed under that name; an empty list if they are for another process."""
    environ = os.environ if environ is None else environ
    count = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return []
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    found = []
    for fd, given in zip(range(FIRST, FIRST + int(count)), names, strict=False):
        if given == name:
            os.set_inheritable(fd, False)
            found.append(socket.socket(fileno=fd))
    return found
