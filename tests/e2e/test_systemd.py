"""The units and the daemon in a real systemd: started by a client, reloaded, watched, stopped."""

from __future__ import annotations

import json
import sys
import sysconfig
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.systemd_box import Box, why_not

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
KEY = "Marker-" + "k" * 40
CONFIG = 'auth.secret_file = "credential:secret_token_key"\nserver.drain = "3s"\n'
UNITS = "cryptows.service cryptows-http.socket cryptows-feed.socket"

# The interpreter may live in somebody's home, which the service does not see.
COMMAND = """#!/bin/sh
export LD_LIBRARY_PATH=/opt/python/lib PYTHONPATH=/opt/cryptows:/opt/site
exec /opt/python/bin/python3 {} "$@"
"""

BINDS = {
    Path(sys.base_prefix): "/opt/python",
    Path(sysconfig.get_path("purelib")): "/opt/site",
    ROOT / "cryptows": "/opt/cryptows/cryptows",
    ROOT / "systemd": "/opt/units",
}


@pytest.fixture(scope="module")
def booted() -> Iterator[Box]:
    """A systemd with the project installed as a package would install it."""
    reason = why_not()
    if reason:
        pytest.skip(f"no systemd can be booted here: {reason}")
    with Box(BINDS) as box:
        box.write("/usr/bin/cryptows", COMMAND.format("-m cryptows"), 0o755)
        box.write("/usr/bin/box-python", COMMAND.format(""), 0o755)
        box.run("sh", "-c", "cp /opt/units/*.service /opt/units/*.socket /etc/systemd/system/")
        box.run("systemd-sysusers", "/opt/units/sysusers.d/cryptows.conf")
        box.run("systemd-tmpfiles", "--create", "/opt/units/tmpfiles.d/cryptows.conf")
        box.write("/etc/cryptows/credentials/token_key", KEY + "\n", 0o600)
        yield box


@pytest.fixture
def box(booted: Box) -> Iterator[Box]:
    """The same, listening, with the daemon not started and a configuration that is good."""
    configure(booted, CONFIG)
    booted.run("systemctl", "daemon-reload")
    booted.run("sh", "-c", "systemctl start cryptows-http.socket cryptows-feed.socket")
    yield booted
    booted.run("sh", "-c", f"systemctl stop {UNITS}; systemctl reset-failed {UNITS}", check=False)
    booted.run("sh", "-c", "rm -rf /etc/systemd/system/cryptows.service.d /run/out")
    booted.run("journalctl", "--rotate")
    booted.run("journalctl", "--vacuum-time=1us", "-q")


def configure(box: Box, text: str) -> None:
    box.write("/etc/cryptows/cryptows.toml", text, 0o640)
    box.run("chgrp", "cryptows", "/etc/cryptows/cryptows.toml")


def drop_in(box: Box, text: str) -> None:
    box.write("/etc/systemd/system/cryptows.service.d/test.conf", f"[Service]\n{text}")
    box.run("systemctl", "daemon-reload")


def show(box: Box, *names: str) -> tuple[str, ...]:
    out = box.run("systemctl", "show", f"-p{','.join(names)}", "cryptows.service").stdout
    values = dict(line.split("=", 1) for line in out.splitlines())
    return tuple(values[name] for name in names)


def get(box: Box, path: str) -> str:
    """Ask over HTTP; the first time it is this that starts the daemon."""
    return box.run("curl", "-sS", "--max-time", "30", f"http://127.0.0.1:3000{path}").stdout


def journal(box: Box, *options: str) -> list[dict[str, str]]:
    box.run("journalctl", "--sync")
    out = box.run("journalctl", "-u", "cryptows.service", "-o", "json", *options).stdout
    entries = [json.loads(line) for line in out.splitlines()]
    # not what systemd says of it
    return [entry for entry in entries if entry.get("_SYSTEMD_UNIT") == "cryptows.service"]


def wait_until(condition: Callable[[], object], limit: float = 30) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def script(box: Box, text: str, *arguments: str, check: bool = True) -> str:
    done = box.run("box-python", "-", *arguments, stdin=textwrap.dedent(text), check=check)
    return done.stdout + done.stderr


