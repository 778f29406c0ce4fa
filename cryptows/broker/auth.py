"""Who a client is: tokens checked, made, revoked and found in a request.

A token is a JWT signed with a shared key (protocol section 3). PyJWT checks the signature, over a
fixed list of algorithms; the claims are checked here, because the time is an argument and because
each refusal shall say what would be right. A token that was checked once is remembered by its
hash, so that a reconnect storm costs a look-up for each client; its times and the revocations are
checked on every use. No message and no repr holds a token.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import jwt
import msgspec
from jwt.algorithms import HMACAlgorithm

from cryptows.broker.revocations import Revocations
from cryptows.config.settings import Auth
from cryptows.model.channel import USER_ID, Role
from cryptows.model.errors import Refusal
from cryptows.wire.http import Request

SUBPROTOCOL = "cryptows.v1"
BEARER = "bearer."  # the prefix of the subprotocol that carries a token (browsers)
MAX_TOKEN = 8192  # bytes; a real one has a few hundred, and each costs a base64 and a hash
MAX_CACHED = 4096  # verified tokens; the oldest is forgotten first and costs a check again
MAX_TIME = 2**53  # seconds; beyond it floats lose whole seconds, and 10**400 is none at all
COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*", re.ASCII)
# A token without a role is a user's; one cannot claim to be anonymous.
ROLES = {role.value: role for role in (Role.USER, Role.ADMIN, Role.SUPER_ADMIN)}
CLAIMS = msgspec.json.Decoder(dict[str, Any])
HASHES = {
    "HS256": HMACAlgorithm.SHA256,
    "HS384": HMACAlgorithm.SHA384,
    "HS512": HMACAlgorithm.SHA512,
}


@attrs.frozen
class Identity:
    """Who a client is. `token_id` is a short hash of the token, fit for logs."""

    user_id: str | None
    role: Role
    expires_at: float | None = None  # Unix s, from when on it is refused; None: never
    token_id: str = ""
    issued_at: float | None = None
    jti: str | None = None

    @property
    def authenticated(self) -> bool:
        """Whether there was a token."""
        return self.user_id is not None


ANONYMOUS = Identity(None, Role.ANONYMOUS)


class _Hmac(HMACAlgorithm):
    """An HMAC whose key was judged once, when the config was read, not with every token."""

    def prepare_key(self, key: str | bytes) -> bytes:
        """Return the key as it is."""
        return key.encode() if isinstance(key, str) else key

    def check_key_length(self, key: bytes) -> None:
        """Say nothing: whether a short key will do is for `auth.insecure_short_key` to say."""


@attrs.frozen
class _Checked:
    """A token whose signature and claims are right; its times depend on when one asks."""

    identity: Identity
    not_before: float
    issued_at: float


class Verifier:
    """Turns tokens into identities. `keys`: the current one, then those still accepted."""

    def __init__(
        self,
        settings: Auth,
        keys: Sequence[bytes],
        revocations: Revocations | None = None,
        *,
        capacity: int = MAX_CACHED,
    ) -> None:
        self._settings = settings
        self._keys = tuple(keys)
        self._revocations = Revocations() if revocations is None else revocations
        self._jws = _signatures(settings.algorithms)
        self._capacity = capacity
        self._cache: OrderedDict[bytes, _Checked] = (
            OrderedDict()
        )  # oldest first, at most `capacity`

    def verify(self, token: str, now: float) -> Identity:
        """Return whose token it is at Unix time `now`.

        Raises Refusal 4002 if it has expired, 4001 if it is wrong or revoked.
        """
        if len(token) > MAX_TOKEN:
            raise _refused(f"jwt too long: {len(token)} characters, at most {MAX_TOKEN}")
        if not COMPACT.fullmatch(token):
            raise _refused("jwt malformed: expected header.payload.signature")
        digest = hashlib.sha256(token.encode("ascii")).digest()
        checked = self._cache.get(digest)
        if checked is None:
            checked = self._check(token, digest)
            if len(self._cache) >= self._capacity:
                del self._cache[next(iter(self._cache))]
            self._cache[digest] = checked
        self._check_times(checked, now)
        self.check_revoked(checked.identity)
        return checked.identity

    def check_revoked(self, identity: Identity) -> None:
        """Raise Refusal 4001 if the identity was revoked; also for clients already connected."""
        if self._revocations.covers(identity.user_id, identity.jti, identity.issued_at):
            raise _refused("jwt revoked")

    def _check_times(self, checked: _Checked, now: float) -> None:
        leeway = self._settings.leeway
        if checked.identity.expires_at is not None and now >= checked.identity.expires_at:
            raise Refusal(4002, "jwt expired", come_back=True)
        if checked.not_before > now + leeway:
            raise _refused("jwt not active yet")
        if checked.issued_at > now + leeway:
            raise _refused("jwt issued in the future; compare the clocks")

    def _check(self, token: str, digest: bytes) -> _Checked:
        claims = self._claims(token)
        self._check_addressee(claims)
        expires, issued = _time(claims, "exp"), _time(claims, "iat")
        not_before = _time(claims, "nbf")
        jti = claims.get("jti")
        identity = Identity(
            user_id=self._user_id(claims),
            role=self._role(claims),
            expires_at=None if expires is None else expires + self._settings.leeway,
            token_id=digest.hex()[:12],
            issued_at=issued,
            jti=jti if isinstance(jti, str) else None,
        )
        return _Checked(
            identity,
            not_before=-math.inf if not_before is None else not_before,
            issued_at=-math.inf if issued is None else issued,
        )

    def _claims(self, token: str) -> dict[str, Any]:
        try:
            claims: dict[str, Any] = CLAIMS.decode(self._payload(token))
        except jwt.InvalidAlgorithmError:
            accepted = _any_of(self._settings.algorithms)
            raise _refused(f"jwt algorithm not accepted; use {accepted}") from None
        except jwt.InvalidTokenError:
            raise _refused("jwt malformed: unreadable header or payload") from None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise _refused("jwt malformed: the payload is not a JSON object") from None
        return claims

    def _payload(self, token: str) -> bytes:
        for key in self._keys:
            try:
                payload: bytes = self._jws.decode(token, key, self._settings.algorithms)
                return payload
            except jwt.InvalidSignatureError:
                continue  # perhaps it is of the key before
        raise _refused("jwt signature does not match")

    def _check_addressee(self, claims: Mapping[str, Any]) -> None:
        audience, issuer = self._settings.audience, self._settings.issuer
        if audience:
            found = claims.get("aud")
            if audience not in (found if isinstance(found, list) else [found]):
                raise _refused("jwt is for another audience")
        if issuer and claims.get("iss") != issuer:
            raise _refused("jwt is from another issuer")

    def _user_id(self, claims: Mapping[str, Any]) -> str:
        names = self._settings.user_claims
        found = next((claims[name] for name in names if claims.get(name) is not None), None)
        if found is None:
            raise _refused(f"jwt names no user; expected {_any_of(names)}")
        if type(found) is int:
            found = str(found)
        if not isinstance(found, str) or not USER_ID.fullmatch(found):
            raise _refused("jwt user id unusable; use letters, digits, '.', '-', '_', at most 64")
        return found

    def _role(self, claims: Mapping[str, Any]) -> Role:
        found = claims.get(self._settings.role_claim)
        if found is None:
            return Role.USER
        role = ROLES.get(found) if isinstance(found, str) else None
        if role is None:
            raise _refused(f"jwt role unknown; expected {_any_of(tuple(ROLES))}")
        return role


def make_token(
    secret: bytes,
    algorithm: str,
    user: str,
    role: str,
    ttl: float | None,
    now: float,
    **claims: Any,
) -> str:
    """Return a token that a Verifier with the same settings accepts; `ttl` None: it never ends.

    Raises ValueError for a user id, a role or an algorithm that would be refused.
    """
    if not USER_ID.fullmatch(user):
        raise ValueError(f"user {user!r}: use letters, digits, '.', '-', '_', at most 64")
    if role not in ROLES:
        raise ValueError(f"role {role!r}: expected {_any_of(tuple(ROLES))}")
    if algorithm not in HASHES:
        raise ValueError(f"algorithm {algorithm!r}: expected {_any_of(tuple(HASHES))}")
    payload = {"sub": user, "role": role, "iat": int(now)} | claims
    if ttl is not None:
        payload["exp"] = math.ceil(now + ttl)
    return _signatures((algorithm,)).encode(msgspec.json.encode(payload), secret, algorithm)


def find_token(request: Request, *, allow_query: bool) -> tuple[str | None, str | None]:
    """Return the token a handshake carries, and the subprotocol to answer with.

    `Authorization` goes before the subprotocol, that before the query. The token's own
    subprotocol is never the answer: it would come back in a header.
    """
    offered = request.tokens("sec-websocket-protocol")
    subprotocol = SUBPROTOCOL if SUBPROTOCOL in offered else None
    scheme, _, credentials = (request.header("authorization") or "").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip(), subprotocol
    for item in offered:
        if item.startswith(BEARER):
            return item.removeprefix(BEARER), subprotocol
    return request.query.get("token") if allow_query else None, subprotocol


def token_hash(token: str) -> str:
    """Return what stands for a token in logs; equals `Identity.token_id`."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _signatures(algorithms: Sequence[str]) -> jwt.PyJWS:
    jws = jwt.PyJWS(algorithms=[])  # no "none", and nothing that takes a public key for a secret
    for name in algorithms:
        jws.register_algorithm(name, _Hmac(HASHES[name]))
    return jws


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if type(value) not in (int, float) or not -MAX_TIME <= value <= MAX_TIME:
        raise _refused(f"jwt {name} is not a number of seconds")
    return float(value)


def _any_of(names: Sequence[str]) -> str:
    return " or ".join(names)


def _refused(reason: str) -> Refusal:
    return Refusal(4001, reason, come_back=False)
