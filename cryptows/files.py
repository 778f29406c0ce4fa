"""Reading what the config names: the TOML files and the files with keys.

The config itself opens nothing; these two readers are what `load` and `read_keys` are given.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from cryptows.config.keys import KeyFile
from cryptows.config.layers import Document

DEFAULT_CONFIG = Path("/etc/cryptows/cryptows.toml")
DROP_INS = "conf.d"
# Far above any real file; it keeps a wrong path, such as a device, from filling the memory.
MAX_CONFIG = 4 << 20
MAX_KEY = 64 << 10


def read_documents(path: str | None, default: Path = DEFAULT_CONFIG) -> Sequence[Document]:
    """Return the main file and the drop-ins beside it; raises OSError.

    Without a path, the file in /etc is taken if there is one, else there are no documents.
    """
    if path is None:
        if not default.exists():
            return ()
        path = str(default)
    folder = Path(path).parent / DROP_INS
    names = [path, *sorted(str(drop_in) for drop_in in folder.glob("*.toml"))]
    return [Document(name, _read(name, MAX_CONFIG)[0]) for name in names]


def read_key_file(path: str) -> KeyFile:
    """Return a key file's bytes and permissions; raises OSError."""
    content, mode = _read(path, MAX_KEY)
    return KeyFile(content, mode)


def _read(path: str, limit: int) -> tuple[bytes, int]:
    # Not to wait for a writer, should the path be a pipe.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        content = b""
        while len(content) <= limit and (piece := os.read(descriptor, limit + 1)):
            content += piece
    finally:
        os.close(descriptor)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"more than {limit} bytes", path)
    return content, mode
