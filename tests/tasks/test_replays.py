"""Replays piece by piece: what is sent again, what is skipped and told, and where live begins."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, cast

import attrs
import pytest
import trio

from cryptows.broker.publisher import nobody
from cryptows.model.channel import Pattern
from cryptows.store.jobs import StoreCounters, StoreError
from cryptows.store.rows import StoredEvent
from cryptows.store.writer import StoreTask
from tests.tasks.house import House, Screen, house, status
from tests.tasks.house import quote as any_quote

POSITIONS = "user_123_positions"
SMALL_RING = "channels.user_{id}_positions.history.events=3"
SIZE = 20_000  # bytes: a socket takes ten of these


def quote(symbol: str, price: float, **data: Any) -> dict[str, Any]:
    """One position for each: without a price update."""
    return any_quote(symbol, price, **data) | {"channel": "market_data"}


def position(number: int) -> dict[str, Any]:
    data = {"symbol": "BTCUSDT", "number": number}
    return {"type": "position_update", "user_id": "123", "data": data}


@attrs.define(eq=False)
class Store:
    """A store that the test fills."""

    events: list[StoredEvent] = attrs.field(factory=list)
    counters: StoreCounters = attrs.field(factory=StoreCounters)
    floors: dict[str, int] = attrs.field(factory=dict)
    cursors: dict[str, int] = attrs.field(factory=dict)
    broken: bool = False
    floor_is_known: bool = True
    page: int = 1000
    asked: list[tuple[int, int | None]] = attrs.field(factory=list)
    before_read: Any = None

    async def read(
        self,
        channels: Sequence[str],
        since: int,
        limit: int,
        *,
        until: int | None = None,
        newest: bool = False,
    ) -> list[StoredEvent]:
        self.asked.append((since, until))
        await trio.lowlevel.checkpoint()
        if self.before_read is not None:
            self.before_read()
        if self.broken:
            raise StoreError("the disk is gone")
        top = until if until is not None else 1 << 62
        found = [e for e in self.events if e.channel in channels and since < e.n <= top]
        return (found[::-1] if newest else found)[: min(limit, self.page)]

    async def floor(self, channels: Collection[str]) -> int:
        await trio.lowlevel.checkpoint()
        if not self.floor_is_known:
            raise StoreError("no answer")
        return max(self.floors.get(channel, 0) for channel in channels)

    async def cursor(self, user_id: str) -> int | None:
        await trio.lowlevel.checkpoint()
        return self.cursors.get(user_id)

    def set_cursor(self, user_id: str, position: int) -> None:
        self.cursors[user_id] = position


def stored(home: House, **options: Any) -> Store:
    """Give the house a store. Events get into it by `keep`."""
    store = Store(**options)
    home.hub.store = cast("StoreTask", store)
    return store


def keep(home: House, store: Store, *numbers: int) -> None:
    """Publish positions, which are stored; they are written with the next pass."""
    for number in numbers:
        event = home.decode(position(number))
        home.hub.publisher.accept(event, trio.current_time(), 0, nobody)
        (last,) = home.hub.journal.newest(Pattern(POSITIONS), 0, 1)
        store.events.append(
            StoredEvent(last.n, last.channel, last.symbol, last.seq, last.timestamp, last.envelope)
        )


async def back(home: House, *channels: str, since: str = "epoch.0", **fields: Any) -> Screen:
    """A client that subscribes with `since`."""
    screen = await home.screen(token=home.token())
    await screen.ask("subscribe", channels=list(channels), since=since, **fields)
    return screen


async def slow(home: House, *channels: str, since: str | None = None) -> Screen:
    """A client that subscribes and does not read the answer yet."""
    screen = await home.screen(token=home.token())
    await home.settled()
    screen.pause()
    fields = {} if since is None else {"since": since}
    await screen.send({"type": "subscribe", "channels": list(channels), **fields})
    await home.settled()
    return screen


async def sip(screen: Screen, size: int) -> None:
    """Read some bytes while the client is not reading on its own."""
    while size > 0:
        data = await screen.stream.receive_some(size)
        size -= len(data)
        screen.ws.receive_data(data)
        for event in screen.ws.events():
            await screen._see(event)


async def rest(home: House, screen: Screen) -> list[dict[str, Any]]:
    """Let the client read all that there is for it; return what is not an answer."""
    screen.resume()
    await screen.ask("ping")
    return [m for _, m in screen.seen if "seq" in m or m["type"] == "skipped"]


def told(message: dict[str, Any]) -> tuple[Any, ...]:
    """A message in short."""
    if message["type"] == "skipped":
        data = message["data"]
        return "skipped", data["symbol"], data["fromSeq"], data["toSeq"]
    mark = "snapshot" if message.get("snapshot") else "replay" if message.get("replay") else "live"
    return mark, message["data"].get("symbol"), message["seq"]


def numbers(screen: Screen) -> list[int]:
    return [m["data"]["number"] for m in screen.all("position_update")]


# --- snapshots


async def test_a_large_snapshot_is_sent_in_pieces_to_a_client_that_takes_its_time(autojump_clock):
    async with house("channels.market_data.history.events=10000") as home:
        for n in range(20):
            await home.publish(quote(f"S{n}", n, fill="x" * SIZE))
        screen = await slow(home, "market_data")
        assert 0 < next(iter(home.hub.clients.values())).waiting < 2 * SIZE
        await home.publish(quote("S0", 100), quote("NEW", 101))

        messages = await rest(home, screen)
        await home.publish(quote("S1", 102))
        await home.settled()

        assert list(map(told, messages)) == [
            *(("snapshot", f"S{n}", 1) for n in range(20)),
            ("replay", "S0", 2), ("replay", "NEW", 1),
        ]  # fmt: skip
        assert told(screen.seen[-1][1]) == ("live", "S1", 2)
        assert len(home.hub.copies) == 0
        assert home.hub.counters.recovered == 0


async def test_what_a_ring_loses_meanwhile_is_skipped_exactly_and_the_newest_arrives(
    autojump_clock,
):
    async with house("channels.market_data.history.events=3") as home:
        for n in range(20):
            await home.publish(quote(f"S{n}", n, fill="x" * SIZE))
        screen = await slow(home, "market_data")
        for price in range(5):
            await home.publish(quote("S0", price), quote("S1", price))

        messages = await rest(home, screen)

        assert list(map(told, messages[20:])) == [
            ("skipped", "S0", 2, 4), ("replay", "S0", 5),
            ("skipped", "S1", 2, 4), ("replay", "S1", 5),
            ("replay", "S0", 6), ("replay", "S1", 6),
        ] or list(map(told, messages[20:])) == [
            ("skipped", "S1", 2, 4), ("replay", "S1", 5),
            ("skipped", "S0", 2, 5), ("replay", "S0", 6), ("replay", "S1", 6),
        ]  # fmt: skip


async def test_a_stream_that_was_born_and_lost_meanwhile_arrives_with_its_last_value(
    autojump_clock,
):
    async with house("channels.market_data.history.events=2") as home:
        for n in range(20):
            await home.publish(quote(f"S{n}", n, fill="x" * SIZE))
        screen = await slow(home, "market_data")
        await home.publish(*(quote("NEW", n) for n in range(4)))
        await home.publish(*(quote("S0", n) for n in range(4)))

        messages = await rest(home, screen)

        assert list(map(told, messages[20:])) == [
            ("skipped", "NEW", 1, 3), ("replay", "NEW", 4),
            ("skipped", "S0", 2, 3), ("replay", "S0", 4), ("replay", "S0", 5),
        ]  # fmt: skip


# --- recovery from rings


def complete(messages: list[dict[str, Any]], channel: str) -> dict[str | None, int]:
    """Check that what a channel's streams brought and what was skipped add up; return the ends."""
    ends: dict[str | None, int] = {}
    for m in messages:
        if m["type"] == "skipped" and m["data"]["channel"] == channel:
            symbol, first, last = (m["data"][key] for key in ("symbol", "fromSeq", "toSeq"))
            assert m["data"]["count"] == last - first + 1 > 0
        elif m.get("channel") == channel:
            symbol, first, last = m["data"].get("symbol"), m["seq"], m["seq"]
        else:
            continue
        assert first == ends.get(symbol, 0) + 1, m
        ends[symbol] = last
    return ends


