"""The folder: locked, private, and tidy about what was set aside."""

from __future__ import annotations

import stat

import pytest

from cryptows.model.errors import StartError
from cryptows.store.place import KEEP_ASIDE, Place


@pytest.fixture
def place(tmp_path):
    place = Place.take(tmp_path / "new" / "state")
    yield place
    place.leave()


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_missing_folder_is_made_for_its_owner_alone(place):
    assert mode(place.folder) == 0o700
    assert mode(place.file) == 0o600


def test_a_database_that_others_could_read_is_made_private(place):
    place.file.chmod(0o644)

    place.prepare()

    assert mode(place.file) == 0o600


def test_a_folder_serves_one_daemon_at_a_time(place):
    with pytest.raises(StartError) as caught:
        Place.take(place.folder)
    assert str(caught.value) == (
        f'server.state_dir "{place.folder}" is in use by another cryptows; '
        "each daemon needs its own"
    )

    place.leave()
    Place.take(place.folder).leave()


def test_a_folder_that_cannot_be_made_is_told_with_the_reason(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(StartError) as caught:
        Place.take(tmp_path / "file" / "state")

    assert str(caught.value) == (
        f'server.state_dir "{tmp_path / "file" / "state"}" cannot be used: Not a directory; '
        "expected a folder that this user may write to, with room left"
    )


def test_what_is_set_aside_keeps_its_companions(place):
    for companion in ("", "-wal", "-shm"):
        (place.folder / f"cryptows.db{companion}").write_text(companion)
    before = place.identity()

    target = place.set_aside("for a test")

    assert place.identity() is None
    assert before is not None
    assert [(target.parent / f"{target.name}{c}").read_text() for c in ("", "-wal", "-shm")] == [
        "", "-wal", "-shm",
    ]  # fmt: skip


def test_a_few_copies_are_kept_and_no_more(place):
    old = [f"cryptows.db.corrupt-2025010{day}T000000Z" for day in range(1, KEEP_ASIDE + 1)]
    for name in old:
        (place.folder / name).write_text("")
        (place.folder / f"{name}-wal").write_text("")

    new = [place.set_aside("again").name for _ in "ab" if place.prepare() is None]

    kept = [*old[2:], *new]
    assert len(set(new)) == 2
    found = [path.name for path in place.folder.iterdir()]
    assert sorted(found) == sorted([*kept, *(f"{name}-wal" for name in old[2:])])


def test_the_size_counts_what_is_there(place):
    place.file.write_bytes(b"12345")
    (place.folder / "cryptows.db-wal").write_bytes(b"123")

    assert (place.size(), place.size("-wal"), place.size("-shm")) == (8, 3, 0)
