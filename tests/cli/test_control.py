import json
from typing import Any

import pytest
from click.testing import CliRunner

from cryptows import control_client
from cryptows.cli import cli
from cryptows.cli.control import flat


@pytest.fixture
def daemon(monkeypatch):
    """A daemon that gives the answers put into it, and keeps what it was asked."""

    class Daemon:
        answer: Any = None
        asked: Any = None

        def ask(self, path: str, command: str, timeout: float) -> dict[str, Any]:
            self.asked = (path, command, timeout)
            if isinstance(self.answer, Exception):
                raise self.answer
            return dict(self.answer)

    daemon = Daemon()
    monkeypatch.setattr(control_client, "ask", daemon.ask)
    return daemon


def run(*args):
    return CliRunner().invoke(cli, args)


def test_status_prints_names_and_values(daemon):
    daemon.answer = {"ok": True, "state": "running", "server": {"clients": 2}, "listen": ["a", "b"]}

    result = run("status", "--socket", "c.sock")

    assert result.stdout == "state:          running\nserver.clients: 2\nlisten:         a, b\n"
    assert daemon.asked == ("c.sock", "status", 10)


def test_status_as_json_is_the_answer(daemon):
    daemon.answer = {"ok": True, "state": "running", "pending": []}

    result = run("status", "--json", "--socket", "c.sock")

    assert json.loads(result.stdout) == {"state": "running", "pending": []}


def test_the_socket_comes_from_the_settings(daemon):
    daemon.answer = {"ok": True}

    run("drain", "--set", "server.control_socket=/x.sock", "--set", "server.drain=7s")

    assert daemon.asked == ("/x.sock", "drain", 17)


def test_a_refused_configuration_prints_all_problems(daemon):
    problems = ["a.toml:1: log.level is 3", "a.toml:2: unknown setting x"]
    error = {"code": "invalid_config", "message": "…", "problems": problems}
    daemon.answer = {"ok": False, "error": error}

    result = run("reload", "--socket", "c.sock")

    assert (result.exit_code, result.stdout) == (78, "")
    assert result.stderr.splitlines() == problems


@pytest.mark.parametrize(
    ("answer", "code", "text"),
    [
        ({"ok": False, "error": {"code": "refused", "message": "it drains"}}, 1,
         "cryptows: the daemon refused: it drains (refused)\n"),
        ({"ok": False, "error": {"code": "invalid_config", "message": "bad"}}, 78, "bad\n"),
        ({"ok": False}, 1, "cryptows: the daemon refused and did not say why\n"),
        (control_client.ControlError("no answer"), 1, "cryptows: no answer\n"),
        (control_client.NotRunningError("not running"), 3, "cryptows: not running\n"),
    ],
)  # fmt: skip
def test_failures_have_their_exit_code(daemon, answer, code, text):
    daemon.answer = answer

    result = run("reload", "--socket", "c.sock")

    assert (result.exit_code, result.stdout, result.stderr) == (code, "", text)


def test_values_are_told_as_text():
    answer = {"a": None, "b": True, "c": 0.123456789, "d": [1, "x"], "e": [], "f": {"g": {"h": 1}}}

    assert list(flat(answer)) == [
        ("a", "null"), ("b", "true"), ("c", "0.123457"), ("d", "1, x"), ("e", "none"),
        ("f.g.h", "1"),
    ]  # fmt: skip