async def test_a_stretch_that_a_ring_lost_during_a_recovery_is_told_exactly(autojump_clock):
    async with house("channels.market_data.history.events=20") as home:
        for n in range(20):
            await home.publish(quote("S", n, fill="x" * SIZE))
        screen = await slow(home, "market_data", since="epoch.0")
        await home.publish(*(quote("S", n) for n in range(15)))

        messages = await rest(home, screen)

        (lost,) = [m["data"] for m in messages if m["type"] == "skipped"]
        assert (lost["channel"], lost["reason"]) == ("market_data", "slow")
        assert complete(messages, "market_data") == {"S": 35}
        assert home.hub.counters.skipped == lost["count"]


async def test_streams_that_a_recovery_had_not_reached_are_skipped_exactly_too(autojump_clock):
    async with house("channels.market_data.history.events=20") as home:
        await home.publish(quote("LATE", 0), quote("SILENT", 0))
        seen = home.hub.journal.offset.decode()
        for n in range(18):
            await home.publish(quote("S", n, fill="x" * SIZE))
        await home.publish(quote("LATE", 1), quote("LATE", 2))  # the last of the ring
        screen = await slow(home, "market_data", since=seen)
        await home.publish(*(quote("LATE", n) for n in range(3, 30)))
        await home.publish(*(quote("NEW", n) for n in range(30)))
        await home.publish(quote("SILENT", 1))

        messages = await rest(home, screen)

        # Its first event was seen before; that of SILENT comes as a snapshot.
        first = {"type": "", "channel": "market_data", "seq": 1, "data": {"symbol": "LATE"}}
        ends = complete([first, *messages], "market_data")
        assert ends == {"S": 18, "LATE": 30, "NEW": 30, "SILENT": 2}
        assert any(m["type"] == "skipped" for m in messages)


