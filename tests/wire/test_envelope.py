"""The bytes of envelopes, and how each dialect carries them."""

import base64

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptows.model.channel import Lane
from cryptows.model.event import Record
from cryptows.wire import envelope
from cryptows.wire.envelope import (
    NATIVE,
    SOCKETIO_POLLING,
    SOCKETIO_WEBSOCKET,
    WIRES,
    Packet,
    joined,
    socketio_event,
)
from cryptows.wire.frames import binary_frame, text_frame

HEAD = envelope.head("tick", "prices")
TICK = envelope.event(HEAD, b'{"p":1}', 1000, 42, b"k.7")


def record(text: bytes = TICK) -> Record:
    return Record(7, 42, "prices", None, Lane.MARKET, 1000, text, b"k.7")


def test_an_event_is_spliced_around_its_data():
    assert TICK == (
        b'{"type":"tick","channel":"prices","data":{"p":1},"timestamp":1000,"seq":42,"offset":"k.7"}'
    )


def test_an_event_may_tell_what_it_stands_for():
    text = envelope.event(HEAD, b"{}", 1000, 1, b"k.7", {"count": 3, "high": None})

    assert text == (
        b'{"type":"tick","channel":"prices","data":{},"timestamp":1000,"seq":1,"offset":"k.7",'
        b'"conflated":{"count":3,"high":null}}'
    )


@given(st.dictionaries(st.text(), st.floats(allow_nan=False) | st.text(), max_size=3))
def test_data_goes_through_untouched(data):
    raw = msgspec.json.format(msgspec.json.encode(data), indent=3)

    text = envelope.event(HEAD, raw, 1, 2, b"k.3")

    assert raw in text
    assert msgspec.json.decode(text)["data"] == msgspec.json.decode(raw)


@pytest.mark.parametrize("mark", ["replay", "snapshot"])
def test_an_event_is_marked(mark):
    plain, marked = msgspec.json.decode(TICK), msgspec.json.decode(envelope.marked(TICK, mark))

    assert marked == {**plain, mark: True}


def test_a_message_has_an_id_and_an_offset_where_there_are_some():
    assert envelope.message("pong", {}, 5) == b'{"type":"pong","data":{},"timestamp":5}'
    assert envelope.message("pong", {}, 5, 7, b"k.1") == (
        b'{"type":"pong","data":{},"timestamp":5,"id":7,"offset":"k.1"}'
    )
    assert msgspec.json.decode(envelope.message("pong", {}, 5, 'a"\\\n'))["id"] == 'a"\\\n'
    assert msgspec.json.decode(envelope.message("pong", {}, 5, 0))["id"] == 0


def test_an_error_says_what_and_what_else():
    assert envelope.error("rate_limited", "slowly", 5, 7, {"retryAfterMs": 9}) == (
        b'{"type":"error","data":{"code":"rate_limited","message":"slowly","retryAfterMs":9},'
        b'"timestamp":5,"id":7}'
    )
    assert envelope.error("bad_request", "what", 5) == (
        b'{"type":"error","data":{"code":"bad_request","message":"what"},"timestamp":5}'
    )


def test_what_was_skipped_is_told_with_both_ends():
    assert msgspec.json.decode(envelope.skipped("prices", "BTC", 3, 5, "slow", 9)) == {
        "type": "skipped", "timestamp": 9,
        "data": {"channel": "prices", "symbol": "BTC", "count": 3, "fromSeq": 3, "toSeq": 5,
                 "reason": "slow"},
    }  # fmt: skip


def test_on_plain_websocket_the_envelope_is_the_message():
    assert NATIVE.record(record()) == text_frame(TICK)
    assert NATIVE.message(TICK, b"k.7").payload == NATIVE.message(TICK).payload == TICK
    assert NATIVE.packet(Packet(TICK)) == text_frame(TICK)


def test_over_socket_io_it_is_the_event_message_with_the_offset_as_last_argument():
    told = b'42["message",%b,"k.7"]' % TICK

    assert SOCKETIO_POLLING.record(record()) == told
    assert SOCKETIO_WEBSOCKET.record(record()) == text_frame(told)
    assert SOCKETIO_POLLING.message(TICK, b"k.7").payload == told
    assert SOCKETIO_WEBSOCKET.message(TICK).payload == b'42["message",%b]' % TICK
    assert socketio_event(b"{}", None) == b'42["message",{}]'


def test_packets_are_framed_as_the_transport_does():
    text, binary = Packet(b"42[]"), Packet(b"\x00\xff", binary=True)

    assert SOCKETIO_WEBSOCKET.packet(text) == text_frame(b"42[]")
    assert SOCKETIO_WEBSOCKET.packet(binary) == binary_frame(b"\x00\xff")
    assert SOCKETIO_POLLING.packet(text) == b"42[]"
    assert SOCKETIO_POLLING.packet(binary) == b"b" + base64.b64encode(b"\x00\xff")


@pytest.mark.parametrize("wire", WIRES)
def test_a_record_is_encoded_once_for_each_wire(wire):
    made = record()

    assert wire.record(made) is wire.record(made)


def test_wires_are_told_apart_by_name():
    assert [wire.name for wire in WIRES] == [
        "websocket", "socketio_websocket", "socketio_polling",
    ]  # fmt: skip


@pytest.mark.parametrize("wire", WIRES)
def test_records_are_joined_for_one_write(wire):
    one, two = record(), record(b"{}")

    assert joined(wire, [one]) is wire.record(one)
    assert joined(wire, [one, two]) == wire.record(one) + wire.record(two)
