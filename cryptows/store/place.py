"""The folder of the store: whose it is, its files and their permissions, and what is set aside.

One daemon uses a folder: positions must never be handed out twice, and a second process would not
know what the first one handed out. The lock is on the folder itself (flock), so it leaves no file
behind and ends with the process, however that ends. While SQLite has the database open nobody else
in this process may open that file: closing it again would drop SQLite's own locks on it (POSIX).
"""

from __future__ import annotations

import fcntl
import os
from datetime import UTC, datetime
from pathlib import Path

import attrs
import structlog

from cryptows.model.errors import StartError

log = structlog.get_logger()

NAME = "cryptows.db"
DOUBT = "cryptows.lost"
COMPANIONS = ("", "-wal", "-shm")  # SQLite finds the last two by name
KEEP_ASIDE = 5  # a disk that corrupts again and again must not be filled with copies


@attrs.define
class Place:
    """The state folder, locked by this process."""

    folder: Path
    _lock: int = -1

    @classmethod
    def take(cls, folder: Path) -> Place:
        """Create the folder if it is missing, and lock it; StartError if that cannot be."""
        place = cls(folder)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            place._lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(place._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            place.prepare()
        except BlockingIOError:
            place.leave()
            raise StartError(
                f'server.state_dir "{folder}" is in use by another cryptows; '
                "each daemon needs its own"
            ) from None
        except OSError as error:
            place.leave()
            raise unusable(folder, error.strerror or str(error)) from error
        return place

    @property
    def file(self) -> Path:
        """The database."""
        return self.folder / NAME

    @property
    def doubt(self) -> Path:
        """The file that says whether events were lost."""
        return self.folder / DOUBT

    def prepare(self) -> None:
        """See to it that the database is there, be it empty, and that only its owner reads it.

        SQLite gives its companions the permissions of the database. OSError as it comes.
        """
        try:
            os.close(os.open(self.file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            self.file.chmod(0o600)

    def identity(self) -> tuple[int, int] | None:
        """Which file the database is now; None if there is none. Changes when it was replaced."""
        try:
            status = self.file.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def size(self, *companions: str) -> int:
        """Bytes of the database and what belongs to it, or of some of its companions."""
        total = 0
        for companion in companions or COMPANIONS:
            try:
                total += Path(f"{self.file}{companion}").stat().st_size
            except OSError:
                pass  # not there: SQLite makes and removes them as it needs
        return total

    def set_aside(self, reason: str) -> Path:
        """Rename the database and its companions out of the way; OSError as it comes."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        target = self.folder / f"{NAME}.corrupt-{stamp}"
        for again in range(2, 100):
            if not target.exists():
                break
            target = self.folder / f"{NAME}.corrupt-{stamp}.{again}"
        for companion in COMPANIONS:
            source = Path(f"{self.file}{companion}")
            if source.exists():
                source.replace(f"{target}{companion}")
        os.fsync(self._lock)
        log.error("store set aside", reason=reason, file=str(target))
        self._forget_old_ones()
        return target

    def copies(self) -> list[Path]:
        """What was set aside, the oldest first: their names begin with when it was."""
        found = self.folder.glob(f"{NAME}.corrupt-*")
        return sorted(path for path in found if not path.name.endswith(COMPANIONS[1:]))

    def _forget_old_ones(self) -> None:
        for old in self.copies()[:-KEEP_ASIDE]:
            for companion in COMPANIONS:
                Path(f"{old}{companion}").unlink(missing_ok=True)
            log.warning("old set-aside store removed", file=str(old), kept=KEEP_ASIDE)

    def leave(self) -> None:
        """Give the folder up."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def unusable(folder: Path, reason: str) -> StartError:
    """The line that says why a daemon with this folder does not start."""
    return StartError(
        f'server.state_dir "{folder}" cannot be used: {reason}; '
        "expected a folder that this user may write to, with room left"
    )
