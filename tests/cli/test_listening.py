import pytest
import trio

from cryptows.cli.endings import Ending
from cryptows.cli.listening import Listener
from tests.cli.fake_daemon import (
    FakeDaemon,
    confirmed,
    connection,
    error,
    event,
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
    assert daemon.tokens == ["a.b.c"]
    assert daemon.requests == [
        {"type": "subscribe", "channels": ["market_data"], "id": 1, "since": "e.4"}
    ]


async def test_without_a_token_it_sends_none(nursery, autojump_clock):
    _, _, daemon = await listen(nursery, says(connection()), enough=1)

    assert daemon.tokens == [None]
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


async def test_a_connection_that_breaks_is_an_abnormal_end_and_leaves_no_stream_open(
    nursery, autojump_clock
):
    async def script(ws, request):
        await trio.aclose_forcefully(ws._stream)

    ending, _, daemon = await listen(nursery, script)

    assert ending == Ending("closed with 1006", come_back=True)
    with pytest.raises(trio.ClosedResourceError):
        await daemon.streams[0].send_all(b"x")


async def test_what_the_taker_raises_comes_out(nursery, autojump_clock):
    def take(text, message):
        raise BrokenPipeError

    daemon = FakeDaemon(nursery, [says(event(5))])

    with pytest.raises(BaseExceptionGroup) as caught:
        await Listener(URL, ["a"], take, dial=daemon.dial).listen()

    assert caught.group_contains(BrokenPipeError)
