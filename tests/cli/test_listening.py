import ssl

import pytest
import trio
from trio_websocket import ConnectionTimeout, HandshakeError

from cryptows.cli.listening import HANDSHAKE, Ending, Listener, closed, rejected
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


async def listen(nursery, script, enough=None, **options):
    """Run one connection; return its ending, the types of what was heard, and the daemon."""
    daemon = FakeDaemon(nursery, [script])
    heard = []

    def take(text, message):
        heard.append(message.type)
        return len(heard) == enough

    listener = Listener(URL, ["market_data"], take, dial=daemon.dial, **options)
    return await listener.listen(), heard, daemon


async def test_it_subscribes_with_its_token_and_hands_over_every_message(nursery, autojump_clock):
    script = says(connection(), confirmed("market_data"), event(5), event(6))

    ending, heard, daemon = await listen(nursery, script, enough=4, token="a.b.c", since="e.4")

    assert ending is None
    assert heard == ["connection", "subscription_confirmed", *["market_data_update"] * 2]
    assert daemon.headers == [[(b"Authorization", b"Bearer a.b.c")]]
    assert daemon.requests == [
        {"type": "subscribe", "channels": ["market_data"], "id": 1, "since": "e.4"}
    ]


async def test_without_a_token_it_sends_none(nursery, autojump_clock):
    _, _, daemon = await listen(nursery, says(connection()), enough=1)

    assert daemon.headers == [[]]
    assert "since" not in daemon.requests[0]


async def test_a_close_ends_it_with_code_and_reason(nursery, autojump_clock):
    script = says(connection(), confirmed("market_data"), close=(1012, "the daemon restarts"))

    ending, _, _ = await listen(nursery, script)

    assert ending == Ending("closed with 1012: the daemon restarts", come_back=True)


async def test_how_long_it_lasted_counts_from_the_confirmation(nursery, autojump_clock):
    async def script(ws, request):
        await trio.sleep(3)
        await ws.send_message('{"type":"subscription_confirmed","data":{},"id":1}')
        await trio.sleep(7)
        await ws.aclose(4008, "too slow")

    ending, _, _ = await listen(nursery, script)

    assert ending == Ending("closed with 4008: too slow", come_back=True, lasted=7)


async def test_a_subscription_that_is_denied_whole_ends_it(nursery, autojump_clock):
    script = says(connection(), error("forbidden", "this channel needs a token", id=1))

    ending, _, _ = await listen(nursery, script)

    assert ending == Ending("this channel needs a token (forbidden)", come_back=False)


async def test_a_rate_limited_subscription_comes_back_when_it_may(nursery, autojump_clock):
    script = says(error("rate_limited", "too many", id=1, retryAfterMs=1500))

    ending, _, _ = await listen(nursery, script)

    assert ending == Ending("too many (rate_limited)", come_back=True, wait=1.5)


async def test_a_ban_tells_when_to_come_back(nursery, autojump_clock):
    script = says(error("rate_limited", "banned", retryAfterMs=300_000), close=(4029, "banned"))

    ending, _, _ = await listen(nursery, script)

    assert ending == Ending("closed with 4029: banned", come_back=True, wait=300)


async def test_silence_for_three_heartbeats_ends_it(nursery, autojump_clock):
    ending, _, _ = await listen(nursery, says(connection(interval=2000)))

    assert ending == Ending("nothing heard for 6 s", come_back=True)
    assert trio.current_time() >= 6


async def test_binary_frames_are_passed_over(nursery, autojump_clock):
    async def script(ws, request):
        await ws.send_message(b"\x00")
        await says(event(5))(ws, request)

    _, heard, _ = await listen(nursery, script, enough=1)

    assert heard == ["market_data_update"]


async def test_another_server_is_recognized(nursery, autojump_clock):
    ending, _, _ = await listen(nursery, says("hello"))

    assert not ending.come_back
    assert ending.why.startswith("this is no cryptows: ")


async def test_data_of_another_shape_is_harmless(nursery, autojump_clock):
    script = says({"type": "connection", "data": [1]}, {"type": "error", "data": {"code": 7}})

    _, heard, _ = await listen(nursery, script, enough=2)

    assert heard == ["connection", "error"]


async def test_a_server_that_does_not_answer_is_given_up(nursery, autojump_clock):
    async def dial(nursery, url, headers):
        await trio.sleep_forever()

    ending = await Listener(URL, ["a"], lambda *_: False, dial=dial).listen()

    assert ending == Ending("no answer within 10 s")
    assert trio.current_time() == HANDSHAKE


@pytest.mark.parametrize(
    ("raised", "ending"),
    [
        (ConnectionRefusedError(111, "Connection refused"),
         Ending("cannot connect: Connection refused")),
        (OSError("all attempts to connect failed"),
         Ending("cannot connect: all attempts to connect failed")),
        (ConnectionTimeout(), Ending("no answer within 10 s")),
        (HandshakeError("odd"), Ending("the handshake failed: odd", come_back=False)),
        (ssl.SSLError(1, "expired"), Ending("TLS failed: expired", come_back=False)),
    ],
)  # fmt: skip
async def test_what_goes_wrong_before_the_handshake_says_whether_to_try_again(
    nursery, autojump_clock, raised, ending
):
    assert (await listen(nursery, raised))[0] == ending


@pytest.mark.parametrize(
    ("code", "come_back", "token_refused"),
    [
        (1000, True, False),
        (1001, True, False),
        (1006, True, False),
        (1009, False, False),
        (1011, True, False),
        (1012, True, False),
        (4001, False, True),
        (4002, False, True),
        (4008, True, False),
        (4010, True, False),
        (4029, True, False),
        (4031, False, False),
    ],
)
def test_the_come_back_column_of_the_contract(code, come_back, token_refused):
    ending = closed(code, "")

    assert (ending.come_back, ending.token_refused) == (come_back, token_refused)
    assert ending.why.startswith(f"closed with {code}")


def test_an_end_without_a_reason_is_explained():
    assert closed(4001, "").why == "closed with 4001: the token is missing, wrong or revoked"
    assert closed(4001, "jwt expired").why == "closed with 4001: jwt expired"


def test_only_a_ban_asks_for_a_wait():
    assert closed(4029, "", 3).wait == 3
    assert closed(4008, "", 3).wait is None


@pytest.mark.parametrize(
    ("status", "come_back", "token_refused"),
    [
        (301, False, False),
        (400, False, False),
        (401, False, True),
        (403, False, False),
        (404, False, False),
        (408, True, False),
        (429, True, False),
        (500, True, False),
        (503, True, False),
    ],
)
def test_an_answer_instead_of_the_handshake_says_whether_to_try_again(
    status, come_back, token_refused
):
    ending = rejected(rejection(status, "why\n"))

    assert ending == Ending(
        f"refused with HTTP {status}: why", come_back=come_back, token_refused=token_refused
    )


def test_retry_after_is_honoured():
    assert rejected(rejection(429, Retry_After="17")).wait == 17
    assert rejected(rejection(429, Retry_After="Mon, 23 Nov 2026 06:00:00 GMT")).wait is None
    assert rejected(rejection(429)).wait is None