async def test_a_stream_of_which_nothing_is_left_is_skipped_at_the_end(autojump_clock):
    sets = ("history.events=3", "snapshot=false")
    async with house(*(f"channels.market_data.{text}" for text in sets)) as home:
        await home.publish(quote("A", 1), quote("S", 1))
        for n in range(15):
            await home.publish(status(str(n), fill="x" * SIZE))
        screen = await slow(home, "market_data", "system_status", since="epoch.0")
        await home.publish(
            *(quote("A", n) for n in range(2, 5)), *(quote("S", n) for n in range(2, 5))
        )

        messages = await rest(home, screen)

        assert complete(messages, "market_data") == {"A": 4, "S": 4}
        assert complete(messages, "system_status") == {None: 15}


async def test_after_max_lag_what_is_left_of_the_market_lane_is_conflated(autojump_clock):
    async with house("delivery.max_lag=2s") as home:
        for n in range(45):
            await home.publish(quote(f"S{n % 2}", n, fill="x" * SIZE))
            await home.publish(status(str(n), fill="x" * SIZE))
        screen = await slow(home, "market_data", "system_status", since="epoch.0")
        for _ in range(8):
            await trio.sleep(0.5)
            await sip(screen, 3 * SIZE)

        messages = await rest(home, screen)

        seqs = [m["seq"] for m in messages if m.get("channel") == "system_status"]
        assert seqs == list(range(1, 46))  # of the private lane nothing is left out
        quotes = [m for m in messages if m.get("channel") == "market_data"]
        assert 10 < len(quotes) < 45
        assert [told(m) for m in quotes[-2:]] == [("replay", "S1", 22), ("replay", "S0", 23)]
        assert complete(messages, "market_data") == {"S0": 23, "S1": 22}
        assert {m["data"]["reason"] for m in messages if m["type"] == "skipped"} == {"slow"}


