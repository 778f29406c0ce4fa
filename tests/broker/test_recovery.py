"""What is remembered of lost connections: for whom, how long, how many."""

import math

from cryptows.broker.recovery import Lost, Recoveries
from cryptows.config.settings import Recovery
from cryptows.model.channel import Pattern

PATTERNS = frozenset([Pattern("market_data")])


def lost(user_id: str | None = "123", sid: str = "sid") -> Lost:
    return Lost(sid, user_id, PATTERNS, "e.7")


def test_a_lost_connection_can_be_taken_once_by_its_user():
    recoveries = Recoveries(Recovery(window=120, sessions=10))
    recoveries.keep("pid", lost(), 0)

    assert recoveries.take("pid", "124", 1) is None
    assert recoveries.take("pid", None, 1) is None
    assert recoveries.take("other", "123", 1) is None
    assert recoveries.take("pid", "123", 1) == lost()
    assert recoveries.take("pid", "123", 1) is None


def test_an_anonymous_connection_is_taken_without_a_token_only():
    recoveries = Recoveries(Recovery(window=120, sessions=10))
    recoveries.keep("pid", lost(None), 0)

    assert recoveries.take("pid", "123", 1) is None
    assert recoveries.take("pid", None, 1) == lost(None)


def test_every_kind_of_subscription_comes_back_as_it_was():
    patterns = frozenset(
        [Pattern("a"), Pattern("a", "BTC*"), Pattern("a", "x:y"), Pattern("b", 'q"\n\x00ü')]
    )
    recoveries = Recoveries(Recovery(window=120, sessions=10))
    recoveries.keep("pid", Lost("sid", "123", patterns, "e.7"), 0)

    assert recoveries.take("pid", "123", 1) == Lost("sid", "123", patterns, "e.7")


def test_the_next_end_is_that_of_the_oldest():
    recoveries = Recoveries(Recovery(window=120, sessions=10))
    assert recoveries.next_end() == math.inf

    recoveries.keep("one", lost(), 5)
    recoveries.keep("two", lost(), 7)

    assert recoveries.next_end() == 125
    recoveries.prune(125)
    assert recoveries.next_end() == 127


def test_the_window_is_exact():
    recoveries = Recoveries(Recovery(window=120, sessions=10))
    for pid in ("one", "two"):
        recoveries.keep(pid, lost(), 100)

    assert recoveries.take("one", "123", 219.9) is not None
    assert recoveries.take("two", "123", 220) is None
    assert len(recoveries) == 0


def test_the_oldest_is_forgotten_when_there_are_too_many():
    recoveries = Recoveries(Recovery(window=120, sessions=2))
    for number in range(3):
        recoveries.keep(f"pid{number}", lost(sid=f"sid{number}"), number)

    assert len(recoveries) == 2
    assert recoveries.take("pid0", "123", 4) is None
    assert recoveries.take("pid1", "123", 4) == lost(sid="sid1")
    assert recoveries.take("pid2", "123", 4) == lost(sid="sid2")


def test_what_is_over_is_pruned_when_something_else_is_lost():
    recoveries = Recoveries(Recovery(window=120, sessions=10))
    recoveries.keep("one", lost(), 0)

    recoveries.keep("two", lost(), 500)

    assert len(recoveries) == 1


def test_recovery_can_be_switched_off():
    for settings in (Recovery(window=0), Recovery(sessions=0)):
        recoveries = Recoveries(settings)
        recoveries.keep("pid", lost(), 0)

        assert not recoveries.enabled
        assert len(recoveries) == 0
