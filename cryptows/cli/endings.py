"""How a client's connection ended, and what that says about coming back: protocol section 6."""

from __future__ import annotations

import attrs
from trio_websocket import ConnectionRejected

# Close codes after which the same again would end the same way, and why.
FINAL = {
    1009: "our subscription is longer than limits.message",
    4001: "the token is missing, wrong or revoked",
    4002: "the token has expired",
    4031: "another connection took over this session",
}
TOKEN_CODES = (4001, 4002)
BANNED = 4029


@attrs.frozen
class Ending:
    """How a connection ended. `wait`: what the daemon asked for, in seconds."""

    why: str
    come_back: bool = True
    wait: float | None = None
    token_refused: bool = False  # another token might do
    lasted: float = 0.0  # seconds since the subscription was confirmed


def closed(code: int, reason: str, retry_after: float | None = None) -> Ending:
    """Return what a close frame means; `retry_after` is what an `error` before it said."""
    why = f"closed with {code}" + (f": {reason}" if reason else "")
    if code in FINAL:
        if not reason:
            why += f": {FINAL[code]}"
        return Ending(why, come_back=False, token_refused=code in TOKEN_CODES)
    return Ending(why, wait=retry_after if code == BANNED else None)


def rejected(error: ConnectionRejected) -> Ending:
    """Return what an HTTP answer instead of the 101 means."""
    status = error.status_code
    body = (error.body or b"").decode(errors="replace").strip()
    why = f"refused with HTTP {status}" + (f": {body[:200]}" if body else "")
    # Anything else of 4xx is about what we ask, and that stays the same.
    come_back = status in (408, 429) or status >= 500
    return Ending(why, come_back, _retry_after(error), token_refused=status == 401)


def _retry_after(error: ConnectionRejected) -> float | None:
    for name, value in error.headers or ():
        if name.lower() == b"retry-after" and value.isdigit():
            return float(value)
    return None
