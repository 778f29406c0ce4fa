"""What the layers give, read and checked one by one; of several values for a key the last wins.

Every value is checked, also one that a later layer overrides: it is wrong where it stands.
"""

from __future__ import annotations

import difflib
import posixpath
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from cryptows.config import event_types
from cryptows.config.channels import SEED_CHANNELS, rules_of
from cryptows.config.declared import (
    CHANNEL_RULES,
    SECTIONS,
    SETTINGS,
    TYPE_RULES,
    Declared,
    with_defaults,
)
from cryptows.config.layers import Assignment, Path, environment_form
from cryptows.config.values import MASK, Unfit, read_text, read_value, shown
from cryptows.model.event import Field
from cryptows.model.types import SEED_TYPES

NAMED = {"channels": CHANNEL_RULES, "types": TYPE_RULES}  # sections with a table for each name
SECRETIVE = {declared.section for declared in SETTINGS.values() if declared.secret}
# The same for each channel and type that is there from the start, with its own defaults.
SEED_CHANNEL_RULES = {
    channel.name: with_defaults(CHANNEL_RULES, rules_of(channel)) for channel in SEED_CHANNELS
}
SEED_TYPE_RULES = {
    name: with_defaults(TYPE_RULES, event_types.rules_of(kind)) for name, kind in SEED_TYPES.items()
}


