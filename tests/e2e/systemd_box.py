"""A real systemd for tests: PID 1 of its own namespaces, over a throw-away copy of this machine.

    with Box({Path("/src"): "/opt/src"}) as box:
        box.run("systemctl", "start", "cryptows-http.socket")

An overlay of `/` takes all that is written inside and is gone afterwards; folders that are mounts
of their own, or that tests want elsewhere, are bound in read-only. The network is a private
loopback, and nothing of the machine's own services starts. Needs root, util-linux and systemd's
binary, which need not run on the machine; where it cannot be had `why_not` says what is missing.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

SYSTEMD = Path("/lib/systemd/systemd")
BOOT_LIMIT = 30.0  # seconds; a boot takes about one
ENVIRON = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "container": "box"}
NAMESPACES = ("--mount", "--uts", "--ipc", "--pid", "--cgroup", "--net")

# As PID 1 of the new namespaces, from an own control group, which becomes the root of all inside.
ENTER = 'echo 0 > "$GROUP/cgroup.procs"; exec unshare --cgroup sh -euc "$BOOT"'

BOOT = r"""
mount -t tmpfs -o mode=755 box "$BOX"
mkdir "$BOX/upper" "$BOX/work" "$BOX/root"
mount -t overlay -o "lowerdir=/,upperdir=$BOX/upper,workdir=$BOX/work" box "$BOX/root"
cd "$BOX/root"
mount -t proc -o nosuid,nodev,noexec proc proc
# a test must not set the machine's sysctls
mount --bind proc/sys proc/sys && mount -o remount,bind,ro proc/sys
mount -t sysfs -o nosuid,nodev,noexec,ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
for folder in run tmp dev; do mount -t tmpfs -o mode=755 box "$folder"; done
chmod 1777 tmp
for device in null zero full random urandom tty; do
    : > "dev/$device"; mount --bind "/dev/$device" "dev/$device"
done
mkdir dev/shm dev/pts dev/mqueue && chmod 1777 dev/shm
ln -s pts/ptmx dev/ptmx  # PrivateDevices= wants it, even if it leads nowhere
ln -s /proc/self/fd dev/fd
echo "$BINDS" | while IFS="|" read -r from to; do
    [ -n "$from" ] || continue
    mkdir -p "./$to"
    mount --bind "$from" "./$to" && mount -o remount,bind,ro "./$to"
done
ip link set lo up
rm -rf etc/systemd/system/*.wants etc/systemd/system/*.requires etc/fstab
for unit in systemd-timesyncd.service systemd-firstboot.service ldconfig.service \
        systemd-hwdb-update.service systemd-sysusers.service getty.target; do
    ln -sfn /dev/null "etc/systemd/system/$unit"
done
mkdir -p etc/systemd/journald.conf.d
printf '[Journal]\nReadKMsg=no\nStorage=volatile\nRateLimitBurst=0\n' \
    > etc/systemd/journald.conf.d/box.conf
printf '[Unit]\nRequires=basic.target dbus.socket\nAfter=basic.target\nAllowIsolate=yes\n' \
    > etc/systemd/system/box.target
pivot_root . mnt
umount -l /mnt
mount --make-rshared /  # else credentials do not appear in the services' own namespaces
exec env -i PATH="$PATH" container=box "$SYSTEMD" --system --unit=box.target --show-status=false \
    --log-target=journal
"""


def why_not() -> str:
    """Return what keeps this machine from it, or an empty string."""
    if os.geteuid() != 0:
        return "needs root"
    if not SYSTEMD.exists():
        return f"there is no {SYSTEMD}"
    for tool in ("unshare", "nsenter", "pivot_root", "ip", "systemctl", "dbus-daemon"):
        if shutil.which(tool, path=ENVIRON["PATH"]) is None:
            return f"there is no {tool}"
    if not _cgroup2():
        return "there is no cgroup2 mount"
    tried = subprocess.run(
        ["unshare", "--mount", "--pid", "--net", "--fork", "mount", "--make-rprivate", "/"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return tried.stderr.strip()  # e.g. root in a container that may not mount


class Box:
    """A booted systemd; `binds` are folders of this machine and where they are to be inside."""

    def __init__(self, binds: Mapping[Path, str]) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="cryptows-box-"))
        self._group = Path(_cgroup2()) / self._folder.name
        self._binds = "\n".join(f"{source}|{target}" for source, target in binds.items())
        self._outer: subprocess.Popen[bytes] | None = None
        self._init = 0

    def __enter__(self) -> Self:
        try:
            self._boot()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._end()

    def run(
        self, *command: str, check: bool = True, stdin: str = "", limit: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside; with `check` a failure fails the test and shows what it wrote."""
        enter = ["nsenter", "--target", str(self._init), *NAMESPACES, "--root", "--wd"]
        done = subprocess.run(
            [*enter, "--", *command], env=ENVIRON, input=stdin, capture_output=True, text=True,
            check=False, timeout=limit,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(
                f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file inside."""
        self.run("mkdir", "-p", str(Path(path).parent))
        self.run("sh", "-c", 'cat > "$1" && chmod "$2" "$1"', "sh", path, f"{mode:o}", stdin=text)

    def _boot(self) -> None:
        self._group.mkdir()
        environ = {
            **ENVIRON, "GROUP": str(self._group), "BOX": str(self._folder), "BOOT": BOOT,
            "BINDS": self._binds, "SYSTEMD": str(SYSTEMD),
        }  # fmt: skip
        self._outer = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "--pid", "--ipc", "--uts", "--net",
             "--fork", "--kill-child", "sh", "-euc", ENTER],
            env=environ, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        deadline = time.monotonic() + BOOT_LIMIT
        while not self._is_up():
            if self._outer.poll() is not None or time.monotonic() > deadline:
                self._outer.kill()
                _, errors = self._outer.communicate()
                raise AssertionError(f"systemd did not come up: {errors.decode()}")
            time.sleep(0.05)

    def _is_up(self) -> bool:
        assert self._outer is not None
        task = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        children = task.read_text().split() if task.exists() else []
        if not children or Path(f"/proc/{children[0]}/comm").read_text() != "systemd\n":
            return False
        self._init = int(children[0])
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in ("running", "degraded")

    def _end(self) -> None:
        if self._outer is not None and self._outer.poll() is None:
            if self._init:
                self.run("systemctl", "--no-block", "exit", check=False)
            try:
                self._outer.wait(10)
            except subprocess.TimeoutExpired:
                self._outer.send_signal(signal.SIGKILL)  # --kill-child takes all inside along
                self._outer.wait()
        if self._outer is not None and self._outer.stderr is not None:
            self._outer.stderr.close()
        for folder in sorted(self._group.glob("**/"), reverse=True):
            _remove(folder)
        _remove(self._folder)


def _remove(folder: Path) -> None:
    """Remove an empty folder; a control group may stay busy for a moment."""
    for _ in range(50):
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.05)
        else:
            return


def _cgroup2() -> str:
    for line in Path("/proc/mounts").read_text().splitlines():
        _, target, kind, *_ = line.split()
        if kind == "cgroup2":
            return target
    return ""
