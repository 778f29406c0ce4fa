"""Redaction: turns what is about to be logged into plain JSON values that hold no secret.

Who can read the log is not who may speak for a user, so no token, cookie or key gets into it,
not even through an exception's text or a URL inside a header inside a list. Four nets, each of
which would catch most alone: names (`token`, `cookie`, ... as keys of a mapping, as fields of a
`repr`, as query parameters), shapes (a JWT, `Bearer ...`, a password in a URL), bearers of a
known name followed by something long, and literal secrets that were handed to `protect`.
When in doubt it takes too much. Text is parsed, not searched for `token=`: names may be percent-
encoded or quoted, and values may hold the separators.

All values are bounded too, since much of what is logged comes from clients.
"""

from __future__ import annotations

import base64
import functools
import re
import urllib.parse
from collections.abc import Iterable, Mapping

MASK = "***"

MAX_TEXT = 4096  # characters of one value
MAX_ITEMS = 64  # of one container
MAX_DEPTH = 5
MAX_TRACE = 16 << 10  # characters of a traceback; journald splits lines at 48 KiB
MAX_TRACE_READ = 64 << 10  # what of a longer one is looked at at all

# A name is secret when one of its words is. `key` costs us some harmless ones; so be it.
_WORDS = frozenset(
    {"token", "tokens", "authorization", "auth", "cookie", "cookies", "secret", "secrets"}
    | {"key", "keys", "apikey", "sid", "pid", "password", "passwords", "passwd", "passphrase"}
    | {"pwd", "credential", "credentials", "bearer", "jwt", "signature"}
)
_NAMES = frozenset({"secwebsocketprotocol", "sessionid", "accesstoken", "refreshtoken"})
# Derived from a secret or pointing to one, but not the secret itself.
_HARMLESS = frozenset({"fingerprint", "file", "hash"})
# Headers whose value goes to the end of the line, separators included.
_WHOLE_LINE = frozenset({"cookie", "authorization", "secwebsocketprotocol"})

_WORD = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")
_NAME = re.compile(
    r"""(?<![\w%.\-\[\]])([\w%.\-\[\]]+)  # a name, from its first character: linear in the text
        (?:(?:\\*["'])?\s*(?:=>|:=|[=:])\s*  # name=value, name: value, "name": value, \"name\":
        |\\*["']\s*,\s*(?=b?["'])  # ('name', 'value')
        |\s+(?=\\*b?["'])  # token 'value'
        |\s+(?=[\w+/.=\-]{16}))  # token value, long enough to be one
    """,
    re.VERBOSE,
)
_OPENING = re.compile(r"""(\\*)b?(["'])""")
_PLAIN_END = re.compile(r"""[\s&;"'<>#]""")
_LINE_END = re.compile(r"""\\+[rn]|[\r\n"']""")
_BRACKETS = {"[": "]", "{": "}", "(": ")"}

_SHAPES = (
    # A JWT: base64url of a JSON object, then at least one more part; also when it was cut short.
    (re.compile(r"\be[yw][A-Za-z0-9][\w\-]{5,}\.[\w\-.]*"), MASK),
    (re.compile(r"[\w\-]{10,}\.[\w\-]{10,}\.[\w\-]{27,}"), MASK),
    (
        re.compile(
            r"""(?i)\b(?:(bearer(?:[\s.:]+|%20))[^\s"',;&]+|(basic(?:\s+|%20))[a-z0-9+/=]{6,})"""
        ),
        rf"\1\2{MASK}",
    ),
    (re.compile(r"://([^/\s:@]*):[^/\s@]+@"), rf"://\1:{MASK}@"),
)
# What none of the nets but `protect` can catch anything in: most values are plain words.
_SUSPICIOUS = re.compile(r"""[\s=:.%"']""")

_protected: set[str] = set()


def protect(secrets: Iterable[bytes]) -> None:
    """Mask these literal values from now on, also in base64 and hex; shorter than 8 bytes: not."""
    for secret in secrets:
        if len(secret) >= 8:
            text = secret.decode("utf-8", "backslashreplace")
            _protected.update(
                (text, repr(secret)[2:-1], urllib.parse.quote(secret, safe=""), secret.hex(),
                 base64.b64encode(secret).decode(), base64.urlsafe_b64encode(secret).decode())
            )  # fmt: skip


@functools.lru_cache(maxsize=1024)  # the keys we log are few; names in texts come from anywhere
def is_secret(name: str) -> bool:
    """Whether a value of that name must not be shown."""
    words = [word.lower() for word in _WORD.findall(urllib.parse.unquote(name))]
    if words and words[-1] in _HARMLESS:
        return False
    return not _WORDS.isdisjoint(words) or not _NAMES.isdisjoint({"".join(words)})


