"""What a client sees of the bytes a server sends: whole frames, and the envelopes in them."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA


class Frame(NamedTuple):
    """A WebSocket frame."""

    opcode: int
    payload: bytes


def split_frames(data: bytes) -> tuple[list[Frame], bytes]:
    """Return the whole frames at the beginning of some bytes, and what is left of them."""
    frames = []
    while len(data) >= 2:
        assert data[0] & 0xF0 == 0x80, "one frame is one message, without extensions"
        assert not data[1] & 0x80, "a server does not mask"
        size, at = data[1], 2
        if size > 125:
            at = 4 if size == 126 else 10
            if len(data) < at:
                break
            size = int.from_bytes(data[2:at], "big")
            assert size > (125 if at == 4 else 65535), "the shortest form, RFC 6455 5.2"
        if len(data) < at + size:
            break
        frames.append(Frame(data[0] & 0x0F, data[at : at + size]))
        data = data[at + size :]
    return frames, data


def frames_of(data: bytes) -> list[Frame]:
    """Return the frames that some bytes are, and nothing else."""
    frames, rest = split_frames(data)
    assert not rest, f"{len(rest)} bytes of a frame that never ended"
    return frames


def envelopes_of(data: bytes) -> list[dict[str, Any]]:
    """Return the envelopes of the text frames, in order."""
    return [msgspec.json.decode(f.payload) for f in frames_of(data) if f.opcode == TEXT]
