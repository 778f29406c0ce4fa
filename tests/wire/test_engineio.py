"""Engine.IO packets and payloads, byte for byte."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptows.wire.engineio import (
    Incoming,
    Kind,
    ProtocolError,
    Timing,
    base64_packet,
    decode_frame,
    decode_payload,
    encode_payload,
    open_packet,
)
from cryptows.wire.envelope import SOCKETIO_POLLING, Packet


@pytest.mark.parametrize(
    ("frame", "packet"),
    [
        ("0{}", Incoming(Kind.OPEN, "{}")),
        ("1", Incoming(Kind.CLOSE)),
        ("2", Incoming(Kind.PING)),
        ("2probe", Incoming(Kind.PING, "probe")),
        ("3", Incoming(Kind.PONG)),
        ("4", Incoming(Kind.MESSAGE)),
        ("4hällo", Incoming(Kind.MESSAGE, "hällo")),
        ("5", Incoming(Kind.UPGRADE)),
        ("6", Incoming(Kind.NOOP)),
        (b"\x01\x02", Incoming(Kind.MESSAGE, b"\x01\x02")),
        (b"", Incoming(Kind.MESSAGE, b"")),
        ("bAQIDBA==", Incoming(Kind.MESSAGE, b"\x01\x02\x03\x04")),
        ("b", Incoming(Kind.MESSAGE, b"")),
    ],
)
def test_a_frame_is_one_packet(frame, packet):
    assert decode_frame(frame) == packet


@pytest.mark.parametrize(
    "frame", ["", "7", "a", "abc", "²", "\uff14hello", " 4", "\x1e", "-1", "B=="]
)
def test_a_frame_without_a_type_is_an_error(frame):
    with pytest.raises(ProtocolError, match="expected a packet type 0 to 6 or b"):
        decode_frame(frame)


@pytest.mark.parametrize("frame", ["bAQ", "b=", "bAQ==AQ==", "b AQ==", "bÄQ==", "bAQ==\n", "b_-8="])
def test_base64_is_read_strictly(frame):
    with pytest.raises(ProtocolError, match="base64"):
        decode_frame(frame)


def test_a_payload_holds_packets_between_separators():
    body = b'42["hello"]\x1ebAQIDBA==\x1e3'

    assert list(decode_payload(body)) == [
        Incoming(Kind.MESSAGE, '2["hello"]'),
        Incoming(Kind.MESSAGE, b"\x01\x02\x03\x04"),
        Incoming(Kind.PONG),
    ]


def test_the_packets_before_a_bad_one_are_read():
    packets = decode_payload(b"4good\x1eabc\x1e4late")

    assert next(packets) == Incoming(Kind.MESSAGE, "good")
    with pytest.raises(ProtocolError):
        next(packets)


@pytest.mark.parametrize(
    "body", [b"", b"\x1e", b"4a\x1e", b"\x1e4a", b"4\xff", b"4a\x1e4\xed\xa0\x80"]
)
def test_empty_packets_and_bad_utf8_are_errors(body):
    with pytest.raises(ProtocolError):
        list(decode_payload(body))


texts = st.text(alphabet=st.characters(exclude_characters="\x1e", exclude_categories=["Cs"]))


@given(messages=st.lists(texts | st.binary(), min_size=1, max_size=20))
def test_a_payload_comes_back_as_it_was(messages):
    packets = [
        Packet(message, binary=True)
        if isinstance(message, bytes)
        else Packet(f"4{message}".encode())
        for message in messages
    ]

    body = encode_payload([SOCKETIO_POLLING.packet(packet) for packet in packets])

    assert list(decode_payload(body)) == [Incoming(Kind.MESSAGE, message) for message in messages]


@given(body=st.binary())
def test_any_bytes_give_packets_or_a_protocol_error(body):
    try:
        packets = list(decode_payload(body))
    except ProtocolError:
        return

    assert all(isinstance(packet, Incoming) for packet in packets)


def test_base64_can_be_asked_for_on_websocket():
    binary = Packet(b"\x01\x02\x03\x04", binary=True)
    text = Packet(b"4hello")

    as_text = base64_packet(binary)

    assert (as_text.payload, as_text.binary) == (b"bAQIDBA==", False)
    assert base64_packet(text) is text


def test_the_open_packet_tells_all_deadlines():
    timing = Timing(ping_interval=0.3, ping_timeout=0.2, max_payload=1_000_000)

    packet = open_packet("GqfO", ["websocket"], timing)

    assert packet == (
        b'0{"sid":"GqfO","upgrades":["websocket"],"pingInterval":300,"pingTimeout":200,'
        b'"maxPayload":1000000}'
    )
    assert json.loads(open_packet("x", [], timing)[1:])["upgrades"] == []
