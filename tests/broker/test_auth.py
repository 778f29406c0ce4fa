"""Tokens: which are believed, what is said of the others, and where a request carries one."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import attrs
import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptows.broker.auth import (
    ANONYMOUS,
    MAX_TOKEN,
    Identity,
    Verifier,
    find_token,
    make_token,
    token_hash,
)
from cryptows.broker.revocations import Revocations
from cryptows.config.settings import Auth
from cryptows.model.channel import Role
from cryptows.model.errors import Refusal
from cryptows.wire.request import Request

KEY, OLD_KEY, FOREIGN_KEY = b"k" * 32, b"o" * 32, b"f" * 32
NOW = 1_700_000_000.0
LEEWAY = 5.0


def encode(part: object) -> str:
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def sign(payload: object, key: bytes = KEY, header: object = None, *, hash: str = "sha256") -> str:
    """A token of any content, made without the code under test."""
    head = {"alg": "HS256", "typ": "JWT"} if header is None else header
    text = f"{encode(head)}.{encode(payload)}"
    return f"{text}.{encode(hmac.digest(key, text.encode(), hash))}"


def verifier(*keys: bytes, revocations: Revocations | None = None, **changed: Any) -> Verifier:
    settings = attrs.evolve(Auth(leeway=LEEWAY), **changed)
    return Verifier(settings, keys or (KEY,), revocations)


def refusal(token: str, checker: Verifier | None = None, now: float = NOW) -> tuple[int, str, bool]:
    with pytest.raises(Refusal) as caught:
        (checker or verifier()).verify(token, now)
    assert caught.value.retry_after is None
    return caught.value.code, caught.value.reason, caught.value.come_back


# Accepted


def test_a_token_says_who_its_bearer_is():
    token = sign({"sub": "123", "role": "admin", "iat": NOW, "exp": NOW + 60, "jti": "t-1"})

    assert verifier().verify(token, NOW) == Identity(
        user_id="123",
        role=Role.ADMIN,
        expires_at=NOW + 60 + LEEWAY,
        token_id=hashlib.sha256(token.encode()).hexdigest()[:12],
        issued_at=NOW,
        jti="t-1",
    )


@pytest.mark.parametrize(
    ("claims", "user"),
    [
        ({"sub": "a"}, "a"),
        ({"sub": "a", "userId": "b", "id": "c"}, "a"),
        ({"userId": "b", "id": "c"}, "b"),
        ({"id": "c"}, "c"),
        ({"sub": None, "userId": "b"}, "b"),
        ({"sub": 123}, "123"),
        ({"id": 0}, "0"),
        ({"sub": "x" * 64}, "x" * 64),
        ({"sub": "a.b-c_D"}, "a.b-c_D"),
    ],
)
def test_the_user_id_is_the_first_claim_that_has_one(claims, user):
    assert verifier().verify(sign(claims), NOW).user_id == user


@pytest.mark.parametrize(
    ("claims", "role"),
    [
        ({}, Role.USER),
        ({"role": None}, Role.USER),
        ({"role": "user"}, Role.USER),
        ({"role": "admin"}, Role.ADMIN),
        ({"role": "super_admin"}, Role.SUPER_ADMIN),
    ],
)
def test_the_role_is_user_unless_the_token_says_more(claims, role):
    assert verifier().verify(sign({"sub": "1"} | claims), NOW).role is role


def test_the_names_of_the_claims_are_settings():
    checker = verifier(user_claims=("uid",), role_claim="https://example.com/role")
    token = sign({"sub": "a", "uid": "b", "role": "user", "https://example.com/role": "admin"})

    identity = checker.verify(token, NOW)

    assert (identity.user_id, identity.role) == ("b", Role.ADMIN)


def test_a_token_without_an_end_is_accepted_and_the_identity_says_so():
    identity = verifier().verify(sign({"sub": "1"}), NOW)

    assert (identity.expires_at, identity.issued_at, identity.jti) == (None, None, None)


def test_the_key_before_is_accepted_too():
    checker = verifier(KEY, OLD_KEY)

    assert checker.verify(sign({"sub": "1"}), NOW).user_id == "1"
    assert checker.verify(sign({"sub": "2"}, OLD_KEY), NOW).user_id == "2"


@pytest.mark.parametrize(("algorithm", "hash"), [("HS384", "sha384"), ("HS512", "sha512")])
def test_other_algorithms_can_be_allowed(algorithm, hash):
    token = sign({"sub": "1"}, header={"alg": algorithm}, hash=hash)

    assert verifier(algorithms=("HS256", algorithm)).verify(token, NOW).user_id == "1"
    assert refusal(token) == (4001, "jwt algorithm not accepted; use HS256", False)


def test_what_another_library_made_is_accepted():
    token = jwt.encode({"sub": "1", "exp": int(NOW) + 60}, KEY, algorithm="HS256")

    assert verifier().verify(token, NOW).user_id == "1"


def test_a_short_key_works_without_a_word():
    # Whether it may be used is decided when the config is read.
    token = make_token(b"short", "HS256", "1", "user", 60, NOW)

    assert verifier(b"short").verify(token, NOW).user_id == "1"


@pytest.mark.parametrize("aud", ["bots", ["web", "bots"]])
def test_the_audience_and_the_issuer_are_checked_where_set(aud):
    checker = verifier(audience="bots", issuer="https://id.example")

    identity = checker.verify(sign({"sub": "1", "aud": aud, "iss": "https://id.example"}), NOW)

    assert identity.user_id == "1"
    assert verifier().verify(sign({"sub": "1", "aud": "x", "iss": "y"}), NOW).user_id == "1"


# Times, to the edge


@pytest.mark.parametrize(
    ("claims", "edge"),
    [
        ({"nbf": NOW + 10}, NOW + 10 - LEEWAY),
        ({"iat": NOW + 10}, NOW + 10 - LEEWAY),
        ({"nbf": NOW + 0.5}, NOW + 0.5 - LEEWAY),
    ],
)
def test_a_token_counts_from_its_time_less_the_leeway(claims, edge):
    token = sign({"sub": "1"} | claims)

    assert verifier().verify(token, edge).user_id == "1"
    assert refusal(token, now=edge - 0.01)[0] == 4001


def test_a_token_counts_until_its_end_plus_the_leeway():
    checker = verifier()
    token = sign({"sub": "1", "exp": NOW})

    identity = checker.verify(token, NOW + LEEWAY - 0.01)

    assert identity.expires_at == NOW + LEEWAY
    assert refusal(token, checker, NOW + LEEWAY) == (4002, "jwt expired", True)


def test_a_token_seen_before_expires_all_the_same():
    checker = verifier()
    token = sign({"sub": "1", "exp": NOW + 60, "nbf": NOW})
    checker.verify(token, NOW + 1)

    assert refusal(token, checker, NOW + 65) == (4002, "jwt expired", True)
    assert refusal(token, checker, NOW - 6) == (4001, "jwt not active yet", False)
    assert checker.verify(token, NOW + 64).user_id == "1"


# Refused


REFUSED = {
    "jwt malformed: expected header.payload.signature": [
        "",
        "abc",
        "a.b",
        "a.b.c.d",
        "..",
        "a b.c.d",
        "a.b.c\n",
        "ä.b.c",
        "a.\ud800.c",
        "a=.b=.c=",
        "null",
    ],
    "jwt malformed: unreadable header or payload": [
        "a.b.c",
        sign({"sub": "1"}, header=b"{"),
        sign({"sub": "1"}, header=b"[" * 3000),
        sign({"sub": "1"}, header=[]),
        sign({"sub": "1"}, header={"alg": "HS256", "crit": ["exp"]}),
        sign({"sub": "1"}, header={"alg": "HS256", "b64": False, "crit": ["b64"]}),
        sign({"sub": "1"}, header={"alg": "HS256", "kid": 1}),
    ],
    "jwt malformed: the payload is not a JSON object": [
        sign(b"{"),
        sign(b"[1]"),
        sign(b'"text"'),
        sign(b'{"sub":"\xff"}'),
        sign(b'{"sub":NaN}'),
        sign(b'{"a":' * 1000 + b"1" + b"}" * 1000),
    ],
    "jwt algorithm not accepted; use HS256": [
        f"{encode({'alg': 'none'})}.{encode({'sub': '1'})}.",
        sign({"sub": "1"}, header={"alg": "none"}),
        sign({"sub": "1"}, header={"alg": "None"}),
        sign({"sub": "1"}, header={"alg": "RS256"}),
        sign({"sub": "1"}, header={"alg": "hs256"}),
        sign({"sub": "1"}, header={"alg": ["HS256"]}),
        sign({"sub": "1"}, header={"alg": {}}),
        sign({"sub": "1"}, header={"alg": None}),
        sign({"sub": "1"}, header={}),
    ],
    "jwt signature does not match": [
        sign({"sub": "1"}, FOREIGN_KEY),
        sign({"sub": "1"}, b""),
        sign({"sub": "1"}).rpartition(".")[0] + ".",
        sign({"sub": "1"}, hash="sha512"),
        sign({"sub": "1"}, header={"alg": "HS256", "jwk": {"kty": "oct", "k": "AA"}}, key=b"\0"),
    ],
    "jwt names no user; expected sub or userId or id": [
        sign({}),
        sign({"sub": None}),
        sign({"user": "1"}),
    ],
    "jwt user id unusable; use letters, digits, '.', '-', '_', at most 64": [
        sign({"sub": ""}),
        sign({"sub": "a b"}),
        sign({"sub": "a/b"}),
        sign({"sub": "a\n"}),
        sign({"sub": "ä"}),
        sign({"sub": "x" * 65}),
        sign({"sub": True}),
        sign({"sub": 1.5}),
        sign({"sub": ["1"]}),
        sign({"sub": 10**64}),
        sign({"sub": "", "id": "1"}),
    ],
    "jwt role unknown; expected user or admin or super_admin": [
        sign({"sub": "1", "role": "root"}),
        sign({"sub": "1", "role": "Admin"}),
        sign({"sub": "1", "role": "anonymous"}),
        sign({"sub": "1", "role": ""}),
        sign({"sub": "1", "role": 1}),
        sign({"sub": "1", "role": ["admin"]}),
    ],
    "jwt exp is not a number of seconds": [
        sign({"sub": "1", "exp": "1700000000"}),
        sign({"sub": "1", "exp": True}),
        sign({"sub": "1", "exp": []}),
        sign({"sub": "1", "exp": 1e30}),
        sign({"sub": "1", "exp": 10**400}),
    ],
    "jwt nbf is not a number of seconds": [sign({"sub": "1", "nbf": "x"})],
    "jwt iat is not a number of seconds": [sign({"sub": "1", "iat": {}})],
    "jwt not active yet": [sign({"sub": "1", "nbf": NOW + 6})],
    "jwt issued in the future; compare the clocks": [sign({"sub": "1", "iat": NOW + 6})],
}


@pytest.mark.parametrize(
    ("reason", "token"), [(reason, t) for reason, tokens in REFUSED.items() for t in tokens]
)
def test_a_wrong_token_is_refused_with_the_reason(reason, token):
    assert refusal(token) == (4001, reason, False)
    assert len(reason.encode()) <= 123  # RFC 6455 5.5: what a close frame holds


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"iss": "i"}, "jwt is for another audience"),
        ({"iss": "i", "aud": "other"}, "jwt is for another audience"),
        ({"iss": "i", "aud": []}, "jwt is for another audience"),
        ({"iss": "i", "aud": {"bots": 1}}, "jwt is for another audience"),
        ({"aud": "bots"}, "jwt is from another issuer"),
        ({"aud": "bots", "iss": "j"}, "jwt is from another issuer"),
        ({"aud": "bots", "iss": ["i"]}, "jwt is from another issuer"),
    ],
)
def test_a_token_for_someone_else_is_refused(claims, reason):
    checker = verifier(audience="bots", issuer="i")

    assert refusal(sign({"sub": "1"} | claims), checker) == (4001, reason, False)


@pytest.mark.parametrize(
    "number", ["1e30", "1e400", "1" + "0" * 400, "1" + "0" * 5000, "-" + "9" * 5000]
)
@pytest.mark.parametrize("claim", ["sub", "exp", "iat", "nbf", "role"])
def test_a_number_beyond_all_numbers_is_refused(claim, number):
    token = sign(f'{{"id":"1","{claim}":{number}}}'.encode())

    assert refusal(token)[0] == 4001


def test_a_token_of_just_the_longest_length_is_read_and_a_longer_one_is_not():
    filler = MAX_TOKEN
    while len(token := sign({"sub": "1", "x": "a" * filler})) > MAX_TOKEN:
        filler -= 1

    assert verifier().verify(token, NOW).user_id == "1"
    assert refusal(token + "a" * (MAX_TOKEN + 1 - len(token))) == (
        4001,
        "jwt too long: 8193 characters, at most 8192",
        False,
    )


def test_the_end_is_told_though_the_token_is_also_revoked():
    revocations = Revocations()
    revocations.revoke_user("1", NOW)
    token = sign({"sub": "1", "exp": NOW - 60, "iat": NOW - 120})

    assert refusal(token, verifier(revocations=revocations))[:2] == (4002, "jwt expired")


def test_a_refusal_does_not_hold_the_token():
    secret = "s3cretMarker"
    for token in (secret, f"{secret}.{secret}.{secret}", sign({"sub": secret + " "})):
        with pytest.raises(Refusal) as caught:
            verifier().verify(token, NOW)
        assert secret not in str(caught.value)
        assert caught.value.__cause__ is None


@given(st.one_of(st.text(max_size=40), st.from_regex(r"[A-Za-z0-9_-]{1,20}(\.[A-Za-z0-9_-]*){2}")))
def test_any_text_at_all_is_refused(text):
    assert refusal(text)[0] == 4001


@given(data=st.data())
def test_a_token_changed_in_one_place_is_refused(data):
    token = sign({"sub": "1", "role": "user"})
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.sampled_from("AZaz09-_.").filter(lambda c: c != token[at]))

    assert refusal(token[:at] + other + token[at + 1 :])[0] == 4001


# Revoked


def test_a_revoked_user_is_out_until_he_has_a_newer_token():
    revocations = Revocations()
    checker = verifier(revocations=revocations)
    before, after = (sign({"sub": "1", "iat": NOW + moved}) for moved in (-1, 1))
    timeless, other = sign({"sub": "1"}), sign({"sub": "2", "iat": NOW - 1})
    identity = checker.verify(before, NOW)

    revocations.revoke_user("1", NOW)

    assert refusal(before, checker) == (4001, "jwt revoked", False)
    assert refusal(timeless, checker) == (4001, "jwt revoked", False)
    assert checker.verify(after, NOW + 1).user_id == "1"
    assert checker.verify(other, NOW).user_id == "2"
    with pytest.raises(Refusal, match="jwt revoked"):
        checker.check_revoked(identity)
    checker.check_revoked(ANONYMOUS)


def test_a_revoked_token_is_out_and_others_of_the_user_stay():
    revocations = Revocations()
    checker = verifier(revocations=revocations)

    revocations.revoke_token("t-1")

    assert refusal(sign({"sub": "1", "jti": "t-1"}), checker) == (4001, "jwt revoked", False)
    assert checker.verify(sign({"sub": "1", "jti": "t-2"}), NOW).user_id == "1"
    assert checker.verify(sign({"sub": "1", "jti": 5}), NOW).jti is None


# Remembered


def test_a_token_seen_before_gives_the_same_identity_without_a_key():
    keys = [KEY]
    checker = Verifier(Auth(), keys)
    token = sign({"sub": "1"})

    first = checker.verify(token, NOW)

    assert checker.verify(token, NOW + 5) is first


def test_the_memory_for_tokens_is_bounded_and_the_oldest_is_forgotten():
    checker = Verifier(Auth(), [KEY], capacity=2)
    tokens = [sign({"sub": str(n)}) for n in range(3)]
    identities = [checker.verify(token, NOW) for token in tokens]

    again = [checker.verify(token, NOW) for token in reversed(tokens)]

    # A forgotten one is checked again, so it is equal and not the same.
    assert again == identities[::-1]
    assert [a is b for a, b in zip(again, identities[::-1], strict=True)] == [True, True, False]
    assert len(checker._cache) == 2


def test_a_refused_token_is_not_remembered():
    checker = verifier()

    refusal(sign({"sub": "1"}, FOREIGN_KEY), checker)
    refusal(sign({"sub": "a b"}), checker)

    assert checker._cache == {}


# Made


def test_a_made_token_is_accepted():
    token = make_token(KEY, "HS256", "123", "admin", 3600, NOW + 0.7, aud="bots", iss="i", jti="j")
    checker = verifier(audience="bots", issuer="i")

    identity = checker.verify(token, NOW + 0.7)

    assert identity == Identity(
        "123", Role.ADMIN, NOW + 3601 + LEEWAY, token_hash(token), issued_at=NOW, jti="j"
    )


def test_a_made_token_may_have_no_end():
    token = make_token(KEY, "HS512", "123", "user", None, NOW)

    assert verifier(algorithms=("HS512",)).verify(token, NOW + 1e9).expires_at is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"user": "a b"}, "user 'a b': use letters, digits, '.', '-', '_', at most 64"),
        ({"role": "root"}, "role 'root': expected user or admin or super_admin"),
        ({"algorithm": "none"}, "algorithm 'none': expected HS256 or HS384 or HS512"),
    ],
)
def test_a_token_that_would_be_refused_is_not_made(changed, message):
    wanted = {"user": "1", "role": "user", "algorithm": "HS256"} | changed

    with pytest.raises(ValueError, match=r"expected|use") as caught:
        make_token(KEY, **wanted, ttl=60, now=NOW)

    assert str(caught.value) == message


def test_any_text_has_a_hash_for_the_logs():
    assert token_hash("ä\ud800") != token_hash("")


def test_an_identity_tells_whether_there_was_a_token():
    assert not ANONYMOUS.authenticated
    assert verifier().verify(sign({"sub": "1"}), NOW).authenticated


# Found


def request(*headers: tuple[str, str], **query: str) -> Request:
    encoded = [(name.encode(), value.encode()) for name, value in headers]
    return Request("GET", "/ws", query, encoded, keep_alive=True)


PROTOCOL, AUTHORIZATION = "sec-websocket-protocol", "authorization"


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([], (None, None)),
        ([(AUTHORIZATION, "Bearer a.b.c")], ("a.b.c", None)),
        ([(AUTHORIZATION, "bearer  a.b.c ")], ("a.b.c", None)),
        ([(AUTHORIZATION, "Bearer")], ("", None)),
        ([(AUTHORIZATION, "Basic YTpi")], (None, None)),
        ([(AUTHORIZATION, "Bearer a"), (AUTHORIZATION, "Bearer b")], ("a, Bearer b", None)),
        ([(PROTOCOL, "cryptows.v1")], (None, "cryptows.v1")),
        ([(PROTOCOL, "cryptows.v1, bearer.a.b.c")], ("a.b.c", "cryptows.v1")),
        ([(PROTOCOL, "bearer.a.b.c"), (PROTOCOL, "cryptows.v1")], ("a.b.c", "cryptows.v1")),
        ([(PROTOCOL, "bearer.a.b.c")], ("a.b.c", None)),
        ([(PROTOCOL, "bearer.")], ("", None)),
        ([(PROTOCOL, "other, cryptows.v2")], (None, None)),
        (
            [(PROTOCOL, "cryptows.v1, bearer.a.b.c"), (AUTHORIZATION, "Bearer d.e.f")],
            ("d.e.f", "cryptows.v1"),
        ),
        (
            [(PROTOCOL, "cryptows.v1, bearer.a.b.c"), (AUTHORIZATION, "Basic YTpi")],
            ("a.b.c", "cryptows.v1"),
        ),
    ],
)
def test_a_token_is_found_in_the_headers(headers, found):
    assert find_token(request(*headers, token="query"), allow_query=False) == found


def test_a_token_in_the_query_counts_only_where_allowed_and_last():
    in_query = request(token="a.b.c")
    in_both = request((AUTHORIZATION, "Bearer d.e.f"), token="a.b.c")

    assert find_token(in_query, allow_query=False) == (None, None)
    assert find_token(in_query, allow_query=True) == ("a.b.c", None)
    assert find_token(in_both, allow_query=True) == ("d.e.f", None)
    assert find_token(request(), allow_query=True) == (None, None)
