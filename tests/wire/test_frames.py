"""The bytes of frames, held against RFC 6455 and against another implementation."""

import pytest
import wsproto.frame_protocol as reference
from hypothesis import given
from hypothesis import strategies as st

from cryptows.wire.frames import (
    MAX_REASON,
    binary_frame,
    close_frame,
    is_close,
    ping_frame,
    text_frame,
)
from tests.wire.reading import BINARY, CLOSE, PING, TEXT, Frame, frames_of


def read(data: bytes) -> list[tuple[int, bytes]]:
    """Read frames as a client does, with wsproto."""
    protocol = reference.FrameProtocol(client=True, extensions=[])
    protocol.receive_bytes(data)
    frames = []
    for frame in protocol.received_frames():
        payload = frame.payload
        assert not isinstance(payload, tuple)  # only a close frame's is
        data = payload.encode() if isinstance(payload, str) else bytes(payload)
        frames.append((int(frame.opcode), data))
    return frames


@pytest.mark.parametrize(
    ("size", "head"),
    [
        (0, b"\x81\x00"),
        (125, b"\x81\x7d"),
        (126, b"\x81\x7e\x00\x7e"),
        (65535, b"\x81\x7e\xff\xff"),
        (65536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
    ],
)
def test_a_length_takes_the_fewest_bytes(size, head):
    payload = b"x" * size

    assert text_frame(payload) == head + payload
    assert frames_of(text_frame(payload)) == [Frame(TEXT, payload)]


@given(st.text(max_size=200), st.binary(max_size=200))
def test_frames_are_what_another_implementation_reads(text, data):
    payload = text.encode()

    assert read(text_frame(payload)) == [(reference.Opcode.TEXT, payload)]
    assert read(binary_frame(data)) == [(reference.Opcode.BINARY, data)]


def test_a_ping_may_carry_something():
    assert ping_frame() == b"\x89\x00"
    assert frames_of(ping_frame(b"ab")) == [Frame(PING, b"ab")]


def test_binary_has_its_own_opcode():
    assert frames_of(binary_frame(b"\x00\xff")) == [Frame(BINARY, b"\x00\xff")]


def test_a_close_frame_is_told_from_others():
    assert is_close(close_frame(1000, ""))
    assert not is_close(ping_frame())


def test_a_close_has_code_and_reason():
    assert close_frame(4008, "too slow") == b"\x88\x0a\x0f\xa8too slow"


@given(st.text(max_size=200))
def test_a_reason_that_is_too_long_is_cut_at_a_character(reason):
    (frame,) = frames_of(close_frame(4001, reason))

    said = frame.payload[2:].decode()
    assert frame.opcode == CLOSE
    assert len(frame.payload) <= 125
    assert reason.startswith(said)
    assert said == reason or len((said + reason[len(said)]).encode()) > MAX_REASON
