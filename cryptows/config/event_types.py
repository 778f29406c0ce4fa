"""Event types in the config: `[types.NAME]` changes a type of the seed or adds one.

A field given in `[types.NAME.fields]` takes the place of the seed's field of that name whole, so
that no bound of the old one survives unseen; the other fields stay.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import attrs

from cryptows.config.declared import TYPE_RULES
from cryptows.config.values import one_of
from cryptows.model.channel import NAME
from cryptows.model.event import EventType, Field, FieldKind, UserField
from cryptows.model.types import SEED_TYPES

# Messages that the daemon itself sends; an event must not look like one (protocol section 2).
RESERVED = frozenset({
    "ack", "authenticate", "authenticated", "connection", "error", "heartbeat", "history", "list",
    "ping", "pong", "skipped", "subscribe", "subscription_confirmed", "token_expiring",
    "unsubscribe", "unsubscription_confirmed",
})  # fmt: skip
MAX_TYPE_NAME = 64
MAX_FIELD_NAME = 128
FIELD_KEYS = ("type", "min", "above", "max", "choices")
NUMERIC = (FieldKind.NUMBER, FieldKind.INTEGER)
KINDS = tuple(str(kind) for kind in FieldKind)

Rules = Mapping[str, Any]


class GivenTypes(Protocol):
    """What the config says of event types, see `given.py`."""

    types: dict[str, dict[str, Any]]
    fields: dict[str, dict[str, Field]]
    broken: set[str]

    def place(self, section: str, name: str, rule: str) -> str:
        """Return where a rule stands."""


class WrongField(ValueError):
    """A field of a schema that cannot be used; the text says why."""


def read_field(raw: Any) -> Field:
    """Return a field of a schema: `"number"` or `{type = "number", above = 0}`."""
    table = {"type": raw} if isinstance(raw, str) else raw
    if not isinstance(table, dict) or table.get("type") not in KINDS:
        raise WrongField(f"expected {{type = …}} with type {one_of(KINDS)}")
    for key in table:
        if key not in FIELD_KEYS:
            raise WrongField(f'"{key}" is unknown; expected {", ".join(FIELD_KEYS)}')
    kind = FieldKind(table["type"])
    low, high = _bound(table, kind, "min"), _bound(table, kind, "max")
    above = _bound(table, kind, "above")
    if above is not None:
        if low is not None:
            raise WrongField("min and above are both given")
        low = math.nextafter(above, math.inf)
    if low is not None and high is not None and low > high:
        raise WrongField("its least value is greater than its greatest")
    return Field(kind, low, high, _choices(table, kind))


def field_to_toml(field: Field) -> dict[str, Any]:
    """Return what stands in a TOML file for a field."""
    table: dict[str, Any] = {"type": str(field.kind)}
    if field.min is not None:
        # "Greater than zero" is a bound at the least positive number; nobody wants to read that.
        zero = field.min == math.ulp(0.0)
        table |= {"above": 0} if zero else {"min": field.min}
    if field.max is not None:
        table["max"] = field.max
    if field.choices:
        table["choices"] = list(field.choices)
    return table


def merge_types(
    given: GivenTypes, channels: Iterable[str]
) -> tuple[dict[str, EventType], list[str]]:
    """Return the types of the seed with what the config says of them, and what is wrong."""
    merged = dict(SEED_TYPES)
    problems: list[str] = []
    for name in dict.fromkeys((*given.types, *given.fields)):
        rules = given.types.get(name, {})
        kind = merged.get(name)
        if kind is None:
            wrong = _wrong_name(name)
            if wrong is None and "channels" not in rules:
                wrong = f"types.{name}.channels is missing; expected a list of channels"
            if wrong:
                if f"types.{name}" not in given.broken:
                    problems.append(f"{given.place('types', name, '')}: {wrong}")
                continue
            kind = EventType(name, ())
        merged[name] = apply_rules(kind, rules, given.fields.get(name, {}))
    known = set(channels)
    for kind in merged.values():
        found = [*_unknown_channels(kind, known)]
        if f"types.{kind.name}" not in given.broken:
            found += _contradictions(kind)
        problems += (
            f"{given.place('types', kind.name, rule)}: types.{kind.name}.{rule} {text}"
            for rule, text in found
        )
    return merged, problems


def apply_rules(kind: EventType, rules: Rules, fields: Mapping[str, Field]) -> EventType:
    """Return the type with some of its rules and fields replaced."""
    values = dict(rules)
    if "user" in values:
        values["user"] = UserField(values["user"])
    if "user_channels" in values:
        values["user_channels"] = values["user_channels"] or None
    return attrs.evolve(kind, fields={**kind.fields, **fields}, **values)


def rules_of(kind: EventType) -> dict[str, Any]:
    """Return every rule of a type but its fields, by its key in the config."""
    return {rule: getattr(kind, rule) or () for rule in TYPE_RULES}


def _contradictions(kind: EventType) -> Iterator[tuple[str, str]]:
    """Return rules that do not go together: the rule to blame, and the text."""
    if kind.user is not UserField.REQUIRED:
        for channel in kind.channels:
            if "{id}" in channel:
                yield "channels", f'has "{channel}"; expected no {{id}} unless user = "required"'
    if kind.user_channels and kind.user is not UserField.OPTIONAL:
        yield "user_channels", 'is set; expected it only with user = "optional"'


def _unknown_channels(kind: EventType, known: set[str]) -> Iterator[tuple[str, str]]:
    for rule in ("channels", "user_channels"):
        for channel in getattr(kind, rule) or ():
            if channel not in known:
                close = difflib.get_close_matches(channel, known, n=1)
                guess = f"; did you mean {close[0]}?" if close else "; expected channels"
                yield rule, f'has "{channel}", which is no channel{guess}'


def _wrong_name(name: str) -> str | None:
    if name in RESERVED:
        return f'event type "{name}" is a message of the daemon itself; expected another name'
    if not NAME.fullmatch(name) or len(name) > MAX_TYPE_NAME:
        return (
            f"event type {json.dumps(name)} is no name; a name is letters, digits, "
            f'"-", "_" and "." up to {MAX_TYPE_NAME} characters'
        )
    return None


def _bound(table: Mapping[str, Any], kind: FieldKind, key: str) -> float | None:
    bound = table.get(key)
    if bound is None:
        return None
    if kind not in NUMERIC:
        raise WrongField(f'{key} is only for "number" and "integer"')
    if isinstance(bound, bool) or not isinstance(bound, int | float) or not math.isfinite(bound):
        raise WrongField(f"{key} is no number")
    return bound


def _choices(table: Mapping[str, Any], kind: FieldKind) -> tuple[str, ...]:
    choices = table.get("choices", [])
    if choices and kind is not FieldKind.STRING:
        raise WrongField('choices is only for "string"')
    if not isinstance(choices, list) or not all(isinstance(c, str) and c for c in choices):
        raise WrongField("choices is no list of text")
    return tuple(choices)
