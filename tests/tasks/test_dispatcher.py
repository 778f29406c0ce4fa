"""The dispatcher: passes, their order and size, and that it waits for nobody."""

from __future__ import annotations

import math

import pytest
import trio
import trio.testing

from cryptows.model.errors import BadEvent
from cryptows.tasks import dispatcher as module
from cryptows.tasks.dispatcher import MOST, NOTHING_NEW
from cryptows.tasks.ingest import FeedBatch
from tests.tasks.house import House, Replies, house, quote, status


async def watcher(home: House, *channels: str):
    screen = await home.screen(token=home.token())
    await screen.ask("subscribe", channels=list(channels))
    return screen


async def test_events_go_out_in_the_order_they_came(autojump_clock):
    async with house() as home:
        screen = await watcher(home, "market_data", "system_status", "price_updates")
        await home.publish(*[e for n in range(50) for e in (quote("A", n), status(str(n)))])

        events = [m for _, m in screen.seen if "seq" in m]
        numbers = [int(m["offset"].partition(".")[2]) for m in events]
        assert numbers == list(range(1, len(events) + 1))
        prices = [m["data"]["price"] for m in events if m["channel"] == "market_data"]
        assert prices == list(range(50))


async def test_what_waits_is_written_in_one_pass_and_one_send_for_each_client(autojump_clock):
    async with house(run=False) as home:
        home.nursery.start_soon(home.hub.reaper.run)
        screens = [await watcher(home, "system_status") for _ in range(3)]
        for n in range(10):
            await home.events_out.send(batch(home, n))

        home.nursery.start_soon(home.dispatcher.run)
        await home.settled()

        assert home.hub.counters.passes == 1
        assert home.hub.counters.sends == 3
        assert home.hub.counters.deliveries == 30
        assert all(len(screen.all("system_status")) == 10 for screen in screens)


def batch(home: House, n: int, count: int = 1, replies: Replies | None = None) -> FeedBatch:
    events = [home.decode(status(str(n))) for _ in range(count)]
    return FeedBatch(events, replies or Replies(), "test", [], trio.current_time())


async def test_a_pass_has_at_most_so_many_events(autojump_clock):
    async with house(run=False) as home:
        screen = await watcher(home, "system_status")
        await home.events_out.send(batch(home, 0, 2 * MOST + 10))
        await home.events_out.send(batch(home, 1, MOST - 5))

        home.nursery.start_soon(home.dispatcher.run)
        await home.settled()

        assert [m["seq"] for m in screen.all("system_status")] == list(range(1, 3 * MOST + 6))
        assert home.hub.counters.passes == 4  # two full ones, 10, as the next batch does not fit


@pytest.mark.parametrize(("wants_all", "answers"), [(True, [1, 2, 3]), (False, [1])])
async def test_a_batch_line_is_published_whole_or_not_at_all(autojump_clock, wants_all, answers):
    async with house("limits.streams=4") as home:
        screen = await watcher(home, "market_data")
        replies = Replies(wants_all=wants_all)
        events = [home.decode(quote(symbol, 1)) for symbol in "ABCD"]
        await home.events_out.send(
            FeedBatch(events, replies, "test", [], trio.current_time(), {1: 4})
        )
        await home.settled()

        refused = [index for index, _, _, error, _ in replies.told if error is not None]
        assert [m["data"]["symbol"] for m in screen.all("market_data_update")] == ["A"]
        assert refused == answers


async def test_what_wakes_a_pass_does_not_wait_for_more(autojump_clock):
    async with house("delivery.batch=1s") as home:
        screen = await watcher(home, "system_status")
        before = trio.current_time()

        home.hub.announce_store("open", "the disk is full", 0)
        await screen.next("system_status")

        assert trio.current_time() - before < 1


async def test_every_event_is_answered_once(autojump_clock):
    async with house() as home:
        await watcher(home, "system_status")
        event = home.decode({**status(), "id": "a"})
        bad = home.decode(status())
        bad.channel = "gone"

        replies = await home.publish(event, event, bad, status())

        told = [(index, offset, count, error and error.code, again)
                for index, offset, count, error, again in replies.told]  # fmt: skip
        assert told == [
            (0, b"epoch.1", 1, None, False),
            (1, b"epoch.1", 0, None, True),
            (2, None, 0, "unknown_channel", False),
            (3, b"epoch.2", 1, None, False),
        ]


async def test_who_wants_no_acks_hears_only_of_what_was_wrong(autojump_clock):
    async with house() as home:
        bad = home.decode(status())
        bad.channel = "gone"
        replies = Replies(wants_all=False)

        await home.events_out.send(FeedBatch([home.decode(status()), bad], replies, "test"))
        await home.settled()

        assert [(index, type(error)) for index, _, _, error, _ in replies.told] == [(1, BadEvent)]


async def test_events_gather_for_as_long_as_the_config_says(autojump_clock):
    async with house("delivery.batch=100ms") as home:
        screen = await watcher(home, "system_status")
        began = trio.current_time()
        for n in range(3):
            await home.events_out.send(batch(home, n))
            await trio.sleep(0.03)
        await trio.sleep(1)

        times = [at - began for at, m in screen.seen if m["type"] == "system_status"]
        assert times == [pytest.approx(0.1)] * 3
        assert home.hub.counters.passes == 1


