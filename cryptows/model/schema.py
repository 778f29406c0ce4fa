"""Schemas: what the `data` of an event type may hold, checked at the price of one decode.

Almost every event is fine, so the fields of a type are compiled to a msgspec struct whose decoder
says yes or no in C. Only when it says no are the fields gone through one by one, by the same rules,
to find out what is wrong or that nothing is: a number as a decimal string, `"BUY"` written `"bUy"`.
The careful way decides; the fast ones may only accept what it accepts.

Values are read for checking and never written back: clients get the producer's bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, Protocol, cast

import msgspec

from cryptows.model.channel import MAX_SYMBOL
from cryptows.model.errors import BadEvent
from cryptows.model.event import EventType, Field, FieldKind
from cryptows.model.types import ABOVE_ZERO

MAX_SHOWN = 40  # characters of a bad value that an error message repeats
MAX_EXACT = (1 << 53) - 1  # what JavaScript, and so every browser, holds as an exact integer
KNOWN_SYMBOLS = 16_384  # symbols whose check is remembered; beyond it the memory starts anew

DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?", re.ASCII)
SYMBOL = re.compile(rf"[^\s*?\[,]{{1,{MAX_SYMBOL}}}")
# How strings begin that a lenient decoder takes for a number or for null, and we do not.
NOT_DECIMAL = re.compile(rb':\s*"[+-]?(?:inf|nan|nul)', re.IGNORECASE)
NAMES = {
    FieldKind.NUMBER: "a number",
    FieldKind.INTEGER: "an integer",
    FieldKind.STRING: "a string",
    FieldKind.BOOLEAN: "true or false",
    FieldKind.OBJECT: "an object",
    FieldKind.ARRAY: "an array",
}


class Data(Protocol):
    """What the daemon itself needs of an event's `data`, whatever its type."""

    symbol: str | None
    price: float | None
    volume: float | None
    size: float | None


class _AnyObject(msgspec.Struct):
    """Accepts every object and keeps nothing."""


class _AnyArray(msgspec.Struct, array_like=True):
    """Accepts every array and keeps nothing."""


_fields_of = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_NUMERIC = (FieldKind.NUMBER, FieldKind.INTEGER)
# Read of every type, declared or not: the symbol names the stream, the numbers make extremes.
_ALWAYS = {
    "symbol": Field(FieldKind.STRING),
    "price": Field(FieldKind.NUMBER),
    "volume": Field(FieldKind.NUMBER),
    "size": Field(FieldKind.NUMBER),
}


class Schema:
    """The compiled check of one event type."""

    def __init__(self, kind: EventType) -> None:
        self._fields = dict(kind.fields)
        fields = _ALWAYS | self._fields
        # A config may give one of the four another meaning; the daemon then has no use for it.
        self._read = {name for name, field in _ALWAYS.items() if _is_like(fields[name], field)}
        self._type = _struct(fields, self._read)
        self._strict: Callable[[bytes], Data] = msgspec.json.Decoder(self._type).decode
        # The lenient decoder also takes 1 for true, so it is left out where that matters.
        self._lenient: Callable[[bytes], Data] | None = None
        if all(field.kind is not FieldKind.BOOLEAN for field in fields.values()):
            self._lenient = msgspec.json.Decoder(self._type, strict=False).decode
        self._symbols: set[str] = set()

    def read(self, data: bytes) -> Data:
        """Check `data`, a JSON object that parses; raise BadEvent with what is wrong."""
        try:
            found = self._strict(data)
        except (msgspec.DecodeError, ValueError):
            found = self._second_look(data)
        symbol = found.symbol
        if symbol is not None and symbol not in self._symbols:
            self._remember(symbol)
        return found

    def _second_look(self, data: bytes) -> Data:
        # An escape could spell out such a string too.
        if self._lenient and b"\\" not in data and not NOT_DECIMAL.search(data):
            try:
                return self._lenient(data)
            except (msgspec.DecodeError, ValueError):
                pass
        return self.read_carefully(data)

    def read_carefully(self, data: bytes) -> Data:
        """Check field by field: what `read` falls back to, and what it must agree with."""
        fields = {name: bytes(raw) for name, raw in _fields_of(data).items()}
        for name, field in self._fields.items():
            if name in fields:
                _check(f"data.{name}", field, fields[name])
        found: dict[str, Any] = {}
        for name in self._read & fields.keys():
            if name == "symbol":
                _check("data.symbol", _ALWAYS[name], fields[name])
            found[name] = _value(_ALWAYS[name].kind, fields[name])
        return cast("Data", self._type(**found))

    def _remember(self, symbol: str) -> None:
        check_symbol(symbol)
        if len(self._symbols) >= KNOWN_SYMBOLS:
            self._symbols.clear()
        self._symbols.add(symbol)


def check_symbol(symbol: str, where: str = "data.symbol") -> None:
    """Raise BadEvent unless the symbol can be subscribed to: no wildcard, comma or blank in it."""
    if not SYMBOL.fullmatch(symbol) or not symbol.isprintable():
        expected = f"1 to {MAX_SYMBOL} printable characters without blanks, *, ?, [ or commas"
        raise bad_value(where, expected, msgspec.json.encode(symbol))


