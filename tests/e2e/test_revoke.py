"""Revoking a user's tokens while he is connected, over a restart, and taking it back."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.e2e.daemon import ROOT, Daemon, start

pytestmark = pytest.mark.e2e


def cryptows(*arguments: str) -> str:
    command = [sys.executable, "-m", "cryptows", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=30)
    return done.stdout


def client(daemon: Daemon, token: str) -> ClientConnection:
    return connect(daemon.url, additional_headers={"Authorization": f"Bearer {token}"})


def close_code(ws: ClientConnection) -> int | None:
    with contextlib.suppress(ConnectionClosed):
        for _ in ws:
            pass
    return ws.close_code


def test_a_revoked_user_is_ended_and_stays_out_until_restored(tmp_path):
    with start(tmp_path) as daemon:
        old, other = daemon.token("123"), daemon.token("456")
        control = ["--socket", str(daemon.control_socket)]
        with client(daemon, old) as ws, client(daemon, other) as bystander:
            said = cryptows("token", "revoke", "--user", "123", *control)

            assert "clients: 1" in said
            assert close_code(ws) == 4001
            bystander.recv(timeout=10)
            bystander.send(json.dumps({"type": "ping", "id": 1}))
            assert json.loads(bystander.recv(timeout=10))["type"] == "pong"

        daemon.restart()
        with client(daemon, old) as ws:
            assert close_code(ws) == 4001
        fresh = daemon.token("123", iat=int(time.time()) + 2)
        with client(daemon, fresh) as ws:
            assert json.loads(ws.recv(timeout=10))["data"]["userId"] == "123"

        cryptows("token", "restore", "--user", "123", *control)
        with client(daemon, old) as ws:
            assert json.loads(ws.recv(timeout=10))["data"]["userId"] == "123"