async def test_a_throttled_event_passes_at_the_end_of_its_interval(autojump_clock):
    async with house("channels.market_data.throttle=100ms") as home:
        screen = await watcher(home, "market_data")
        began = trio.current_time()
        for n in range(5):
            await home.publish(quote("A", n))
            await trio.sleep(0.01)
        await trio.sleep(1)

        seen = [(at - began, m) for at, m in screen.seen if m["type"] == "market_data_update"]
        assert [(at, m["data"]["price"]) for at, m in seen] == [(0, 0), (pytest.approx(0.1), 4)]
        assert seen[1][1]["conflated"] == {"count": 3, "high": 3, "low": 1, "volume": 0}
        assert home.hub.publisher.next_due == math.inf


async def test_latency_is_measured_from_the_reading_of_the_feed(autojump_clock):
    async with house("delivery.batch=30ms") as home:
        await watcher(home, "system_status")
        await home.events_out.send(batch(home, 0))
        await trio.sleep(1)

    latency = home.hub.counters.latency
    assert latency.total == 1
    assert latency.sum == pytest.approx(0.03)


async def test_it_ends_when_nothing_more_can_come(autojump_clock):
    async with house(run=False) as home:
        screen = await watcher(home, "system_status")
        await home.events_out.send(batch(home, 0))
        assert not home.dispatcher.idle
        await home.events_out.aclose()
        assert home.dispatcher.wake_in is not None
        home.dispatcher.wake_in.close()

        with trio.fail_after(5):
            await home.dispatcher.run()

        await home.settled()
        assert len(screen.all("system_status")) == 1


async def test_it_says_when_it_has_nothing_to_do(autojump_clock):
    async with house("delivery.batch=1s") as home:
        await home.settled()
        assert home.dispatcher.idle
        await home.events_out.send(batch(home, 0))
        await home.settled()
        assert not home.dispatcher.idle
        await trio.sleep(2)
        assert home.dispatcher.idle


async def test_waking_it_when_its_channel_is_full_is_not_needed(autojump_clock):
    async with house(run=False) as home:
        for n in range(16):
            await home.events_out.send(batch(home, n))

        home.dispatcher.wake()

        assert home.dispatcher.events_in.statistics().current_buffer_used == 16
    with pytest.raises(AssertionError):
        NOTHING_NEW.replies.done_for(0)


async def test_keepalives_refresh_streams(autojump_clock):
    async with house("channels.market_data.max_age=10s") as home:
        screen = await watcher(home, "market_data")
        await home.publish(quote("A", 1))
        for _ in range(5):
            await trio.sleep(5)
            await home.events_out.send(FeedBatch([], Replies(), "test", ["market_data:A"]))
        assert screen.all("system_status") == []

        await trio.sleep(12)
        assert [m["data"]["status"] for m in screen.all("system_status")] == ["stale"]


async def test_other_tasks_have_turns_while_it_writes_to_many(autojump_clock, monkeypatch):
    """Every look at the clock finds the slice over."""
    async with house("limits.connections_per_user=1000") as home:
        screens = [await watcher(home, "system_status") for _ in range(100)]
        clock = [0.0]

        def later() -> float:
            clock[0] += 1
            return clock[0]

        monkeypatch.setattr("cryptows.tasks.dispatcher.time.perf_counter", later)
        turns: list[int] = []

        async def watch():
            while True:
                turns.append(home.hub.writing)
                await trio.lowlevel.checkpoint()

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                await home.events_out.send(batch(home, 0))
                nursery.start_soon(watch)
                for _ in range(30):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        monkeypatch.undo()
        await home.settled()

        assert sum(turns) >= 2
        assert all(len(screen.all("system_status")) == 1 for screen in screens)


async def test_who_subscribes_during_a_pass_is_confirmed_after_it_with_its_events(
    autojump_clock, monkeypatch
):
    """The confirmation must not overtake what the snapshot holds, nor double it."""
    async with house("limits.connections_per_user=1000") as home:
        for _ in range(40):
            await watcher(home, "market_data")
        late = await home.screen(token=home.token())
        monkeypatch.setattr(module, "SLICE", -1)  # a turn for the others after every 32 writes
        seen_writing = []
        between = home.hub.__class__.between_passes

        def noting(hub, change, peer=None):
            seen_writing.append(hub.writing)
            between(hub, change, peer)

        monkeypatch.setattr(home.hub.__class__, "between_passes", noting)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(home.publish, *[quote("A", n) for n in range(300)])
            await late.send({"type": "subscribe", "channels": ["market_data"]})
        await home.publish(quote("A", 1000))

        events = late.all("market_data_update")
        assert [m["type"] for _, m in late.seen[1:2]] == ["subscription_confirmed"]
        assert [m["seq"] for m in events] == list(range(events[0]["seq"], 302))
        assert seen_writing
