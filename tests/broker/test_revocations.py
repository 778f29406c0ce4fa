"""Revocations: whom they cover, their bound, and that they outlive a restart."""

from __future__ import annotations

import json

import pytest

from cryptows.broker.revocations import Revocations, RevocationsFull


def test_nothing_is_revoked_at_first():
    assert not Revocations().covers("1", "t", None)
    assert not Revocations().covers(None, None, None)


@pytest.mark.parametrize(
    ("user", "issued_at", "covered"),
    [
        ("1", 99.0, True),
        ("1", 100.0, True),
        ("1", 100.5, False),
        ("1", None, True),
        ("2", 1, False),
    ],
)
def test_a_users_tokens_are_revoked_up_to_a_moment(user, issued_at, covered):
    revocations = Revocations()

    revocations.revoke_user("1", 100.0)

    assert revocations.covers(user, None, issued_at) is covered


def test_an_earlier_moment_does_not_weaken_a_revocation():
    revocations = Revocations()

    revocations.revoke_user("1", 100.0)
    revocations.revoke_user("1", 50.0)

    assert revocations.covers("1", None, 75.0)


def test_a_users_revocation_can_be_taken_back():
    revocations = Revocations()
    revocations.revoke_user("1", 100.0)

    assert revocations.restore_user("1")
    assert not revocations.restore_user("1")
    assert not revocations.covers("1", None, None)


def test_a_token_is_revoked_until_it_has_expired():
    revocations = Revocations()
    revocations.revoke_token("a", 100.0)
    revocations.revoke_token("b")

    revocations.prune(99.9)
    before = len(revocations)
    revocations.prune(100.0)

    assert before == 2
    assert not revocations.covers("1", "a", None)
    assert revocations.covers("1", "b", None)


def test_nothing_is_forgotten_to_make_room():
    revocations = Revocations(capacity=2)
    revocations.revoke_user("1", 100.0)
    revocations.revoke_token("a")

    with pytest.raises(RevocationsFull) as caught:
        revocations.revoke_user("2", 100.0)
    with pytest.raises(RevocationsFull):
        revocations.revoke_token("b")
    revocations.revoke_user("1", 200.0)
    revocations.revoke_token("a", 300.0)

    assert str(caught.value) == "2 revocations are all that fit; change the signing key"
    assert revocations.covers("1", None, 200.0)
    assert len(revocations) == 2


def test_revocations_outlive_a_restart():
    revocations = Revocations()
    revocations.revoke_user("1", 100.0)
    revocations.revoke_token("a")

    loaded = Revocations.load(json.loads(json.dumps(revocations.dump())))

    assert loaded == revocations
