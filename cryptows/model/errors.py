"""What can go wrong, and whom it costs.

Every error here is expected: it says where, what was found and what would be right, and it costs
only the one who caused it. Anything else that is raised is a bug.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class CryptowsError(Exception):
    """The base of all expected errors."""


class ConfigError(CryptowsError):
    """The settings cannot be used; stops the start before any socket opens (exit 78).

    `problems` holds one line each: file, line, key, what was found, what is expected.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class StartError(CryptowsError):
    """The daemon cannot start though its settings are right, e.g. a port is taken (exit 1)."""


class BadEvent(CryptowsError):
    """A feed line that cannot be used; costs its producer that line (protocol section 1)."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class RequestError(CryptowsError):
    """A client's request that is answered with an `error` envelope (protocol section 2)."""

    def __init__(self, code: str, message: str, extra: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.extra = dict(extra or {})


class Refusal(CryptowsError):
    """Ends one client: a close code of protocol section 6, why, and whether it may come back."""

    def __init__(
        self, code: int, reason: str, *, come_back: bool, retry_after: float | None = None
    ) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.come_back = come_back
        self.retry_after = retry_after  # seconds
