"""The files in systemd/ agree with the code's defaults, and systemd finds nothing wrong in them."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from cryptows.config.load import defaults
from cryptows.config.units import parse_duration
from cryptows.files import DEFAULT_CONFIG

ROOT = Path(__file__).resolve().parent.parent
SYSTEMD = ROOT / "systemd"
SETTINGS = defaults()

Unit = dict[str, dict[str, list[str]]]


def read_unit(name: str) -> Unit:
    """Return the values of each key of each section, in order."""
    sections: Unit = {}
    keys: dict[str, list[str]] = {}
    for line in (SYSTEMD / name).read_text().splitlines():
        if match := re.fullmatch(r"\[(\w+)\]", line):
            keys = sections.setdefault(match[1], {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            keys.setdefault(key, []).append(value)
    return sections


SERVICE = read_unit("cryptows.service")["Service"]
HTTP = read_unit("cryptows-http.socket")["Socket"]
FEED = read_unit("cryptows-feed.socket")["Socket"]


def seconds(key: str) -> float:
    (value,) = SERVICE[key]
    return parse_duration(value)


def test_sockets_are_where_the_settings_have_them():
    assert tuple(HTTP["ListenStream"]) == SETTINGS.server.listen
    assert HTTP["Backlog"] == [str(SETTINGS.server.backlog)]
    assert FEED["ListenStream"] == [SETTINGS.feed.socket]
    assert FEED["SocketMode"] == [f"{SETTINGS.feed.mode:04o}"]


def test_the_daemon_knows_the_sockets_by_their_names():
    taken = set(re.findall(r'passed\.get\("(\w+)"', (ROOT / "cryptows/opening.py").read_text()))

    assert {HTTP["FileDescriptorName"][0], FEED["FileDescriptorName"][0]} == taken


def test_folders_are_where_the_settings_have_them():
    control = Path(SETTINGS.server.control_socket)

    assert SERVICE["RuntimeDirectory"] == [str(control.parent.relative_to("/run"))]
    assert SERVICE["StateDirectory"] == [
        str(Path(SETTINGS.server.state_dir).relative_to("/var/lib"))
    ]
    for key in ("RuntimeDirectoryMode", "StateDirectoryMode"):
        assert SERVICE[key] == ["0700"]


def test_the_runtime_folder_that_goes_with_the_service_does_not_hold_the_feed():
    (private,) = SERVICE["RuntimeDirectory"]

    assert not Path(FEED["ListenStream"][0]).is_relative_to(f"/run/{private}")


def test_the_daemon_ends_its_goodbyes_before_systemd_ends_it():
    assert seconds("TimeoutStopSec") >= SETTINGS.server.drain + 5


def test_what_cannot_be_mended_by_a_restart_is_not_restarted():
    assert SERVICE["Restart"] == ["on-failure"]
    assert SERVICE["RestartPreventExitStatus"] == ["2 78"]


def test_every_connection_that_is_allowed_has_a_descriptor():
    assert int(SERVICE["LimitNOFILE"][0]) >= 2 * SETTINGS.limits.connections + 1000


def test_the_service_says_itself_when_it_is_ready_and_alive():
    assert SERVICE["Type"] == ["notify"]
    assert SERVICE["NotifyAccess"] == ["main"]
    assert 5 <= seconds("WatchdogSec") <= 60


def test_commands_are_the_projects():
    socket = SETTINGS.server.control_socket

    assert SERVICE["ExecStart"] == [f"/usr/bin/cryptows serve --config {DEFAULT_CONFIG}"]
    assert SERVICE["ExecReload"] == [f"/usr/bin/cryptows reload --socket {socket}"]
    assert "ExecStartPre" not in SERVICE  # RestartPreventExitStatus would not hold for it


def test_users_groups_and_folders_are_declared():
    declared = re.findall(
        r"^[ug] (\S+)", (SYSTEMD / "sysusers.d/cryptows.conf").read_text(), re.MULTILINE
    )
    folders = {
        path: (int(mode, 8), user, group)
        for path, mode, user, group in re.findall(
            r"^d (\S+) +(\d+) (\S+) +(\S+)",
            (SYSTEMD / "tmpfiles.d/cryptows.conf").read_text(),
            re.MULTILINE,
        )
    }

    assert set(declared) == {*SERVICE["User"], *SERVICE["Group"], *FEED["SocketGroup"]}
    assert str(Path(SETTINGS.feed.socket).parent) in folders
    credentials = SERVICE["LoadCredential"][0].partition(":")[2]
    assert folders[credentials] == (0o700, "root", "root")
    for mode, user, group in folders.values():
        assert user == "root"
        assert group in ("root", "cryptows")
        assert not mode & (stat.S_IWOTH | stat.S_IWGRP)


def test_the_service_has_no_network_and_no_privilege():
    for key, value in {
        "PrivateNetwork": "yes",
        "RestrictAddressFamilies": "AF_UNIX",
        "CapabilityBoundingSet": "",
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "UMask": "0077",
        "LimitCORE": "0",
    }.items():
        assert SERVICE[key] == [value]


def test_enabling_the_service_enables_its_sockets():
    assert read_unit("cryptows.service")["Install"]["Also"] == [
        "cryptows-http.socket cryptows-feed.socket"
    ]
    for name in ("cryptows-http.socket", "cryptows-feed.socket"):
        assert read_unit(name)["Install"] == {"WantedBy": ["sockets.target"]}


analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def installed(folder: Path, *drop_ins: str) -> list[Path]:
    """Put the units into a folder, with a command that exists here instead of ours."""
    units = [*SYSTEMD.glob("*.service"), *SYSTEMD.glob("*.socket")]
    for unit in units:
        text = unit.read_text().replace("/usr/bin/cryptows", "/bin/true")
        (folder / unit.name).write_text(text)
    for name in drop_ins:
        target = folder / name
        target.parent.mkdir()
        shutil.copy(SYSTEMD / "drop-ins" / name, target)
    return [folder / unit.name for unit in units]


@analyze
@pytest.mark.parametrize("drop_ins", [(), ("cryptows-http.socket.d/listen.conf",)])
def test_systemd_finds_nothing_wrong(tmp_path, drop_ins):
    """An unknown key is only a line of output and exit 0, so both must be as good as nothing."""
    units = installed(tmp_path, *drop_ins)

    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, units)],
        env={"PATH": "/usr/bin:/bin", "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip

    ours = [line for line in done.stderr.splitlines() if "cryptows" in line]
    assert (done.returncode, done.stdout, ours) == (0, "", [])


@analyze
def test_the_service_is_as_confined_as_it_was(tmp_path):
    """Ten times the exposure level; 4 is what is left with Unix sockets and visible users."""
    installed(tmp_path)

    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=4", "./cryptows.service"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout[-300:] + done.stderr
