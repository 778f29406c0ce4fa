"""How the program begins: the daemon on the C library's allocator, everything else as it is."""

from __future__ import annotations

import os
import sys

import pytest

from cryptows import __main__ as program


class Replaced(BaseException):
    """The process went on as another program."""


@pytest.fixture
def replaced(monkeypatch):
    calls: list[tuple[str, list[str], str | None]] = []

    def execv(path, arguments):
        calls.append((path, arguments, os.environ.get(program.ALLOCATOR)))
        raise Replaced

    monkeypatch.delenv(program.ALLOCATOR, raising=False)
    monkeypatch.setattr(os, "execv", execv)
    yield calls
    os.environ.pop(program.ALLOCATOR, None)


def test_the_daemon_begins_anew_on_the_allocator_of_the_c_library(monkeypatch, replaced):
    monkeypatch.setattr(sys, "argv", ["cryptows", "serve", "--help"])

    with pytest.raises(Replaced):
        program.main()

    assert replaced == [(sys.executable, sys.orig_argv, "malloc")]


def test_a_daemon_that_cannot_begin_anew_goes_on_as_it_is(monkeypatch, replaced, capsys):
    def refused(path, arguments):
        raise PermissionError

    monkeypatch.setattr(os, "execv", refused)
    monkeypatch.setattr(sys, "argv", ["cryptows", "serve", "--help"])

    with pytest.raises(SystemExit) as ended:
        program.main()

    assert ended.value.code == 0


@pytest.mark.parametrize("arguments", [["serve", "--help"], ["version"]])
def test_who_has_chosen_an_allocator_or_needs_none_is_left_alone(
    monkeypatch, replaced, capsys, arguments
):
    if arguments[0] == "serve":
        monkeypatch.setenv(program.ALLOCATOR, "pymalloc")
    monkeypatch.setattr(sys, "argv", ["cryptows", *arguments])

    with pytest.raises(SystemExit) as ended:
        program.main()

    assert (ended.value.code, replaced) == (0, [])
    assert capsys.readouterr().out
