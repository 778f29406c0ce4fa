"""WebSocket frames as a server sends them: never masked, so the same bytes serve every client.

Reading, and the answers of the closing handshake, are trio-websocket's; here are only the frames
that are made once and shared, and the few that must overtake what is queued. RFC 6455 section 5.2.
"""

from __future__ import annotations

MAX_REASON = 123  # RFC 6455 5.5: a control frame holds 125 bytes, and the close code takes two

_TEXT, _BINARY, _CLOSE, _PING = 0x81, 0x82, 0x88, 0x89


def _frame(head: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        return bytes((head, size)) + payload
    if size < 65536:
        return bytes((head, 126)) + size.to_bytes(2, "big") + payload
    return bytes((head, 127)) + size.to_bytes(8, "big") + payload


def text_frame(payload: bytes) -> bytes:
    """Return an unfragmented text frame around UTF-8 bytes."""
    return _frame(_TEXT, payload)


def binary_frame(payload: bytes) -> bytes:
    """Return an unfragmented binary frame."""
    return _frame(_BINARY, payload)


def ping_frame(payload: bytes = b"") -> bytes:
    """Return a ping; at most 125 bytes of payload."""
    return _frame(_PING, payload)


def is_close(frame: bytes) -> bool:
    """Whether a frame is a close frame."""
    return frame[0] == _CLOSE


def close_frame(code: int, reason: str) -> bytes:
    """Return a close frame; a reason that is too long is cut at a character."""
    text = reason.encode()[:MAX_REASON].decode(errors="ignore").encode()
    return _frame(_CLOSE, code.to_bytes(2, "big") + text)
