"""Durable events on their way to the store and back: order, one commit at a time, and refusals."""

from __future__ import annotations

from typing import cast

import attrs
import pytest
import trio

from cryptows.store.jobs import BATCH_BYTES, Append
from cryptows.store.writer import StoreTask
from cryptows.tasks import keeper as module
from cryptows.tasks.keeper import Keeper
from cryptows.tasks.producer import FeedBatch
from tests.tasks.house import House, Replies, house, quote, trade


@attrs.define(eq=False)
class Store:
    """A store whose commits the test decides."""

    taking: bool = True
    jobs: list[Append] = attrs.field(factory=list)
    position: int = 0

    def put(self, job: Append) -> bool:
        if self.taking:
            self.jobs.append(job)
        return self.taking

    def used(self, position: int) -> None:
        self.position = position

    def commit(self, stored: bool = True) -> Append:
        """Let the oldest append come back; return it."""
        self.jobs[0].done(stored)
        return self.jobs.pop(0)


def keep(home: House) -> Store:
    """Give the house a store."""
    store = Store()
    task = cast("StoreTask", store)
    home.dispatcher.keeper = Keeper(home.hub, task, home.dispatcher.wake)
    home.hub.publisher.store = True
    return store


async def owner(home: House, *more: str):
    screen = await home.screen(token=home.token("123", "super_admin"))
    await screen.ask("subscribe", channels=["user_123_trades", "all_trades", *more])
    return screen


async def feed(home: House, *lines, **options):
    """Publish without waiting until what is durable was stored."""
    with trio.move_on_after(0.1):
        return await home.publish(*lines, **options)


def ids(screen) -> list[str]:
    return [m["data"]["id"] for m in screen.all("trade_execution") if m["channel"] != "all_trades"]


async def test_nobody_sees_a_durable_event_before_its_commit(autojump_clock):
    async with house() as home:
        store, screen = keep(home), await owner(home, "market_data")
        await feed(home, trade(id="a"), quote("A", 1))

        assert screen.all("trade_execution") == []
        assert len(screen.all("market_data_update")) == 1  # which waits for nobody
        (job,) = store.jobs
        assert [r.channel for r in job.records] == ["user_123_trades"]

        store.commit()
        await home.dispatched()
        assert [m["channel"] for m in screen.all("trade_execution")] == [
            "user_123_trades", "all_trades",
        ]  # fmt: skip
        assert home.dispatcher.idle


async def test_the_producer_is_answered_after_the_commit(autojump_clock):
    async with house() as home:
        store = keep(home)
        await owner(home)
        replies = Replies()
        await home.events_out.send(FeedBatch([home.decode(trade(id="a"))], replies, "test"))
        await home.settled()
        assert replies.told == []

        store.commit()
        await home.dispatched()

        ((index, offset, delivered, error, again),) = replies.told
        assert (index, delivered, error, again) == (0, 2, None, False)
        assert offset is not None


async def test_while_a_commit_runs_the_next_batch_gathers(autojump_clock):
    async with house() as home:
        store, screen = keep(home), await owner(home)
        await feed(home, trade(id="0"))
        for n in range(1, 6):
            await feed(home, trade(id=str(n)))
        assert len(store.jobs) == 1

        store.commit()
        await home.settled()
        await trio.sleep(0.1)
        assert ids(screen) == ["0"]
        (job,) = store.jobs
        assert len(job.records) == 5

        store.commit()
        await home.dispatched()
        assert ids(screen) == [str(n) for n in range(6)]


async def test_what_the_store_refuses_goes_out_live_and_is_said_to_be_unstored(autojump_clock):
    async with house() as home:
        store, screen = keep(home), await owner(home)
        store.taking = False

        replies = await home.publish(trade(id="a"), trade(id="b"))

        assert ids(screen) == ["a", "b"]
        assert [error and error.code for *_, error, _ in replies.told] == ["not_stored"] * 2


async def test_what_could_not_be_committed_goes_out_live_in_its_order(autojump_clock):
    async with house() as home:
        store, screen = keep(home), await owner(home)
        await feed(home, trade(id="a"))
        await feed(home, trade(id="b"))
        store.commit(stored=False)
        await trio.sleep(0.1)
        store.taking = False
        store.commit(stored=False)
        await home.dispatched()
        await home.publish(trade(id="c"))

        assert ids(screen) == ["a", "b", "c"]
        seqs = [m["seq"] for m in screen.all("trade_execution") if m["channel"] != "all_trades"]
        assert seqs == [1, 2, 3]


