"""One value: from what stands in a TOML file, a variable or a flag to what the daemon works with.

Files have types, so a number in quotes is refused there. Variables and flags are text: it is taken
as TOML if that gives what the key wants, else as a plain string, so that `--set log.level=debug`
and `--set 'log.level="debug"'` are the same, and a list may be written `a,b`.
"""

from __future__ import annotations

import ipaddress
import json
import re
import tomllib
from collections.abc import Callable, Iterable
from typing import Any

from cryptows.config.declared import REQUIRED, Declared
from cryptows.config.units import format_duration, format_size, parse_duration, parse_size

MASK = "***"
MAX_SHOWN = 60  # characters of a wrong value in an error message
# sockaddr_un.sun_path has 108 bytes, one of them for the end.
MAX_SOCKET_PATH = 107
HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})", re.ASCII)
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s,]+", re.ASCII)
MODE = re.compile(r"(?:0o)?[0-7]{3,4}", re.ASCII)


class Unfit(ValueError):
    """A value that a key cannot take; the text says what it could."""


def read_value(declared: Declared, raw: Any) -> Any:
    """Return the value of a key from what TOML gave; raises Unfit."""
    if not declared.many:
        return _read_one(declared, raw)
    items = [raw] if isinstance(raw, str) else raw
    if not isinstance(items, list) or len(items) < (declared.min or 0):
        raise Unfit(expected(declared))
    return tuple(_read_one(declared, item) for item in items)


def read_text(declared: Declared, text: str) -> Any:
    """Return the value of a key from a variable or a flag; raises Unfit."""
    try:
        return read_value(declared, parse_toml_value(text))
    except ValueError:
        pass
    if not declared.many:
        return read_value(declared, text)
    return read_value(declared, [part.strip() for part in text.split(",") if part.strip()])


def parse_toml_value(text: str) -> Any:
    """Return what TOML makes of the text as a value; raises ValueError if nothing."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except RecursionError:
        raise ValueError("nested too deep") from None
    if len(parsed) != 1:  # the text held a line break and further keys
        raise ValueError("more than one value")
    return parsed["value"]


def shown(declared: Declared | None, raw: Any) -> str:
    """Return a wrong value as error messages quote it: short, and never a secret."""
    if declared is not None and declared.secret:
        return MASK
    text = json.dumps(raw, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def expected(declared: Declared) -> str:
    """Return what a key may hold, and its default: `4KiB to 64MiB (default 1MiB)`."""
    what = _expected_one(declared)
    if declared.many:
        what = f"a list of {what}" + (", at least one" if declared.min else "")
    if declared.default is REQUIRED or declared.default in ("", ()):
        return what
    return f"{what} (default {default_text(declared)})"


def one_of(choices: Iterable[str]) -> str:
    """Return choices as messages name them: `"a", "b" or "c"`."""
    *others, last = (json.dumps(str(choice)) for choice in choices)
    return f"{', '.join(others)} or {last}"


def default_text(declared: Declared) -> str:
    """Return the default as messages and the README show it."""
    value = declared.to_toml(declared.default)
    if declared.kind in ("duration", "size", "mode") or not isinstance(value, str | list | bool):
        return str(value)
    return json.dumps(value)


def _expected_one(declared: Declared) -> str:
    if declared.choices:
        return one_of(declared.choices)
    match declared.kind:
        case "duration" | "size" | "integer":
            write = WRITERS[declared.kind]
            return f"{write(declared.min)} to {write(declared.max)}"
        case "boolean":
            return "true or false"
        case "mode":
            return 'octal permissions in quotes such as "0660"'
        case "network":
            return 'networks such as "10.0.0.0/8"'
        case "address":
            return '"host:port" or "unix:PATH"'
        case "origin":
            return 'origins such as "https://example.com" or "*"'
        case kind:
            return "a path" if kind == "path" else "text"


def _read_one(declared: Declared, raw: Any) -> Any:
    try:
        value = READERS[declared.kind](declared, raw)
    except Unfit:
        raise
    except (ValueError, TypeError):
        raise Unfit(expected(declared)) from None
    if declared.choices:
        return _choice(declared, value)
    if not declared.many and isinstance(value, int | float) and not _in_range(declared, value):
        raise Unfit(expected(declared))
    return value


def _in_range(declared: Declared, value: float) -> bool:
    low, high = declared.min, declared.max
    return (low is None or low <= value) and (high is None or value <= high)


def _choice(declared: Declared, value: str) -> str:
    for choice in declared.choices:
        if str(choice).casefold() == value.casefold():
            return str(choice)
    raise Unfit(expected(declared))


def _read_text(declared: Declared, raw: Any) -> str:
    if declared.many and isinstance(raw, int) and not isinstance(raw, bool):
        return str(raw)  # a uid in feed.allow_users
    if not isinstance(raw, str) or "\0" in raw:
        raise TypeError
    if declared.many and not raw:
        raise ValueError
    return raw


def _read_path(declared: Declared, raw: Any) -> str:
    path = _read_text(declared, raw)
    if not path and declared.default:
        raise ValueError
    return path


def _read_integer(declared: Declared, raw: Any) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool):
        raise TypeError
    return raw


def _read_boolean(declared: Declared, raw: Any) -> bool:
    if not isinstance(raw, bool):
        raise TypeError
    return raw


def _read_duration(declared: Declared, raw: Any) -> float:
    return parse_duration(_quantity(raw))


def _read_size(declared: Declared, raw: Any) -> int:
    return parse_size(_quantity(raw))


def _quantity(raw: Any) -> str | float:
    if isinstance(raw, bool) or not isinstance(raw, str | int | float):
        raise TypeError
    return raw


def _read_mode(declared: Declared, raw: Any) -> int:
    # A bare number is refused: `mode = 660` is meant octal and is not.
    if not isinstance(raw, str) or not MODE.fullmatch(raw) or int(raw, 8) > 0o777:
        raise ValueError
    return int(raw, 8)


def _read_network(declared: Declared, raw: Any) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    if not isinstance(raw, str):
        raise TypeError
    network = ipaddress.ip_network(raw, strict=False)
    if "/" in raw and str(network.network_address) != str(ipaddress.ip_interface(raw).ip):
        raise Unfit(f"a network without host bits, such as {json.dumps(str(network))}")
    return network


def _read_address(declared: Declared, raw: Any) -> str:
    address = _read_text(declared, raw)
    if address.startswith("unix:"):
        if not 0 < len(address.encode()) - len("unix:") <= MAX_SOCKET_PATH:
            raise Unfit(f'"unix:PATH" with a path of 1 to {MAX_SOCKET_PATH} bytes')
        return address
    match = HOST_AND_PORT.fullmatch(address)
    if match is None or int(match[2]) > 65535:
        raise ValueError
    if match[1].startswith("["):
        ipaddress.IPv6Address(match[1][1:-1])
    return address


def _read_origin(declared: Declared, raw: Any) -> str:
    # Browsers send origins in lower case and without a slash; people paste them with one.
    origin = _read_text(declared, raw).lower().removesuffix("/")
    if origin not in ("*", "null") and not ORIGIN.fullmatch(origin):
        raise ValueError
    return origin


WRITERS: dict[str, Callable[[Any], str]] = {
    "duration": format_duration,
    "size": format_size,
    "integer": str,
}
READERS: dict[str, Callable[[Declared, Any], Any]] = {
    "text": _read_text,
    "path": _read_path,
    "integer": _read_integer,
    "boolean": _read_boolean,
    "duration": _read_duration,
    "size": _read_size,
    "mode": _read_mode,
    "network": _read_network,
    "address": _read_address,
    "origin": _read_origin,
}
