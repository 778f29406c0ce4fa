"""One measurement: start a server, run the load client against it, stop it.

Everything is on loopback and ends by itself: the load is bounded in clients, events and time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

from bench.figures import Figures, Report, read_report
from bench.servers import HERE, Place, Server
from bench.work import Work

START_SECONDS = 20.0
STOP_SECONDS = 5.0
SETTLE_SECONDS = 1.0  # between the last connect and the look at idle memory
LONGEST = 240.0  # for connecting and draining, beside the measured time


class MeasureError(Exception):
    """A measurement that came to nothing; says why, with the server's last words."""


@attrs.frozen
class Bench:
    """The tools and CPUs of a run."""

    folder: Path  # of the programs built here
    server_cpu: int
    client_cpu: int

    @classmethod
    def prepare(cls, folder: Path) -> Bench:
        """Build the programs; raises MeasureError when there is no compiler."""
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise MeasureError(
                "the load client is written in C and there is no cc; Debian: apt-get install gcc"
            )
        for name in ("load", "floor"):
            built, source = folder / name, HERE / f"{name}.c"
            subprocess.run([compiler, "-O2", "-pthread", "-o", built, source], check=True)
        cpus = sorted(os.sched_getaffinity(0))
        return cls(folder, cpus[0], cpus[-1])

    def run(self, server: Server, work: Work) -> Figures:
        """Measure one server on one work; raises MeasureError."""
        with self.place() as place, self.running(server, place) as process:
            return Figures(server.name, work, self._load(server, work, place, process))

    @contextlib.contextmanager
    def place(self) -> Iterator[Place]:
        """Give a server a folder and ports."""
        with (
            tempfile.TemporaryDirectory(prefix="cryptows-bench-") as name,
            reserved_ports() as (port, side_port),
        ):
            place = Place(Path(name), port, side_port)
            (place.folder / "floor").symlink_to(self.folder / "floor")
            yield place

    @contextlib.contextmanager
    def running(self, server: Server, place: Place) -> Iterator[subprocess.Popen[bytes]]:
        """Start a server there, pinned to its CPU, and stop it at the end."""
        log = place.folder / "log"
        with log.open("wb") as out, pinned(self.server_cpu):
            process = subprocess.Popen(
                server.command(place), cwd=HERE.parent,
                stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip
        try:
            wait_until_listening(server, place, process)
            yield process
        except MeasureError as error:
            raise MeasureError(f"{error}\n{last_words(log)}".rstrip()) from None
        finally:
            stop(process)

    def _load(
        self, server: Server, work: Work, place: Place, process: subprocess.Popen[bytes]
    ) -> Report:
        command = [str(self.folder / "load"), *load_options(server, work, place)]
        with pinned(self.client_cpu):
            load = subprocess.Popen(
                [*command, "--pid", str(process.pid)],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
        try:
            out, errors = load.communicate(timeout=work.seconds + work.warm + LONGEST)
        except subprocess.TimeoutExpired:
            load.kill()
            load.communicate()
            raise MeasureError("the load client did not end in time") from None
        if load.returncode:
            raise MeasureError(errors.decode(errors="replace").strip())
        return read_report(out)


def load_options(server: Server, work: Work, place: Place) -> list[str]:
    """Write what is said into files, and return the load client's options."""
    dialect = server.dialect
    inits, events = place.folder / "inits", place.folder / "events"
    # load.c: texts are ended by NUL, and the messages of one client parted by RS.
    clients = (dialect.inits(work.topics(client)) for client in range(work.clients))
    inits.write_text("".join("\x1e".join(messages) + "\0" for messages in clients), newline="")
    lines = (dialect.event(symbol, work.routed) for symbol in work.feed())
    events.write_text("".join(f"{line}\0" for line in lines), newline="")
    options = {
        "--port": place.port, "--clients": work.clients, "--slow": work.slow,
        "--inits": inits, "--ready": dialect.ready, "--settle": SETTLE_SECONDS,
    }  # fmt: skip
    if work.rate is not None:
        options |= {
            "--feed": server.feed(place), "--events": events, "--rate": work.rate,
            "--warm": work.warm, "--seconds": work.seconds,
        }  # fmt: skip
    return [*dialect.options, *(str(part) for pair in options.items() for part in pair)]


@contextlib.contextmanager
def pinned(cpu: int) -> Iterator[None]:
    """Let what is started inside run on one CPU only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def reserved_ports() -> Iterator[tuple[int, int]]:
    """Give two free ports of loopback that nobody is given again meanwhile."""
    with socket.socket() as one, socket.socket() as two:
        for sock in (one, two):
            # Bound but not listening: with SO_REUSEADDR on both sides the server may still bind.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", 0))
        yield one.getsockname()[1], two.getsockname()[1]


def wait_until_listening(server: Server, place: Place, process: subprocess.Popen[bytes]) -> None:
    """Return once clients and producers can connect; raises MeasureError."""
    doors = [("127.0.0.1", place.port)]
    if server.feed(place).startswith("tcp:"):
        doors.append(("127.0.0.1", place.side_port))
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise MeasureError(f"the server ended with status {process.returncode}")
        if all(map(accepts, doors)) and (len(doors) == 2 or place.feed.exists()):
            time.sleep(0.5)  # what a runtime does after its start is not a connection's cost
            return
        time.sleep(0.05)
    raise MeasureError("the server does not listen")


def accepts(address: tuple[str, int]) -> bool:
    """Whether someone listens there."""
    try:
        socket.create_connection(address, timeout=1).close()
    except OSError:
        return False
    return True


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server, with force if it does not want to."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def last_words(log: Path) -> str:
    """Return the end of a server's log."""
    return log.read_text(errors="replace")[-1500:].strip()
