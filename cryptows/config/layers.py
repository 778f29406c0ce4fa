"""Where settings come from: files, the environment, flags; each becomes a list of assignments.

Later layers win: defaults, the main file, `conf.d/*.toml` by name, the environment, `--set`. An
assignment keeps the place it came from, so that a wrong value is reported where a person has to
mend it, even when a later layer overrides it. What the keys mean is decided in `given.py`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from cryptows.config.positions import find_positions
from cryptows.config.values import MASK, parse_toml_value

Path = tuple[str, ...]

PREFIX = "CRYPTOWS_"
# Belong to `cryptows tail` and to ./run, and may be in the environment of all other commands.
NOT_SETTINGS = frozenset({"CRYPTOWS_TOKEN", "CRYPTOWS_VENV"})
# What the system that cryptows replaces was configured by; weaker than CRYPTOWS_ names.
SEED_VARIABLES: dict[str, Path] = {
    "JWT_SECRET": ("auth", "secret"),
    "FRONTEND_URL": ("cors", "origins"),
}
FLAG = "--set"
KEY_PART = re.compile(r"\"([^\"]*)\"|'([^']*)'|([^.\"']+)")
PLAIN_KEY = re.compile(r"[a-z_.{}]{1,80}", re.ASCII)
AT_LINE = re.compile(r" ?\(at line (\d+), column (\d+)\)$")


@attrs.frozen
class Document:
    """A TOML file that was read: its name as messages show it, and its bytes."""

    name: str
    content: bytes


@attrs.frozen
class Assignment:
    """One value for one key, and where it stands."""

    path: Path
    value: Any
    place: str
    layer: int  # the higher, the stronger
    text: bool = False  # from a variable or a flag: the type is not known yet
    raw: bool = False  # text that is never TOML: the seed's variables

    @property
    def key(self) -> str:
        """The path as people write it."""
        return ".".join(self.path)


@attrs.define
class Layers:
    """All assignments, weakest first, and what could not even be read."""

    assignments: list[Assignment] = attrs.field(factory=list)
    problems: list[str] = attrs.field(factory=list)
    warnings: list[str] = attrs.field(factory=list)
    _layer: int = 0

    def add_document(self, document: Document) -> None:
        """Add what a file says; a file that is no TOML is one problem."""
        self._layer += 1
        try:
            text = document.content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = document.content.count(b"\n", 0, error.start) + 1
            self.problems.append(f"{document.name}:{line}: not UTF-8")
            return
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            self.problems.append(f"{document.name}:{_syntax_error(str(error), text)}")
            return
        except RecursionError:
            self.problems.append(f"{document.name}:1: arrays or tables are nested too deep")
            return
        lines = find_positions(text)

        def place(path: Path) -> str:
            while path and path not in lines:
                path = path[:-1]
            return f"{document.name}:{lines.get(path, 1)}"

        self.assignments += [Assignment(p, v, place(p), self._layer) for p, v in spread((), data)]

    def add_environment(self, environ: Mapping[str, str], names: Callable[[Path], Path]) -> None:
        """Add what the variables say; `names` turns the parts of a variable into a key."""
        self._layer += 1
        for variable, path in SEED_VARIABLES.items():
            if environ.get(variable):
                place = f"environment {variable}"
                self.assignments.append(
                    Assignment(path, environ[variable], place, self._layer, text=True, raw=True)
                )
        self._layer += 1
        for variable in sorted(environ):
            if not variable.startswith(PREFIX) or variable in NOT_SETTINGS:
                continue
            parts = tuple(variable.removeprefix(PREFIX).split("__"))
            if len(parts) == 1:
                # Every setting has a section, so this is somebody else's: a script's, a bench's.
                self.warnings.append(
                    f"environment {variable}: no setting; expected {PREFIX}SECTION__KEY"
                )
                continue
            self._add_text(names(parts), environ[variable], f"environment {variable}")

    def add_sets(self, sets: Sequence[str]) -> None:
        """Add what `--set section.key=value` flags say."""
        self._layer += 1
        for flag in sets:
            key, equals, text = flag.partition("=")
            path = split_key(key.strip())
            if not equals or not path:
                # Not all is quoted: a secret may stand here by mistake.
                shown = key if PLAIN_KEY.fullmatch(key) else MASK
                self.problems.append(f'{FLAG}: "{shown}" is not of the form section.key=value')
            else:
                self._add_text(path, text.strip(), FLAG)

    def _add_text(self, path: Path, text: str, place: str) -> None:
        table: Any = None
        if text.startswith("{"):
            try:
                table = parse_toml_value(text)
            except ValueError:
                pass
        if isinstance(table, dict):
            self.assignments += [
                Assignment(p, v, place, self._layer) for p, v in spread(path, table)
            ]
        else:
            self.assignments.append(Assignment(path, text, place, self._layer, text=True))


def spread(path: Path, value: Any) -> Iterator[tuple[Path, Any]]:
    """Return the keys and values of a table, down to where tables end and values begin."""
    if isinstance(value, dict) and _is_table(path) and (value or len(path) == 2):
        if not value:
            yield path, value  # a channel that is named and left empty still has to be looked at
        for name, inner in value.items():
            yield from spread((*path, name), inner)
    elif path and not (value == {} and len(path) == 1):
        yield path, value


def split_key(key: str) -> Path:
    """Return the parts of a dotted key (quotes allowed), or nothing if it is no key."""
    parts: list[str] = []
    position = 0
    while match := KEY_PART.match(key, position):
        parts.append(next(part for part in match.groups() if part is not None).strip())
        position = match.end()
        if position == len(key):
            return tuple(parts)
        if key[position] != ".":
            return ()
        position += 1
    return ()


def environment_form(name: str) -> str:
    """Return how a name is written in a variable: `user_{id}_trades` is `USER_ID_TRADES`."""
    return re.sub(r"[^A-Z0-9]+", "_", name.upper())


def _is_table(path: Path) -> bool:
    match path:
        case () | (_,) | ("channels" | "types", _) | ("channels", _, "history"):
            return True
        case ("types", _, "fields"):
            return True
    return False


def _syntax_error(message: str, text: str) -> str:
    found = AT_LINE.search(message)
    if found is None:
        last = text.rstrip().count("\n") + 1
        return f"{last}: {message.replace(' (at end of document)', '')}, at the end of the file"
    return f"{found[1]}: {message[: found.start()]} (column {found[2]})"