async def test_subscriptions_that_were_live_before_miss_nothing(autojump_clock):
    async with house() as home:
        screen = await home.screen(token=home.token())
        await screen.ask("subscribe", channels=["market_data"])
        await home.publish(quote("A", 1), status("1", fill="x" * SIZE))
        for n in range(20):
            await home.publish(status(str(n), fill="x" * SIZE))
        screen.pause()
        await home.settled()
        await screen.send({"type": "subscribe", "channels": ["system_status"], "since": "epoch.0"})
        await home.settled()
        await home.publish(quote("A", 2), status("late"), quote("A", 3))

        messages = await rest(home, screen)

        assert [told(m) for m in messages if m.get("channel") == "market_data"] == [
            ("live", "A", 1), ("replay", "A", 2), ("replay", "A", 3),
        ]  # fmt: skip
        seqs = [m["seq"] for m in messages if m["channel"] == "system_status"]
        assert seqs == list(range(1, 23))
        offsets = [int(m["offset"].split(".")[1]) for m in messages]
        assert offsets == sorted(set(offsets))


async def test_requests_behind_a_recovery_are_answered_after_it(autojump_clock):
    async with house() as home:
        for n in range(10):
            await home.publish(status(str(n), fill="x" * SIZE))
        screen = await slow(home, "system_status", since="epoch.0")
        await screen.send({"type": "list", "id": "behind"})
        await home.settled()
        screen.resume()

        answer = await screen.next(where=lambda message: message.get("id") == "behind")

        assert answer["data"]["subscribed"] == ["system_status"]
        assert len(screen.all("system_status")) == 10


async def test_a_client_that_leaves_meanwhile_ends_its_recovery(autojump_clock):
    async with house() as home:
        for n in range(10):
            await home.publish(status(str(n), fill="x" * SIZE))
        screen = await slow(home, "system_status", since="epoch.0")

        await screen.stream.aclose()
        await home.settled()
        await trio.sleep(1)

        assert home.hub.clients == {}
        assert len(home.hub.copies) == 0


async def test_what_a_reload_forbids_is_not_sent_any_further(autojump_clock):
    async with house() as home:
        for n in range(20):
            await home.publish(quote("A", n, fill="x" * SIZE), status(str(n), fill="x" * SIZE))
        screen = await slow(home, "market_data", "system_status", since="epoch.0")
        home.hub.reconfigure(home.configured("channels.market_data.access=admin"))

        messages = await rest(home, screen)
        await home.publish(quote("A", 99), status("last"))
        await home.settled()

        assert 0 < len([m for m in messages if m["channel"] == "market_data"]) < 10
        assert len(screen.all("system_status")) == 21
        listed = await screen.ask("list")
        assert listed["data"]["subscribed"] == ["system_status"]


async def test_who_recovers_is_told_of_streams_that_are_stale(autojump_clock):
    async with house("channels.market_data.max_age=5s") as home:
        await home.publish(quote("A", 1))
        await trio.sleep(10)

        screen = await back(home, "market_data")
        await home.settled()

        kinds = [(m["type"], m.get("replay")) for _, m in screen.seen[2:]]
        assert kinds == [("market_data_update", True), ("system_status", None)]


# --- recovery from the store


async def test_the_store_has_what_the_ring_has_not_and_each_event_comes_once(autojump_clock):
    async with house(SMALL_RING) as home:
        store = stored(home, page=4)
        keep(home, store, *range(10))

        screen = await back(home, POSITIONS)
        await home.settled()
        keep(home, store, 10)
        await home.publish()

        assert numbers(screen) == list(range(11))
        assert [told(m)[0] for m in screen.all("position_update")] == ["replay"] * 10 + ["live"]
        assert all(until == 7 for _, until in store.asked)  # the ring has the three after it
        assert home.hub.counters.recovered == 1


