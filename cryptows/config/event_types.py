"""Event types in the config: `[types.NAME]` changes a type of the seed or adds one.

A field given in `[types.NAME.fields]` takes the place of the seed's field of that name whole, so
that no bound of the old one survives unseen; the other fields stay.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import attrs

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
FIELD_KEYS = ("type", "min", "max", "choices")
KINDS = tuple(str(kind) for kind in FieldKind)

Rules = Mapping[str, Any]
Place = Callable[[str, str], str]


class WrongField(ValueError):
    """A field of a schema that cannot be used; the text says why."""


def read_field(raw: Any) -> Field:
    """Return a field of a schema: `"number"` or `{type = "number", min = 0}`."""
    table = {"type": raw} if isinstance(raw, str) else raw
    kinds = " or ".join(json.dumps(kind) for kind in KINDS)
    if not isinstance(table, dict) or table.get("type") not in KINDS:
        raise WrongField(f"expected {{type = …}} with type {kinds}")
    for key in table:
        if key not in FIELD_KEYS:
            raise WrongField(f'"{key}" is unknown; expected {", ".join(FIELD_KEYS)}')
    kind = FieldKind(table["type"])
    low, high = _bound(table, kind, "min"), _bound(table, kind, "max")
    if low is not None and high is not None and low > high:
        raise WrongField(f"min {low} is above max {high}")
    return Field(kind, low, high, _choices(table, kind))


def field_to_toml(field: Field) -> dict[str, Any]:
    """Return what stands in a TOML file for a field."""
    table: dict[str, Any] = {"type": str(field.kind)}
    for key in ("min", "max"):
        bound = getattr(field, key)
        if bound is not None:
            table[key] = bound
    if field.choices:
        table["choices"] = list(field.choices)
    return table


def merge_types(
    given: Mapping[str, Rules],
    fields: Mapping[str, Mapping[str, Field]],
    channels: Iterable[str],
    place: Place,
) -> tuple[dict[str, EventType], list[str]]:
    """Return the types of the seed with what the config says of them, and what is wrong."""
    merged = dict(SEED_TYPES)
    problems: list[str] = []
    for name in dict.fromkeys((*given, *fields)):
        rules = given.get(name, {})
        kind = merged.get(name)
        if kind is None:
            wrong = _wrong_name(name)
            if wrong or "channels" not in rules:
                missing = f"types.{name}.channels is missing; expected a list of channels"
                problems.append(f"{place(name, '')}: {wrong or missing}")
                continue
            kind = EventType(name, ())
        merged[name] = apply_rules(kind, rules, fields.get(name, {}))
    known = set(channels)
    for kind in merged.values():
        for rule, problem in _contradictions(kind, known):
            problems.append(f"{place(kind.name, rule)}: types.{kind.name}.{rule}{problem}")
    return merged, problems


def apply_rules(kind: EventType, rules: Rules, fields: Mapping[str, Field]) -> EventType:
    """Return the type with some of its rules and fields replaced."""
    values = dict(rules)
    if "user" in values:
        values["user"] = UserField(values["user"])
    if "user_channels" in values:
        values["user_channels"] = values["user_channels"] or None
    return attrs.evolve(kind, fields={**kind.fields, **fields}, **values)


def _contradictions(kind: EventType, known: set[str]) -> Iterator[tuple[str, str]]:
    for rule, channels in (
        ("channels", kind.channels),
        ("user_channels", kind.user_channels or ()),
    ):
        for channel in channels:
            if channel not in known:
                yield rule, f' has "{channel}"; expected channels of this config'
    if kind.user is not UserField.REQUIRED:
        for channel in kind.channels:
            if "{id}" in channel:
                yield "channels", f' has "{channel}"; expected no {{id}} unless user = "required"'
    if kind.user_channels and kind.user is not UserField.OPTIONAL:
        yield "user_channels", f' is set; expected only with user = "{UserField.OPTIONAL}"'


def _wrong_name(name: str) -> str | None:
    if name in RESERVED:
        return f'event type "{name}" is a message of the daemon itself; expected another name'
    if not NAME.fullmatch(name) or len(name) > MAX_TYPE_NAME:
        return (
            f'event type "{name}" is no name; a name is letters, digits, "-", "_" and "." '
            f"up to {MAX_TYPE_NAME} characters"
        )
    return None


def _bound(table: Mapping[str, Any], kind: FieldKind, key: str) -> float | None:
    bound = table.get(key)
    if bound is None:
        return None
    if kind not in (FieldKind.NUMBER, FieldKind.INTEGER):
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
