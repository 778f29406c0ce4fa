"""What a client that is behind gets: complete, in order, bounded, and told of what it did not get.

The machine at the end writes to a socket that takes what it likes, one byte or all, and reads back
what came over it as a client does.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cryptows.broker.outbox import MAX_CONTROL, TOO_SLOW, Outbox
from cryptows.model.channel import Lane
from cryptows.model.errors import Refusal
from cryptows.model.event import Record
from cryptows.wire import envelope
from cryptows.wire.envelope import (
    NATIVE,
    SOCKETIO_POLLING,
    SOCKETIO_WEBSOCKET,
    WIRES,
    Packet,
    Wire,
    socketio_event,
)
from cryptows.wire.frames import close_frame, ping_frame, text_frame
from tests.broker.events import record
from tests.effort import effort
from tests.wire.reading import CLOSE, PING, TEXT, envelopes_of, frames_of, split_frames

NOW_MS = 5


def outbox(**options) -> Outbox:
    return Outbox(**{"wire": NATIVE, "max_bytes": 1 << 20, "max_lag": 10.0, **options})


def private(n: int, **fields) -> Record:
    return record(n, "user_7_trades", **fields)


def quote(n: int, symbol: str = "BTC", *, seq: int = 0, **fields) -> Record:
    return record(n, "prices", symbol, lane=Lane.MARKET, seq=seq, **fields)


def answer(text: str) -> Packet:
    return Packet(msgspec.json.encode({"answer": text}))


def written(box: Outbox, limit: int = 1 << 16) -> bytes:
    """Write all that waits, a chunk at a time."""
    out = b""
    while chunk := box.next_bytes(limit, 0.0, NOW_MS):
        out += chunk
        box.wrote(len(chunk))
    assert not box
    assert box.size == 0
    return out


def numbers(data: bytes) -> list[Any]:
    """Return the positions of the records in some frames; other envelopes whole."""
    return [e.get("n", e) for e in envelopes_of(data)]


# lanes


def test_an_empty_outbox_has_nothing_to_write():
    box = outbox()

    assert not box
    assert box.next_bytes(100, 0.0, NOW_MS) == b""
    assert box.next_packets(100, 16, NOW_MS) == []
    assert box.lag(7.0) == 0.0


def test_the_private_lane_loses_nothing():
    box = outbox()
    for n in range(1, 6):
        box.put(private(n), now=0.0)
    box.put(answer("x"), now=0.0)

    assert numbers(written(box)) == [1, 2, 3, 4, 5, {"answer": "x"}]


def test_in_the_market_lane_the_newest_of_a_stream_replaces_the_older():
    box = outbox()
    for n in range(1, 8):
        box.put(quote(n, seq=n), now=0.0)
    box.put(quote(8, "ETH", seq=1), now=0.0)

    assert numbers(written(box)) == [
        {"type": "skipped", "timestamp": NOW_MS, "data": {
            "channel": "prices", "symbol": "BTC", "count": 6, "fromSeq": 1, "toSeq": 6,
            "reason": "slow"}},
        7,
        8,
    ]  # fmt: skip
    assert box.skipped == 6


def sequence(data: bytes) -> list[int]:
    """Return the positions of the records in some frames, without what was told."""
    return [n for n in numbers(data) if isinstance(n, int)]


def test_while_nothing_has_waited_for_long_nothing_is_replaced():
    box = outbox(patience=0.5)
    for n in range(1, 4):
        box.put(quote(n, seq=n), now=0.25 * (n - 1))

    assert sequence(written(box)) == [1, 2, 3]
    assert box.skipped == 0


def test_when_patience_is_over_all_that_waits_is_replaced_by_the_newest():
    box = outbox(patience=0.5)
    for n in range(1, 8):
        box.put(quote(n, seq=n), now=0.25 * (n - 1))
    box.put(quote(8, "ETH"), now=2.0)

    told, *rest = numbers(written(box))

    assert (told["data"]["fromSeq"], told["data"]["toSeq"]) == (1, 6)
    assert rest == [7, 8]
    assert box.skipped == 6


def test_when_patience_is_over_so_is_the_round_that_was_begun_with_it():
    box = outbox(patience=0.5)
    for n in (1, 2, 3, 5):
        box.put(quote(n, seq=n) if n != 2 else private(n), now=0.0)
    first = box.next_bytes(1, 0.0, NOW_MS)
    box.wrote(len(first))

    box.put(quote(6, seq=6), now=1.0)
    box.put(private(7), now=1.0)

    sent = numbers(written(box))
    assert numbers(first) == [1]
    assert [n if isinstance(n, int) else n["data"]["count"] for n in sent] == [2, 3, 6, 7]


def test_patience_is_over_though_nothing_new_comes():
    box = outbox(patience=0.5)
    for n in range(1, 8):
        box.put(quote(n, seq=n), now=0.0)

    box.check(0.75)

    assert sequence(written(box)) == [7]


def test_patience_comes_back_when_nothing_waits_any_more():
    box = outbox(patience=0.5)
    for now in (0.0, 1.0):
        box.put(quote(1), now)
    written(box)

    for n in (2, 3):
        box.put(quote(n), now=2.0)

    assert sequence(written(box)) == [2, 3]


def test_patience_ends_with_half_the_bound():
    box = outbox(patience=0.5, max_bytes=300)

    for n in range(1, 6):
        box.put(quote(n, seq=n, size=60), now=0.0)

    assert sequence(written(box)) == [5]
    assert box.skipped == 4


def test_lanes_are_sent_in_the_order_of_their_coming():
    box = outbox()
    for item in (quote(1), private(2), quote(3, "ETH"), answer("x"), quote(5)):
        box.put(item, now=0.0)

    assert [n for n in numbers(written(box)) if n != {"answer": "x"}][-1] == 5
    assert box.skipped == 1


def test_what_was_skipped_is_told_where_it_would_have_stood():
    box = outbox()
    for item in (quote(1, seq=1), private(2), quote(3, seq=2), private(4), quote(5, seq=3)):
        box.put(item, now=0.0)

    told, *rest = numbers(written(box))

    assert (told["data"]["fromSeq"], told["data"]["toSeq"]) == (1, 2)
    assert rest == [2, 4, 5]


def test_a_round_goes_out_as_it_was_while_newer_events_gather():
    box = outbox()
    for n in (1, 2, 3):
        box.put(quote(n, symbol=f"S{n}", seq=1), now=0.0)
    first = box.next_bytes(1, 0.0, NOW_MS)
    box.wrote(len(first))

    for n in (4, 5):
        box.put(quote(n, symbol="S3", seq=n - 2), now=0.0)

    assert numbers(first) == [1]
    sent = numbers(written(box))
    assert [n for n in sent if isinstance(n, int)] == [2, 3, 5]  # 3 was settled, 4 was not
    assert sent[2]["data"]["fromSeq"] == sent[2]["data"]["toSeq"] == 2


# control


def test_control_frames_overtake_what_waits_but_never_cut_into_a_frame():
    box = outbox()
    box.put_rest([private(1), private(2)], sent=5, now=0.0)

    box.put_control(ping_frame(b"!"))
    rest = text_frame(private(1).envelope)[5:]
    chunk = written(box)

    assert chunk.startswith(rest)
    assert [f.opcode for f in frames_of(chunk.removeprefix(rest))] == [PING, TEXT]


def test_control_frames_overtake_what_was_offered_and_not_taken():
    box = outbox()
    for n in (1, 2, 3):
        box.put(private(n), now=0.0)
    box.wrote(len(box.next_bytes(1 << 16, 0.0, NOW_MS)[:70]))  # one frame and the next one's head

    box.put_control(ping_frame(b"!"))

    rest = text_frame(private(2).envelope)[8:]
    assert written(box) == rest + ping_frame(b"!") + text_frame(private(3).envelope)


def test_of_too_many_control_frames_the_latest_are_kept():
    box = outbox()
    for number in range(MAX_CONTROL + 3):
        box.put_control(ping_frame(b"%d" % number))

    assert [f.payload for f in frames_of(written(box))] == [
        b"%d" % number for number in range(3, MAX_CONTROL + 3)
    ]


def test_a_close_frame_comes_last():
    box = outbox()
    box.put_last(close_frame(1012, "bye"))
    for n in range(1, 4):
        box._queue(private(n), 0.0)
    box.put_control(ping_frame())

    frames = frames_of(written(box, limit=1))

    assert [f.opcode for f in frames] == [PING, TEXT, TEXT, TEXT, CLOSE]


def test_a_client_that_leaves_gets_the_frame_begun_and_the_close():
    box = outbox()
    box.put_rest([private(1), private(2), quote(3)], sent=1, now=0.0)
    box.put_last(close_frame(4008, "bye"))

    box.drop_queued()

    data = text_frame(private(1).envelope)[:1] + written(box)
    assert [f.opcode for f in frames_of(data)] == [TEXT, CLOSE]


# short writes


@pytest.mark.parametrize("sent", [0, 1, 62, 63, 124, 185, 186])
def test_what_a_short_write_left_over_is_written_later(sent):
    items = [private(1), private(2), quote(3)]
    data = b"".join(text_frame(item.envelope) for item in items)
    box = outbox()

    box.put_rest(items, sent, now=0.0)

    assert data[:sent] + written(box) == data


def test_the_end_of_a_frame_is_written_later():
    box = outbox()

    box.put_bytes(b"rest", now=3.0)

    assert (box.size, box.lag(4.0)) == (4, 1.0)
    assert written(box) == b"rest"


def test_a_socket_may_take_a_chunk_a_byte_at_a_time():
    box = outbox()
    for n in (1, 2):
        box.put(private(n), now=0.0)
    out = b""
    while chunk := box.next_bytes(10, 0.0, NOW_MS):
        out += chunk[:1]
        box.wrote(1)

    assert numbers(out) == [1, 2]


# bounds


def too_slow(box: Outbox, item: Record, now: float = 0.0) -> str:
    with pytest.raises(Refusal) as caught:
        box.put(item, now)
    assert (caught.value.code, caught.value.come_back) == (TOO_SLOW, True)
    return caught.value.reason


def test_more_than_the_bound_is_too_slow():
    box = outbox(max_bytes=3 << 20)
    box.put(private(1, size=(2 << 20) - 10), now=0.0)
    box.put(private(2, size=(1 << 20) - 10), now=0.0)
    assert box.size == 3 << 20  # frames have a head of 10 bytes

    assert too_slow(box, private(3)) == "too slow, 3.0 MiB behind; come back"


def test_what_a_short_write_left_over_is_bounded_too():
    with pytest.raises(Refusal, match="too slow"):
        outbox(max_bytes=100).put_rest([private(1, size=200)], sent=1, now=0.0)
    with pytest.raises(Refusal, match="too slow"):
        outbox(max_bytes=100).put_rest([private(1, size=200)], sent=0, now=0.0)


def test_of_many_items_only_the_one_that_breaks_the_bound_is_queued():
    box = outbox(max_bytes=200)

    with pytest.raises(Refusal):
        box.put_all([private(n, size=60) for n in range(1, 50)], now=0.0)

    assert box.size == 4 * 62


def test_replaced_events_take_no_room():
    box = outbox(max_bytes=200)

    for n in range(1, 500):
        box.put(quote(n), now=0.0)

    assert box.size == 62


def test_what_is_too_old_is_too_slow():
    box = outbox(max_lag=10.0)
    box.put(private(1), now=5.0)

    box.check(15.0)
    with pytest.raises(Refusal) as caught:
        box.check(15.5)

    assert (caught.value.code, caught.value.reason) == (
        TOO_SLOW, "too slow, 10.5 s behind; come back",
    )  # fmt: skip


def test_the_lag_is_the_age_of_the_oldest_byte():
    box = outbox()
    box.put(quote(1), now=2.0)
    assert box.lag(10.0) == 8.0
    box.put(private(2), now=3.0)
    box.put(quote(3, "ETH"), now=4.0)
    assert box.lag(10.0) == 8.0

    box.put(quote(4), now=5.0)  # the older one is not sent any more
    assert box.lag(10.0) == 7.0

    for _ in range(2):  # what was skipped, and the private event
        chunk = box.next_bytes(1, 6.0, NOW_MS)
        assert box.lag(10.0) == 7.0  # it is being written
        box.wrote(len(chunk))
    assert box.lag(10.0) == 6.0  # of those that are settled to be written next
    written(box)
    assert box.lag(10.0) == 0.0


def test_control_alone_ages_from_its_writing():
    box = outbox()
    box.put_control(ping_frame())

    box.next_bytes(100, 6.0, NOW_MS)
    box.wrote(1)

    assert box.lag(10.0) == 4.0


# polling


def test_polls_take_whole_packets_up_to_their_bounds():
    box = outbox(wire=SOCKETIO_POLLING)
    for n in range(1, 6):
        box.put(private(n), now=0.0)

    first = box.next_packets(limit=1, most=16, now_ms=NOW_MS)
    some = box.next_packets(limit=1 << 16, most=3, now_ms=NOW_MS)
    rest = box.next_packets(limit=1 << 16, most=16, now_ms=NOW_MS)

    assert list(map(len, (first, some, rest))) == [1, 3, 1]
    assert first == [socketio_event(private(1).envelope, b"k.1")]
    assert not box


def test_a_poll_may_end_between_what_was_skipped_and_the_next():
    box = outbox(wire=SOCKETIO_POLLING)
    box.put(private(1), now=0.0)
    for n in (2, 3):
        box.put(quote(n), now=0.0)

    assert len(box.next_packets(1 << 16, 2, NOW_MS)) == 2
    assert len(box.next_packets(1 << 16, 2, NOW_MS)) == 1
    assert not box


def test_control_packets_come_first_in_a_poll():
    box = outbox(wire=SOCKETIO_POLLING)
    box.put(private(1), now=0.0)
    box.put_control(b"2")

    packets = box.next_packets(1 << 16, 16, NOW_MS)

    assert packets == [b"2", socketio_event(private(1).envelope, b"k.1")]


def test_after_an_upgrade_everything_goes_over_the_other_wire():
    box = outbox(wire=SOCKETIO_POLLING)
    box.put(private(1), now=0.0)
    box.put_control(b"2")

    box.rewire(SOCKETIO_WEBSOCKET, text_frame)

    assert written(box) == text_frame(b"2") + SOCKETIO_WEBSOCKET.record(private(1))


def test_an_upgrade_in_the_middle_of_a_frame_is_a_bug():
    box = outbox(wire=SOCKETIO_POLLING)
    box.put_bytes(b"half", 0.0)

    with pytest.raises(AssertionError, match="whole packets only"):
        box.rewire(SOCKETIO_WEBSOCKET, text_frame)


def test_binary_packets_are_queued_like_others():
    box = outbox(wire=SOCKETIO_WEBSOCKET)

    box.put(Packet(b"\x00\x01", binary=True), now=0.0)

    assert written(box) == b"\x82\x02\x00\x01"


# any way of writing


@given(
    kinds=st.lists(st.sampled_from("pqeac"), min_size=1, max_size=12),
    takes=st.lists(st.integers(1, 200), min_size=1, max_size=9),
    limit=st.integers(1, 400),
    wire=st.sampled_from([NATIVE, SOCKETIO_WEBSOCKET]),
)
def test_however_a_socket_takes_the_bytes_they_are_whole_frames(kinds, takes, limit, wire):
    box = outbox(wire=wire)
    for n, kind in enumerate(kinds, 1):
        if kind == "c":
            box.put_control(ping_frame())
        elif kind == "a":
            box.put(wire.message(b'{"answer":1}'), now=0.0)
        else:
            box.put(private(n) if kind == "p" else quote(n, kind, seq=n), now=0.0)
    out = b""
    for count in itertools.cycle(takes):
        chunk = box.next_bytes(limit, 0.0, NOW_MS)
        if not chunk:
            break
        out += chunk[:count]
        box.wrote(len(chunk[:count]))

    opcodes = [f.opcode for f in frames_of(out)]
    assert opcodes.count(PING) == min(kinds.count("c"), MAX_CONTROL)
    assert opcodes.count(TEXT) >= kinds.count("p") + kinds.count("a")


EVENT = re.compile(rb'42\["message",(\{.*\})(?:,"(k\.\d+)")?\]', re.DOTALL)


def read(wire: Wire, packets: list[bytes]) -> Iterator[dict[str, Any]]:
    """Return the envelopes in the messages of a dialect; the offset beside must be the same."""
    for packet in packets:
        text, offset = packet, None
        if wire is not NATIVE:
            match = EVENT.fullmatch(packet)
            assert match, packet
            text, offset = match.groups()
        found = msgspec.json.decode(text)
        if wire is not NATIVE:
            assert found.get("offset") == (offset and offset.decode())
        yield found


@attrs.define
class Offered:
    """What was offered of one stream."""

    seq: int = 0
    seen: int = 0  # the seq of the last one that came out


class OutboxMachine(RuleBasedStateMachine):
    """A client whose socket takes what it likes, and what it reads, event by event."""

    @initialize(
        wire=st.sampled_from(WIRES),
        max_bytes=st.sampled_from([1200, 1 << 20]),
        patience=st.sampled_from([0.0, 1.0]),
    )
    def connect(self, wire, max_bytes, patience):
        self.wire: Wire = wire
        self.polling = wire is SOCKETIO_POLLING
        self.box = outbox(wire=wire, max_bytes=max_bytes, patience=patience)
        self.max_bytes, self.n = max_bytes, 0
        self.now = 0.0
        self.offered: dict[tuple[str, str | None], Offered] = {}
        self.private: list[str] = []  # what must come out of the private lane, and has not
        self.stream, self.closed = b"", False
        self.told: dict[tuple[str, str | None], dict[str, Any]] = {}
        self.last_offset = self.skipped = self.pings = 0

    # what the daemon does

    def make(self, channel, symbol, lane, size):
        self.n += 1
        stream = self.offered.setdefault((channel, symbol), Offered())
        stream.seq += 1
        head = envelope.head("e", channel)
        offset = f"k.{self.n}".encode()
        data = msgspec.json.encode({"symbol": symbol, "pad": "x" * size})
        text = envelope.event(head, data, 0, stream.seq, offset)
        return Record(self.n, stream.seq, channel, symbol, lane, 0, text, offset)

    def put(self, items):
        before = self.box.size
        try:
            self.box.put_all(items, self.now)
        except Refusal:
            assert self.box.size > self.max_bytes
            largest = max(len(self.box._bytes(item)) for item in items)
            assert self.box.size <= max(before, self.max_bytes) + largest
            self.leave()
        else:
            assert self.box.size <= self.max_bytes

    @precondition(lambda self: not self.closed)
    @rule(
        which=st.lists(
            st.tuples(st.sampled_from(["own", "A", "B", "C"]), st.integers(0, 120)),
            min_size=1, max_size=4,
        ),
    )  # fmt: skip
    def publish(self, which):
        items = []
        for name, size in which:
            if name == "own":
                items.append(self.make("own", None, Lane.PRIVATE, size))
                self.private.append(items[-1].offset.decode())
            else:
                items.append(self.make("prices", name, Lane.MARKET, size))
        self.put(items)

    @precondition(lambda self: not self.closed)
    @rule(text=st.text("ab", max_size=50))
    def answer(self, text):
        self.private.append(text)
        self.put([self.wire.message(msgspec.json.encode({"type": "answer", "data": text}))])

    @precondition(lambda self: not self.closed)
    @rule()
    def ping(self):
        self.box.put_control(b"2" if self.polling else ping_frame())

    @precondition(lambda self: not self.closed and self.polling)
    @rule()
    def upgrade(self):
        self.wire, self.polling = SOCKETIO_WEBSOCKET, False
        self.box.rewire(SOCKETIO_WEBSOCKET, lambda _: ping_frame())

    def leave(self):
        """Say goodbye to a client that is too slow."""
        self.closed = True
        self.box.drop_queued()
        self.box.put_last(close_frame(TOO_SLOW, "too slow"))

    @rule(step=st.sampled_from([0.0, 0.5, 4.0]))
    def wait(self, step):
        self.now += step

    # what the client does

    @precondition(lambda self: not self.polling)
    @rule(limit=st.sampled_from([1, 100, 1 << 16]), share=st.floats(0.01, 1))
    def read_bytes(self, limit, share):
        chunk = self.box.next_bytes(limit, self.now, NOW_MS)
        taken = max(1, int(len(chunk) * share)) if chunk else 0
        self.stream += chunk[:taken]
        self.box.wrote(taken)
        frames, self.stream = split_frames(self.stream)
        for frame in frames:
            if frame.opcode == TEXT:
                self.see(frame.payload)
            self.pings += frame.opcode == PING

    @precondition(lambda self: self.polling)
    @rule(limit=st.sampled_from([1, 300, 1 << 16]), most=st.sampled_from([10, 16]))
    def poll(self, limit, most):
        packets = self.box.next_packets(limit, most, NOW_MS)
        assert len(packets) <= most
        for packet in packets:
            if packet != b"2":
                self.see(packet)

    def see(self, payload):
        (found,) = read(self.wire, [payload])
        match found:
            case {"type": "answer", "data": text}:
                assert self.private.pop(0) == text
            case {"type": "skipped", "data": data}:
                self.told[data["channel"], data["symbol"]] = data
                self.skipped += data["count"]
            case {"channel": channel, "seq": seq, "offset": offset}:
                self.see_event(channel, found["data"]["symbol"], seq, offset)

    def see_event(self, channel, symbol, seq, offset):
        n = int(offset.removeprefix("k."))
        assert n > self.last_offset, "offsets only grow"
        self.last_offset = n
        stream = self.offered[channel, symbol]
        told = self.told.pop((channel, symbol), None)
        if told is None:
            assert seq == stream.seen + 1, "a gap that nobody was told of"
        else:
            assert channel == "prices", "the private lane skips nothing"
            assert (told["fromSeq"], told["toSeq"]) == (stream.seen + 1, seq - 1)
            assert told["count"] == seq - stream.seen - 1
        stream.seen = seq
        if channel == "own":
            assert self.private.pop(0) == offset

    # what is always so

    @invariant()
    def the_size_is_bounded_and_true(self):
        if hasattr(self, "box"):
            box = self.box
            waiting = [*box._round, *box._private, *box._whole, *box._market.values()]
            assert box.size == len(box._writing) + sum(w.size for w in waiting)
            assert len(box._control) <= MAX_CONTROL
            assert box.lag(self.now) >= 0

    def teardown(self):
        if not hasattr(self, "box"):
            return
        while self.box:
            if self.polling:
                if self.closed:  # a poller is told in another way
                    return
                self.poll(1 << 16, 16)
            else:
                self.read_bytes(100, 0.5)
        assert self.stream == b""
        assert self.box.size == 0
        if not self.closed:
            assert self.private == []
            assert self.told == {}, "nothing is told as skipped before an event that never comes"
            assert [s.seen for s in self.offered.values()] == [s.seq for s in self.offered.values()]
            assert self.skipped == self.box.skipped
        assert self.skipped <= self.box.skipped


TestOutbox = OutboxMachine.TestCase
TestOutbox.settings = effort(examples=60, steps=30)
