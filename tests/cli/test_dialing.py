from functools import partial

import pytest
import trio
from trio.testing import memory_stream_pair

from cryptows.cli.dialing import HANDSHAKE, NotConnectedError, converse, dial
from cryptows.cli.endings import Ending
from tests.cli.fake_daemon import FakeDaemon, rejection, says

URL = "ws://daemon/ws"


async def ending_of(dial):
    async def talk(connection):
        raise AssertionError("it connected")

    with pytest.raises(NotConnectedError) as caught:
        await converse(URL, [], dial, talk)
    return caught.value.ending


async def test_a_host_that_does_not_answer_is_given_up(autojump_clock):
    async def dial(url):
        await trio.sleep_forever()

    assert await ending_of(dial) == Ending("no answer within 10 s")
    assert trio.current_time() == HANDSHAKE


async def test_a_server_that_never_finishes_the_handshake_is_given_up(autojump_clock):
    here, _there = memory_stream_pair()

    async def dial(url):
        return here

    assert await ending_of(dial) == Ending("no answer within 10 s")
    with pytest.raises(trio.ClosedResourceError):
        await here.send_all(b"x")


@pytest.mark.parametrize("forcefully", [True, False])
async def test_a_server_that_closes_during_the_handshake_is_not_waited_for(
    autojump_clock, forcefully
):
    here, there = memory_stream_pair()
    if forcefully:
        await trio.aclose_forcefully(there)
    else:
        await there.send_eof()

    async def dial(url):
        return here

    ending = Ending("the connection was closed during the handshake")
    assert await ending_of(dial) == ending
    assert trio.current_time() < 1


@pytest.mark.parametrize(
    ("raised", "ending"),
    [
        (ConnectionRefusedError(111, "Connection refused"),
         Ending("cannot connect: Connection refused")),
        (OSError("all attempts to connect failed"),
         Ending("cannot connect: all attempts to connect failed")),
    ],
)  # fmt: skip
async def test_a_host_that_cannot_be_reached_may_be_later(raised, ending):
    async def dial(url):
        raise raised

    assert await ending_of(dial) == ending


async def test_another_answer_than_101_is_told(nursery, autojump_clock):
    daemon = FakeDaemon(nursery, [rejection(429, "banned", Retry_After="3")])

    assert await ending_of(daemon.dial) == Ending("refused with HTTP 429: banned", wait=3)


async def test_an_answer_that_is_no_http_ends_it(autojump_clock):
    here, there = memory_stream_pair()
    await there.send_all(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
    await there.send_eof()

    async def dial(url):
        return here

    ending = await ending_of(dial)
    assert ending.why.startswith("the handshake failed: ")
    assert not ending.come_back


async def test_what_goes_wrong_while_talking_comes_out(nursery, autojump_clock):
    daemon = FakeDaemon(nursery, [says()])

    async def talk(connection):
        raise KeyError("x")

    with pytest.raises(BaseExceptionGroup) as caught:
        await converse(URL, [], daemon.dial, talk)

    assert caught.group_contains(KeyError)


async def test_it_dials_the_port_of_the_url():
    async def hang_up(stream):
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, hang_up, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]

        stream = await dial(f"ws://127.0.0.1:{port}/ws")

        assert await stream.receive_some() == b""
        await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_a_server_without_tls_is_told_when_the_url_wants_it():
    async def speak_plainly(stream):
        async with stream:
            await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(
            partial(trio.serve_tcp, speak_plainly, 0, host="127.0.0.1")
        )
        port = listener.socket.getsockname()[1]

        with pytest.raises(NotConnectedError) as caught:
            await dial(f"wss://127.0.0.1:{port}/ws")

        assert caught.value.ending.why.startswith("TLS failed: ")
        assert not caught.value.ending.come_back
        nursery.cancel_scope.cancel()
