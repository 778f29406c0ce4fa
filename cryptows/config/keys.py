"""The keys that tokens are checked with: where they come from, and which are refused.

A key comes from `auth.secret`, or from a file named by `auth.secret_file`; `credential:NAME` is the
file that systemd put into $CREDENTIALS_DIRECTORY. To change a key without sending everybody away,
the old one goes to `auth.previous_secret_file` for as long as its tokens live. This floor opens
nothing: the caller passes a reader that returns a file's bytes and its permissions.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Mapping

import attrs

from cryptows.config.settings import Auth, Settings
from cryptows.model.errors import ConfigError

# RFC 7518 3.2: a key of at least the size of the hash output must be used.
DIGEST_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}
CREDENTIAL = "credential:"
# systemd.exec(5): a credential is one file name.
CREDENTIAL_NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,255}", re.ASCII)
OTHERS = 0o007  # permission bits of everybody else
NOT_SHORT = "or auth.insecure_short_key = true"
SOURCES = (
    "auth.secret_file (a path, or credential:NAME), JWT_SECRET in the environment, "
    "or --set auth.secret=…"
)


@attrs.frozen
class KeyFile:
    """A file that was read for a key."""

    content: bytes = attrs.field(repr=False)
    mode: int  # permission bits


# Raises OSError.
ReadFile = Callable[[str], KeyFile]


@attrs.frozen
class Keys:
    """What tokens may be signed with: the current key, and the one before if there is one."""

    current: bytes = attrs.field(repr=False)
    previous: bytes | None = attrs.field(repr=False, default=None)

    @property
    def all(self) -> list[bytes]:
        """The keys in the order in which to try them."""
        return [self.current] if self.previous is None else [self.current, self.previous]


def require_secret(settings: Settings) -> None:
    """Raise ConfigError unless some key is configured; only `serve` and tokens need one."""
    if not settings.auth.secret and not settings.auth.secret_file:
        raise ConfigError([f"auth.secret is missing; expected {SOURCES}"])


def read_keys(
    settings: Settings,
    origins: Mapping[str, str],
    read_file: ReadFile,
    environ: Mapping[str, str],
) -> Keys:
    """Return the keys; raises ConfigError with everything that is wrong with them."""
    require_secret(settings)
    auth = settings.auth
    problems: list[str] = []

    def from_file(name: str, reference: str) -> bytes:
        try:
            return _read(reference, auth, read_file, environ)
        except ValueError as error:
            place = origins.get(f"auth.{name}", "default")
            problems.append(f"{place}: auth.{name} is {json.dumps(reference)}; {error}")
            return b""

    if auth.secret:
        current = auth.secret.encode()
    else:
        current = from_file("secret_file", auth.secret_file)
    previous = None
    if auth.previous_secret_file:
        previous = from_file("previous_secret_file", auth.previous_secret_file)
    if problems:
        raise ConfigError(problems)
    return Keys(current, previous)


def too_short(key: bytes, auth: Auth) -> str | None:
    """Return what is expected of a key that is shorter than the signatures it makes."""
    longest = max(auth.algorithms, key=DIGEST_BYTES.__getitem__)
    if auth.insecure_short_key or len(key) >= DIGEST_BYTES[longest]:
        return None
    return f"expected at least {DIGEST_BYTES[longest]} bytes for {longest}, {NOT_SHORT}"


def wrong_credential(reference: str) -> bool:
    """Whether this is `credential:` without a usable name."""
    name = reference.removeprefix(CREDENTIAL)
    return reference.startswith(CREDENTIAL) and not CREDENTIAL_NAME.fullmatch(name)


def _read(reference: str, auth: Auth, read_file: ReadFile, environ: Mapping[str, str]) -> bytes:
    path = reference
    if reference.startswith(CREDENTIAL):
        folder = environ.get("CREDENTIALS_DIRECTORY")
        if not folder:
            raise ValueError(
                "expected $CREDENTIALS_DIRECTORY, which systemd's LoadCredential= sets"
            )
        path = posixpath.join(folder, reference.removeprefix(CREDENTIAL))
    try:
        file = read_file(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    if file.mode & OTHERS:
        raise ValueError(
            f"everybody may use {path} (mode {file.mode & 0o777:04o}); expected at most 0640"
        )
    # Editors and `echo` end a file with a line break; a key that really ends with one keeps one.
    key = file.content.removesuffix(b"\n")
    if not key:
        raise ValueError(f"{path} is empty")
    short = too_short(key, auth)
    if short:
        raise ValueError(f"{path} holds {len(key)} bytes; {short}")
    return key