async def test_events_of_other_channels_come_between_in_their_order(autojump_clock):
    async with house(SMALL_RING) as home:
        store = stored(home, page=3)
        for n in range(8):
            keep(home, store, n)
            await home.publish(quote("A", n))

        screen = await back(home, POSITIONS, "market_data")
        await home.settled()

        assert numbers(screen) == list(range(8))
        offsets = [int(m["offset"].split(".")[1]) for _, m in screen.seen if m.get("replay")]
        assert offsets == list(range(1, 17))


async def test_symbols_of_a_stored_channel_may_be_recovered_alone(autojump_clock):
    async with house(SMALL_RING, "channels.user_{id}_positions.symbols=true") as home:
        store = stored(home)
        keep(home, store, *range(6))

        some = await back(home, POSITIONS + ":BTC*")
        none = await back(home, POSITIONS + ":ETHUSDT")
        await home.settled()

        assert numbers(some) == list(range(6))
        assert numbers(none) == []


async def test_last_begins_after_what_was_acknowledged(autojump_clock):
    async with house(SMALL_RING) as home:
        store = stored(home)
        keep(home, store, *range(6))
        first = await back(home, POSITIONS)
        await home.settled()
        await first.ask("ack", offset=first.all("position_update")[1]["offset"])

        second = await back(home, POSITIONS, since="last")
        await home.settled()

        assert store.cursors == {"123": 2}
        assert numbers(second) == [2, 3, 4, 5]


async def test_a_store_that_cannot_be_read_costs_what_it_has_and_that_is_told(autojump_clock):
    async with house(SMALL_RING) as home:
        store = stored(home)
        keep(home, store, *range(6))
        store.broken = True

        screen = await back(home, POSITIONS)
        await home.settled()

        assert numbers(screen) == [3, 4, 5]
        (lost,) = screen.all("skipped")
        data = lost["data"]
        assert (data["after"], data["until"]) == ("epoch.0", "epoch.3")
        assert data["reason"] == "the disk is gone"


async def test_without_an_answer_of_the_store_only_the_ring_counts_as_kept(autojump_clock):
    async with house(SMALL_RING) as home:
        store = stored(home, floor_is_known=False)
        keep(home, store, *range(6))

        screen = await home.screen(token=home.token())
        answer = await screen.ask("subscribe", channels=[POSITIONS], since="epoch.1")

        assert answer["data"]["recovered"] is False
        assert answer["data"]["missing"][0]["from"] == "epoch.3"
        await home.settled()
        assert set(numbers(screen)) >= {3, 4, 5}


def prune_before_the_second_page(store: Store) -> None:
    """Let the store lose the first four events while a client recovers them."""

    def prune() -> None:
        if len(store.asked) == 2:
            store.events = store.events[4:]
            store.floors[POSITIONS] = 4
            store.counters.pruned += 4

    store.before_read = prune


async def test_what_is_pruned_while_it_is_read_is_told(autojump_clock):
    async with house(SMALL_RING) as home:
        store = stored(home, page=2)
        keep(home, store, *range(8))

        prune_before_the_second_page(store)
        screen = await back(home, POSITIONS)
        await home.settled()

        assert numbers(screen) == [0, 1, 4, 5, 6, 7]
        assert [told(m) for m in screen.all("skipped")] == [("skipped", "BTCUSDT", 3, 4)]
        assert screen.all("skipped")[0]["data"]["reason"] == "pruned"


