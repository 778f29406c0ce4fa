"""What the locks and the metadata promise: the same versions for everyone, and no addresses."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((HERE / "pyproject.toml").read_text())
NPM_LOCKS = [HERE / "tests/e2e/package-lock.json", HERE / "bench/peers/package-lock.json"]


def pins(name: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Return package -> (version, hashes) of a lock."""
    entries = (HERE / name).read_text().replace("\\\n", " ").splitlines()
    found = {}
    for entry in entries:
        if entry.startswith("#"):
            continue
        match = re.match(r"([a-z0-9-]+)(?:\[[a-z,-]+\])?==(\S+)", entry)
        assert match, entry
        found[match[1]] = match[2], frozenset(re.findall(r"--hash=(sha256:[0-9a-f]{64})", entry))
    return found


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[>=<]", text)[0] for text in requirements}


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-test.lock"])
def test_every_package_of_a_lock_has_hashes(name):
    found = pins(name)

    assert found
    assert [package for package, (_, hashes) in found.items() if not hashes] == []
    assert list(found) == sorted(found)


def test_the_lock_holds_what_the_metadata_asks_for():
    assert names(PROJECT["project"]["dependencies"]) <= pins("requirements.lock").keys()


def test_the_test_lock_holds_the_other_one_and_the_tools():
    runtime, whole = pins("requirements.lock"), pins("requirements-test.lock")

    assert {package: whole[package] for package in runtime} == runtime
    assert names(PROJECT["dependency-groups"]["test"]) <= whole.keys()


@pytest.mark.parametrize("path", sorted(HERE.glob("*.lock")), ids=lambda path: path.name)
def test_no_lock_names_an_index(path):
    assert "://" not in path.read_text()


@pytest.mark.parametrize("path", NPM_LOCKS, ids=lambda path: path.parent.name)
def test_no_npm_lock_names_where_its_packages_come_from(path):
    packages = json.loads(path.read_text())["packages"]

    assert [name for name, package in packages.items() if "resolved" in package] == []
    assert [name for name, package in packages.items() if name and not package["integrity"]] == []
