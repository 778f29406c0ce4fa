"""Opening the sockets that are listened on: all or none, and never another daemon's."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from cryptows.model.errors import StartError
from cryptows.tasks.listeners import adopt, open_listeners, open_unix, remove_stale


def close(listeners: list[socket.socket]) -> None:
    for listener in listeners:
        listener.close()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:0",
        "localhost:0",
        pytest.param("[::1]:0", marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")),
    ],
)
def test_every_form_of_an_address_is_listened_on(address):
    opened = open_listeners([address], 16)

    assert opened
    for listener in opened:
        with socket.create_connection(listener.getsockname()[:2], timeout=5):
            listener.accept()[0].close()
    close(opened)


def test_an_empty_host_is_every_address_of_both_families():
    opened = open_listeners([":0"], 16)

    families = {listener.family for listener in opened}
    close(opened)
    assert socket.AF_INET in families


def test_if_one_cannot_be_opened_none_stays_open(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"

        with pytest.raises(StartError) as error:
            open_listeners([f"unix:{tmp_path}/http.sock", "127.0.0.1:0", address], 16)

    assert str(error.value) == (
        f"cannot listen on {address}: address already in use; is another daemon running?"
    )
    # Nobody listens there any more; a later start removes the file.
    remove_stale(f"{tmp_path}/http.sock")
    assert not (tmp_path / "http.sock").exists()


@pytest.mark.parametrize("address", ["203.0.113.1:80", "no.such.host.invalid:80"])
def test_an_address_that_is_not_ours_is_told(address):
    with pytest.raises(StartError, match=f"cannot listen on {address}: "):
        open_listeners([address], 16)


def test_a_socket_file_has_its_permissions_from_the_first_moment(tmp_path):
    before = os.umask(0o022)
    try:
        listener = open_unix(str(tmp_path / "a.sock"), 0o666, 16)
        other = open_unix(str(tmp_path / "b.sock"), 0o600, 16)
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)

    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.sock", "b.sock")]
    close([listener, other])
    assert modes == [0o666, 0o600]


def test_the_file_of_a_daemon_that_crashed_is_replaced(tmp_path):
    path = str(tmp_path / "http.sock")
    open_unix(path, 0o600, 1).close()
    assert Path(path).exists()

    listener = open_unix(path, 0o600, 1)

    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    listener.close()


def test_a_socket_that_answers_is_not_taken_away(tmp_path):
    path = str(tmp_path / "http.sock")
    with open_unix(path, 0o600, 1):
        with pytest.raises(StartError) as error:
            open_unix(path, 0o600, 1)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)

    assert str(error.value) == (f"cannot listen on {path}: already running, somebody answers there")


def test_a_socket_whose_backlog_is_full_is_not_taken_away(tmp_path):
    path = str(tmp_path / "http.sock")
    with open_unix(path, 0o600, 0):
        clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for client in clients:
            client.setblocking(False)
            try:
                client.connect(path)
            except BlockingIOError:
                break

        with pytest.raises(StartError, match="already running"):
            remove_stale(path)
        close(clients)

    assert Path(path).exists()


def test_a_file_that_is_no_socket_is_not_removed(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("mine")

    with pytest.raises(StartError, match="there is a file that is no socket"):
        open_unix(str(path), 0o600, 1)

    assert path.read_text() == "mine"


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(StartError) as error:
        open_unix(str(tmp_path / "gone" / "http.sock"), 0o600, 1)

    assert str(error.value) == (
        f"cannot listen on {tmp_path}/gone/http.sock: No such file or directory"
    )


def test_a_path_that_is_too_long_is_told(tmp_path):
    path = f"{tmp_path}/{'x' * 120}.sock"
    with pytest.raises(StartError, match="cannot listen on"):
        open_unix(path, 0o600, 1)


def test_a_path_below_a_file_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="Not a directory"):
        open_unix(f"{tmp_path}/file/http.sock", 0o600, 1)


def test_the_error_of_a_probe_is_told(tmp_path, monkeypatch):
    path = str(tmp_path / "http.sock")
    open_unix(path, 0o600, 1).close()

    errors = [PermissionError(13, "Permission denied"), FileNotFoundError(2, "gone meanwhile")]

    class Refusing(socket.socket):
        def connect(self, address):
            raise errors.pop(0)

    monkeypatch.setattr("cryptows.tasks.listeners.socket.socket", Refusing)
    with pytest.raises(StartError, match="Permission denied"):
        remove_stale(path)
    remove_stale(path)


def test_systemds_sockets_are_taken_over():
    with socket.create_server(("127.0.0.1", 0)) as theirs:
        (adopted,) = adopt([os.dup(theirs.fileno())])
        with adopted:
            assert adopted.getsockname() == theirs.getsockname()
            assert adopted.family == socket.AF_INET
    assert adopt([]) == []
