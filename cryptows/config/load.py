"""From all layers to one frozen `Settings`, or to all problems at once.

Nothing is opened here: the caller passes a reader for the files and the environment. Every value is
checked, also one that a later layer overrides: it is wrong where it stands. Keys of the tokens are
read elsewhere (`keys.py`), so that `check` runs without access to secrets.
"""

from __future__ import annotations

import difflib
import posixpath
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs

from cryptows.config import channels, event_types
from cryptows.config.checks import cross_check
from cryptows.config.declared import CHANNEL_RULES, SECTIONS, SETTINGS, TYPE_RULES, Declared
from cryptows.config.layers import Assignment, Document, Layers, Path, environment_form
from cryptows.config.settings import Settings
from cryptows.config.values import Unfit, read_text, read_value, shown
from cryptows.model.errors import ConfigError
from cryptows.model.event import Field
from cryptows.model.types import SEED_TYPES

# Given the path of the main file (None: the usual place, if there is one) returns it and its
# drop-ins; raises ConfigError or OSError.
Reader = Callable[[str | None], Sequence[Document]]
FROM_DEFAULT = "default"


@attrs.frozen
class Loaded:
    """The settings, where each came from, and what an operator should know about them."""

    settings: Settings
    origins: dict[str, str]  # dotted key -> "default", "FILE:LINE", "environment NAME", "--set"
    warnings: list[str]
    files: list[str]


def read_nothing(path: str | None) -> Sequence[Document]:
    """The reader of those who have no files."""
    if path is not None:
        raise ConfigError([f"{path}: cannot be read here"])
    return ()


def load(
    path: str | None,
    sets: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    read: Reader = read_nothing,
) -> Loaded:
    """Return the settings from all layers; raises ConfigError with every problem found."""
    documents = _read(read, path)
    layers = Layers()
    for document in documents:
        layers.add_document(document)
    layers.add_environment(environ or {}, _Names(layers.assignments))
    layers.add_sets(sets)
    given = _Given(posixpath.dirname(documents[0].name) if documents else "")
    for assignment in layers.assignments:
        given.take(assignment)
    settings, found = _assemble(given)
    problems = layers.problems + given.problems + found
    warnings: list[str] = []
    if not problems:
        settings, wrong, warnings = cross_check(settings, given.origins)
        problems += wrong
    if problems:
        raise ConfigError(problems)
    return Loaded(
        settings, _all_origins(settings, given.origins), warnings, [d.name for d in documents]
    )


def defaults() -> Settings:
    """Return the built-in settings with the seed's channels and event types."""
    return load(None).settings


def _read(read: Reader, path: str | None) -> Sequence[Document]:
    try:
        return read(path)
    except OSError as error:
        raise ConfigError([f"{error.filename or path}: {error.strerror or error}"]) from error


class _Names:
    """Turns the parts of a CRYPTOWS_ variable into a key: variables know no small letters."""

    def __init__(self, assignments: Iterable[Assignment]) -> None:
        seed = [("channels", channel.name) for channel in channels.SEED_CHANNELS]
        seed += [("types", name) for name in SEED_TYPES]
        given = [a.path[:2] for a in assignments if a.path[0] in ("channels", "types")]
        self._names = {(s, environment_form(n)): n for s, n in reversed(seed + given) if n}

    def __call__(self, parts: Path) -> Path:
        section, *rest = (part.lower() for part in parts)
        if section in ("channels", "types") and rest:
            rest[0] = self._names.get((section, environment_form(parts[1])), rest[0])
        return (section, *rest)


