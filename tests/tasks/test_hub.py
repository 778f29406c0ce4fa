"""What waits for the end of a pass, and whom it costs when it fails."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from cryptows.broker.routes import NOTHING
from tests.tasks.house import House, house, status


async def client(home: House):
    screen = await home.screen()
    return screen, list(home.hub.clients.values())[-1]


def fail() -> None:
    raise LookupError("bug")


async def test_between_passes_a_change_is_made_at_once(autojump_clock):
    async with house(run=False) as home:
        made: list[int] = []

        home.hub.between_passes(lambda: made.append(1))

        assert made == [1]
        assert await home.hub.at_rest(lambda: 7) == 7


async def test_during_a_pass_changes_wait_for_its_end_in_order(autojump_clock):
    async with house(run=False) as home:
        made: list[object] = []
        home.hub.writing = True
        home.hub.between_passes(lambda: made.append(1))
        home.nursery.start_soon(decide, home, made)
        await trio.testing.wait_all_tasks_blocked()
        # A change made by a change comes last, in the same rest.
        home.hub.between_passes(lambda: home.hub.between_passes(lambda: made.append(4)))
        home.hub.between_passes(lambda: made.append(3))
        assert made == []

        home.hub.end_pass()
        assert made == [1, 2, 4, 3]
        assert not home.hub.writing
        await home.settled()
        assert made[-1] == "decided"


async def decide(home: House, made: list[object]) -> None:
    await home.hub.at_rest(lambda: made.append(2))
    made.append("decided")


async def test_what_a_decision_raises_reaches_who_waits_for_it(autojump_clock):
    async with house(run=False) as home:
        seen: list[Exception] = []

        async def wait():
            with pytest.raises(LookupError) as error:
                await home.hub.at_rest(fail)
            seen.append(error.value)

        home.hub.writing = True
        home.nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        home.hub.end_pass()
        await trio.testing.wait_all_tasks_blocked()

        assert len(seen) == 1


async def test_a_change_that_fails_ends_its_client_and_the_others_are_made(autojump_clock):
    async with house(bugs=1) as home:
        screen, broken = await client(home)
        other, _ = await client(home)
        made: list[int] = []

        home.hub.writing = True
        home.hub.between_passes(fail, broken)
        home.hub.between_passes(lambda: made.append(1), broken)
        home.hub.end_pass()

        assert made == [1]
        assert await screen.end() is None
        assert (await other.ask("ping"))["type"] == "pong"


async def test_a_change_for_nobody_that_fails_is_a_bug_of_the_daemon(autojump_clock):
    async with house(run=False) as home:
        home.hub.writing = True
        home.hub.between_passes(fail)

        with pytest.raises(LookupError):
            home.hub.end_pass()


async def test_notices_are_taken_once(autojump_clock):
    async with house(run=False) as home:
        home.hub.wake = None
        home.hub.announce_store("open", "why", 5)

        (notice,) = home.hub.take_notices()

        assert (notice.type, notice.timestamp) == ("system_status", 5)
        assert home.hub.take_notices() == []


async def test_who_is_forgotten_leaves_the_routes_after_the_pass(autojump_clock):
    async with house() as home:
        _, one = await client(home)
        home.hub.writing = True

        home.hub.forget(one, 1000)
        home.hub.forget(one, 1000)

        assert one in one.audience.members
        home.hub.end_pass()
        assert one not in one.audience.members
        assert home.hub.counters.disconnects == {1000: 1}


async def test_a_reload_takes_over_limits_and_leaves_clients_alone(autojump_clock):
    async with house() as home:
        screen, one = await client(home)
        home.hub.reconfigure(
            home.configured(
                "limits.requests=1",
                "limits.connections_per_address=1",
                'cors.origins=["https://a.b"]',
            )
        )

        assert (await screen.ask("ping"))["type"] == "pong"
        assert (await screen.ask("ping"))["data"]["code"] == "rate_limited"
        assert (await home.get("/nowhere", ("Origin", "https://a.b"))).headers[
            "access-control-allow-origin"
        ] == "https://a.b"
        assert one.audience.patterns == NOTHING


async def test_gauges_count_what_there_is(autojump_clock):
    async with house() as home:
        screen = await home.screen(token=home.token())
        await home.screen()
        await screen.ask("subscribe", channels=["market_data:A", "market_data:B", "system_status"])
        await home.publish(status())

        gauges = home.hub.gauges()

        assert gauges.connections == {
            "websocket": 2, "socketio_websocket": 0, "socketio_polling": 0,
        }  # fmt: skip
        assert (gauges.authenticated, gauges.subscriptions, gauges.streams) == (1, 3, 1)
        assert gauges.subscribers == {"market_data": 1, "system_status": 1}
        assert (gauges.producers, gauges.queued_events, gauges.slow_clients) == (0, 0, 0)
