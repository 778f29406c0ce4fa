"""What must be known of the store when its disk takes nothing more: that events were lost.

Events that went out unstored are remembered in memory until the database takes note of them. Should
the daemon end before, the next one would call a history with a hole whole, and hand out their `seq`
again. So a small file lies beside the database, filled with zeros while there was room: to
overwrite it takes none. It says that there is a doubt, or at an orderly end exactly which events it
is about. A disk that is read-only or hangs does not take even that.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import attrs
import msgspec

from cryptows.store.rows import Marks, Stream

SIZE = 128 << 10  # bytes; about 2000 streams
HEAD = struct.Struct("<4sII")  # magic, length and CRC-32 of the JSON text behind it
MAGIC = b"lost"


@attrs.frozen
class Lost:
    """What is known of lost events: by stream, or None when nobody counted them."""

    epoch: str | None  # None: of whatever history there is
    marks: dict[Stream, Marks] | None


class _Text(msgspec.Struct):
    epoch: str
    marks: list[tuple[str, str, int, int]] | None


class DoubtFile:
    """The file. Methods block; OSError comes as it is."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it while there is room."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            missing = SIZE - os.fstat(self._file).st_size
            if missing > 0:
                os.pwrite(self._file, bytes(missing), SIZE - missing)
                os.fsync(self._file)
        except BaseException:
            self.close()
            raise

    def read(self) -> Lost | None:
        """Return what it says; None: nothing was lost."""
        data = os.pread(self._file, SIZE, 0)
        if not any(data[: HEAD.size]):
            return None
        magic, length, crc = HEAD.unpack_from(data)
        text = data[HEAD.size : HEAD.size + length]
        if magic != MAGIC or zlib.crc32(text) != crc:
            return Lost(None, None)  # a crash while it was written
        try:
            found = msgspec.json.decode(text, type=_Text)
        except msgspec.DecodeError:
            return Lost(None, None)  # of another version
        if found.marks is None:
            return Lost(found.epoch, None)
        return Lost(found.epoch, {(c, symbol): (seq, n) for c, symbol, seq, n in found.marks})

    def write(self, epoch: str, marks: dict[Stream, Marks] | None) -> None:
        """Say that events were lost: these, or None for whichever."""
        rows = None if marks is None else [(*stream, *of) for stream, of in marks.items()]
        text = msgspec.json.encode(_Text(epoch, rows))
        if HEAD.size + len(text) > SIZE:
            text = msgspec.json.encode(_Text(epoch, None))
        self._put(HEAD.pack(MAGIC, len(text), zlib.crc32(text)) + text)

    def clear(self) -> None:
        """Say that nothing was lost that the database does not know."""
        self._put(bytes(HEAD.size))

    def _put(self, data: bytes) -> None:
        os.pwrite(self._file, data, 0)
        os.fsync(self._file)

    def close(self) -> None:
        """Close it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
