"""The file of revocations: small, read at the start, written whole at each change.

It is replaced in one step, so that a crash leaves the old or the new one. A file that cannot be
read stops the start: without it, somebody who was shut out would be let in again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from cryptows.broker.revocations import Revocations
from cryptows.model.errors import CryptowsError, StartError

NAME = "revocations.json"


class Content(msgspec.Struct):
    """What the file holds: when users' tokens were revoked, and when single ones end; Unix s."""

    users: dict[str, float] = {}
    tokens: dict[str, float | None] = {}


def load(folder: Path) -> Revocations:
    """Return what is revoked; raise StartError if the file is there and cannot be used."""
    path = folder / NAME
    try:
        content = msgspec.json.decode(path.read_bytes(), type=Content)
    except FileNotFoundError:
        return Revocations()
    except OSError as error:
        raise StartError(f"{path}: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise StartError(f"{path}: not what `cryptows token revoke` wrote: {error}") from None
    return Revocations.load(msgspec.structs.asdict(content))


def save(folder: Path, data: dict[str, Any]) -> None:
    """Write what is revoked (`Revocations.dump`); raise CryptowsError if that fails. Blocks."""
    path = folder / NAME
    draft = path.with_suffix(".new")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(data))
            file.flush()
            os.fsync(descriptor)
        draft.replace(path)
    except OSError as error:
        raise CryptowsError(f"{path}: {error.strerror}; it holds until the next start") from None
