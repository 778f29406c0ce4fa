"""A disk that is really full: live delivery goes on, acknowledgements are refused, and it heals."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from tests.e2e.daemon import Daemon, start

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0, reason="a small tmpfs needs root"),
]

CHANNEL = "user_7_trades"
SIZE = 2 << 20


@pytest.fixture
def disk(tmp_path):
    """The daemon's state folder on a file system of its own, and small."""
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=700", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this root cannot mount: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def trade(tag: str) -> dict[str, Any]:
    data = {"symbol": "BTCUSDT", "side": "buy", "quantity": 1, "tag": tag}
    return {"type": "trade_execution", "user_id": "7", "id": tag, "data": data}


class Follower:
    """A client that notes what it gets."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.seen: list[dict[str, Any]] = []

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Read on until such a message comes."""
        while True:
            self.seen.append(json.loads(self.socket.recv(timeout=20)))
            if wanted(self.seen[-1]):
                return self.seen[-1]

    def subscribe(self, channels: list[str], **more: Any) -> dict[str, Any]:
        request = {"type": "subscribe", "channels": channels, "id": 1, **more}
        self.socket.send(json.dumps(request))
        answer = self.until(lambda m: m["type"] == "subscription_confirmed")
        data: dict[str, Any] = answer["data"]
        return data

    def until_tag(self, tag: str) -> dict[str, Any]:
        return self.until(lambda m: isinstance(m["data"], dict) and m["data"].get("tag") == tag)

    def until_store(self, state: str) -> dict[str, Any]:
        return self.until(
            lambda m: m["type"] == "system_status" and m["data"].get("status") == state
        )


def fill(disk: Path) -> Path:
    """Take all the room there is; return the file that does."""
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 12))
    return ballast


def readiness(daemon: Daemon) -> tuple[int, str]:
    status, _, body = daemon.get("/readyz")
    return status, json.loads(body)["store"]


def breaker(daemon: Daemon) -> str:
    metrics = daemon.metrics()
    (state,) = [
        state for state in ("closed", "open", "half_open")
        if metrics[f'cryptows_store_breaker_state{{state="{state}"}}']
    ]  # fmt: skip
    return state


def test_a_full_disk_is_told_everywhere_and_holds_up_nobody(tmp_path, disk):
    sets = ["store.retry=100ms", "store.retry_max=200ms", "store.failures=2"]
    with start(tmp_path, sets) as daemon:
        headers = {"Authorization": f"Bearer {daemon.token('7')}"}
        with connect(daemon.url, additional_headers=headers, compression=None) as socket:
            follower = Follower(socket)
            follower.subscribe([CHANNEL, "system_status"])
            (answer,) = daemon.publish([trade("before")])
            before = follower.until_tag("before")
            assert answer["ok"]
            assert readiness(daemon) == (200, "ok")

            ballast = fill(disk)
            answers: list[dict[str, Any]] = []
            while not answers or answers[-1]["ok"]:  # SQLite may have some room left of its own
                answers += daemon.publish([trade(f"full-{len(answers)}")])
            tag = answers[-1]["id"]

            assert answers[-1]["error"]["code"] == "not_stored"
            assert follower.until_tag(tag)["seq"] == before["seq"] + len(answers)
            told = follower.until_store("open")["data"]
            assert "full" in told["reason"]
            (refused,) = daemon.publish([trade("live")])
            assert refused["error"]["code"] == "not_stored"
            follower.until_tag("live")
            assert readiness(daemon)[0] == 200
            assert readiness(daemon)[1] != "ok"
            assert breaker(daemon) != "closed"
            assert any(line["level"] == "error" for line in daemon.logs("store state"))

            ballast.unlink()
            follower.until_store("closed")
            daemon.wait_until(lambda: readiness(daemon) == (200, "ok"))
            (answer,) = daemon.publish([trade("after")])
            assert answer["ok"]
            follower.until_tag("after")

        metrics = daemon.metrics()
        # What went out live is remembered for a while, and gone with the daemon.
        remembered, tags = come_back(daemon, headers, before["offset"])
        assert (remembered, tags[-2:]) == (True, ["live", "after"])
        daemon.restart()
        kept, tags = come_back(daemon, headers, before["offset"])
        assert (kept, tags[-1]) == (False, "after")
        assert "live" not in tags

    assert metrics["cryptows_unstored_events_total"] >= 2
    assert metrics["cryptows_store_breaker_opened_total"] >= 1


def come_back(daemon: Daemon, headers: dict[str, str], since: str) -> tuple[bool, list[str]]:
    """Return whether all was recovered, and the tags of what was."""
    with connect(daemon.url, additional_headers=headers, compression=None) as socket:
        follower = Follower(socket)
        confirmed = follower.subscribe([CHANNEL], since=since)
        follower.until_tag("after")
    tags = [m["data"]["tag"] for m in follower.seen if m.get("channel") == CHANNEL]
    return confirmed["recovered"], tags
