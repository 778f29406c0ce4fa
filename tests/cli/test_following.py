import json
import random

import pytest

from cryptows.cli.backoff import Backoff
from cryptows.cli.following import Following, Tokens, default_url
from cryptows.cli.terminal import Failure
from tests.cli.fake_daemon import (
    FakeDaemon,
    confirmed,
    connection,
    error,
    event,
    rejection,
    says,
)

URL = "ws://daemon/ws"


async def follow(nursery, *scripts, tokens=None, count=None, everything=False, since=None):
    daemon = FakeDaemon(nursery, list(scripts))
    following = Following(
        URL, ("market_data",), tokens or Tokens(None, None), since, count, everything,
        Backoff(random.Random(1)), daemon.dial,
    )  # fmt: skip
    await following.run()
    return daemon


async def test_events_are_printed_as_they_came_and_the_rest_goes_to_stderr(
    nursery, autojump_clock, capsys
):
    text = '{"type":"market_data_update","channel":"market_data","data":{"price":1.50},"seq":1}'
    skipped = {"type": "skipped", "data": {"channel": "market_data", "count": 2}}
    expiring = {"type": "token_expiring", "data": {"remainingMs": 5}}
    denied = ({"channel": "all_trades", "code": "forbidden", "message": "not for role user"},)
    script = says(
        connection(), confirmed("market_data", denied=denied), {"type": "heartbeat", "data": {}},
        expiring, error("bad_request", "what?"), skipped, text,
    )  # fmt: skip

    await follow(nursery, script, count=2)

    out, err = capsys.readouterr()
    assert out.splitlines() == [json.dumps(skipped), text]
    assert err.splitlines() == [
        "cryptows: subscribed to market_data",
        "cryptows: all_trades: denied: not for role user (forbidden)",
        'cryptows: token_expiring {"remainingMs": 5}',
        "cryptows: error: what? (bad_request)",
    ]


async def test_all_prints_every_message(nursery, autojump_clock, capsys):
    messages = [connection(), confirmed("market_data"), event(1)]

    await follow(nursery, says(*messages), count=3, everything=True)

    out, err = capsys.readouterr()
    assert [json.loads(line) for line in out.splitlines()] == messages
    assert err == ""


async def test_a_lost_connection_comes_back_after_a_while_and_asks_for_what_it_missed(
    nursery, autojump_clock, capsys
):
    first = says(connection(), confirmed("market_data"), event(7), close=(1012, "restarts"))
    refused = ConnectionRefusedError(111, "Connection refused")
    second = says(connection(), confirmed("market_data"), event(8))

    daemon = await follow(nursery, first, refused, second, count=2)

    assert [request.get("since") for request in daemon.requests] == [None, "e.7"]
    gaps = [daemon.times[1] - daemon.times[0], daemon.times[2] - daemon.times[1]]
    assert 0.5 <= gaps[0] <= 1
    assert 1 <= gaps[1] <= 2
    err = capsys.readouterr().err
    assert "ws://daemon/ws: closed with 1012: restarts; again in" in err
    assert "ws://daemon/ws: cannot connect: Connection refused; again in" in err


async def test_what_is_no_longer_kept_is_told(nursery, autojump_clock, capsys):
    answer = confirmed("market_data")
    answer["data"]["missing"] = [{"channel": "market_data", "recovered": False, "from": "e.9"}]

    await follow(nursery, says(answer, event(10)), count=1, since="e.2")

    said = "cryptows: market_data: what came before e.9 is no longer kept"
    assert said in capsys.readouterr().err.splitlines()


async def test_what_came_before_a_first_event_is_asked_for_too(nursery, autojump_clock):
    daemon = await follow(
        nursery,
        says(connection(offset="e.41"), close=(1001, "")),
        says(connection(offset="e.50"), event(51)),
        count=1,
    )

    assert daemon.requests[1]["since"] == "e.41"


async def test_the_offset_of_a_snapshot_is_no_place_to_go_on_from(nursery, autojump_clock):
    daemon = await follow(
        nursery,
        says(event(60), event(3, snapshot=True), close=(1001, "")),
        says(event(61)),
        count=3,
    )

    assert daemon.requests[1]["since"] == "e.60"


@pytest.mark.parametrize("code", [1009, 4001, 4002, 4031])
async def test_an_end_for_good_is_a_failure(nursery, autojump_clock, code):
    with pytest.raises(Failure, match=f"closed with {code}: go away"):
        await follow(nursery, says(close=(code, "go away")), tokens=Tokens("a.b.c", None))


async def test_a_fresh_token_in_the_file_is_taken(nursery, autojump_clock, tmp_path):
    file = tmp_path / "token"
    file.write_text("old\n")

    async def expire(ws, request):
        file.write_text("new\n")
        await ws.aclose(4002, "token expired")

    daemon = await follow(nursery, expire, says(event(1)), tokens=Tokens(None, str(file)), count=1)

    assert daemon.tokens == ["old", "new"]


async def test_the_daemon_is_given_the_time_it_asks_for(nursery, autojump_clock):
    daemon = await follow(nursery, rejection(429, Retry_After="40"), says(event(1)), count=1)

    assert 40 <= daemon.times[1] <= 41


def test_a_token_is_stripped_and_may_be_missing(tmp_path):
    file = tmp_path / "token"
    file.write_text(" a.b.c \n")

    assert Tokens(" x \n", None).read() == "x"
    assert Tokens("", None).read() is None
    assert Tokens("x", str(file)).read() == "a.b.c"


def test_a_token_file_that_cannot_be_read_says_why(tmp_path):
    file = tmp_path / "token"
    with pytest.raises(Failure, match="token: No such file"):
        Tokens(None, str(file)).read()
    file.write_bytes(b"\xff")
    with pytest.raises(Failure, match=r"token: .*can't decode"):
        Tokens(None, str(file)).read()


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        (("127.0.0.1:3000",), "ws://127.0.0.1:3000/ws"),
        (("unix:/run/x.sock", "[::1]:80"), "ws://[::1]:80/ws"),
        (("0.0.0.0:3000",), "ws://127.0.0.1:3000/ws"),
        (("[::]:3000",), "ws://[::1]:3000/ws"),
        (("example.org:3000",), "ws://example.org:3000/ws"),
    ],
)
def test_the_url_follows_from_where_the_daemon_listens(listen, url):
    assert default_url(listen) == url


def test_a_daemon_without_tcp_needs_a_url():
    with pytest.raises(Failure, match="say where with --url"):
        default_url(("unix:/run/x.sock",))
