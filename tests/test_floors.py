"""The floors: a module imports from its own floor and those below, and only the upper ones act.

Below `store` the time is an argument and entropy is passed in, so every decision can be tested as a
function. This test reads the imports and calls of every module, also those inside functions and
under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path, PurePath

import pytest

HERE = Path(__file__).resolve().parents[1]
MODULES = sorted(path.relative_to(HERE) for path in (HERE / "cryptows").rglob("*.py"))

# From the ground up; what stands in one row shares a floor.
FLOORS = (
    ("__init__", "model"),
    ("config",),
    ("wire",),
    ("broker",),
    ("store",),
    ("tasks", "log", "redact", "notify", "files", "control_client"),
    ("daemon", "opening"),
    ("cli", "__main__"),
)
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
MEND = "FLOORS of tests/test_floors.py lists them"
ACTING = LEVEL["store"]  # from here up a module may touch the world

PURE_LIBRARIES = {"attrs", "h11", "jwt", "msgspec", "tomli_w", "wsproto"}
ACTING_STDLIB = {
    "asyncio", "builtins", "concurrent", "ctypes", "fcntl", "fileinput", "ftplib", "glob", "grp",
    "http.client", "http.server", "importlib", "inspect", "io", "linecache", "logging", "mmap",
    "multiprocessing", "os", "pathlib", "pwd", "random", "sched", "secrets", "select", "selectors",
    "shutil", "signal", "smtplib", "socket", "socketserver", "sqlite3", "ssl", "subprocess", "sys",
    "tempfile", "threading", "time", "urllib.request", "uuid", "xmlrpc", "zoneinfo",
}  # fmt: skip
PURE_PARTS = {"pathlib.PurePath", "pathlib.PurePosixPath"}
ACTING_CALLS = {"open", "input", "print", "exec", "eval", "breakpoint", "__import__"}
CLOCK_METHODS = {"now", "utcnow", "today"}  # of datetime and date


def imported(tree: ast.Module, package: str) -> Iterator[tuple[int, str]]:
    """Yield the line and full name of everything that is imported, `from` or not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: -node.level + 1 or None] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{start}.{alias.name}") for alias in node.names)


def wrong_import(name: str, level: int) -> str | None:
    """Return what is wrong with importing `name` on a floor, or None."""
    top, *rest = name.split(".")
    if top == "cryptows":
        place = rest[0] if rest else "__init__"
        place = place if place in LEVEL or len(rest) > 1 else known_place(place)
        if place not in LEVEL:
            return f"imports {name}, which stands on no floor; {MEND}"
        if LEVEL[place] > level:
            return f"imports {name} from the floor of {place}, above its own ({FLOORS[level][-1]})"
    elif level < ACTING:
        if top in sys.stdlib_module_names:
            parts = {name[:end] for end, c in enumerate(f"{name}.") if c == "."}
            if parts & ACTING_STDLIB and not parts & PURE_PARTS:
                return f"imports {name}; below store nothing may touch the world"
        elif top not in PURE_LIBRARIES:
            return (
                f"imports {name}; below store only {', '.join(sorted(PURE_LIBRARIES))} may be used"
            )
    return None


def known_place(name: str) -> str:
    """Return where a name imported from `cryptows` itself lives: a module, or the package's own."""
    there = HERE / "cryptows" / name
    return name if there.is_dir() or there.with_suffix(".py").exists() else "__init__"


def acting_calls(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the calls that open something or read a clock without an import that would show it."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        match node.func:
            case ast.Name(id=name) if name in ACTING_CALLS:
                yield node.lineno, f"calls {name}(); below store nothing may touch the world"
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if (
                owner in ("datetime", "date") and name in CLOCK_METHODS
            ):
                yield node.lineno, f"calls {owner}.{name}(); below store the time is an argument"


def violations(path: PurePath, source: str) -> list[str]:
    """Return what a module does that its floor does not allow, each as `file:line: what`."""
    place = path.parts[1].removesuffix(".py")
    if place not in LEVEL:
        return [f"{path}:1: stands on no floor; {MEND}"]
    level, tree = LEVEL[place], ast.parse(source)
    package = ".".join(path.parent.parts)
    found = [
        (line, wrong)
        for line, name in imported(tree, package)
        if (wrong := wrong_import(name, level)) is not None
    ]
    if level < ACTING:
        found.extend(acting_calls(tree))
    return [f"{path}:{line}: {wrong}" for line, wrong in sorted(set(found))]


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_a_module_keeps_to_its_floor(path: Path) -> None:
    found = violations(path, (HERE / path).read_text())

    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source", "wrong"),
    [
        ("cryptows/model/a.py", "from cryptows.config import load", "from the floor of config"),
        ("cryptows/wire/a.py", "from cryptows import broker", "from the floor of broker"),
        ("cryptows/wire/a.py", "from ..broker import auth", "from the floor of broker"),
        ("cryptows/wire/a.py", "from .. import daemon", "from the floor of daemon"),
        ("cryptows/store/a.py", "import cryptows.tasks.client", "from the floor of tasks"),
        ("cryptows/store/a.py", "import cryptows.log", "from the floor of log"),
        ("cryptows/tasks/a.py", "from cryptows.daemon import serve", "from the floor of daemon"),
        ("cryptows/daemon.py", "from cryptows.cli import cli", "from the floor of cli"),
        ("cryptows/__init__.py", "from cryptows.wire import frames", "from the floor of wire"),
        ("cryptows/broker/a.py", "import cryptows.attic.b", "stands on no floor"),
        ("cryptows/attic/a.py", "", "stands on no floor"),
        ("cryptows/broker/a.py", "import trio", "below store only attrs"),
        ("cryptows/wire/a.py", "def f():\n    import trio_websocket", "below store only attrs"),
        ("cryptows/config/a.py", "from pathlib import Path", "nothing may touch the world"),
        ("cryptows/config/a.py", "import os.path", "nothing may touch the world"),
        ("cryptows/broker/a.py", "import random as r", "nothing may touch the world"),
        ("cryptows/broker/a.py", "from time import monotonic", "nothing may touch the world"),
        ("cryptows/broker/a.py", "from http import client", "nothing may touch the world"),
        ("cryptows/config/a.py", "text = open('/etc/cryptows.toml').read()", "calls open()"),
        ("cryptows/broker/a.py", "now = datetime.now(UTC)", "calls datetime.now()"),
    ],
)  # fmt: skip
def test_what_breaks_a_floor_is_found(path: str, source: str, wrong: str) -> None:
    line = 1 + source.count("\n")

    found = violations(PurePath(path), source)

    assert len(found) == 1
    assert found[0].startswith(f"{path}:{line}: ")
    assert wrong in found[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("cryptows/model/a.py", "import attrs, enum, re\nfrom cryptows.model import event"),
        ("cryptows/broker/a.py", "from cryptows.wire import http\nfrom . import session"),
        ("cryptows/broker/a.py", "from cryptows import __version__, model"),
        ("cryptows/wire/a.py", "import h11\nfrom urllib.parse import quote\nimport http"),
        ("cryptows/config/a.py", "from pathlib import PurePosixPath"),
        ("cryptows/store/a.py", "import os, sqlite3, trio\nfrom cryptows.broker import journal"),
        ("cryptows/tasks/a.py", "from cryptows.log import configure\nprint(open('/dev/null'))"),
        ("cryptows/__main__.py", "from cryptows.cli import cli\nfrom cryptows import daemon"),
    ],
)  # fmt: skip
def test_what_keeps_to_its_floor_passes(path: str, source: str) -> None:
    found = violations(PurePath(path), source)

    assert found == []