def redact(value: object, name: str = "", depth: int = 0) -> object:
    """Return the value as plain JSON without secrets. Numbers pass under any name."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if is_secret(name):
        return MASK
    if depth >= MAX_DEPTH:
        return redact_text(_repr(value))
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return redact_text(bytes(value[: MAX_TEXT * 4]).decode("utf-8", "backslashreplace"))
    if isinstance(value, BaseException):
        return redact_text(f"{type(value).__name__}: {value}")
    if isinstance(value, Mapping):
        return _redact_mapping(value, depth)
    if isinstance(value, list | tuple | set | frozenset):
        return _redact_items(value, depth)
    return redact_text(_repr(value))


def _redact_mapping(value: Mapping[object, object], depth: int) -> dict[str, object]:
    plain: dict[str, object] = {}
    for n, (key, item) in enumerate(value.items()):
        if n == MAX_ITEMS:
            plain["…"] = f"{len(value) - n} more"
            break
        text = key.decode("latin-1") if isinstance(key, bytes) else str(key)
        plain[redact_text(text)] = redact(item, text[:MAX_TEXT], depth + 1)
    return plain


def _redact_items(value: Iterable[object], depth: int) -> list[object]:
    items = list(value)
    if len(items) == 2 and isinstance(items[0], str | bytes):  # ("cookie", "..."), a header
        first = items[0].decode("latin-1") if isinstance(items[0], bytes) else items[0]
        return [redact_text(first), redact(items[1], first[:MAX_TEXT], depth + 1)]
    plain = [redact(item, "", depth + 1) for item in items[:MAX_ITEMS]]
    if len(items) > MAX_ITEMS:
        plain.append(f"… {len(items) - MAX_ITEMS} more")
    return plain


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # a broken __repr__ must not cost the line
        return f"<{type(value).__name__}>"


def redact_text(text: str, limit: int = MAX_TEXT) -> str:
    """Return the text, at most `limit` characters of it, without secrets."""
    # Cut at the end only: a cut elsewhere could part a value from the name that gives it away.
    extra = len(text) - limit
    plain = _redact_decoded(text[:limit])
    plain = plain.encode("utf-8", "backslashreplace").decode()  # lone surrogates are no UTF-8
    return f"{plain}… ({extra} more)" if extra > 0 else plain


def redact_trace(trace: str) -> str:
    """Return a traceback without secrets; of a long one the first and, rather, the last lines."""
    if len(trace) > MAX_TRACE_READ:
        # from the start of a line, so that no value is parted from its name
        trace = "…\n" + trace[-MAX_TRACE_READ:].partition("\n")[2]
    plain = redact_text(trace, limit=MAX_TRACE_READ)
    if len(plain) > MAX_TRACE:
        plain = f"{plain[: MAX_TRACE // 4]}\n…\n{plain[-MAX_TRACE * 3 // 4 :]}"
    return plain


def _redact_decoded(text: str) -> str:
    """Redact the text, and whatever comes to light when it is percent-decoded, twice at most."""
    decoded = text
    for _ in range(2):
        if "%" not in decoded or (further := urllib.parse.unquote(decoded)) == decoded:
            break
        decoded = further
        if _redact_plain(decoded) != decoded:
            return _redact_plain(decoded)
    return _redact_plain(text)


def _redact_plain(text: str) -> str:
    for secret in _protected:
        text = text.replace(secret, MASK)
    if _SUSPICIOUS.search(text) is None:
        return text
    text = _redact_named(text)
    for shape, mask in _SHAPES:
        text = shape.sub(mask, text)
    return text


def _redact_named(text: str) -> str:
    """Mask the value after each secret name. A harmless name's value is looked into as well."""
    parts, done, at = [], 0, 0
    while (match := _NAME.search(text, at)) is not None:
        at = match.end()
        if not is_secret(match[1]):
            continue
        end = _end_of_value(text, at, match[1])
        if end > at:
            parts += [text[done:at], MASK]
            done = at = end
    parts.append(text[done:])
    return "".join(parts)


def _end_of_value(text: str, start: int, name: str) -> int:
    """Return where the value that starts there ends: quoted, bracketed, a header's, or plain."""
    opening = _OPENING.match(text, start)
    if opening is not None:
        closing = re.compile(rf"(?<!\\){re.escape(opening[1])}{opening[2]}")
        found = closing.search(text, opening.end())
        return found.end() if found else len(text)
    if text[start : start + 1] in _BRACKETS:
        return _end_of_brackets(text, start)
    words = "".join(_WORD.findall(name)).lower()
    whole_line = any(words.endswith(header) for header in _WHOLE_LINE)
    found = (_LINE_END if whole_line else _PLAIN_END).search(text, start)
    return found.start() if found else len(text)


def _end_of_brackets(text: str, start: int) -> int:
    opening, closing = text[start], _BRACKETS[text[start]]
    depth = 0
    for n in range(start, len(text)):
        depth += (text[n] == opening) - (text[n] == closing)
        if depth == 0:
            return n + 1
    return len(text)
