"""A real browser: a page of another origin connects with the official client, or must not.

Headless Chromium loads a page from a server of this test, on another port than the daemon's, so
that the browser itself enforces CORS and sends `Origin`. The page tells that server what it sees.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import queue
import shutil
import subprocess
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.daemon import Daemon, start

HERE = Path(__file__).parent
CLIENT = HERE / "node_modules" / "socket.io-client" / "dist" / "socket.io.min.js"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PATIENCE = 60.0  # seconds; a browser on a busy machine takes its time to start

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, as Debian's package has it"),
    pytest.mark.skipif(not CLIENT.is_file(), reason="needs `npm ci` in tests/e2e"),
]

# Without the last flags it asks Google's hosts for this and that at every start.
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-quic", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
)  # fmt: skip


class PageServer(http.server.ThreadingHTTPServer):
    """Serves the page, and takes what it tells."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.told: queue.Queue[dict[str, Any]] = queue.Queue()

    @property
    def origin(self) -> str:
        return f"http://localhost:{self.server_address[1]}"

    def until(
        self, on: str, where: Callable[[dict[str, Any]], object] = lambda told: True
    ) -> dict[str, Any]:
        """Return the next thing told of that kind, skipping others."""
        while True:
            told = self.told.get(timeout=PATIENCE)
            if told["on"] == on and where(told):
                return told


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers the browser."""

    server: PageServer

    def do_GET(self) -> None:
        path = {"/": HERE / "page.html", "/socket.io.js": CLIENT}.get(self.path.partition("?")[0])
        if path is None:
            self.send_error(404)
            return
        body = path.read_bytes()
        self.send_response(200)
        kind = "text/html" if path.suffix == ".html" else "text/javascript"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.told.put(json.loads(body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def page() -> Iterator[PageServer]:
    with PageServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@contextlib.contextmanager
def browsing(page: PageServer, folder: Path, url: str, options: dict[str, Any]) -> Iterator[None]:
    """Open the page in a browser of its own for the time of the block."""
    query = urllib.parse.urlencode({"url": url, "options": json.dumps(options)})
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", f"{page.origin}/?{query}"]
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        browser.kill()
        browser.wait()


def daemon_for(folder: Path, *origins: str) -> contextlib.AbstractContextManager[Daemon]:
    listed = ", ".join(json.dumps(origin) for origin in origins)
    sets = [f"cors.origins=[{listed}]", "channels.market_data.throttle=0s"]
    return start(folder, sets)


def price(number: int) -> dict[str, Any]:
    data = {"symbol": "BTCUSDT", "price": number, "volume": 1}
    return {"type": "market_data_update", "data": data}


@pytest.mark.parametrize(
    "transports", [["polling", "websocket"], ["polling"], ["websocket"]], ids="-".join
)
def test_a_page_of_an_allowed_origin_connects_and_receives(transports, page, tmp_path: Path):
    with daemon_for(tmp_path, page.origin) as daemon:
        options = {"auth": {"token": daemon.token()}, "transports": transports}
        with browsing(page, tmp_path / "profile", daemon.http, options):
            page.until("connect")
            answer = page.until("ack")["answer"]
            daemon.publish([price(n) for n in range(1, 21)])
            # The page tells each event by a request of its own, in no particular order.
            events = [
                page.until("message", lambda t: t["envelope"]["type"] == "market_data_update")
                for _ in range(20)
            ]

        assert answer["data"]["channels"] == ["market_data"]
        assert {event["envelope"]["data"]["price"] for event in events} == set(range(1, 21))


@pytest.mark.parametrize("transports", [["polling"], ["websocket"]], ids="-".join)
def test_a_page_of_a_foreign_origin_gets_no_session(transports, page, tmp_path: Path):
    with daemon_for(tmp_path, "https://dashboard.example") as daemon:
        options = {"auth": {"token": daemon.token()}, "transports": transports}
        with browsing(page, tmp_path / "profile", daemon.http, options):
            error = page.until("connect_error")

        assert error["message"] in ("xhr poll error", "websocket error")
        assert daemon.stats()["server"]["connectedClients"] == 0


def test_a_page_sees_why_its_token_is_refused(page, tmp_path: Path):
    with daemon_for(tmp_path, page.origin) as daemon:
        options = {"auth": {"token": daemon.token(ttl=-60)}}
        with browsing(page, tmp_path / "profile", daemon.http, options):
            error = page.until("connect_error")

        assert (error["message"], error["data"]) == ("jwt expired", {"code": "token_expired"})


def test_a_page_comes_back_after_a_restart(page, tmp_path: Path):
    with daemon_for(tmp_path, page.origin) as daemon:
        options = {"auth": {"token": daemon.token()}}
        with browsing(page, tmp_path / "profile", daemon.http, options):
            page.until("ack")
            daemon.restart()
            page.until("disconnect")
            page.until("connect")
            page.until("ack")
            daemon.publish([price(7)])

            event = page.until("message", lambda t: t["envelope"]["type"] == "market_data_update")

        assert event["envelope"]["data"]["price"] == 7