def bad_value(where: str, expected: str, raw: bytes) -> BadEvent:
    """Return the error that names a field, what is expected and the JSON text that was found."""
    return BadEvent("invalid_event", f"{where}: expected {expected}, got {shown(raw)}")


def shown(raw: bytes) -> str:
    """Return a JSON value as an error message repeats it: on one line, and shortened."""
    text = " ".join(raw[: 4 * MAX_SHOWN].decode(errors="replace").split())
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def expectation(field: Field) -> str:
    """Return what a field may hold, in words."""
    name = NAMES[field.kind]
    if field.kind not in _NUMERIC:
        return "one of " + ", ".join(field.choices) if field.choices else name
    low, high = _bounds(field)
    if low == ABOVE_ZERO:
        return f"{name} above 0" + ("" if high is None else f", at most {high:.16g}")
    if low is not None and high is not None:
        return f"{name} from {low:.16g} to {high:.16g}"
    if low is not None:
        return f"{name}, at least {low:.16g}"
    return name if high is None else f"{name}, at most {high:.16g}"


def _check(where: str, field: Field, raw: bytes) -> None:
    """Raise BadEvent unless the JSON value fits the field."""
    if raw == b"null":
        return
    value = _value(field.kind, raw)
    if value is None:
        raise bad_value(where, NAMES[field.kind], raw)
    if not _is_allowed(field, value):
        raise bad_value(where, expectation(field), raw)


def _value(kind: FieldKind, raw: bytes) -> Any:
    """Return what a JSON value of that kind holds, None if it is of another kind."""
    match kind:
        case FieldKind.NUMBER:
            return _decimal(raw)
        case FieldKind.INTEGER:
            value = _decimal(raw)
            return value if value is not None and value.is_integer() else None
        case FieldKind.STRING:
            return msgspec.json.decode(raw) if raw[:1] == b'"' else None
        case FieldKind.BOOLEAN:
            return {b"true": True, b"false": False}.get(raw)
        case FieldKind.OBJECT:
            return {} if raw[:1] == b"{" else None
        case FieldKind.ARRAY:
            return [] if raw[:1] == b"[" else None


def _is_allowed(field: Field, value: Any) -> bool:
    if field.kind in _NUMERIC:
        low, high = _bounds(field)
        return (low is None or value >= low) and (high is None or value <= high)
    if field.kind is FieldKind.STRING and field.choices:
        return value.casefold() in {choice.casefold() for choice in field.choices}
    return True


def _bounds(field: Field) -> tuple[float | None, float | None]:
    """Return the least and the greatest number; integers are held to what is exact everywhere."""
    if field.kind is FieldKind.NUMBER:
        return field.min, field.max
    low = -MAX_EXACT if field.min is None else max(math.ceil(field.min), -MAX_EXACT)
    high = MAX_EXACT if field.max is None else min(math.floor(field.max), MAX_EXACT)
    return low, high


def _decimal(raw: bytes) -> float | None:
    """Return the number that a JSON number or a decimal string holds, if it is a finite one."""
    text = raw.decode()
    if text[0] == '"':
        text = msgspec.json.decode(raw)
        if not DECIMAL.fullmatch(text):
            return None
    elif text[0] not in "-0123456789":
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def _is_like(field: Field, known: Field) -> bool:
    return field.kind is known.kind or {field.kind, known.kind} == set(_NUMERIC)


def _struct(fields: dict[str, Field], named: set[str]) -> Any:
    """Make the struct that accepts these fields; only `named` ones can be asked for."""
    columns = [
        # Names in JSON may be anything ("24hHigh", "class"), those of attributes may not.
        (
            name if name in named else f"f{i}",
            _type_of(field),
            msgspec.field(default=None, name=name),
        )
        for i, (name, field) in enumerate(fields.items())
    ]
    absent = dict.fromkeys(_ALWAYS.keys() - named)
    return msgspec.defstruct("Data", columns, namespace=absent, gc=False)


def _type_of(field: Field) -> Any:
    """Return the type that msgspec checks a field by."""
    match field.kind:
        case FieldKind.NUMBER | FieldKind.INTEGER:
            kind = float if field.kind is FieldKind.NUMBER else int
            names = ("ge", "le")
            limits: Any = {
                n: kind(v) for n, v in zip(names, _bounds(field), strict=True) if v is not None
            }
            return Annotated[kind, msgspec.Meta(**limits)] | None
        case FieldKind.STRING if field.choices:
            # The usual ways to write a word; others are left to the careful way.
            ways = (str, str.lower, str.upper, str.capitalize)
            return (
                Literal[tuple(dict.fromkeys(way(c) for c in field.choices for way in ways))] | None
            )
        case FieldKind.STRING:
            return str | None
        case FieldKind.BOOLEAN:
            return bool | None
        case FieldKind.OBJECT:
            return _AnyObject | None
        case FieldKind.ARRAY:
            return _AnyArray | None