@attrs.define
class _Given:
    """What the layers give, read and checked one by one; later ones win."""

    folder: str  # of the main file: relative paths in files start there
    values: dict[str, Any] = attrs.field(factory=dict)
    channels: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    types: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    fields: dict[str, dict[str, Field]] = attrs.field(factory=dict)
    origins: dict[str, str] = attrs.field(factory=dict)
    problems: list[str] = attrs.field(factory=list)

    def take(self, assignment: Assignment) -> None:
        """Read one assignment, or note what is wrong with it."""
        match assignment.path:
            case ("channels", name) if assignment.value == {}:
                self.channels.setdefault(name, {})
            case ("channels", name, *rule) if rule:
                key = "history.events" if rule == ["history"] else ".".join(rule)
                self._take_rule(assignment, CHANNEL_RULES, key, self.channels.setdefault(name, {}))
            case ("types", name) if assignment.value == {}:
                self.types.setdefault(name, {})
            case ("types", name, "fields", field):
                self._take_field(assignment, self.fields.setdefault(name, {}), field)
            case ("types", name, *rule) if rule:
                key = ".".join(rule)
                self._take_rule(assignment, TYPE_RULES, key, self.types.setdefault(name, {}))
            case _:
                self._take_rule(assignment, SETTINGS, assignment.key, self.values)

    def _take_rule(
        self,
        assignment: Assignment,
        rules: Mapping[str, Declared],
        rule: str,
        into: dict[str, Any],
    ) -> None:
        declared = rules.get(rule)
        if declared is None:
            self.problems.append(f"{assignment.place}: {_unknown(assignment)}")
            return
        try:
            into[rule] = self._read(declared, assignment)
        except Unfit as unfit:
            found = shown(declared, assignment.value)
            self.problems.append(
                f"{assignment.place}: {assignment.key} is {found}; expected {unfit}"
            )
            return
        self._note(assignment, rule if rules is not SETTINGS else "")

    def _read(self, declared: Declared, assignment: Assignment) -> Any:
        if not assignment.text:
            value = read_value(declared, assignment.value)
            return self._from_folder(declared, value)
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
            self.problems.append(f"{assignment.place}: {assignment.key}: {wrong}")
            return
        self._note(assignment, f"fields.{field}")

    def _note(self, assignment: Assignment, rule: str) -> None:
        key = ".".join((*assignment.path[:2], rule)) if rule else assignment.key
        self.origins[key] = assignment.place
        self.origins.setdefault(".".join(assignment.path[:2]), assignment.place)


def _assemble(given: _Given) -> tuple[Settings, list[str]]:
    def place(section: str) -> Callable[[str, str], str]:
        def find(name: str, rule: str) -> str:
            key = f"{section}.{name}"
            found = given.origins.get(f"{key}.{rule}", given.origins.get(key))
            return found or FROM_DEFAULT

        return find

    names = [*(c.name for c in channels.SEED_CHANNELS), *given.channels]
    types, problems = event_types.merge_types(given.types, given.fields, names, place("types"))
    table, more = channels.merge_channels(given.channels, types, place("channels"))
    defaults = Settings()
    sections = {
        section: attrs.evolve(
            getattr(defaults, section),
            **{
                SETTINGS[k].name: v
                for k, v in given.values.items()
                if SETTINGS[k].section == section
            },
        )
        for section in SECTIONS
    }
    return Settings(channels=table, types=types, **sections), problems + more


def _unknown(assignment: Assignment) -> str:
    path, key = assignment.path, assignment.key
    known = [*SETTINGS]
    if path[0] in ("channels", "types") and len(path) > 2:
        rules = CHANNEL_RULES if path[0] == "channels" else TYPE_RULES
        known = [".".join((*path[:2], rule)) for rule in rules]
    close = difflib.get_close_matches(key, known, n=1)
    return f"unknown setting {key}" + (f"; did you mean {close[0]}?" if close else "")


def _all_origins(settings: Settings, given: Mapping[str, str]) -> dict[str, str]:
    keys = [*SETTINGS]
    for channel in settings.channels.classes:
        keys += [f"channels.{channel.name}.{rule}" for rule in CHANNEL_RULES]
    for kind in settings.types.values():
        keys += [f"types.{kind.name}.{rule}" for rule in TYPE_RULES]
        keys += [f"types.{kind.name}.fields.{field}" for field in kind.fields]
    return {key: given.get(key, FROM_DEFAULT) for key in keys}
