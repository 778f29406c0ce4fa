"""What is sent to one client: at once while it keeps up, from an outbox while it is behind.

A client that keeps up costs nothing here: the dispatcher writes to its socket. When a write comes
back short, the rest goes to an outbox and the client's drain task, which sleeps on its send
channel, is woken. Nobody ever waits for a client: writes do not block. What else a client is, and
when to say goodbye, is in `tasks/client.py`.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import trio

from cryptows.broker.outbox import TOO_SLOW, Outbox
from cryptows.broker.routes import Audience
from cryptows.broker.session import Session, State, Step
from cryptows.model.errors import Refusal
from cryptows.model.event import Record
from cryptows.tasks.clock import now_ms
from cryptows.wire.envelope import Packet, Wire
from cryptows.wire.frames import is_close

if TYPE_CHECKING:
    from cryptows.tasks.hub import Hub

TCP_NOTSENT_LOWAT = 25  # linux/tcp.h; the socket module names it from 3.12 on

CHUNK = 64 * 1024  # bytes offered at once while draining
HICCUP = 0.5  # seconds that a client may be behind before market events replace each other
BRIEF = 0.25  # seconds: a client that catches up sooner only had a burst to read
# What lies in the kernel can be neither replaced nor overtaken. At 5 kB/s the 64 KiB of
# delivery.kernel_buffer are read 13 s late, so only a client that has shown its pace gets as much.
UNKNOWN_PACE = 16 * 1024
LAST_WORDS = 256 * 1024  # a close frame always finds room behind what is there
SLOW_PACE = 4 * 1024  # bytes, both for the kernel and for a chunk; a ping waits for no more
LOOK = 0.05  # seconds between two looks at what waits for a client that polls
GOODBYE = 3.0  # seconds for the closing handshake; then the socket is closed


class Sender:
    """The sending half of a client. Times are Trio's clock."""

    __slots__ = (
        "_behind", "_farewell", "_last_words", "_socket", "_taken", "audience", "hub", "outbox",
        "send", "session", "skipped",
    )  # fmt: skip

    def __init__(self, hub: Hub, session: Session, sock: socket.socket | None, wire: Wire) -> None:
        self.hub = hub
        self.session = session
        self.skipped = 0  # market events replaced in outboxes that are gone
        self.outbox: Outbox | None = None
        self.audience: Audience
        self._last_words: trio.CancelScope | None = None  # waits for the close frame
        self._behind: trio.MemorySendChannel[None] | None = None
        self._taken: trio.Event | None = None  # somebody waits until nothing waits
        self._farewell = False  # the close frame was sent or queued
        self._socket: socket.socket | None = None
        self.send: Callable[[bytes], int] = _discard
        if sock is not None:
            self._socket, self.send = sock, sock.send
        else:
            self.outbox = self._new_outbox(wire)

    # for the client

    def end(self, refusal: Refusal) -> None:
        """Say goodbye."""
        raise NotImplementedError

    def broken(self) -> None:
        """The socket is gone; the reading side notices and cleans up."""
        raise NotImplementedError

    def beside(self, work: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Run something for this client in a task of its own; a failure ends the client."""
        raise NotImplementedError

    @property
    def wire(self) -> Wire:
        """The client's dialect on its transport."""
        return self.audience.wire

    # delivery: what the dispatcher and the answers call; never blocks, never raises

    def queue(self, items: Sequence[Record | Packet]) -> None:
        """Queue items for a client that is behind; one that is too far behind is ended."""
        outbox = self.outbox
        if outbox is None or not self.session.open:
            return
        before = outbox.skipped
        try:
            outbox.put_all(items, trio.current_time())
        except Refusal as refusal:
            self.end(refusal)
        self.hub.counters.skipped += outbox.skipped - before

    def fall_behind(self, items: Sequence[Record | Packet], sent: int) -> None:
        """Keep what a short write left over, and wake the drain task."""
        outbox = self._start_outbox()
        self.hub.counters.short_sends += 1
        try:
            outbox.put_rest(items, sent, trio.current_time())
        except Refusal as refusal:
            self.end(refusal)
        self.hub.counters.skipped += outbox.skipped
        self._wake()

    def packet(self, packet: Packet) -> None:
        """Send or queue a message for this client alone."""
        self.packets([packet])

    def packets(self, packets: list[Packet]) -> None:
        """Send or queue messages for this client alone, in one write."""
        if self.session.state is State.ENDED:
            return
        if self.outbox is not None:
            self.queue(packets)
            return
        data = b"".join([self.wire.packet(p) for p in packets])
        sent = self._write(data)
        if sent is not None and sent < len(data):
            self.fall_behind(packets, sent)

    def records(self, items: Sequence[Record | Packet]) -> None:
        """Send records again to this client alone, in one write, and what belongs between them."""
        if self.session.state is State.ENDED:
            return
        if self.outbox is not None:
            self.queue(items)
            return
        wire = self.wire
        data = b"".join([
            wire.record(item) if isinstance(item, Record) else wire.packet(item) for item in items
        ])  # fmt: skip
        sent = self._write(data)
        if sent is not None and sent < len(data):
            # In one piece: nothing of it is ever replaced, so it need not be taken apart.
            self._start_outbox().put_bytes(data[sent:], trio.current_time())
            self._wake()

    def message(self, text: bytes, offset: bytes | None = None) -> None:
        """Send or queue an envelope for this client alone."""
        self.packet(self.wire.message(text, offset))

    def messages(self, texts: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Send or queue envelopes with their offsets, in one write."""
        self.packets([self.wire.message(text, offset) for text, offset in texts])

    def control(self, frame: bytes) -> None:
        """Send a control frame ahead of all that is queued, but a close frame behind it."""
        if self._farewell:
            return  # RFC 6455 5.5.1: nothing may follow a close frame
        self._farewell = is_close(frame)
        if self.outbox is not None:
            if self._farewell:
                self.outbox.put_last(frame)
            else:
                self.outbox.put_control(frame)
            return
        sock = self._socket
        sent = self._write(frame, sock.send if sock is not None else _discard)
        if sent is not None and sent < len(frame):
            outbox = self._start_outbox()
            outbox.put_bytes(frame[sent:], trio.current_time())
            self._wake()

    def _write(self, data: bytes, send: Callable[[bytes], int] | None = None) -> int | None:
        """Write what the socket takes; None if it is gone."""
        try:
            return (send or self.send)(data)
        except BlockingIOError:
            return 0
        except OSError:
            self.broken()
            return None

    def _start_outbox(self) -> Outbox:
        outbox = self.outbox = self._new_outbox(self.wire)
        # Who only has a burst to read, or a pause of its own, loses nothing by it.
        outbox.patience = min(HICCUP, outbox.max_lag / 2)
        self.hub.behind[self] = None
        return outbox

    def _let_kernel_hold(self, size: int) -> None:
        """Bound the unsent bytes that the kernel takes for this client."""
        if self._socket is None or self._socket.family == socket.AF_UNIX:
            return
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, size)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise

    def _new_outbox(self, wire: Wire) -> Outbox:
        delivery = self.hub.settings.delivery
        return Outbox(wire, delivery.outbox, delivery.max_lag)

    @property
    def waiting(self) -> int:
        """Bytes that wait for this client."""
        return 0 if self.outbox is None else self.outbox.size

    async def taken(self) -> None:
        """Return when nothing waits for this client any more, or it is leaving."""
        while self.waiting and self.session.open:
            self._taken = trio.Event()
            with trio.move_on_after(LOOK):  # a poll takes its packets without a word
                await self._taken.wait()

    # draining

    def _wake(self) -> None:
        if self._behind is None:
            self._behind, woken = trio.open_memory_channel[None](1)
            self.beside(self._drain, woken)
        try:
            self._behind.send_nowait(None)
        except trio.WouldBlock:
            pass

    async def _drain(self, woken: trio.MemoryReceiveChannel[None]) -> None:
        """Write out the outbox each time the client falls behind. Ends with the client."""
        async for _ in woken:
            sock, slow_at, chunk = self._socket, trio.current_time() + BRIEF, CHUNK
            while (outbox := self.outbox) is not None and sock is not None:
                if chunk != SLOW_PACE and trio.current_time() > slow_at and self.session.open:
                    chunk = SLOW_PACE
                    self._let_kernel_hold(SLOW_PACE)
                if not outbox:
                    self._caught_up(outbox, slow=chunk == SLOW_PACE)
                    break
                if sock.fileno() < 0:  # Trio must not wait for descriptor -1
                    self._broke_off()
                    return
                try:
                    await trio.lowlevel.wait_writable(sock)
                    outbox.wrote(sock.send(outbox.next_bytes(chunk, trio.current_time(), now_ms())))
                except BlockingIOError:
                    continue
                except (OSError, trio.ClosedResourceError):
                    self._broke_off()
                    return

    def _broke_off(self) -> None:
        self.broken()
        if self._last_words is not None:
            self._last_words.cancel()

    def _caught_up(self, outbox: Outbox, slow: bool = False) -> None:
        self.skipped += outbox.skipped
        self.outbox = None
        if self._taken is not None:
            self._taken.set()
            self._taken = None
        self.hub.behind.pop(self, None)
        if self._last_words is not None:
            self._last_words.cancel()
        if self.session.open:  # else the close frame is still to find room
            kernel = self.hub.settings.delivery.kernel_buffer
            self._let_kernel_hold(min(UNKNOWN_PACE, kernel) if slow else kernel)

    # the last bytes

    def _fall_silent(self) -> None:
        self.send = _discard  # after a close frame nothing may follow
        self.hub.between_passes(lambda: self.hub.routes.leave(self))

    def check_age(self, now: float) -> None:
        """End a client whose oldest waiting byte is too old; to be called now and then."""
        outbox = self.outbox
        if outbox is None:
            return
        before = outbox.skipped
        try:
            outbox.check(now)
        except Refusal as refusal:
            self.end(refusal)
        self.hub.counters.skipped += outbox.skipped - before

    async def last_words(self) -> None:
        """The connection is closing: return when the close frame is written, soon in any case.

        Of what waits in front of it, only the frame that the client has part of is still sent.
        """
        if self.session.step(Step.END):
            self._fall_silent()
        if self.outbox is None or self._socket is None or self._socket.fileno() < 0:
            return
        self.outbox.drop_queued()
        self._wake()
        with trio.move_on_after(GOODBYE) as self._last_words:
            await trio.sleep_forever()

    def _make_room(self, refusal: Refusal) -> None:
        """Let the kernel take what is still to be said and the close: a client may read on later.

        To one that was too slow, what waits is not sent any more; to others it is.
        """
        if self.outbox is not None:
            if refusal.code == TOO_SLOW:
                self.outbox.drop_queued()
            self._wake()
        self._let_kernel_hold(LAST_WORDS + self.waiting)


def _discard(data: bytes) -> int:
    return len(data)
