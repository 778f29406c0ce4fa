"""What systemd is told, and what it tells."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import time

import pytest

from cryptows.notify import Notifier, listen_fds, watchdog_interval


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """A service manager's socket, and its address as $NOTIFY_SOCKET gives it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"\0cryptows-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name)
        sock.settimeout(5)
        yield sock, name.replace("\0", "@")


def test_states_are_sent_as_one_datagram_each(manager):
    sock, address = manager
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": address})

    sent = [
        notifier.ready("0 clients"),
        notifier.status("1 client\nREADY=1 " + "x" * 500),
        notifier.watchdog(),
        notifier.stopping("draining"),
    ]

    assert sent == [True] * 4
    assert [sock.recv(4096).decode() for _ in sent] == [
        "READY=1\nSTATUS=0 clients",
        "STATUS=" + ("1 client READY=1 " + "x" * 500)[:200],
        "WATCHDOG=1",
        "STOPPING=1\nSTATUS=draining",
    ]


def test_a_reload_carries_the_time_of_systemds_clock(manager):
    sock, address = manager
    before = time.monotonic_ns() // 1000

    Notifier(address).reloading("reading the configuration")

    reloading, usec, status = sock.recv(4096).decode().split("\n")
    assert (reloading, status) == ("RELOADING=1", "STATUS=reading the configuration")
    key, value = usec.split("=")
    assert key == "MONOTONIC_USEC"
    assert before <= int(value) <= time.monotonic_ns() // 1000


def test_without_a_manager_nothing_happens(tmp_path):
    assert not Notifier.from_environ({}).ready("x")
    assert not Notifier("relative/path").ready("x")
    assert not Notifier(str(tmp_path / "gone")).ready("x")


def test_a_manager_that_does_not_read_blocks_nobody(manager):
    notifier = Notifier(manager[1])

    sent = [notifier.status("x" * 200) for _ in range(5000)]

    assert sent[0] is True
    assert sent[-1] is False


def test_passed_sockets_are_found_by_name():
    """In a child, since descriptors 3 and up are taken here."""
    program = (
        "import os, fcntl; from cryptows.notify import listen_fds\n"
        "os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "print(listen_fds(), listen_fds(), sorted(k for k in os.environ if 'LISTEN' in k))\n"
        "print([fcntl.fcntl(fd, fcntl.F_GETFD) for fd in (3, 4, 5, 6)])\n"
    )
    shell = 'exec 3</dev/null 4</dev/null 5</dev/null 6</dev/null; exec "$@"'
    done = subprocess.run(
        ["bash", "-c", shell, "bash", sys.executable, "-c", program],
        env={**os.environ, "LISTEN_FDS": "4", "LISTEN_FDNAMES": "http:feed:http",
             "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert done.stdout.splitlines() == [
        "{'http': [3, 5], 'feed': [4], 'unknown': [6]} {} []",
        str([fcntl.FD_CLOEXEC] * 4),
    ]


def test_passed_sockets_are_not_passed_on(monkeypatch):
    ours, other = os.pipe()
    os.set_inheritable(ours, True)
    monkeypatch.setattr("cryptows.notify.FIRST_FD", ours)

    found = listen_fds({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})

    assert found == {"unknown": [ours]}
    assert not os.get_inheritable(ours)
    os.close(ours)
    os.close(other)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_PID": "1", "LISTEN_FDS": "2"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "x"},
        {"LISTEN_PID": str(os.getpid())},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0"},
    ],
)
def test_sockets_that_are_not_ours_are_not_taken(environ):
    assert listen_fds(environ) == {}
    assert environ == {}


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "20000000"}, 10.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": str(os.getpid())}, 10.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_pinged_at_half_of_its_time(environ, interval):
    assert watchdog_interval(environ) == interval
