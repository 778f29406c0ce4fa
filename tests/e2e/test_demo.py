"""The demo's parts within the test's process: what goes wrong, and how it is told."""

import re
import signal
from contextlib import closing

import pytest
import trio
from click.testing import CliRunner

from cryptows.cli import cli, embedded, show
from cryptows.cli.bot import Bot
from cryptows.cli.embedded import embedded_daemon
from cryptows.cli.terminal import Failure
from tests.e2e.daemon import free_port, start

pytestmark = pytest.mark.e2e


async def test_a_daemon_of_ones_own_leaves_nothing_behind():
    async with embedded_daemon() as daemon:
        folder, process = daemon.folder, daemon.process
        mode = (folder / "token.key").stat().st_mode & 0o777
        assert process.poll() is None

    assert mode == 0o600
    assert process.returncode == 0
    assert not folder.exists()


async def test_it_ignores_the_settings_of_a_real_installation(monkeypatch):
    monkeypatch.setenv("CRYPTOWS_LOG__LEVEL", "nonsense")
    monkeypatch.setenv("FRONTEND_URL", "nonsense")

    async with embedded_daemon() as daemon:
        assert daemon.process.poll() is None


async def test_a_port_that_is_taken_meanwhile_is_replaced(monkeypatch):
    with closing(trio.socket.socket()) as taken:
        await taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = [taken.getsockname()[1], free_port()]
        monkeypatch.setattr(embedded, "_free_port", lambda: ports.pop(0))

        async with embedded_daemon() as daemon:
            assert daemon.process.poll() is None

    assert ports == []


async def test_a_daemon_that_cannot_start_is_quoted(monkeypatch):
    monkeypatch.setattr(embedded, "CONFIG", embedded.CONFIG + "[limits]\nban = 'x'\n")

    with pytest.raises(Failure, match="ended with exit code 78; it said:") as caught:
        async with embedded_daemon():
            raise AssertionError("it started")

    assert "limits.ban" in caught.value.message


async def test_a_daemon_that_never_gets_ready_is_killed(monkeypatch):
    async def not_ready(port):
        return False

    monkeypatch.setattr(embedded, "_is_ready", not_ready)
    monkeypatch.setattr(embedded, "READY", 0.2)

    with pytest.raises(Failure, match=r"was not ready in 0\.2 s"):
        async with embedded_daemon():
            raise AssertionError("it started")


async def test_a_start_that_is_cancelled_leaves_no_process(monkeypatch):
    started = []
    spawn = embedded._spawn

    def remembering(folder, key):
        started.append(spawn(folder, key))
        return started[-1]

    monkeypatch.setattr(embedded, "_spawn", remembering)

    with trio.move_on_after(0.05):
        async with embedded_daemon():
            raise AssertionError("it started")

    assert started[0].process.poll() is not None


async def test_a_daemon_that_does_not_end_is_killed(monkeypatch):
    monkeypatch.setattr(embedded, "STOP", 0.1)

    async with embedded_daemon() as daemon:
        daemon.process.send_signal(signal.SIGSTOP)

    assert daemon.process.returncode == -9


def test_the_demo_says_what_it_came_to(monkeypatch):
    result = CliRunner().invoke(cli, ["demo", "--seconds", "1.5"])

    assert (result.exit_code, result.stderr) == (0, "")
    last = result.stdout.splitlines()[-1]
    found = re.fullmatch(r"received (\d+) events, 0 lost; nothing is left behind", last)
    assert found is not None
    assert int(found[1]) > 40


def test_the_demo_says_how_many_events_were_refused(monkeypatch):
    step = Bot.step
    monkeypatch.setattr(
        Bot, "step", lambda bot, now: [{"type": "nonsense", "data": {}}, *step(bot, now)]
    )

    result = CliRunner().invoke(cli, ["demo", "--seconds", "1"])

    assert result.exit_code == 0
    assert re.search(r"0 lost, \d+ refused; nothing is left behind\n$", result.stdout)


def test_the_demo_fails_when_a_client_is_sent_away(monkeypatch):
    monkeypatch.setattr(show, "ADMIN_CHANNELS", ("no_such_channel",))

    result = CliRunner().invoke(cli, ["demo", "--seconds", "5"])

    assert result.exit_code == 1
    assert result.stderr.startswith(
        "cryptows: the admin's client: no_such_channel: there is no such channel (unknown_channel)"
    )


@pytest.mark.parametrize(
    ("run", "which", "command"),
    [(True, None, ["./run"]), (False, "/usr/bin/cryptows", ["cryptows"])],
)
def test_the_demo_names_itself_as_it_was_called(monkeypatch, tmp_path, run, which, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shutil.which", lambda _: which)
    if run:
        (tmp_path / "run").touch()
        (tmp_path / "cryptows").mkdir()

    assert show.own_command() == command


def test_publish_and_tail_find_the_daemon_by_its_configuration(tmp_path, monkeypatch):
    for name in ("JWT_SECRET", "FRONTEND_URL", "CRYPTOWS_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with start(tmp_path) as daemon:
        line = '{"type":"system_status","data":{"status":"ok"}}'
        file = tmp_path / "events"
        file.write_text(f"{line}\n[]\n")
        config = ("--config", str(daemon.config))

        published = CliRunner().invoke(cli, ["publish", str(file), *config])
        heard = CliRunner().invoke(cli, ["tail", "system_status", "--count", "1", *config])

    assert published.exit_code == 1
    assert published.stdout.startswith("published 2 lines in ")
    assert heard.exit_code == 0
    assert '"data":{"status":"ok"}' in heard.stdout
