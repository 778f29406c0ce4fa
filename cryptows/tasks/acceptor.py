"""The acceptor: takes connections off the listening sockets, at a bounded rate.

One task for each address, and one for each connection, which becomes the client's own. Options that
every client socket needs are set on the listener, from which Linux copies them: no system call for
each connection. `TCP_NOTSENT_LOWAT` bounds what the kernel hoards for a client that does not read.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from cryptows.broker.addresses import UNIX, is_proxy
from cryptows.broker.admission import AcceptRate, ConnectionCounts, Full
from cryptows.tasks.connection import Connection, Find
from cryptows.tasks.sending import TCP_NOTSENT_LOWAT

if TYPE_CHECKING:
    from cryptows.tasks.hub import Hub

log = structlog.get_logger()

# Handshakes that begin together go on together, all in each turn of the loop: so few at once.
BURST = 4
BREATH = 0.001  # seconds after as many, which is about what they take
EXTRA = 256  # connections beyond limits.connections that may still ask for statistics or be refused
PAUSE = 0.1  # seconds to wait when there are no descriptors left

_TCP_USER_TIMEOUT = 18  # linux/tcp.h
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def prepare(listener: socket.socket, kernel_buffer: int, vanished_after: float) -> None:
    """Set what accepted sockets inherit; `vanished_after` in seconds bounds unacknowledged data."""
    listener.setblocking(False)
    if listener.family == socket.AF_UNIX:
        return
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, kernel_buffer)
    listener.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, int(vanished_after * 1000))


@attrs.define(eq=False)
class Acceptor:
    """All listeners' common part: the rate, and how many sockets are open."""

    hub: Hub
    find: Find
    _rate: AcceptRate = attrs.field(init=False)
    _sockets: ConnectionCounts = attrs.field(init=False)
    _warned: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._rate = AcceptRate(self.hub.settings.limits.accept_rate)
        self._sockets = ConnectionCounts(self.hub.settings.limits)

    def reconfigure(self) -> None:
        """Take over changed limits."""
        limits = self.hub.settings.limits
        self._rate.configure(limits.accept_rate)
        # Every client has one socket, a polling one two or three, and some only ask /healthz.
        self._sockets.limits = attrs.evolve(
            limits,
            connections=limits.connections + EXTRA,
            connections_per_address=limits.connections_per_address * 3 + EXTRA,
        )

    async def run(self, listener: socket.socket) -> None:
        """Accept until cancelled; closes the listener at its end."""
        self.reconfigure()
        with listener:
            while True:
                await trio.lowlevel.wait_readable(listener)
                for _ in range(BURST):
                    try:
                        accepted, peer = listener.accept()
                    except BlockingIOError:
                        break
                    except OSError as error:
                        await self._failed(error)
                        break
                    self._start(accepted, peer)
                    delay = self._rate.delay(trio.current_time())
                    if delay:
                        await trio.sleep(delay)
                else:
                    await trio.sleep(BREATH)

    def _start(self, accepted: socket.socket, peer: object) -> None:
        accepted.setblocking(False)
        address = peer[0] if isinstance(peer, tuple) else None
        self.hub.nursery.start_soon(self.serve, accepted, address)

    async def serve(self, accepted: socket.socket, address: str | None) -> None:
        """Serve one connection to its end, and close it; nothing but Cancelled escapes.

        `address` is the other end's, None on a Unix socket.
        """
        # A proxy has a connection for each of its clients, who are counted once they are known.
        many = is_proxy(address, self.hub.settings.server.trusted_proxies)
        try:
            seat = self._sockets.acquire(UNIX if many else address or UNIX)
        except Full:
            self.hub.counters.refused("sockets")
            accepted.close()
            return
        try:
            takeover = await Connection(self.hub, accepted, address).serve(self.find)
            if takeover is not None:
                await takeover()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client went away while it was being answered
        except Exception:
            self.hub.counters.bugs += 1
            log.exception("connection failed")
        finally:
            seat.release()
            if accepted.fileno() >= 0:
                trio.lowlevel.notify_closing(accepted)
                accepted.close()

    async def _failed(self, error: OSError) -> None:
        """Wait a little when descriptors have run out; a client that vanished is no trouble."""
        if error.errno in _OUT_OF_RESOURCES:
            if not self._warned:
                log.warning("cannot accept", error=error.strerror)
                self._warned = True
            await trio.sleep(PAUSE)
