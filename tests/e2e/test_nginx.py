"""The daemon behind nginx: clients are counted, banned and shown by their own address.

All addresses of 127.0.0.0/8 are this machine's, so clients come from 127.0.0.2 and others, and only
127.0.0.1, nginx's own, is trusted.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.e2e.daemon import Daemon, free_port, start

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(NGINX is None, reason="needs nginx; on Debian: apt-get install nginx-light"),
]

# What the README tells to write, as a whole server.
CONFIG = """
{user}
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_processes 1;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream tcp {{ server 127.0.0.1:{daemon}; }}
    upstream unix {{ server unix:{unix}; }}
    server {{
        listen 127.0.0.1:{port};
        proxy_http_version 1.1;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection $http_connection;
        proxy_set_header Host $host;
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        proxy_buffering off;
        proxy_read_timeout 60s;
        location / {{ proxy_pass http://tcp; }}
        location /unix/ {{ proxy_pass http://unix/; }}
    }}
}}
"""


@attrs.frozen
class Front:
    """nginx in front of a daemon."""

    daemon: Daemon
    port: int

    @contextlib.contextmanager
    def client(self, address: str, path: str = "/ws", **headers: str) -> Iterator[ClientConnection]:
        """A client from an address of its own, that has read its first message."""
        url = f"ws://127.0.0.1:{self.port}{path}"
        with (
            self.sock(address) as sock,
            connect(url, sock=sock, additional_headers=headers, close_timeout=2) as ws,
        ):
            assert json.loads(ws.recv(timeout=10))["type"] == "connection"
            yield ws

    def refused(self, address: str, path: str = "/ws", **headers: str) -> int:
        with pytest.raises(InvalidStatus) as error, self.client(address, path, **headers):
            pass
        return error.value.response.status_code

    def sock(self, address: str) -> socket.socket:
        target = ("127.0.0.1", self.port)
        return socket.create_connection(target, timeout=10, source_address=(address, 0))

    def get(self, address: str, path: str, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=10, source_address=(address, 0)
        )
        with contextlib.closing(connection):
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read()


@contextlib.contextmanager
def front(folder: Path, *sets: str) -> Iterator[Front]:
    """A daemon on TCP and on a Unix socket, and nginx before both."""
    assert NGINX is not None
    port, unix = free_port(), folder / "http.sock"
    config = 'server.trusted_proxies = ["127.0.0.1/32"]\n'
    with start(folder, sets, config=config, listen=[f"unix:{unix}"]) as daemon:
        # Started by root it would change to a user who may not see the temporary folder.
        user = "user root root;" if os.geteuid() == 0 else ""
        text = CONFIG.format(user=user, folder=folder, daemon=daemon.port, port=port, unix=unix)
        (folder / "nginx.conf").write_text(text)
        command = [NGINX, "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as nginx:
            try:
                wait_for(port, folder)
                yield Front(daemon, port)
            finally:
                nginx.terminate()


def wait_for(port: int, folder: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        with contextlib.suppress(ConnectionError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        assert time.monotonic() < deadline, (folder / "error.log").read_text()
        time.sleep(0.05)


def test_limits_and_bans_are_those_of_the_client(tmp_path):
    sets = ["limits.connections_per_address=2", "limits.requests=3", "limits.strikes=1"]
    with front(tmp_path, *sets) as nginx, contextlib.ExitStack() as stack:
        for address in ("127.0.0.2", "127.0.0.3", "127.0.0.4"):
            for path in ("/ws", "/unix/ws"):
                stack.enter_context(nginx.client(address, path))
        assert nginx.refused("127.0.0.2") == 429
        assert nginx.refused("127.0.0.2", "/unix/ws") == 429
        forged = {"X-Forwarded-For": "198.51.100.9"}
        assert nginx.refused("127.0.0.3", **forged) == 429

        with nginx.client("127.0.0.5") as bad:
            with contextlib.suppress(ConnectionClosed):
                for _ in range(10):
                    bad.send('{"type":"ping"}')
                while True:
                    bad.recv(timeout=10)
            assert bad.protocol.close_code == 4029
        assert nginx.refused("127.0.0.5") == nginx.refused("127.0.0.5", "/unix/ws") == 429
        stack.enter_context(nginx.client("127.0.0.6"))
        assert nginx.get("127.0.0.5", "/healthz")[0] == 200

        metrics = nginx.daemon.metrics()
        assert metrics['cryptows_connections{transport="websocket"}'] == 7
        assert metrics["cryptows_banned"] == 1


def test_events_pings_and_goodbyes_pass_through(tmp_path):
    with front(tmp_path, "heartbeat.interval=300ms") as nginx:
        with nginx.client("127.0.0.2") as ws, nginx.client("127.0.0.3", "/unix/ws") as other:
            for each in (ws, other):
                each.send('{"type":"subscribe","channels":["system_status"]}')
            time.sleep(1)
            nginx.daemon.publish([{"type": "system_status", "data": {"status": "ok"}}])
            for each in (ws, other):
                while json.loads(each.recv(timeout=10))["type"] != "system_status":
                    pass
            nginx.daemon.send_signal()
            for each in (ws, other):
                with contextlib.suppress(ConnectionClosed):
                    while True:
                        each.recv(timeout=10)
                assert each.protocol.close_code == 1012
        assert nginx.daemon.wait() == 0


def test_statistics_are_not_opened_by_a_proxy_that_is_not_trusted(tmp_path):
    with front(tmp_path) as nginx:
        assert nginx.get("127.0.0.2", "/stats")[0] == 200  # a client of this machine
        untrusted = [*nginx.daemon.sets, "server.trusted_proxies=[]"]
        nginx.daemon.restart(sets=untrusted)

        assert nginx.get("127.0.0.2", "/stats")[0] == 401
        token = nginx.daemon.token(role="admin")
        assert nginx.get("127.0.0.2", "/stats", Authorization=f"Bearer {token}")[0] == 200
        assert nginx.daemon.get("/stats")[0] == 200
