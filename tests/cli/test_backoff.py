import random

from cryptows.cli.backoff import Backoff


def test_waits_double_up_to_a_limit_and_lie_between_half_and_all_of_it():
    backoff = Backoff(random.Random(1))

    waits = [backoff.wait(0) for _ in range(40)]

    longest = [1, 2, 4, 8, 16] + [30] * 35
    assert all(top / 2 <= wait <= top for wait, top in zip(waits, longest, strict=True))
    assert len(set(waits)) == len(waits)


def test_a_connection_that_lasted_begins_the_count_anew():
    backoff = Backoff(random.Random(1))
    for _ in range(5):
        backoff.wait(0)

    assert backoff.wait(lasted=10) <= 1


def test_what_the_daemon_asks_for_is_the_least():
    backoff = Backoff(random.Random(1))

    assert 300 <= backoff.wait(0, asked=300) <= 301