FEED = """
    import os, socket, sys
    os.setgroups([int(g) for g in sys.argv[1:]]); os.setgid(65534); os.setuid(65534)
    with socket.socket(socket.AF_UNIX) as feed:
        try:
            feed.connect("/run/cryptows/feed.sock")
        except PermissionError:
            sys.exit("not allowed")
        feed.sendall(b'{"hello":{"producer":"bot","acks":true}}\\n')
        feed.sendall(b'{"type":"system_status","data":{"status":"ok"}}\\n')
        feed.shutdown(socket.SHUT_WR)
        print(feed.makefile().read(), end="")
"""

# A WebSocket client that says what it saw: its user, then how the connection ended.
CLIENT = """
    import json, sys, jwt
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect
    token = jwt.encode({"sub": "123", "exp": 4e9}, sys.argv[1], algorithm="HS256")
    headers = {"Authorization": f"Bearer {token}"}
    with connect("ws://127.0.0.1:3000/ws", additional_headers=headers, compression=None) as ws:
        print(json.loads(ws.recv())["data"]["userId"], flush=True)
        try:
            while True:
                ws.recv()
        except ConnectionClosed as closed:
            print(closed.rcvd.code, flush=True)
"""

# Keeps asking on new connections until told to stop; prints what did not go well.
ASKER = """
    import http.client, os, time
    answered = 0
    while not os.path.exists("/run/out/stop"):
        connection = http.client.HTTPConnection("127.0.0.1", 3000, timeout=30)
        try:
            connection.request("GET", "/healthz")
            status = connection.getresponse().status
            answered += status == 200
            if status != 200:
                print("status", status)
        except OSError as error:
            print("refused", error)
        connection.close()
        time.sleep(0.005)
    print("answered" if answered > 20 else answered)
"""


def in_background(box: Box, text: str, *arguments: str) -> None:
    """Run a script as a service; what it prints goes to /run/out/text."""
    box.write("/run/out/script.py", textwrap.dedent(text))
    box.run(
        "systemd-run", "-q", "--unit=background", "--collect",
        "-pStandardOutput=file:/run/out/text", "-pStandardError=inherit",
        "box-python", "/run/out/script.py", *arguments,
    )  # fmt: skip


def printed(box: Box) -> list[str]:
    return box.run("cat", "/run/out/text").stdout.splitlines()


def is_over(box: Box) -> bool:
    return box.run("systemctl", "is-active", "background", check=False).returncode != 0


def test_the_first_client_starts_the_daemon(box):
    assert show(box, "ActiveState") == ("inactive",)

    assert json.loads(get(box, "/readyz"))["status"] == "ready"

    assert show(box, "ActiveState", "SubState", "NRestarts") == ("active", "running", "0")
    modes = box.run(
        "stat", "-c", "%A %U %G", "/run/cryptows/feed.sock", "/run/cryptows/private/control.sock",
        "/run/cryptows/private", "/var/lib/cryptows",
    ).stdout.splitlines()  # fmt: skip
    assert modes == [
        "srw-rw---- root cryptows-feed",
        "srw------- cryptows cryptows",
        "drwx------ cryptows cryptows",
        "drwx------ cryptows cryptows",
    ]
    wait_until(lambda: show(box, "StatusText")[0].startswith("ready: 0 clients"))


def test_who_is_in_the_group_may_feed(box):
    group = box.run("getent", "group", "cryptows-feed").stdout.split(":")[2]

    allowed = script(box, FEED, group)
    refused = script(box, FEED, check=False)

    assert [json.loads(line)["ok"] for line in allowed.splitlines()] == [True, True]
    assert refused == "not allowed\n"


