import io
import os
import signal
import subprocess
import sys

import click
import pytest
import trio
import trio.lowlevel
from click.testing import CliRunner
from rich.console import Console

from cryptows.cli import cli, terminal
from cryptows.cli.feed_progress import Bar, NoProgress, progress_on_stderr
from cryptows.cli.feeding import Counts
from cryptows.cli.running import run, run_until_signal
from cryptows.cli.terminal import Failure, NotRunning, fancy, show_pairs
from cryptows.model.errors import StartError


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "environ", "drawn"),
    [
        (Terminal(), {}, True),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"NO_COLOR": ""}, True),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {}, False),
    ],
)
def test_only_terminals_are_drawn_on(monkeypatch, stream, environ, drawn):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    assert fancy(stream) is drawn


def test_pairs_are_drawn_without_reading_markup(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(terminal, "fancy", lambda: True)
    monkeypatch.setattr("rich.console.Console", lambda: Console(file=file, width=40))

    show_pairs([("listen", "[::1]:80"), ("x", 1)])

    assert [line.rstrip() for line in file.getvalue().splitlines()] == [
        "listen  [::1]:80",
        "x       1",
    ]


def test_nothing_is_written_for_no_pairs(capsys):
    show_pairs([])

    assert capsys.readouterr().out == ""


def test_a_bar_shows_how_far_it_is_and_notes_above_it(monkeypatch):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100)
    monkeypatch.setattr("rich.console.Console", lambda **_: console)

    with Bar(100) as bar:
        bar.update(Counts(sent=3, sent_bytes=50, accepted=2, refused=1))
        bar.note("f:3: [bold] (x)")

    assert "50%" in file.getvalue()
    assert "3 lines, 2 accepted, 1 refused" in file.getvalue()
    assert "f:3: [bold] (x)\n" in file.getvalue()


def test_a_bar_without_an_end_has_no_percentage(monkeypatch):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100)
    monkeypatch.setattr("rich.console.Console", lambda **_: console)

    with Bar(None) as bar:
        bar.update(Counts(sent=3))

    assert "%" not in file.getvalue()


def test_progress_is_shown_on_terminals_only(monkeypatch):
    assert isinstance(progress_on_stderr(10, 1), NoProgress)
    monkeypatch.setattr("cryptows.cli.feed_progress.fancy", lambda _: True)
    assert isinstance(progress_on_stderr(10, 1), Bar)
    assert isinstance(progress_on_stderr(None, 1), Bar)


async def _fail(error):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_raise, error)


async def _raise(error):
    raise error


@pytest.mark.parametrize(
    "error",
    [Failure("x"), NotRunning("x"), StartError("x"), BrokenPipeError(), click.UsageError("")],
)
def test_an_expected_error_comes_out_of_all_nurseries(error):
    with pytest.raises(type(error)):
        run(lambda: _fail(error))
    with pytest.raises(type(error)):
        run_until_signal(lambda: _fail(error))


def test_a_bug_keeps_its_traceback():
    with pytest.raises(BaseExceptionGroup):
        run(lambda: _fail(KeyError("x")))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_work(number):
    async def work():
        os.kill(os.getpid(), number)
        await trio.sleep_forever()

    assert run_until_signal(work) is False


def test_work_that_ends_by_itself_was_finished():
    assert run_until_signal(trio.lowlevel.checkpoint) is True


def test_ctrl_c_before_signals_are_watched_is_an_end_too(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("trio.run", interrupted)

    assert run_until_signal(trio.lowlevel.checkpoint) is False


def test_a_closed_stdout_is_no_error():
    program = f"'{sys.executable}' -m cryptows config show | head -n 1; echo ${{PIPESTATUS[0]}}"
    environ = {k: v for k, v in os.environ.items() if not k.startswith("CRYPTOWS_")}

    answer = subprocess.run(
        ["bash", "-c", program], capture_output=True, text=True, check=True, env=environ
    )

    assert answer.stdout.splitlines() == ["[server]", "0"]
    assert answer.stderr == ""


def test_a_full_disk_is_one_line():
    program = f"{sys.executable} -m cryptows config show > /dev/full"
    environ = {k: v for k, v in os.environ.items() if not k.startswith("CRYPTOWS_")}

    answer = subprocess.run(
        program, shell=True, check=False, capture_output=True, text=True, env=environ
    )

    assert answer.returncode == 1
    assert answer.stderr == "cryptows: cannot write: No space left on device\n"


@pytest.mark.parametrize(("command", "code"), [("serve", 0), ("check", 130)])
def test_ctrl_c_during_the_start_is_a_normal_end_of_what_has_no_other(monkeypatch, command, code):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("cryptows.cli.serve.load_config", interrupted)
    monkeypatch.setattr("cryptows.cli.config_.load_config", interrupted)

    result = CliRunner().invoke(cli, [command])

    assert (result.exit_code, result.output) == (code, "")


def test_a_start_error_is_one_line(monkeypatch):
    def fail(*_):
        raise StartError("127.0.0.1:3000 is taken")

    monkeypatch.setattr("cryptows.cli.serve.load_config", fail)

    result = CliRunner().invoke(cli, ["serve"])

    assert (result.exit_code, result.stderr) == (1, "cryptows: 127.0.0.1:3000 is taken\n")