async def test_what_is_pruned_of_who_knows_which_streams_is_told_as_a_stretch(autojump_clock):
    async with house(SMALL_RING, "channels.user_{id}_positions.symbols=true") as home:
        home.hub.journal.known_seqs[POSITIONS, "OLD"] = 7  # stored before the start
        store = stored(home, page=2)
        keep(home, store, *range(8))

        prune_before_the_second_page(store)
        screen = await back(home, POSITIONS)
        await home.settled()

        stretch, exact = screen.all("skipped")
        assert stretch["data"]["reason"] == "pruned"
        assert stretch["data"]["count"] is None
        assert (stretch["data"]["after"], stretch["data"]["until"]) == ("epoch.2", "epoch.4")
        assert told(exact) == ("skipped", "BTCUSDT", 3, 4)


@pytest.mark.parametrize("later", [0, 4])
async def test_what_the_store_could_not_take_during_a_recovery_is_told(autojump_clock, later):
    async with house(SMALL_RING) as home:
        store = stored(home, page=2)
        keep(home, store, *range(8))

        def fail() -> None:
            if len(store.asked) != 2:
                return
            kept = list(store.events)
            keep(home, store, *range(8, 20))  # delivered live, and soon lost by the ring
            store.events = kept
            store.floors[POSITIONS] = 20
            store.counters.refused += 12
            keep(home, store, *range(20, 20 + later))

        store.before_read = fail
        screen = await back(home, POSITIONS)
        await home.settled()

        messages = [m for _, m in screen.seen if "seq" in m or m["type"] == "skipped"]
        assert complete(messages, POSITIONS) == {"BTCUSDT": 20 + later}
        lost = [m["data"] for m in messages if m["type"] == "skipped"]
        assert {data["reason"] for data in lost} == {"not_stored"}
        assert home.hub.counters.skipped == sum(data["count"] for data in lost)


async def test_a_ring_that_moves_on_while_the_store_is_read_leaves_no_gap(autojump_clock):
    async with house(SMALL_RING) as home:
        store = stored(home, page=2)
        keep(home, store, *range(6))
        more = iter(range(6, 12))

        def go_on() -> None:
            keep(home, store, *(n for _, n in zip("ab", more, strict=False)))

        store.before_read = go_on
        screen = await back(home, POSITIONS)
        await home.settled()
        keep(home, store, 12)
        await home.publish()

        assert numbers(screen) == list(range(13))
        assert screen.all("skipped") == []


# --- history


@pytest.mark.parametrize("ring", [3, 100])
async def test_history_comes_of_ring_and_store_together(autojump_clock, ring):
    async with house(f"channels.user_{{id}}_positions.history.events={ring}") as home:
        store = stored(home, page=2)
        keep(home, store, *range(10))
        screen = await home.screen(token=home.token())

        async def history(**fields: Any) -> tuple[list[int], bool]:
            data = (await screen.ask("history", channel=POSITIONS, **fields))["data"]
            return [m["data"]["number"] for m in data["events"]], data["more"]

        assert await history() == (list(range(10)), False)
        assert await history(limit=4) == ([6, 7, 8, 9], True)
        assert await history(limit=4, order="newest") == ([9, 8, 7, 6], True)
        assert await history(limit=10) == (list(range(10)), False)
        assert await history(since="epoch.2", limit=3) == ([2, 3, 4], True)
        assert await history(since="epoch.2", limit=8) == (list(range(2, 10)), False)
        assert await history(since="epoch.2", order="newest") == ([*range(9, 1, -1)], False)
        assert await history(since="epoch.10") == ([], False)


async def test_history_that_cannot_be_read_is_refused_and_what_the_ring_has_is_not(autojump_clock):
    async with house(SMALL_RING) as home:
        store = stored(home)
        keep(home, store, *range(10))
        store.broken = True
        screen = await home.screen(token=home.token())

        answer = await screen.ask("history", channel=POSITIONS)
        newest = await screen.ask("history", channel=POSITIONS, limit=2, order="newest")

        assert (answer["type"], answer["data"]["code"]) == ("error", "bad_request")
        assert [m["data"]["number"] for m in newest["data"]["events"]] == [9, 8]