async def test_offsets_only_grow_whatever_waits_for_the_disk(autojump_clock):
    async with house() as home:
        store, screen = keep(home), await owner(home, "market_data")
        for n in range(20):
            await feed(home, quote("A", n), trade(id=str(n)))
            if n % 3 == 2:
                store.commit()
        while store.jobs:
            store.commit()
            await trio.sleep(0.1)

        offsets = [int(m["offset"].partition(".")[2]) for _, m in screen.seen if "seq" in m]
        assert offsets == sorted(set(offsets))
        assert ids(screen) == [str(n) for n in range(20)]
        assert store.position <= home.hub.journal.n


async def test_the_feed_waits_when_too_much_waits_for_the_disk(autojump_clock, monkeypatch):
    monkeypatch.setattr(module, "MOST_HELD", 10)
    async with house() as home:
        store, screen = keep(home), await owner(home)
        for n in range(40):
            with trio.move_on_after(0.1):
                await home.publish(trade(id=str(n)))
        waiting = home.dispatcher.events_in.statistics()
        held = len(home.hub.publisher.held)
        assert held == 10
        assert waiting.current_buffer_used == 16  # and so its producers wait

        while store.jobs:
            store.commit()
            await trio.sleep(0.1)
        await home.dispatched()
        seen = ids(screen)
        assert seen == sorted(seen, key=int)
        assert len(seen) >= 27


async def test_the_feed_waits_when_what_waits_for_the_disk_is_large(autojump_clock):
    async with house() as home:
        store = keep(home)
        for n in range(60):
            await feed(home, trade(id=str(n), pad="x" * 500_000))
        publisher = home.hub.publisher
        assert module.MOST_BYTES <= publisher.held_bytes < module.MOST_BYTES + 1_000_000
        assert publisher.held_bytes == sum(len(held.event.data) for held in publisher.held)

        seqs = []
        while store.jobs:
            records = store.jobs[0].records
            assert sum(len(r.envelope) for r in records) <= BATCH_BYTES + 10_000
            seqs += [r.seq for r in records]
            store.commit()
            await trio.sleep(0.1)
        await home.dispatched()
        assert seqs == list(range(1, len(seqs) + 1))
        assert len(seqs) >= 34
        assert publisher.held_bytes == 0


async def test_what_gathered_is_stored_a_transaction_at_a_time_and_stays_in_order(
    autojump_clock, monkeypatch
):
    monkeypatch.setattr(module, "BATCH_EVENTS", 2)
    async with house() as home:
        store, screen = keep(home), await owner(home)
        await feed(home, trade(id="0"))
        await feed(home, *(trade(id=str(n)) for n in range(1, 6)))
        await feed(home, trade(id="6") | {"channel": "all_trades"})  # has to wait behind them
        sizes = []
        while store.jobs:
            sizes.append(len(store.jobs[0].records))
            store.commit()
            await trio.sleep(0.1)

        assert sizes == [1, 2, 2, 1]
        everything = [m for m in screen.all("trade_execution") if m["channel"] == "all_trades"]
        assert [m["data"]["id"] for m in everything] == [str(n) for n in range(7)]
        assert ids(screen) == [str(n) for n in range(6)]


async def test_to_wait_for_nothing_is_not_to_wait(autojump_clock):
    async with house() as home:
        keep(home)
        keeper = home.dispatcher.keeper
        assert keeper is not None
        with trio.fail_after(1):
            await keeper.wait()
        assert not keeper.overfull
        assert not keeper.busy


@pytest.mark.parametrize("stored", [True, False])
async def test_an_id_that_comes_again_while_it_is_on_its_way_is_answered_with_it(
    autojump_clock, stored
):
    async with house() as home:
        store, screen = keep(home), await owner(home)
        replies = Replies()
        event = home.decode({**trade(id="a"), "id": "t-1"})
        await home.events_out.send(FeedBatch([event, event], replies, "test"))
        await home.settled()
        store.commit(stored)
        await home.dispatched()

        assert ids(screen) == ["a"]
        assert [again for *_, again in replies.told] == [False, True]
        assert len({offset for _, offset, *_ in replies.told}) == 1


async def test_an_event_that_was_stored_after_all_is_known_when_it_comes_again(autojump_clock):
    async with house() as home:
        store, screen = keep(home), await owner(home)
        await feed(home, {**trade(id="a"), "id": "t-1"})
        late = store.commit(stored=False)  # overdue
        await home.dispatched()

        late.late()
        replies = await home.publish({**trade(id="a"), "id": "t-1"})

        assert ids(screen) == ["a"]
        ((_, offset, delivered, error, again),) = replies.told
        assert (delivered, error, again) == (0, None, True)
        assert offset == late.records[0].offset
        assert store.jobs == []
