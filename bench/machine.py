"""What the numbers were measured on: the machine, and the versions of all that took part."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import cryptows
from bench.servers import PEERS


def describe() -> list[str]:
    """Return a line for the machine and one for the versions."""
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    cores = len(os.sched_getaffinity(0))
    machine = f"{cpu[1] if cpu else platform.machine()}, {cores} cores, Linux {platform.release()}"
    return [machine, ", ".join(f"{name} {version}" for name, version in versions().items())]


def versions() -> dict[str, str]:
    """Return the versions of the daemon and of the peers that are here."""
    found = {
        "cryptows": cryptows.__version__,
        "Python": platform.python_version(),
        "trio": _python("trio"),
        "Node": _said("node", "--version"),
        "ws": _node("ws"),
        "Socket.IO": _node("socket.io"),
        "nats-server": _said("nats-server", "--version"),
        "websockets": _python("websockets"),
        "python-socketio": _python("python-socketio"),
        "socketify": _python("socketify"),
    }
    return {name: version for name, version in found.items() if version}


def _python(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _node(package: str) -> str:
    manifest = PEERS / "node_modules" / package / "package.json"
    return str(json.loads(manifest.read_text())["version"]) if manifest.exists() else ""


def _said(*command: str) -> str:
    if not shutil.which(command[0]):
        return ""
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    version = re.search(r"\d+(\.\d+)+", said)
    return version[0] if version else ""
