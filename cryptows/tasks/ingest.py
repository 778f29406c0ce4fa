"""Ingest: takes in producers and gives each its task; their events go to the dispatcher.

Back-pressure is the kernel's: a producer is not read from while the dispatcher is behind, or while
too many of its own answers are open or unread. Nothing that was accepted is dropped on the way in.
What one producer does costs the others no more than a slice of time. See `tasks/producer.py`.
"""

from __future__ import annotations

import errno
import math
import socket
from collections.abc import Callable, Container

import attrs
import structlog
import trio

from cryptows.config.settings import Settings
from cryptows.model.errors import BadEvent
from cryptows.tasks.feedsocket import Guard, Peer
from cryptows.tasks.producer import FeedBatch, FeedStats, Producer, ProducerStats
from cryptows.wire.feed import FeedDecoder
from cryptows.wire.feedanswers import refusal

__all__ = ["FeedBatch", "FeedStats", "Ingest", "ProducerStats", "serve_feed"]

log = structlog.get_logger()

PAUSE = 0.1  # seconds to wait when there are no descriptors left
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED)


@attrs.define(eq=False)
class Ingest:
    """What all producers share."""

    settings: Settings
    events_in: trio.MemorySendChannel[FeedBatch]
    now_ms: Callable[[], int]
    stats: FeedStats = attrs.field(factory=FeedStats)
    # Until when nothing is dispatched, on Trio's clock; the dispatcher's, once it is there.
    rests_until: Callable[[], float] = lambda: -math.inf
    decoder: FeedDecoder = attrs.field(init=False)
    _guard: Guard = attrs.field(init=False)
    _producers: dict[Producer, None] = attrs.field(factory=dict, init=False)
    _count: int = attrs.field(default=0, init=False)
    _accepting: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)

    def __attrs_post_init__(self) -> None:
        """Raises ConfigError if a user or group in the settings does not exist."""
        self._guard = Guard.of(self.settings.feed)
        self.decoder = FeedDecoder(self.settings)

    @property
    def producers(self) -> int:
        """Feed connections."""
        return len(self._producers)

    @property
    def names(self) -> Container[str]:
        """What the connected producers are called."""
        return self.stats.producers

    @property
    def queued(self) -> int:
        """Batches that wait for the dispatcher."""
        return self.events_in.statistics().current_buffer_used

    def reconfigure(self, settings: Settings) -> None:
        """Take over channels and event types after a reload."""
        self.settings = settings
        self.decoder = FeedDecoder(settings)

    def stop(self) -> None:
        """Take in no more producers and lines; `serve` returns once what was read is answered."""
        self._accepting.cancel()
        for producer in self._producers:
            producer.stop()

    async def serve(self, listener: socket.socket) -> None:
        """Serve producers until stopped; closes their connections, but not the listener."""
        async with trio.open_nursery() as nursery:
            with self._accepting:
                while True:
                    await trio.lowlevel.wait_readable(listener)
                    try:
                        sock, _ = listener.accept()
                    except BlockingIOError:
                        continue
                    except OSError as error:
                        if error.errno not in _PASSING:
                            raise
                        log.warning("cannot accept a producer", error=error.strerror)
                        await trio.sleep(PAUSE)
                    else:
                        sock.setblocking(False)
                        nursery.start_soon(self._serve, sock)

    async def _serve(self, sock: socket.socket) -> None:
        """Serve one connection to its end; nothing but Cancelled escapes."""
        async with trio.SocketStream(trio.socket.from_stdlib_socket(sock)) as stream:
            peer = Peer.of(sock)
            error = self._objection(peer)
            if error is not None:
                self.stats.refused += 1
                log.warning("producer refused", uid=peer.uid, pid=peer.pid, reason=error.code)
                with trio.move_on_after(PAUSE):
                    await _try_to_send(stream, refusal(error))
                return
            self._count += 1
            producer = Producer(self, sock, stream, peer, self._count)
            stats = producer.stats
            log.info("producer connected", producer=stats.name, uid=peer.uid, pid=peer.pid)
            self._producers[producer] = None
            self.stats.producers[stats.name] = stats
            try:
                await producer.run()
            except Exception:
                self.stats.counters.bugs += 1
                log.exception("producer failed", producer=stats.name)
            finally:
                del self._producers[producer]
                del self.stats.producers[stats.name]
                log.info(
                    "producer gone", producer=stats.name, events=stats.events, errors=stats.errors
                )

    def _objection(self, peer: Peer) -> BadEvent | None:
        """Return why a producer is not let in, if so."""
        limit = self.settings.feed.producers
        if not self._guard.admits(peer):
            text = f"uid {peer.uid} may not feed: see feed.allow_users and feed.allow_groups"
            return BadEvent("forbidden", text)
        if len(self.stats.producers) >= limit:
            text = f"{limit} producers are connected, as many as feed.producers allows"
            return BadEvent("too_many_producers", text)
        return None


async def serve_feed(
    listener: socket.socket,
    settings: Settings,
    events_in: trio.MemorySendChannel[FeedBatch],
    now_ms: Callable[[], int],
    stats: FeedStats,
) -> None:
    """Serve producers until cancelled."""
    await Ingest(settings, events_in, now_ms, stats).serve(listener)


async def _try_to_send(stream: trio.SocketStream, data: bytes) -> None:
    try:
        await stream.send_all(data)
    except trio.BrokenResourceError:
        pass
