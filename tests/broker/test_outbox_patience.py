"""The outbox of a client that polls: patient between two polls, and able to change its wire."""

from __future__ import annotations

import json

from cryptows.broker.outbox import Outbox
from cryptows.model.channel import Lane
from cryptows.model.event import Record
from cryptows.wire.envelope import SOCKETIO_POLLING, SOCKETIO_WEBSOCKET, Packet
from cryptows.wire.frames import text_frame


def quote(number: int, size: int = 0) -> Record:
    """A market event, all of one stream."""
    envelope = b'{"type":"x","data":{"price":%d}%b}' % (number, b" " * size)
    return Record(number, number, "c", "BTC", Lane.MARKET, 0, envelope, b"e.%d" % number)


def outbox(patience: float = 2.0, max_bytes: int = 10_000) -> Outbox:
    made = Outbox(SOCKETIO_POLLING, max_bytes, 10.0)
    made.patience = patience
    return made


def prices(packets: list[bytes]) -> list[object]:
    """The prices of events, and the counts of what was skipped."""
    found = []
    for packet in packets:
        data = json.loads(packet[2:])[1]["data"]
        found.append(data["price"] if "price" in data else {"skipped": data["count"]})
    return found


def test_who_polls_in_time_misses_nothing():
    box = outbox()
    for number in range(5):
        box.put(quote(number), number * 0.4)

    assert prices(box.next_packets(1 << 20, 16, 0)) == [0, 1, 2, 3, 4]
    assert box.skipped == 0
    assert not box


def test_who_takes_longer_gets_the_newest_only():
    box = outbox()
    for number in range(1, 7):
        box.put(quote(number), number)

    assert prices(box.next_packets(1 << 20, 16, 0)) == [{"skipped": 5}, 6]
    assert box.skipped == 5


def test_who_has_too_much_waiting_gets_the_newest_only():
    box = outbox(max_bytes=2000)
    for number in range(1, 11):
        box.put(quote(number, size=200), 0)

    assert prices(box.next_packets(1 << 20, 16, 0)) == [{"skipped": 9}, 10]


def test_who_fetched_all_is_waited_for_again():
    box = outbox()
    for number in range(1, 7):
        box.put(quote(number), number)
    box.next_packets(1 << 20, 2, 0)

    for number in (7, 8):
        box.put(quote(number), number)

    assert prices(box.next_packets(1 << 20, 16, 0)) == [7, 8]


def test_a_stream_that_has_begun_to_skip_stays_in_order():
    box = outbox()
    for now in (0, 3, 3, 3):
        box.put(quote(int(box.size)), now)
    box.next_packets(60, 1, 0)  # the oldest has gone, so the rest is young again

    box.put(quote(7), 3.1)
    box.put(quote(8), 3.1)

    assert prices(box.next_packets(1 << 20, 16, 0))[-1] == 8


def test_a_socket_is_not_waited_for():
    box = outbox(patience=0)
    for number in (1, 2, 3):
        box.put(quote(number), 0)

    assert prices(box.next_packets(1 << 20, 16, 0)) == [{"skipped": 2}, 3]


def test_what_waits_goes_out_over_the_new_wire_with_control_first():
    box = outbox()
    box.put(Packet(b"4text"), 0)
    box.put(Packet(b"\x01\x02", binary=True), 0)
    box.put_control(b"2")

    box.rewire(SOCKETIO_WEBSOCKET, text_frame)

    assert box.next_bytes(1 << 20, 0, 0) == b"\x81\x012\x81\x054text\x82\x02\x01\x02"
