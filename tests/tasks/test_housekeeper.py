"""Now and then: silent streams, late clients, and what is too old to be remembered."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio

from cryptows.broker.counters import Counters
from cryptows.tasks import housekeeper
from tests.tasks.house import House, house, quote, trade


@attrs.define
class Feed:
    """Who is connected."""

    names: set[str] = attrs.field(factory=lambda: {"test"})
    producers: int = 1
    queued: int = 0


async def watcher(home: House, *channels: str):
    screen = await home.screen(token=home.token())
    await screen.ask("subscribe", channels=list(channels))
    return screen


def told(screen: Any) -> list[tuple[int, str, str, str | None]]:
    return [
        (round(at), m["data"]["status"], m["data"]["symbol"], m["data"].get("producer"))
        for at, m in screen.seen
        if m["type"] == "system_status"
    ]


async def test_who_watches_a_stream_is_told_when_it_falls_silent_and_when_it_speaks(autojump_clock):
    async with house("channels.market_data.max_age=10s") as home:
        home.hub.feed = feed = Feed()
        screen, other = await watcher(home, "market_data:A"), await watcher(home, "market_data:B")
        await home.publish(quote("A", 1), quote("B", 1))
        await trio.sleep(20)
        feed.names.clear()
        await trio.sleep(5)
        await home.publish(quote("A", 2))
        await trio.sleep(5)

        assert [t[1:] for t in told(screen)] == [
            ("stale", "A", "quiet"), ("stale", "A", "no_producer"), ("fresh", "A", None),
        ]  # fmt: skip
        assert 10 <= told(screen)[0][0] <= 12
        assert [t[1:3] for t in told(other)] == [("stale", "B"), ("stale", "B")]


async def test_who_comes_later_is_told_as_well(autojump_clock):
    async with house("channels.market_data.max_age=10s") as home:
        await home.publish(quote("A", 1))
        await trio.sleep(20)

        late = await watcher(home, "market_data")
        await home.settled()

        assert [t[1:] for t in told(late)] == [("stale", "A", "no_producer")]


async def test_telling_many_lets_other_tasks_have_their_turn(autojump_clock, monkeypatch):
    async with house("channels.market_data.max_age=10s") as home:
        screens = [await watcher(home, "market_data:A") for _ in range(20)]
        await home.publish(quote("A", 1))
        monkeypatch.setattr(housekeeper, "TURN", -1)
        await trio.sleep(15)

        assert all(len(told(screen)) == 1 for screen in screens)


async def test_a_bug_while_telling_ends_that_client_only(autojump_clock, monkeypatch):
    async with house("channels.market_data.max_age=10s", bugs=1) as home:
        screen, other = await watcher(home, "market_data"), await watcher(home, "market_data")
        await home.publish(quote("A", 1))
        (broken, _) = home.hub.clients.values()
        message = type(broken).message

        def fail(client, text, offset=None):
            if client is broken:
                raise LookupError("bug")
            message(client, text, offset)

        monkeypatch.setattr(type(broken), "message", fail)
        await trio.sleep(15)

        assert await screen.end() is None
        assert len(told(other)) == 1


async def test_requests_and_bans_are_forgotten_in_time(autojump_clock):
    async with house("limits.requests=1", "limits.strikes=1", "limits.ban=100s") as home:
        screen = await home.screen()
        for _ in range(3):
            await screen.send({"type": "ping"})
        await screen.end()
        assert len(home.hub.bans) == home.hub.gauges().banned == 1

        await trio.sleep(102)

        assert len(home.hub.bans) == len(home.hub.limiter) == 0


async def test_what_the_journal_keeps_grows_old(autojump_clock):
    async with house('channels.market_data.history={events=100, bytes="1MiB", age="30s"}') as home:
        await home.publish(quote("A", 1), trade())
        screen = await home.screen(token=home.token())
        before = await screen.ask("history", channel="market_data")
        await trio.sleep(32)
        after = await screen.ask("history", channel="market_data")

        assert (len(before["data"]["events"]), len(after["data"]["events"])) == (1, 0)


@pytest.mark.parametrize("lag", [1, 10, 100])
async def test_it_looks_often_enough_for_the_lag_that_is_allowed(autojump_clock, lag):
    async with house(f"delivery.max_lag={lag}s") as home:
        screen = await watcher(home, "system_status")
        screen.pause()
        await home.settled()
        for n in range(12):
            await home.publish({"type": "system_status", "data": {"n": n, "fill": "x" * 20_000}})
        screen.pongs = True
        began = trio.current_time()
        (client,) = home.hub.clients.values()
        while client.ending is None and trio.current_time() < began + 2 * lag:  # noqa: ASYNC110
            await trio.sleep(lag / 100)

        waited = trio.current_time() - began
        assert lag < waited <= lag * 1.1 + 0.2 or client.ending.code == 4010  # type: ignore[union-attr]
        await screen.stream.aclose()


def test_counters_start_at_zero():
    assert Counters().bugs == 0