@attrs.define
class Given:
    """All values that are not defaults, and what is wrong with the others."""

    folder: str = ""  # of the main file: relative paths in files start there
    values: dict[str, Any] = attrs.field(factory=dict)
    channels: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    types: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    fields: dict[str, dict[str, Field]] = attrs.field(factory=dict)
    origins: dict[str, str] = attrs.field(factory=dict)
    layers: dict[str, int] = attrs.field(factory=dict)
    problems: list[str] = attrs.field(factory=list)
    # Channels and types with a wrong value: what else seems wrong with them may follow from it.
    broken: set[str] = attrs.field(factory=set)
    _unknown_sections: set[tuple[int, str]] = attrs.field(factory=set)

    def take(self, assignment: Assignment) -> None:
        """Read one assignment, or note what is wrong with it."""
        path = assignment.path
        match path:
            case ("channels" | "types", name) if assignment.value == {}:
                (self.channels if path[0] == "channels" else self.types).setdefault(name, {})
                self._note(assignment, "")
            case ("channels", name, *rule) if rule:
                key = "history.events" if rule == ["history"] else ".".join(rule)
                rules = SEED_CHANNEL_RULES.get(name, CHANNEL_RULES)
                self._take_rule(assignment, rules, key, self.channels.setdefault(name, {}))
            case ("types", name, "fields", field):
                self._take_field(assignment, self.fields.setdefault(name, {}), field)
            case ("types", name, *rule) if rule:
                rules = SEED_TYPE_RULES.get(name, TYPE_RULES)
                self._take_rule(assignment, rules, ".".join(rule), self.types.setdefault(name, {}))
            case _:
                self._take_rule(assignment, SETTINGS, assignment.key, self.values)

    def choose(self, one: str, other: str) -> list[str]:
        """Keep that of two exclusive settings which the stronger layer gives; return warnings."""
        if not self.values.get(one) or not self.values.get(other):
            return []
        if self.layers[one] == self.layers[other]:
            place = self.origins[other]
            self.problems.append(f"{place}: {other} and {one} are both set; expected one of them")
            return []
        lost, kept = (one, other) if self.layers[one] < self.layers[other] else (other, one)
        warning = f"{self.origins[lost]}: {lost} is not used: {self.origins[kept]} sets {kept}"
        del self.values[lost], self.origins[lost]
        return [warning]

    def place(self, section: str, name: str, rule: str) -> str:
        """Return where a rule of a channel or type stands, or at least the table."""
        key = f"{section}.{name}"
        return self.origins.get(f"{key}.{rule}", self.origins.get(key, "default"))

    def _take_rule(
        self, assignment: Assignment, rules: Mapping[str, Declared], rule: str, into: dict[str, Any]
    ) -> None:
        declared = rules.get(rule)
        if declared is None:
            self._refuse_unknown(assignment)
            return
        try:
            into[rule] = self._read(declared, assignment)
        except Unfit as unfit:
            found = shown(declared, assignment.value)
            self._refuse(assignment, f"{assignment.key} is {found}; expected {unfit}")
            return
        self._note(assignment, rule)

    def _read(self, declared: Declared, assignment: Assignment) -> Any:
        if not assignment.text:
            return self._from_folder(declared, read_value(declared, assignment.value))
        if assignment.raw and not declared.many:
            return read_value(declared, assignment.value)
        return read_text(declared, assignment.value)

    def _from_folder(self, declared: Declared, value: Any) -> Any:
        if declared.kind != "path" or not value or value.startswith("credential:"):
            return value
        return posixpath.join(self.folder, value)

    def _take_field(self, assignment: Assignment, into: dict[str, Field], field: str) -> None:
        try:
            into[field] = event_types.read_field(assignment.value)
        except event_types.WrongField as wrong:
            found = shown(None, assignment.value)
            self._refuse(assignment, f"{assignment.key} is {found}; {wrong}")
            return
        self._note(assignment, f"fields.{field}")

    def _note(self, assignment: Assignment, rule: str) -> None:
        key = assignment.key
        if assignment.path[0] in NAMED:
            table = ".".join(assignment.path[:2])
            self.origins.setdefault(table, assignment.place)
            key = f"{table}.{rule}"
        self.origins[key] = assignment.place
        self.layers[key] = assignment.layer

    def _refuse(self, assignment: Assignment, problem: str) -> None:
        self.problems.append(f"{assignment.place}: {problem}")
        if assignment.path[0] in NAMED:
            self.broken.add(".".join(assignment.path[:2]))

    def _refuse_unknown(self, assignment: Assignment) -> None:
        path, section = assignment.path, assignment.path[0]
        tables = [*SECTIONS, *NAMED]
        is_table = section in tables and len(path) == 1
        is_table = is_table or (section in NAMED and len(path) == 2)
        if is_table or (section == "types" and path[2:] == ("fields",)):
            key, value = assignment.key, assignment.value
            if isinstance(value, list):
                found = "a list"
            else:  # a secret may stand here in place of the table that it belongs into
                found = MASK if section in SECRETIVE else shown(None, value)
            self._refuse(assignment, f"{key} is {found}; expected a table ({key}.KEY = VALUE)")
        elif section not in tables and len(path) > 1:
            if (assignment.layer, section) not in self._unknown_sections:  # one line for all keys
                self._unknown_sections.add((assignment.layer, section))
                guess = _guess(section, tables) or _guess(assignment.key, SETTINGS)
                self._refuse(assignment, f"unknown section {section}{guess}")
        else:
            self._refuse(assignment, f"unknown setting {assignment.key}{_guess_key(path)}")


class Names:
    """Turns the parts of a CRYPTOWS_ variable into a key: variables know no small letters."""

    def __init__(self, assignments: Iterable[Assignment]) -> None:
        known = [("channels", channel.name) for channel in SEED_CHANNELS]
        known += [("types", name) for name in SEED_TYPES]
        known += [(a.path[0], a.path[1]) for a in assignments if len(a.path) > 1]
        self._names = {(s, environment_form(name)): name for s, name in known if s in NAMED}

    def __call__(self, parts: Path) -> Path:
        """Return the path of a key, with the name of its channel or type as it is known."""
        section, *rest = (part.lower() for part in parts)
        if section in NAMED and rest:
            rest[0] = self._names.get((section, environment_form(rest[0])), rest[0])
        return (section, *rest)


def _guess_key(path: Path) -> str:
    key = ".".join(path)
    if path[0] in NAMED:
        return _guess(key, [".".join((*path[:2], rule)) for rule in NAMED[path[0]]])
    same = [k for k in SETTINGS if k.rpartition(".")[2] == path[-1]]  # right key, wrong section
    return _guess(key, SETTINGS) or (f"; did you mean {same[0]}?" if same else "")


def _guess(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else ""
