"""The command line as a user has it: as processes, with a real daemon."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cryptows.model.types import SEED_TYPES
from tests.e2e.daemon import ROOT, Daemon, free_port, start

pytestmark = pytest.mark.e2e

COMMAND = (sys.executable, "-m", "cryptows")
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith("CRYPTOWS_")}
LIMIT = 60  # seconds; each takes about one, but test machines are shared
STATUS = '{"type":"system_status","data":{"status":"ok","n":%d}}'


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Iterator[Daemon]:
    """One daemon for all tests that leave it as it is."""
    with start(tmp_path_factory.mktemp("daemon")) as daemon:
        yield daemon


@pytest.fixture
def daemon(tmp_path) -> Iterator[Daemon]:
    with start(tmp_path) as daemon:
        yield daemon


def cw(
    *args: object, input: str | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return to_its_end([*COMMAND, *map(str, args)], input, env)


def to_its_end(
    command: str | list[str], input: str | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command, or a line of shell."""
    return subprocess.run(
        command, check=False, shell=isinstance(command, str), capture_output=True, text=True,
        input=input, env={**CLEAN, **(env or {})}, cwd=ROOT, timeout=LIMIT,
    )  # fmt: skip


@contextmanager
def running(*args: object, env: dict[str, str] | None = None) -> Iterator[Any]:
    """Run a command beside the test; it is killed at the end if it still runs."""
    process = subprocess.Popen(
        [*COMMAND, *map(str, args)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**CLEAN, **(env or {})},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(stream, text: str) -> list[str]:
    """Read lines up to the one that holds the text."""
    lines = []
    for line in stream:
        lines.append(line.rstrip("\n"))
        if text in line:
            return lines
    raise AssertionError(f"{text!r} did not come; there was {lines}")


def on_terminal(*args: object, until: str | None = None) -> tuple[str, int]:
    """Run a command on a terminal of 100 by 40; Ctrl-C after `until`; return output and code."""
    leader, follower = pty.openpty()
    env = {**CLEAN, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    process = subprocess.Popen(
        [*COMMAND, *map(str, args)],
        stdin=follower, stdout=follower, stderr=follower, cwd=ROOT, env=env,
        start_new_session=True,
    )  # fmt: skip
    os.close(follower)
    output = b""
    try:
        while piece := _read(leader):
            output += piece
            if until is not None and until.encode() in output:
                process.send_signal(signal.SIGINT)
                until = None
        return output.decode(), process.wait(LIMIT)
    finally:
        process.kill()
        process.wait()
        os.close(leader)


def _read(leader: int) -> bytes:
    try:
        return os.read(leader, 65536)
    except OSError:  # EIO: nobody has the terminal open any more
        return b""


# -- serve


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_ends_with_0_at_a_signal(daemon, number):
    assert daemon.stop(number) == 0


def test_serve_without_a_key_is_a_wrong_configuration():
    result = cw("serve", "--log-format", "json", "--log-level", "error")

    assert (result.returncode, result.stdout) == (78, "")
    assert result.stderr.startswith("auth.secret is missing; expected ")


def test_a_second_daemon_on_the_same_sockets_is_told_so(shared):
    result = cw(
        "serve", "--config", shared.config, "--set", f"server.listen=127.0.0.1:{free_port()}"
    )

    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1].startswith("cryptows: ")
    assert "already running" in result.stderr
    assert shared.get("/healthz")[0] == 200


def test_a_taken_port_is_one_clear_line(shared, tmp_path):
    other = tmp_path / "other"
    cw("config", "init", other)

    result = cw(
        "serve",
        "--config",
        other / "cryptows.toml",
        "--set",
        f"server.listen=127.0.0.1:{shared.port}",
    )

    assert (result.returncode, result.stdout) == (1, "")
    assert f"cannot listen on 127.0.0.1:{shared.port}" in result.stderr.splitlines()[-1]


def test_what_init_writes_can_be_served_fed_and_listened_to(tmp_path):
    folder = tmp_path / "mine"
    port = f"server.listen=127.0.0.1:{free_port()}"
    cw("config", "init", folder)
    config = ("--config", folder / "cryptows.toml")
    token = cw("token", "make", *config, "--user", "123", "-q").stdout.strip()

    with (
        running("serve", *config, "--set", port) as daemon,
        running(
            "tail", *config, "--set", port, "user_123_alerts", env={"CRYPTOWS_TOKEN": token}
        ) as tail,
    ):
        wait_for(tail.stderr, "subscribed to user_123_alerts")
        line = '{"type":"user_alert","user_id":"123","data":{"message": "hello"}}'
        published = cw("publish", *config, input=line)
        heard = tail.stdout.readline()
        daemon.terminate()
        assert daemon.wait(LIMIT) == 0

    assert published.stdout.endswith("1 accepted, 0 refused, 1 deliveries\n")
    assert '"data":{"message": "hello"}' in heard


# -- publish


def test_publish_shows_refused_lines_with_their_answers(shared, tmp_path):
    file = tmp_path / "events.ndjson"
    good = STATUS % 1
    file.write_text(f'{good}\n\n{{"type":"nope","data":{{}}}}\n{good}\nno json')

    result = cw("publish", file, "--config", shared.config, "--repeat", 2)

    assert result.returncode == 1
    assert result.stdout.startswith("published 8 lines in ")
    assert result.stdout.endswith(": 4 accepted, 4 refused, 0 deliveries\n")
    lines = result.stderr.splitlines()
    assert [line.split(": ")[0] for line in lines[::2]] == [f"{file}:3", f"{file}:5"] * 2
    assert lines[1::2] == ['    {"type":"nope","data":{}}', "    no json"] * 2
    assert lines[0].endswith("(unknown_type)")


def test_publish_reads_stdin_line_by_line(shared):
    line = '{"type":"trading_signal","data":{"n":%d}}\n'
    with running_tail(shared, "trading_signals") as tail:
        process: Any = subprocess.Popen(
            [*COMMAND, "publish", "-q", "--socket", str(shared.feed_socket)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=CLEAN, cwd=ROOT,
        )  # fmt: skip
        with process:
            for n in range(3):
                process.stdin.write(line % n)
                process.stdin.flush()
                assert json.loads(tail.stdout.readline())["data"]["n"] == n

    assert process.returncode == 0


def test_publish_keeps_a_pace(shared):
    result = cw(
        "publish", "--pace", "20/s", "--socket", shared.feed_socket, input=(STATUS % 1 + "\n") * 21
    )

    found = re.match(r"published 21 lines in (\S+) s", result.stdout)
    assert found is not None
    assert 1.0 <= float(found[1]) < 5


def test_an_interrupted_publish_says_how_far_it_came(shared, tmp_path):
    def connected():
        return len(shared.logs("producer connected"))

    before = connected()
    file = tmp_path / "events.ndjson"
    file.write_text(STATUS % 1 + "\n")

    with running(
        "publish", file, "--repeat", "0", "--pace", "50/s", "--socket", shared.feed_socket
    ) as process:
        shared.wait_until(lambda: connected() > before)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=LIMIT)

    assert process.returncode == 0
    assert output[0].startswith("interrupted: ")
    assert output[1] == ""


def test_publish_says_which_line_was_not_answered_when_the_daemon_dies(daemon, tmp_path):
    file = tmp_path / "events.ndjson"
    file.write_text(STATUS % 1 + "\n")

    with running(
        "publish", file, "--repeat", "0", "--pace", "500/s", "--socket", daemon.feed_socket
    ) as process:
        daemon.wait_until(lambda: daemon.logs("producer connected"))
        daemon.process.send_signal(signal.SIGSTOP)
        time.sleep(0.2)
        daemon.kill()
        output = process.communicate(timeout=LIMIT)

    assert process.returncode == 1
    assert "the daemon closed the connection without an answer to this line" in output[1]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_publish_fails_when_the_daemon_goes_away_in_the_middle_of_the_file(daemon, tmp_path, how):
    file = tmp_path / "events.ndjson"
    file.write_text((STATUS % 1 + "\n") * 100)

    with running("publish", file, "--pace", "5/s", "--socket", daemon.feed_socket) as process:
        daemon.wait_until(lambda: daemon.logs("producer connected"))
        daemon.process.send_signal(how)
        output = process.communicate(timeout=LIMIT)

    assert process.returncode == 1
    assert output[0] == ""
    assert re.search(
        r"events\.ndjson.*: the daemon closed the connection .*; "
        r"\d+ (was|were) accepted, the rest was not sent\n$",
        output[1],
    )


def test_publish_draws_a_bar_on_a_terminal(shared, tmp_path):
    file = tmp_path / "events.ndjson"
    file.write_text((STATUS % 1 + "\n") * 10)

    output, code = on_terminal("publish", file, "--pace", "20/s", "--socket", shared.feed_socket)

    assert code == 0
    assert re.search(r"\d+%", output)
    assert "published 10 lines" in output


def test_publish_tells_who_types_how_to_end(shared):
    _, code = on_terminal("publish", "--socket", shared.feed_socket, until="Ctrl-D ends")

    assert code == 0


# -- tail


@contextmanager
def running_tail(daemon, *args, role="user", env=None):
    token = daemon.token("123", role)
    with running(
        "tail", "--url", daemon.url, *args, env={"CRYPTOWS_TOKEN": token, **(env or {})}
    ) as tail:
        wait_for(tail.stderr, "subscribed to ")
        yield tail


def test_tail_prints_events_byte_for_byte_and_in_order(shared):
    data = [f'{{"symbol": "S{n % 3}",  "price":{n}.50, "é":"\\u00e9"}}' for n in range(200)]
    lines = [f'{{"type":"trading_signal","data":{text}}}' for text in data]

    with running_tail(shared, "trading_signals", "--count", "200") as tail:
        cw("publish", "--socket", shared.feed_socket, input="\n".join(lines))
        output, _ = tail.communicate(timeout=LIMIT)

    assert tail.returncode == 0
    envelopes = output.splitlines()
    assert [re.findall(r'"data":(\{.*?\}),"timestamp"', line) for line in envelopes] == [
        [text] for text in data
    ]


def test_tail_comes_back_after_a_restart_and_misses_nothing(daemon):
    def trade(n):
        data = {"symbol": "BTCUSDT", "side": "buy", "quantity": n + 1, "price": 5}
        return {"type": "trade_execution", "user_id": "123", "id": f"t-{n}", "data": data}

    with running_tail(daemon, "user_123_trades", "--count", "6") as tail:
        daemon.publish([trade(n) for n in range(2)])
        first = [tail.stdout.readline() for _ in range(2)]
        daemon.restart()
        daemon.publish([trade(n) for n in range(2, 6)])
        output, errors = tail.communicate(timeout=LIMIT)

    heard = [json.loads(line)["data"]["quantity"] for line in [*first, *output.splitlines()]]
    assert heard == [1, 2, 3, 4, 5, 6]
    assert "closed with 1012" in errors


def test_tail_of_a_channel_that_is_not_for_us_fails(shared):
    env = {"CRYPTOWS_TOKEN": shared.token("123")}

    result = cw("tail", "--url", shared.url, "all_trades", env=env)

    assert (result.returncode, result.stdout) == (1, "")
    assert "all_trades" in result.stderr
    assert "(forbidden)" in result.stderr


def test_tail_says_which_channels_were_denied_and_shows_the_others(shared):
    shared.publish([STATUS % 7])  # the snapshot will have it

    result = cw("tail", "--url", shared.url, "system_status", "market_data", "--count", "1")

    said = "cryptows: market_data: denied: this channel needs a token (forbidden)"
    assert said in result.stderr.splitlines()
    assert json.loads(result.stdout)["data"]["n"] == 7


def test_tail_with_a_wrong_token_fails_and_does_not_show_it(shared):
    token = shared.token("123")[:-4] + "AAAA"

    result = cw("tail", "--url", shared.url, "market_data", "--token", token)

    assert (result.returncode, result.stdout) == (1, "")
    assert "jwt signature does not match" in result.stderr
    assert token not in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_tail_ends_with_0_at_a_signal(shared, number):
    with running_tail(shared, "market_data") as tail:
        tail.send_signal(number)
        output, errors = tail.communicate(timeout=LIMIT)

    assert (tail.returncode, output) == (0, "")
    assert "Traceback" not in errors


def test_tail_ends_when_its_reader_has_gone(shared):
    with running_tail(shared, "system_status") as tail:
        tail.stdout.close()
        shared.publish([STATUS % 1])
        errors = tail.stderr.read()
        tail.wait(LIMIT)

    assert (tail.returncode, errors) == (0, "")


def test_tail_tries_again_until_there_is_a_daemon(tmp_path):
    url = f"ws://127.0.0.1:{free_port()}/ws"
    with running("tail", "--url", url, "system_status") as tail:
        said = wait_for(tail.stderr, "again in")
        tail.terminate()
        tail.wait(LIMIT)

    assert "cannot connect" in said[-1]
    assert tail.returncode == 0


# -- status, reload, drain


def test_status_tells_how_the_daemon_is(shared):
    with running_tail(shared, "market_data"):
        plain = cw("status", "--config", shared.config)
        told = json.loads(cw("status", "--json", "--socket", shared.control_socket).stdout)

    assert (plain.returncode, plain.stderr) == (0, "")
    assert re.search(rf"^pid: +{shared.pid}$", plain.stdout, re.MULTILINE)
    assert re.search(r"^clients: +1$", plain.stdout, re.MULTILINE)
    assert told["pid"] == shared.pid


def test_reload_applies_what_it_can_and_lists_the_rest(daemon):
    text = daemon.config.read_text()
    daemon.config.write_text(
        text + "\n[cors]\norigins = ['https://a.example']\n[store]\nkeep = '1d'\n"
    )

    result = cw("reload", "--config", daemon.config)

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == ["applied: cors.origins", "pending: store.keep"]


def test_a_refused_reload_says_what_is_wrong_and_changes_nothing(daemon):
    text = daemon.config.read_text()
    daemon.config.write_text(text + "\n[limits]\nrequests = 0\nban = 'x'\n")

    result = cw("reload", "--socket", daemon.control_socket)

    assert (result.returncode, result.stdout) == (78, "")
    assert len(result.stderr.splitlines()) == 2
    assert "limits.requests is 0" in result.stderr
    assert daemon.get("/readyz")[0] == 200


def test_drain_returns_when_the_clients_have_gone_and_the_daemon_ends(daemon):
    with running_tail(daemon, "market_data") as tail:
        result = cw("drain", "--config", daemon.config)
        said = wait_for(tail.stderr, "again in")

    assert (result.returncode, result.stdout, result.stderr) == (0, "drained: 1\n", "")
    assert "closed with 1012" in said[-1]
    assert daemon.wait() == 0
    assert cw("status", "--socket", daemon.control_socket).returncode == 3


# -- demo

CHANNELS = {
    "market_data", "price_updates", "trading_signals", "system_status", "user_123_trades",
    "user_123_positions", "user_123_alerts", "all_trades", "risk_alerts", "admin_alerts",
    "system_metrics",
}  # fmt: skip


def folder_in(output: str) -> str:
    """Return the temporary folder of the demo that wrote this."""
    found = re.search(r"\S*/cryptows-demo-[^/\s]+", output)
    assert found is not None, output
    return found[0]


def left_behind(output: str) -> list[str]:
    """Return what a demo left: its folder, or a process that has it in its command line."""
    folder = folder_in(output)
    commands = [
        path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if path.exists()
    ]
    return [*filter(os.path.exists, [folder]), *(c for c in commands if folder in c)]


def test_the_demo_shows_every_channel_and_ends_by_itself():
    result = cw("demo", "--seconds", "3")

    assert (result.returncode, result.stderr) == (0, "")
    shown = {line.split()[1] for line in result.stdout.splitlines() if "p99" in line}
    assert shown == CHANNELS
    assert re.search(
        r"^received \d+ events, 0 lost; nothing is left behind$", result.stdout, re.MULTILINE
    )
    assert left_behind(result.stdout) == []


def test_what_the_demo_prints_can_be_pasted():
    with running("demo", env={"PYTHONUNBUFFERED": "1"}) as demo:
        intro = wait_for(demo.stdout, "Socket.IO")
        paste = {title: intro[i + 1] for i, title in enumerate(intro[:-1])}
        tail = paste["Subscribe, in another terminal"].split(" ", 1)[1]
        heard = to_its_end(f"{' '.join(COMMAND)} {tail} --count 3")
        publish = paste["Publish"].replace("./run", " ".join(COMMAND))
        published = to_its_end(publish)
        demo.send_signal(signal.SIGINT)
        began = time.monotonic()
        demo.communicate(timeout=LIMIT)
        took = time.monotonic() - began

    assert heard.returncode == 0
    assert {json.loads(line)["type"] for line in heard.stdout.splitlines()} <= set(SEED_TYPES)
    assert "1 accepted" in published.stdout
    assert demo.returncode == 0
    assert took < 2
    assert left_behind("\n".join(intro)) == []


def test_the_demo_ends_when_nobody_reads_it():
    with running("demo") as demo:
        intro = wait_for(demo.stdout, "Socket.IO")
        demo.stdout.close()
        errors = demo.stderr.read()
        demo.wait(LIMIT)

    assert (demo.returncode, errors) == (0, "")
    assert left_behind("\n".join(intro)) == []


def test_the_demo_draws_a_table_on_a_terminal_until_ctrl_c():
    output, code = on_terminal("demo", until="fed 1")

    assert code == 0
    assert "events/s" in output
    assert "all_trades" in output
    assert left_behind(output) == []


def test_a_killed_demo_takes_its_daemon_along():
    with running("demo") as demo:
        intro = wait_for(demo.stdout, "Socket.IO")
        demo.kill()
        demo.wait()
        folder = folder_in("\n".join(intro))
        deadline = time.monotonic() + 10
        while len(left := left_behind(folder)) > 1 and time.monotonic() < deadline:
            time.sleep(0.1)

    assert left == [folder]
    subprocess.run(["rm", "-r", folder], check=True)


def test_a_demo_whose_daemon_dies_says_so():
    with running("demo") as demo:
        intro = wait_for(demo.stdout, "Socket.IO")
        reader = threading.Thread(target=demo.stdout.read)
        reader.start()
        folder = folder_in("\n".join(intro))
        status = cw("status", "--json", "--socket", f"{folder}/control.sock")
        os.kill(json.loads(status.stdout)["pid"], signal.SIGKILL)
        errors = demo.stderr.read()
        demo.wait(LIMIT)
        reader.join()

    assert demo.returncode == 1
    assert errors.startswith("cryptows: the ")
    assert "Traceback" not in errors
    assert left_behind("\n".join(intro)) == []