def test_a_reload_waits_and_a_refused_one_fails(box):
    get(box, "/healthz")
    (pid,) = show(box, "MainPID")

    configure(box, CONFIG + 'log.level = "debug"\n')
    good = box.run("systemctl", "reload", "cryptows.service", check=False)
    configure(box, CONFIG + "limits.request = 5\n")
    bad = box.run("systemctl", "reload", "cryptows.service", check=False)

    assert good.returncode == 0, good.stderr
    assert bad.returncode != 0
    assert show(box, "ActiveState", "MainPID") == ("active", pid)
    metrics = get(box, "/metrics")
    assert "cryptows_config_last_reload_successful 0.0" in metrics
    assert "cryptows_config_reloads_total 1.0" in metrics
    assert any("limits.request" in entry["MESSAGE"] for entry in journal(box, "-p", "err"))


def test_a_restart_refuses_nobody(box):
    get(box, "/healthz")
    in_background(box, ASKER)

    for _ in range(2):
        box.run("systemctl", "restart", "cryptows.service")
    time.sleep(0.3)
    box.write("/run/out/stop", "")

    wait_until(lambda: is_over(box))
    assert printed(box) == ["answered"]


def test_a_stop_says_goodbye_and_ends_well(box):
    in_background(box, CLIENT, KEY)
    wait_until(lambda: printed(box) == ["123"])

    before = time.monotonic()
    box.run("systemctl", "stop", UNITS.split()[0])

    assert time.monotonic() - before < 5
    wait_until(lambda: is_over(box))
    assert printed(box) == ["123", "1012"]
    assert show(box, "Result", "ExecMainStatus") == ("success", "0")
    assert box.run("cryptows", "status", check=False).returncode == 3


def test_a_loop_that_hangs_is_restarted_and_its_stack_is_logged(box):
    drop_in(box, "WatchdogSec=1s\n")
    get(box, "/healthz")
    (pid,) = show(box, "MainPID")

    box.run("kill", "-STOP", pid)

    wait_until(lambda: show(box, "NRestarts", "ActiveState") == ("1", "active"))
    assert json.loads(get(box, "/readyz"))["status"] == "ready"
    text = box.run("journalctl", "-u", "cryptows.service", "-o", "cat").stdout
    assert "Watchdog timeout" in text
    assert "Fatal Python error: Aborted" in text


def test_a_loop_that_turns_is_left_alone(box):
    drop_in(box, "WatchdogSec=1s\n")
    get(box, "/healthz")

    time.sleep(3)

    assert show(box, "NRestarts", "ActiveState") == ("0", "active")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (CONFIG + "limits.request = 5\n", "limits.request"),
        ('auth.secret = "short"\n', "auth.secret"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_tried_once(box, text, why):
    configure(box, text)

    started = box.run("systemctl", "start", "cryptows.service", check=False)
    time.sleep(1.5)

    assert started.returncode != 0
    assert show(box, "ActiveState", "ExecMainStatus", "NRestarts") == ("failed", "78", "0")
    assert any(why in entry["MESSAGE"] for entry in journal(box, "-p", "err"))


def test_the_journal_has_priorities_and_no_key(box):
    get(box, "/healthz")
    script(box, FEED.replace('"system_status"', '"no_such_type"'), "0", check=False)
    box.run("systemctl", "stop", "cryptows.service")

    entries = journal(box)

    assert {entry["PRIORITY"] for entry in entries} <= {"6", "4"}
    events = [json.loads(entry["MESSAGE"])["event"] for entry in entries]
    assert events[0] == "ready"
    assert events[-1] == "stopped"
    assert "Marker" not in json.dumps(entries)


def test_the_process_metrics_are_there_without_proc_stat(box):
    metrics = get(box, "/metrics")

    for name in ("cpu_seconds_total", "resident_memory_bytes", "open_fds", "start_time_seconds"):
        assert f"\nprocess_{name} " in metrics


def test_the_daemon_has_no_network_of_its_own(box):
    get(box, "/healthz")
    (pid,) = show(box, "MainPID")

    inside = box.run("nsenter", "--net", "--target", pid, "ip", "-brief", "link").stdout

    assert [line.split()[0] for line in inside.splitlines()] == ["lo"]
    assert box.run("readlink", f"/proc/{pid}/ns/net").stdout != (
        box.run("readlink", "/proc/1/ns/net").stdout
    )
