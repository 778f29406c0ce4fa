"""From all layers to one frozen `Settings`, or to all problems at once.

Nothing is opened here: the caller passes a reader for the files, and the environment. The keys of
the tokens are read elsewhere (`keys.py`), so that `check` runs without access to secrets.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping, Sequence

import attrs

from cryptows.config.channels import SEED_CHANNELS, merge_channels
from cryptows.config.checks import find_problems, find_warnings
from cryptows.config.declared import CHANNEL_RULES, SECTIONS, SETTINGS, TYPE_RULES
from cryptows.config.event_types import merge_types
from cryptows.config.given import Given, Names
from cryptows.config.layers import Document, Layers
from cryptows.config.settings import Settings
from cryptows.model.errors import ConfigError

# Takes the path of the main file (None: the usual place, if there is one there) and returns it and
# its drop-ins, in order; raises ConfigError or OSError.
Reader = Callable[[str | None], Sequence[Document]]
PLACE_IN_FILE = re.compile(r"(.*?):([0-9]+): ")


@attrs.frozen
class Loaded:
    """The settings, where each came from, and what an operator should know about them."""

    settings: Settings
    origins: dict[str, str]  # dotted key -> "default", "FILE:LINE", "environment NAME", "--set"
    warnings: list[str]
    files: list[str]


def read_nothing(path: str | None) -> Sequence[Document]:
    """Return no documents: the reader of those who have no files."""
    if path is not None:
        raise ConfigError([f"{path}: no files are read here"])
    return ()


def load(
    path: str | None,
    sets: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    read: Reader = read_nothing,
) -> Loaded:
    """Return the settings from all layers; raises ConfigError with every problem found."""
    try:
        documents = read(path)
    except OSError as error:
        where = error.filename or path
        raise ConfigError([f"{where}: cannot be read: {error.strerror or error}"]) from error
    layers = Layers()
    for document in documents:
        layers.add_document(document)
    layers.add_environment(environ or {}, Names(layers.assignments))
    layers.add_sets(sets)
    given = Given(posixpath.dirname(documents[0].name) if documents else "")
    for assignment in layers.assignments:
        given.take(assignment)
    warnings = layers.warnings + given.choose("auth.secret", "auth.secret_file")
    settings, problems = _assemble(given)
    problems = [*layers.problems, *given.problems, *problems]
    problems += find_problems(settings, given.origins)
    files = [document.name for document in documents]
    if problems:
        raise ConfigError(_in_order(problems, files))
    warnings += find_warnings(settings, given.origins)
    return Loaded(settings, _all_origins(settings, given.origins), warnings, files)


def defaults() -> Settings:
    """Return the built-in settings with the seed's channels and event types."""
    return load(None).settings


def _assemble(given: Given) -> tuple[Settings, list[str]]:
    """Return the settings with what is given over the defaults, and what contradicts itself."""
    names = [*(channel.name for channel in SEED_CHANNELS), *given.channels]
    types, problems = merge_types(given, names)
    channels, more = merge_channels(given, types)
    defaults = Settings()
    sections = {}
    for section in SECTIONS:
        values = {
            SETTINGS[key].name: value
            for key, value in given.values.items()
            if SETTINGS[key].section == section
        }
        sections[section] = attrs.evolve(getattr(defaults, section), **values)
    return Settings(channels=channels, types=types, **sections), problems + more


def _in_order(problems: Sequence[str], files: Sequence[str]) -> list[str]:
    """Return the problems as a person mends them: file by file from the top, then the rest."""

    def rank(problem: str) -> tuple[int, int]:
        match = PLACE_IN_FILE.match(problem)
        if match is None or match[1] not in files:
            return len(files), 0
        return files.index(match[1]), int(match[2])

    return sorted(dict.fromkeys(_on_one_line(problem) for problem in problems), key=rank)


def _on_one_line(problem: str) -> str:
    """Return the problem without line breaks, which names in quotes or variables may hold."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in problem)


def _all_origins(settings: Settings, given: Mapping[str, str]) -> dict[str, str]:
    keys = [*SETTINGS]
    for channel in settings.channels.classes:
        keys += [f"channels.{channel.name}.{rule}" for rule in CHANNEL_RULES]
    for kind in settings.types.values():
        keys += [f"types.{kind.name}.{rule}" for rule in TYPE_RULES]
        keys += [f"types.{kind.name}.fields.{field}" for field in kind.fields]
    return {key: given.get(key, "default") for key in keys}
