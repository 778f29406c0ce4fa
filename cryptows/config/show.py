"""The effective settings as TOML, each with where it came from; secrets are masked.

What is printed loads again to the same settings, apart from a masked secret, which `load` refuses
by name. tomli-w writes the values; it knows no comments, so the lines are put together here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import attrs
import tomli_w

from cryptows.config import event_types
from cryptows.config.channels import rules_of
from cryptows.config.declared import CHANNEL_RULES, SETTINGS, TYPE_RULES
from cryptows.config.load import Loaded
from cryptows.config.values import MASK

COMMENT_COLUMN = 44  # where the origin begins, unless the value is longer
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


@attrs.frozen
class Row:
    """One effective setting."""

    table: tuple[str, ...]  # ("channels", "market_data")
    name: str  # within the table; may be dotted: "history.events"
    value: Any  # as in TOML, durations and sizes with their unit
    origin: str

    @property
    def key(self) -> str:
        """The key as people write it."""
        return ".".join((*self.table, self.name))


def rows(loaded: Loaded) -> Iterator[Row]:
    """Return every effective setting, in the order of the config file."""
    settings, origins = loaded.settings, loaded.origins
    for key, declared in SETTINGS.items():
        value = getattr(getattr(settings, declared.section), declared.name)
        shown = MASK if declared.secret and value else declared.to_toml(value)
        yield Row((declared.section,), declared.name, shown, origins[key])
    for channel in settings.channels.classes:
        table: tuple[str, ...] = ("channels", channel.name)
        for rule, value in rules_of(channel).items():
            origin = origins[".".join((*table, rule))]
            yield Row(table, rule, CHANNEL_RULES[rule].to_toml(value), origin)
    for kind in settings.types.values():
        table = ("types", kind.name)
        for rule, value in event_types.rules_of(kind).items():
            origin = origins[".".join((*table, rule))]
            yield Row(table, rule, TYPE_RULES[rule].to_toml(value), origin)
        fields = (*table, "fields")
        for name, field in kind.fields.items():
            yield Row(
                fields, name, event_types.field_to_toml(field), origins[".".join((*fields, name))]
            )


def show(loaded: Loaded) -> str:
    """Return the effective settings as TOML, with the origin of each behind it."""
    lines: list[str] = []
    table: tuple[str, ...] = ()
    for row in rows(loaded):
        if row.table != table:
            table = row.table
            lines += ["", header(table)]
        name = row.name if table[-1] != "fields" else toml_key(row.name)
        line = f"{name} = {toml_value(row.value)}"
        lines.append(f"{line:<{COMMENT_COLUMN}}  # {row.origin}")
    return "\n".join(lines[1:]) + "\n"


def header(table: Iterable[str]) -> str:
    """Return the line that opens a table."""
    return f"[{'.'.join(toml_key(part) for part in table)}]"


def toml_key(name: str) -> str:
    """Return a key, in quotes where TOML wants them."""
    return name if BARE_KEY.fullmatch(name) else toml_value(name)


def toml_value(value: Any) -> str:
    """Return a value as TOML on one line."""
    if isinstance(value, list):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{toml_key(k)} = {toml_value(v)}' for k, v in value.items())}}}"
    return tomli_w.dumps({"v": value}).removeprefix("v = ").removesuffix("\n")
