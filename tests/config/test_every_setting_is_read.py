"""A setting that nobody reads is a promise that nobody keeps.

Names such as `socket` or `timeout` are too common to search for, so this looks at the syntax: a
setting counts as read where its name is taken from its section, whatever the section is called
there: `settings.limits.requests`, `self._limits.requests`, or `config.requests` of a parameter that
is annotated `Limits` or of a name that was assigned `settings.limits`.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from cryptows.config.declared import CHANNEL_RULES, SETTINGS, TYPE_RULES

PACKAGE = Path(__file__).resolve().parents[2] / "cryptows"
OUTSIDE = [path.read_text() for path in PACKAGE.rglob("*.py") if path.parent.name != "config"]
# The one module of the config that uses settings: it reads the keys of the tokens for the daemon.
SOURCES = [*OUTSIDE, (PACKAGE / "config" / "keys.py").read_text()]


def last_name(node: ast.expr | None) -> str:
    """Return `limits` for `limits`, `self._limits` and `settings.limits`."""
    match node:
        case ast.Name(name) | ast.Attribute(attr=name):
            return name.lstrip("_")
        case ast.Constant(str(text)):  # an annotation in quotes
            return text.rpartition(".")[2]
    return ""


def read_in(source: str) -> set[str]:
    """Return the settings that a module reads."""
    tree = ast.parse(source)
    sections = {key.partition(".")[0] for key in SETTINGS}
    classes = {section.capitalize(): section for section in sections}
    known = {section: section for section in sections}
    for node in ast.walk(tree):
        match node:
            case ast.arg(arg=word, annotation=hint) if last_name(hint) in classes:
                known[word.lstrip("_")] = classes[last_name(hint)]
            case ast.AnnAssign(target=name, annotation=hint) if last_name(hint) in classes:
                known[last_name(name)] = classes[last_name(hint)]
            case ast.Assign(targets=targets, value=value):
                pairs = [(target, value) for target in targets]
                if isinstance(value, ast.Tuple):
                    pairs = [
                        pair
                        for target in targets
                        if isinstance(target, ast.Tuple)
                        for pair in zip(target.elts, value.elts, strict=False)
                    ]
                for target, item in pairs:
                    if isinstance(item, ast.Attribute) and item.attr in sections:
                        known[last_name(target)] = item.attr
    return {
        f"{known[last_name(node.value)]}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and last_name(node.value) in known
    }


READ = set().union(*(read_in(source) for source in SOURCES))
ATTRIBUTES = {
    node.attr
    for source in OUTSIDE
    for node in ast.walk(ast.parse(source))
    if isinstance(node, ast.Attribute)
}


@pytest.mark.parametrize("key", SETTINGS)
def test_every_setting_is_read(key):
    assert key in READ


def test_the_keys_of_the_tokens_are_read():
    assert any("read_keys(" in source for source in OUTSIDE)


@pytest.mark.parametrize("rule", [*CHANNEL_RULES, *TYPE_RULES])
def test_every_rule_of_channels_and_types_is_read(rule):
    assert rule.rpartition(".")[2] in ATTRIBUTES


@pytest.mark.parametrize(
    "source",
    [
        "settings.limits.requests",
        "self._settings.limits.requests",
        "self._limits.requests",
        "def f(x: Limits): x.requests",
        "def f(x: 'settings.Limits'): x.requests",
        "class A:\n    _x: Limits\n    def f(self): self._x.requests",
        "x = settings.limits\nx.requests",
        "x, y = settings.auth, settings.limits\ny.requests",
    ],
)
def test_a_read_setting_is_found(source):
    assert read_in(source) >= {"limits.requests"}


@pytest.mark.parametrize(
    "source", ["requests", "self.requests", "x.requests", "'limits.requests'", "x = 5\nx.requests"]
)
def test_what_only_looks_like_a_setting_is_not_taken_for_one(source):
    assert "limits.requests" not in read_in(source)
