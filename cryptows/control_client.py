"""Asking the running daemon something over its control socket, without Trio: for the CLI.

The other end is `tasks/control.py`.
"""

from __future__ import annotations

import json
import socket
import time
from typing import Any

from cryptows.model.errors import CryptowsError

MAX_ANSWER = 16 << 20  # bytes


class ControlError(CryptowsError):
    """The daemon could not be asked, or did not answer (exit 1)."""


class NotRunningError(ControlError):
    """No daemon listens there (exit 3, as LSB has it for `status`)."""


def ask(path: str, command: str, timeout: float = 10.0, **fields: Any) -> dict[str, Any]:
    """Return the daemon's answer: `ok`, and either what the command returns or `error`.

    Raises NotRunningError, or ControlError when it may not be asked or does not answer in time.
    """
    request = json.dumps({"command": command, **fields}).encode() + b"\n"
    deadline = time.monotonic() + timeout
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect(path)
            sock.sendall(request)
            answer = json.loads(_read_line(sock, deadline))
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            raise NotRunningError(f"cryptows is not running: nobody listens at {path}") from None
        except PermissionError:
            raise ControlError(
                f"{path}: permission denied; ask as root or as the daemon's user"
            ) from None
        except TimeoutError:
            raise ControlError(f"{path}: no answer to {command} within {timeout:g} s") from None
        except ValueError:
            raise ControlError(f"{path}: the connection ended without a whole answer") from None
        except OSError as error:
            raise ControlError(f"{path}: {error.strerror or error}") from None
    if not isinstance(answer, dict):
        raise ControlError(f"{path}: expected an object as the answer, got {answer!r:.80}")
    return answer


def _read_line(sock: socket.socket, deadline: float) -> bytes:
    """Return what comes up to a newline, or to the end; raise TimeoutError at the deadline."""
    parts: list[bytes] = []
    size = 0
    while size < MAX_ANSWER and not (parts and parts[-1].endswith(b"\n")):
        sock.settimeout(max(deadline - time.monotonic(), 0.001))
        chunk = sock.recv(65536)
        if not chunk:
            break
        parts.append(chunk)
        size += len(chunk)
    return b"".join(parts)
