"""What can be set, as a table: one `Declared` for each key of the config.

The sections come from the classes in `settings.py`; the keys of a channel and of an event type,
which exist once for each of them, are declared here. Reading, error messages, `config show` and
the commented config file all go by this table, so they cannot disagree.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any, Literal

import attrs

from cryptows.config.settings import DAY, GIB, Settings
from cryptows.config.units import format_duration, format_size
from cryptows.model.channel import Access, ChannelClass, History, Lane
from cryptows.model.event import UserField

Kind = Literal[
    "text", "path", "integer", "boolean", "duration", "size", "mode",
    "network", "address", "origin",
]  # fmt: skip
REQUIRED: Any = object()  # the default of a key that must be given


@attrs.frozen
class Declared:
    """One key: what it may hold and why it exists."""

    key: str
    kind: Kind
    default: Any
    doc: str
    many: bool = False
    min: float | None = None
    max: float | None = None
    choices: tuple[str, ...] = ()
    secret: bool = False
    live: bool = False

    @property
    def section(self) -> str:
        """The table the key stands in."""
        return self.key.rpartition(".")[0]

    @property
    def name(self) -> str:
        """The key without its table."""
        return self.key.rpartition(".")[2]

    def to_toml(self, value: Any) -> Any:
        """Return what stands in a TOML file for this value."""
        if self.many:
            items = sorted(value) if isinstance(value, frozenset) else value
            return [self._one_to_toml(item) for item in items]
        return self._one_to_toml(value)

    def _one_to_toml(self, value: Any) -> Any:
        match self.kind:
            case "duration":
                return format_duration(value)
            case "size":
                return format_size(value)
            case "mode":
                return f"{value:04o}"
            case "integer" | "boolean":
                return value
            case _:
                return str(value)


PLAIN: dict[Any, Kind] = {bool: "boolean", int: "integer", str: "text"}
LISTS: dict[str, Kind] = {"addresses": "address", "networks": "network", "origins": "origin"}


def _declare(section: str) -> list[Declared]:
    cls: Any = type(attrs.fields_dict(Settings)[section].default)
    hints = typing.get_type_hints(cls)
    found: list[Declared] = []
    for field in attrs.fields(cls):
        meta = dict(field.metadata)
        kind: Any = meta.pop("kind")
        hint = hints[field.name]
        many = typing.get_origin(hint) is tuple
        item = typing.get_args(hint)[0] if many else hint
        kind = PLAIN[item] if kind == "plain" else LISTS.get(kind, kind)
        found.append(Declared(f"{section}.{field.name}", kind, field.default, many=many, **meta))
    return found


# The tables whose keys are fixed, in the order in which they are shown.
SECTIONS = tuple(f.name for f in attrs.fields(Settings) if f.name not in ("channels", "types"))
SETTINGS: dict[str, Declared] = {d.key: d for section in SECTIONS for d in _declare(section)}

_rule = attrs.fields_dict(ChannelClass)
_history = attrs.fields_dict(History)
CHANNEL_RULES: dict[str, Declared] = {
    d.key: d
    for d in (
        Declared(
            "access", "text", REQUIRED, "who may subscribe; user: the one named by {id}",
            choices=tuple(Access), live=True,
        ),
        Declared(
            "lane", "text", str(Lane.PRIVATE), choices=tuple(Lane),
            doc="private: nothing is skipped; market: the newest of a symbol replaces the older",
        ),
        Declared(
            "types", "text", (), "event types that may be sent here", many=True, live=True,
        ),
        Declared(
            "throttle", "duration", _rule["throttle"].default, min=0, max=3600, live=True,
            doc="least time between two events of one symbol, lane market only; 0: all pass",
        ),
        Declared(
            "keep_extremes", "boolean", True, live=True,
            doc="whether the event that passes tells high, low and volume of those throttled",
        ),
        Declared(
            "history.events", "integer", _history["events"].default, min=0, max=10_000_000,
            doc="events kept for history and recovery, 0: none", live=True,
        ),
        Declared(
            "history.bytes", "size", _history["bytes"].default, min=0, max=GIB,
            doc="bytes of them kept", live=True,
        ),
        Declared(
            "history.age", "duration", _history["age"].default, min=0, max=30 * DAY,
            doc="how long they are kept", live=True,
        ),
        Declared(
            "snapshot", "boolean", False, live=True,
            doc="whether a subscriber first gets the last value of each symbol",
        ),
        Declared(
            "durable", "boolean", False,
            doc="whether events go to disk and outlive the daemon; lane private only",
        ),
        Declared(
            "symbols", "boolean", False, live=True,
            doc="whether channel:SYMBOL and globs such as channel:BTC* may be subscribed",
        ),
        Declared(
            "max_age", "duration", 0.0, min=0, max=7 * DAY, live=True,
            doc="silence after which subscribers are told that a symbol is stale; 0: never",
        ),
    )
}  # fmt: skip
TYPE_RULES: dict[str, Declared] = {
    d.key: d
    for d in (
        Declared(
            "channels", "text", REQUIRED, "where events of this type go", many=True, live=True,
        ),
        Declared(
            "user", "text", str(UserField.NONE), "whether an event names a user",
            choices=tuple(UserField), live=True,
        ),
        Declared(
            "user_channels", "text", (), many=True, live=True,
            doc="where events that name a user go instead; only with user = \"optional\"",
        ),
    )
}  # fmt: skip


def with_defaults(rules: Mapping[str, Declared], values: Mapping[str, Any]) -> dict[str, Declared]:
    """Return the rules of one channel or event type, which has these values from the start."""
    return {key: attrs.evolve(rule, default=_default(values[key])) for key, rule in rules.items()}


def _default(value: Any) -> Any:
    return tuple(sorted(value)) if isinstance(value, frozenset) else value
