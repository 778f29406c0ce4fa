"""The feed's socket: whose file it is, with which rights, and who is at the other end."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import socket
import stat
from pathlib import Path

import attrs
import pytest

from cryptows.config.settings import Feed
from cryptows.model.errors import ConfigError, StartError
from cryptows.tasks.feedsocket import SO_PEERGROUPS, Guard, Peer, check_names, open_feed


@pytest.fixture
def feed(tmp_path):
    return Feed(socket=str(tmp_path / "feed.sock"))


def refusal(feed):
    with pytest.raises(StartError) as caught:
        open_feed(feed)
    return str(caught.value)


def mode(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


@pytest.mark.parametrize("wanted", [0o600, 0o660, 0o666])
def test_the_file_has_the_mode_of_the_settings_and_the_umask_stays(feed, wanted):
    before = os.umask(0o077)
    try:
        opened = open_feed(attrs.evolve(feed, mode=wanted))
        after = os.umask(0o077)
    finally:
        os.umask(before)

    assert (mode(feed.socket), after) == (wanted, 0o077)
    opened.close()


def test_producers_can_connect_and_closing_removes_the_file(feed):
    opened = open_feed(feed)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(feed.socket)

    opened.close()

    assert not os.path.lexists(feed.socket)


def test_the_file_belongs_to_the_group_of_the_settings(feed):
    group = str(os.getgroups()[0] if os.geteuid() else 1)

    opened = open_feed(attrs.evolve(feed, group=group))

    assert os.lstat(feed.socket).st_gid == int(group)
    opened.close()


def test_the_file_of_a_daemon_that_died_is_replaced(feed):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(feed.socket)

    opened = open_feed(feed)

    with socket.socket(socket.AF_UNIX) as client:
        client.connect(feed.socket)
    opened.close()


def test_a_running_daemon_keeps_its_socket(feed):
    with socket.socket(socket.AF_UNIX) as running:
        running.bind(feed.socket)
        running.listen()

        assert refusal(feed) == (f"feed.socket: already running, somebody listens on {feed.socket}")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(feed.socket)


def test_a_running_daemon_with_a_full_backlog_is_still_running(feed):
    with socket.socket(socket.AF_UNIX) as running, socket.socket(socket.AF_UNIX) as waiting:
        running.bind(feed.socket)
        running.listen(0)
        waiting.connect(feed.socket)

        assert "already running" in refusal(feed)


def test_a_file_that_is_no_socket_is_left_alone(feed, tmp_path):
    (tmp_path / "feed.sock").write_text("precious")

    assert refusal(feed) == f"feed.socket: {feed.socket} exists and is not a socket"
    assert (tmp_path / "feed.sock").read_text() == "precious"


def test_a_missing_folder_is_told(tmp_path):
    path = tmp_path / "missing" / "feed.sock"

    assert refusal(Feed(socket=str(path))) == (
        f"feed.socket: cannot listen on {path}: No such file or directory"
    )


def test_a_path_through_a_file_is_told(tmp_path):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "feed.sock"

    assert refusal(Feed(socket=str(path))) == (
        f"feed.socket: cannot listen on {path}: Not a directory"
    )


def test_a_path_that_is_too_long_is_told(tmp_path):
    path = tmp_path / ("x" * 120)

    assert refusal(Feed(socket=str(path))) == (
        f"feed.socket: cannot listen on {path}: AF_UNIX path too long"
    )


def test_a_socket_of_another_kind_is_left_alone(feed):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(feed.socket)

        assert refusal(feed) == (
            f"feed.socket: cannot listen on {feed.socket}: Protocol wrong type for socket"
        )


def test_closing_leaves_the_file_of_a_successor(feed):
    opened = open_feed(feed)
    Path(feed.socket).unlink()
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(feed.socket)

        opened.close()

        assert os.path.lexists(feed.socket)


def test_a_file_that_was_removed_is_no_trouble_at_closing(feed):
    opened = open_feed(feed)
    Path(feed.socket).unlink()

    opened.close()


def test_a_socket_of_systemd_is_used_and_its_file_stays(feed):
    passed = socket.socket(socket.AF_UNIX)
    passed.bind(feed.socket)
    passed.listen()

    opened = open_feed(feed, [passed.detach()])
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(feed.socket)
    opened.close()

    assert os.path.lexists(feed.socket)


@pytest.mark.parametrize(
    "kinds",
    [
        [(socket.AF_INET, socket.SOCK_STREAM)],
        [(socket.AF_UNIX, socket.SOCK_DGRAM)],
        [(socket.AF_UNIX, socket.SOCK_STREAM), (socket.AF_UNIX, socket.SOCK_STREAM)],
    ],
)
def test_other_sockets_of_systemd_are_refused_and_closed(feed, kinds):
    passed = [socket.socket(*kind).detach() for kind in kinds]

    with pytest.raises(StartError) as caught:
        open_feed(feed, passed)

    assert str(caught.value) == ("the feed's socket from systemd: expected one Unix stream socket")
    for fd in passed:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_the_kernel_says_who_connected():
    ours, theirs = socket.socketpair()

    with ours, theirs:
        assert Peer.of(ours) == Peer(
            os.getpid(), os.geteuid(), frozenset({os.getegid(), *os.getgroups()})
        )


def test_a_peer_in_too_many_groups_to_list_has_its_primary_one():
    ours, theirs = socket.socketpair()

    class Crowded:
        def getsockopt(self, level, option, size):
            if option == SO_PEERGROUPS:
                raise OSError("ERANGE")
            return ours.getsockopt(level, option, size)

    with ours, theirs:
        assert Peer.of(Crowded()).gids == {os.getegid()}  # type: ignore[arg-type]


def test_without_lists_whoever_may_open_the_file_may_feed():
    assert Guard.of(Feed()).admits(Peer(1, 12345, frozenset({12345})))


@pytest.mark.parametrize(
    ("uid", "gids", "admitted"),
    [(0, {9}, True), (7, {9}, True), (8, {1, 2}, True), (8, {9}, False)],
)
def test_with_lists_a_peer_is_in_one_of_them(uid, gids, admitted):
    feed = Feed(allow_users=(pwd.getpwuid(0).pw_name, "7"), allow_groups=("2",))

    assert Guard.of(feed).admits(Peer(1, uid, frozenset(gids))) is admitted


def test_groups_may_be_given_by_name():
    group = grp.getgrgid(0)

    assert Guard.of(Feed(allow_groups=(group.gr_name,))).gids == {0}


@pytest.mark.parametrize(
    ("feed", "problem"),
    [
        (
            Feed(group="no-such"),
            'feed.group is "no-such", which is no group here; expected a group\'s name or id',
        ),
        (
            Feed(allow_users=("0", "no-such")),
            'feed.allow_users has "no-such", which is no user here; expected names or ids',
        ),
        (
            Feed(allow_groups=("no-such",)),
            'feed.allow_groups has "no-such", which is no group here; expected names or ids',
        ),
        (
            Feed(group="4294967295"),
            'feed.group is "4294967295", which is no group here; expected a group\'s name or id',
        ),
        (
            Feed(allow_users=("9" * 5000,)),
            f'feed.allow_users has "{"9" * 5000}", which is no user here; expected names or ids',
        ),
    ],
)
def test_names_that_this_machine_does_not_know_are_wrong_settings(feed, problem):
    key = problem.split()[0]

    with pytest.raises(ConfigError) as caught:
        check_names(feed, {key: "cryptows.toml:7"})

    assert caught.value.problems == (f"cryptows.toml:7: {problem}",)


def test_all_names_that_this_machine_does_not_know_are_told_at_once():
    feed = Feed(group="a-", allow_users=("b-", "c-"), allow_groups=("d-",))

    with pytest.raises(ConfigError) as caught:
        check_names(feed)

    assert len(caught.value.problems) == 4


def test_known_names_and_any_ids_are_right():
    user, group = pwd.getpwuid(0).pw_name, grp.getgrgid(0).gr_name

    check_names(Feed(group=group, allow_users=(user, "54321"), allow_groups=("54321", group)))


def test_a_guard_with_a_name_that_nobody_has_is_not_made():
    with pytest.raises(ConfigError):
        Guard.of(Feed(allow_users=("no-such",)))


def test_a_stale_file_that_may_not_be_removed_is_told(feed, monkeypatch):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(feed.socket)
    denied = PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: _raise(denied))

    assert refusal(feed) == f"feed.socket: cannot listen on {feed.socket}: Permission denied"


def _raise(error):
    raise error


def test_an_unknown_group_of_the_file_is_found_before_it_is_made(feed):
    with pytest.raises(ConfigError):
        open_feed(attrs.evolve(feed, group="no-such-name"))

    assert not os.path.lexists(feed.socket)
