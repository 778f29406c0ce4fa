from collections import Counter

import attrs
import pytest

from bench.work import FAN_OUT, INGEST, SLOW, SYMBOLS, WORKS, Work, quick


def deliveries_one_by_one(work: Work, published: int) -> int:
    """Count what `expected` computes: event by event, client by client."""
    feed = work.feed()
    events = Counter(feed[number % len(feed)] for number in range(published))
    topics = [work.topics(client) for client in range(work.slow, work.clients)]
    return sum(
        count
        for symbol, count in events.items()
        for wanted in topics
        if "market_data" in wanted or f"market_data:{symbol}" in wanted
    )


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name)
@pytest.mark.parametrize("published", [0, 1, 50, 333])
def test_expected_deliveries_equal_a_count_one_by_one(work, published):
    assert work.expected(published) == deliveries_one_by_one(work, published)


def test_every_client_of_one_channel_gets_everything_but_the_slow_ones_do_not_count():
    assert FAN_OUT[0].expected(7) == 7 * 500
    assert SLOW.expected(7) == 7 * 450


def test_what_nobody_wants_is_delivered_to_nobody():
    assert INGEST.expected(1_000_000) == 0


def test_a_client_chooses_different_symbols_and_always_the_same():
    for client in range(SYMBOLS.clients):
        topics = SYMBOLS.topics(client)

        assert len(set(topics)) == SYMBOLS.each
        assert topics == SYMBOLS.topics(client)


def test_the_feed_has_each_symbol_once_in_a_turn():
    feed = SYMBOLS.feed()

    assert sorted(feed) == sorted({f"S{number:03}" for number in range(50)})


def test_a_quick_work_is_the_same_work_but_smaller():
    small = quick(SLOW)

    assert (small.clients, small.slow, small.rate) == (100, 10, SLOW.rate)
    assert small.seconds < SLOW.seconds
    assert attrs.evolve(SLOW, clients=100, slow=10).expected(3) == small.expected(3)
