"""The file of revocations."""

from __future__ import annotations

import pytest

from cryptows.broker.revocations import Revocations
from cryptows.model.errors import CryptowsError, StartError
from cryptows.store.revocations import NAME, load, save


def test_without_a_file_nobody_is_revoked(tmp_path):
    assert len(load(tmp_path)) == 0


def test_what_was_saved_is_loaded_again(tmp_path):
    revocations = Revocations()
    revocations.revoke_user("123", until=1000.0)
    revocations.revoke_token("t-1", expires_at=2000.0)

    save(tmp_path, revocations.dump())

    assert load(tmp_path).dump() == revocations.dump()
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"users":{"1":"x"}}'])
def test_a_file_that_makes_no_sense_stops_the_start(tmp_path, content):
    (tmp_path / NAME).write_bytes(content)

    with pytest.raises(StartError, match="not what `cryptows token revoke` wrote"):
        load(tmp_path)


def test_a_file_that_cannot_be_read_stops_the_start(tmp_path):
    (tmp_path / NAME).mkdir()

    with pytest.raises(StartError, match="Is a directory"):
        load(tmp_path)


def test_a_folder_that_is_gone_is_said(tmp_path):
    with pytest.raises(CryptowsError, match="it holds until the next start"):
        save(tmp_path / "gone", Revocations().dump())
