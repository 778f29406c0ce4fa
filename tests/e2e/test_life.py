"""The life of the daemon: how it starts or says why not, reloads, tells of itself, and ends."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.e2e.daemon import Daemon, NotStarted, sign, start
from tests.e2e.watcher import watcher

pytestmark = pytest.mark.e2e

MARKER = "hunter2-Marker0123456789abcdef"
STATUS = {"type": "system_status", "data": {"status": "ok"}}


@contextlib.contextmanager
def client(daemon: Daemon, user: str = "") -> Iterator[ClientConnection]:
    """A client on `/ws` that has read its first message."""
    headers = {"Authorization": f"Bearer {daemon.token(user)}"} if user else {}
    with connect(daemon.url, compression=None, additional_headers=headers) as ws:
        assert json.loads(ws.recv(timeout=10))["type"] == "connection"
        yield ws


def close_code(ws: ClientConnection) -> int:
    with contextlib.suppress(ConnectionClosed):
        while True:
            ws.recv(timeout=10)
    code = ws.protocol.close_code
    assert code is not None
    return code


def last_line(error: NotStarted) -> str:
    return error.output.splitlines()[-1]


# --- a start that fails


def test_a_port_that_is_taken_is_told_in_one_line(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"

        with pytest.raises(NotStarted) as failed, start(tmp_path, [f'server.listen=["{address}"]']):
            pass

    assert failed.value.code == 1
    assert re.fullmatch(rf"cryptows: .*{re.escape(address)}.*in use.*", last_line(failed.value))
    assert "Traceback" not in failed.value.output


def test_a_key_that_cannot_be_read_is_told_in_one_line(tmp_path):
    with (
        pytest.raises(NotStarted) as failed,
        start(tmp_path, [f"auth.secret_file={tmp_path}/gone"]),
    ):
        pass

    assert failed.value.code == 78
    assert f"{tmp_path}/gone" in last_line(failed.value)
    assert "Traceback" not in failed.value.output


def test_a_user_that_does_not_exist_is_a_wrong_configuration(tmp_path):
    with pytest.raises(NotStarted) as failed, start(tmp_path, ["feed.allow_users=no-such"]):
        pass

    assert failed.value.code == 78
    assert last_line(failed.value).endswith(
        'feed.allow_users has "no-such", which is no user here; expected names or ids'
    )
    assert "Traceback" not in failed.value.output


def test_a_second_daemon_on_the_same_sockets_is_refused_and_harms_nobody(tmp_path):
    with start(tmp_path) as daemon:
        second = subprocess.run(
            [sys.executable, "-m", "cryptows", "serve", "--config", str(daemon.config),
             "--set", 'server.listen=["127.0.0.1:0"]'],
            capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip

        assert second.returncode == 1
        assert "already running" in second.stderr.splitlines()[-1]
        assert "Traceback" not in second.stderr
        assert daemon.control({"command": "status"})["ok"]
        assert daemon.publish([STATUS])[0]["ok"]


def test_what_a_killed_daemon_left_does_not_keep_the_next_from_starting(tmp_path):
    with start(tmp_path) as daemon:
        daemon.restart(signal.SIGKILL)

        assert daemon.publish([STATUS])[0]["ok"]
        assert daemon.control({"command": "status"})["status"] == "ready"


# --- the end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_says_goodbye_to_everybody_and_ends_with_0(tmp_path, number):
    with start(tmp_path) as daemon, client(daemon) as one, client(daemon) as other:
        daemon.send_signal(number)

        assert close_code(one) == close_code(other) == 1012
        assert daemon.wait() == 0
        assert not daemon.feed_socket.exists()
        assert not daemon.control_socket.exists()
        assert [line["event"] for line in daemon.logs()][-1] == "stopped"


def handshake(daemon: Daemon) -> socket.socket:
    """A client that reads nothing and answers no close."""
    sock = socket.create_connection(("127.0.0.1", daemon.port))
    sock.sendall(
        b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert sock.recv(12) == b"HTTP/1.1 101"
    return sock


def test_while_it_drains_it_is_alive_but_not_ready_and_takes_nobody(tmp_path):
    with start(tmp_path, ["server.drain=30s"]) as daemon, handshake(daemon):
        daemon.send_signal()
        daemon.wait_until(lambda: daemon.get("/readyz")[0] == 503)

        assert daemon.get("/healthz")[0] == 200
        assert json.loads(daemon.get("/readyz")[2])["status"] == "draining"
        with pytest.raises(InvalidStatus) as refused, connect(daemon.url):
            pass
        assert refused.value.response.status_code == 503
        before = time.monotonic()
        daemon.send_signal()
        assert daemon.wait() == 0
        assert time.monotonic() - before < 2  # the second signal does not wait for goodbyes


def test_a_client_that_does_not_say_goodbye_holds_nobody_up(tmp_path):
    with start(tmp_path, ["server.drain=1s"]) as daemon, handshake(daemon):
        before = time.monotonic()

        assert daemon.stop() == 0

        assert time.monotonic() - before < 3


def test_producers_have_their_answers_before_the_end(tmp_path):
    fill = {"symbol": "BTCUSDT", "side": "buy", "quantity": 1, "price": 1}
    trades = [
        {"type": "trade_execution", "user_id": "1", "id": str(n), "data": fill} for n in range(500)
    ]
    with start(tmp_path) as daemon, daemon.producer() as producer:
        producer.send(trades)
        first = producer.answers(1)

        answer = daemon.control({"command": "drain"})

        answers = first + [json.loads(line) for line in producer._file]
        assert answer == {"ok": True, "drained": 0}
        assert len(answers) == daemon.logs("producer gone")[0]["events"]
        assert all(each["ok"] for each in answers)
        assert daemon.wait() == 0


def test_drain_tells_when_everybody_has_gone(tmp_path):
    with start(tmp_path) as daemon, client(daemon), client(daemon):
        assert daemon.control({"command": "drain"}) == {"ok": True, "drained": 2}
        assert daemon.wait() == 0


# --- reload


def rewrite(daemon: Daemon, more: str) -> None:
    text = daemon.config.read_text().partition("# more\n")[0]
    daemon.config.write_text(f"{text}\n# more\n{more}")


def test_a_reload_takes_over_what_is_live_and_tells_what_waits(tmp_path):
    with start(tmp_path) as daemon:
        rewrite(daemon, 'limits.subscriptions = 1\nfeed.producers = 7\nauth.issuer = "x"\n')

        answer = daemon.control({"command": "reload"})

        assert answer["ok"], answer
        assert sorted(answer["applied"]) == ["auth.issuer", "limits.subscriptions"]
        assert answer["pending"] == ["feed.producers"]
        assert daemon.control({"command": "status"})["pendingRestart"] == ["feed.producers"]
        metrics = daemon.metrics()
        assert metrics["cryptows_config_reloads_total"] == 1
        assert metrics["cryptows_config_pending_restart"] == 1
        assert time.time() - metrics["cryptows_config_last_reload_success_timestamp_seconds"] < 60
        with client(daemon) as ws:
            ws.send('{"type":"subscribe","channels":["system_status","system_status:x"],"id":1}')
            assert json.loads(ws.recv(timeout=10))["type"] == "subscription_confirmed"


def test_a_reload_is_all_or_nothing(tmp_path):
    with start(tmp_path) as daemon:
        rewrite(daemon, "limits.subscriptions = 1\nlimits.bann = 5\nlimits.window = true\n")

        answer = daemon.control({"command": "reload"})

        assert answer["error"]["code"] == "invalid_config"
        assert len(answer["error"]["problems"]) == 2
        assert daemon.metrics()["cryptows_config_last_reload_successful"] == 0
        assert "last reload was bad" in daemon.get("/readyz?verbose")[2].decode()
        rewrite(daemon, "")
        daemon.send_signal(signal.SIGHUP)
        daemon.wait_until(lambda: daemon.metrics()["cryptows_config_last_reload_successful"] == 1)


# --- what it tells of itself


def test_stats_are_the_contracts_and_true(tmp_path):
    with start(tmp_path) as daemon:
        with client(daemon, user="7") as ws, client(daemon):
            ws.send('{"type":"subscribe","channels":["market_data:BTC*","user_7_trades"]}')
            assert json.loads(ws.recv(timeout=10))["type"] == "subscription_confirmed"

            stats = daemon.stats()

        assert stats["server"] == {
            "connectedClients": 2,
            "totalChannels": 2,
            "channelStats": {"market_data": 1, "user_7_trades": 1},
        }
        assert stats["clients"] == {
            "totalClients": 2,
            "authenticatedClients": 1,
            "anonymousClients": 1,
            "channelDistribution": {"market_data": 1, "user_7_trades": 1},
        }
        assert set(stats["broadcast"]) == {"activeThrottlers", "cachedDataEntries", "wsServerStats"}


def test_probes_and_metrics_are_not_cached(tmp_path):
    with start(tmp_path) as daemon:
        for path in ("/healthz", "/livez", "/readyz", "/metrics", "/stats"):
            status, headers, _ = daemon.get(path)
            assert (status, headers["cache-control"]) == (200, "no-store")
        text = daemon.get("/metrics")[2].decode()
        assert "Content-Type" not in text
        assert text.count("# HELP cryptows_") > 40


@pytest.mark.slow
def test_after_churn_every_gauge_is_zero_again(tmp_path):
    with start(tmp_path) as daemon:
        for _ in range(20):
            with contextlib.ExitStack() as stack:
                for n in range(20):
                    ws = stack.enter_context(client(daemon, user="7"))
                    ws.send(json.dumps({"type": "subscribe", "channels": [f"market_data:S{n}"]}))
        daemon.wait_until(lambda: daemon.stats()["server"]["connectedClients"] == 0)

        metrics = daemon.metrics()

        for name, value in metrics.items():
            if name.startswith("cryptows_connections") or name in (
                "cryptows_subscriptions", "cryptows_authenticated_clients",
                "cryptows_slow_clients", "cryptows_outbox_bytes",
            ):  # fmt: skip
                assert (name, value) == (name, 0)
        assert metrics["cryptows_connects_total"] == 400
        ended = [v for name, v in metrics.items() if name.startswith("cryptows_disconnects")]
        assert sum(ended) == 400


def test_the_memory_of_a_crowd_that_has_gone_is_given_back(tmp_path):
    with start(tmp_path) as daemon:
        before = daemon.rss()
        with contextlib.ExitStack() as stack:
            for _ in range(600):
                stack.enter_context(watcher(daemon, "7"))
            crowd = daemon.rss()

        # What the first clients made it load stays, and the rest goes back.
        daemon.wait_until(lambda: daemon.rss() - before < 0.8 * (crowd - before))


# --- the log


def test_no_token_cookie_or_key_gets_into_the_log(tmp_path):
    key = f"{MARKER}-the-key-itself-{'k' * 20}"
    good = sign({"sub": "7", "exp": time.time() + 60}, key)
    bad = sign({"sub": MARKER, "exp": 1}, key)
    with start(tmp_path, ["auth.query_token=true"], key=key) as daemon:
        secrets = [good.rpartition(".")[2], bad.rpartition(".")[2], MARKER]
        for token in (good, bad, MARKER):
            for headers, path in (
                ({"Authorization": f"Bearer {token}"}, ""),
                ({"Cookie": f"session={token}", "X-Api-Key": token}, f"?token={token}"),
                ({}, f"?access_token={token}&%74oken={token}"),
            ):
                with (
                    contextlib.suppress(ConnectionClosed, InvalidStatus),
                    connect(daemon.url + path, additional_headers=headers) as ws,
                ):
                    ws.send(json.dumps({"type": "authenticate", "token": token}))
                    ws.send(f'{{"type":"authenticate","token":"{token}"')  # broken JSON
                    ws.recv(timeout=5)
            daemon.get(f"/nowhere?token={token}", {"Authorization": f"Bearer {token}"})
            daemon.get(f"/stats?auth={token}", {"Cookie": f"a={token}"})
            with contextlib.closing(socket.create_connection(("127.0.0.1", daemon.port))) as raw:
                raw.sendall(f"GET /ws HTTP/1.1\r\nCookie {token}\r\n\r\n".encode())
                raw.recv(1000)
        with (
            contextlib.suppress(ConnectionClosed, InvalidStatus),
            connect(
                daemon.url,
                subprotocols=["cryptows.v1", f"bearer.{good}"],  # type: ignore[list-item]
            ) as ws,
        ):
            ws.recv(timeout=5)
        daemon.publish([f'{{"type":"{MARKER}","data":{{"token":"{MARKER}"}}}}'])

        assert daemon.stop() == 0

        text = daemon.output()
        assert len(daemon.logs()) > 3
        for secret in secrets:
            assert secret not in text


def test_every_line_of_the_log_is_json(tmp_path):
    with start(tmp_path) as daemon:
        with client(daemon):
            daemon.publish([STATUS, "nonsense"])
        assert daemon.stop() == 0

        lines = [json.loads(line) for line in daemon.output().splitlines()]

        for line in lines:
            assert list(line)[:3] == ["ts", "level", "event"]
        events = [line["event"] for line in lines]
        assert events.index("ready") < events.index("draining") < events.index("stopped")
