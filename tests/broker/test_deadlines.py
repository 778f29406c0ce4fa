"""When a token ends and when a client without a purpose goes: both sides of each limit."""

import math

import pytest

from cryptows.broker.auth import Identity
from cryptows.model.channel import Pattern, Role
from tests.broker.counter import NOW_MS, Client, Counter

UNIX = NOW_MS / 1000


def bearer(counter: Counter, ttl: float | None) -> Client:
    """A client whose token ends after so many seconds."""
    return counter.client(Identity("7", Role.USER, None if ttl is None else UNIX + ttl))


def look(counter: Counter, client: Client, after: float, clock: float | None = None) -> float:
    """Look at a client after so many seconds; return in how many more to look again.

    `clock` is how far the Unix time has moved if not by as much.
    """
    passed = after if clock is None else clock
    at = counter.answers.check_session(client, counter.now + after, UNIX + passed)
    return at - (counter.now + after)


def test_a_token_that_never_ends_needs_no_look():
    counter = Counter()

    assert look(counter, bearer(counter, None), 0) == math.inf


def test_the_end_of_a_token_is_announced_once_and_then_comes():
    counter = Counter.of(auth={"expiry_notice": 60.0})
    client = bearer(counter, 600)

    assert look(counter, client, 0) == pytest.approx(540)
    assert client.take() == []
    assert look(counter, client, 540) == pytest.approx(60)
    assert client.take() == [{
        "type": "token_expiring", "timestamp": NOW_MS + 540_000,
        "data": {"expiresAt": NOW_MS + 600_000, "remainingMs": 60_000},
    }]  # fmt: skip
    assert look(counter, client, 599) == pytest.approx(1)
    assert client.take() == []
    assert client.ending is None

    assert look(counter, client, 600) == math.inf

    (told,) = client.take()
    assert told["data"] == {"code": "token_expired", "message": "token expired"}
    assert client.ending is not None
    assert (client.ending.code, client.ending.come_back) == (4002, True)


def test_a_clock_that_is_set_forward_ends_a_token():
    counter = Counter()
    client = bearer(counter, 600)

    look(counter, client, 1, clock=601)

    assert client.ending is not None


def test_a_clock_that_is_set_back_lets_a_token_live_on():
    counter = Counter.of(auth={"expiry_notice": 60.0})
    client = bearer(counter, 600)

    assert look(counter, client, 600, clock=100) == pytest.approx(440)


def test_a_fresh_token_is_announced_anew():
    counter = Counter.of(auth={"expiry_notice": 60.0})
    client = bearer(counter, 30)
    look(counter, client, 0)
    client.take()

    client.session.identity = Identity("7", Role.USER, UNIX + 90)
    look(counter, client, 31)

    assert [told["type"] for told in client.take()] == ["token_expiring"]


def test_without_a_notice_a_token_ends_unannounced():
    counter = Counter.of(auth={"expiry_notice": 0.0})
    client = bearer(counter, 30)

    assert look(counter, client, 29) == pytest.approx(1)
    assert client.take() == []


def test_a_client_without_token_and_subscription_goes():
    counter = Counter.of(limits={"anonymous_idle": 60.0})
    client = counter.client()

    assert look(counter, client, 59) == pytest.approx(1)
    assert client.ending is None

    assert look(counter, client, 60) == math.inf
    assert client.ending is not None
    assert (client.ending.code, client.ending.reason) == (4001, "no token and no subscription")
    assert client.take() == []


def test_a_subscription_is_purpose_enough():
    counter = Counter.of(limits={"anonymous_idle": 60.0})
    client = counter.client()
    client.session.patterns = frozenset({Pattern("system_status")})

    assert look(counter, client, 500) == math.inf

    client.session.patterns = frozenset()  # the time counts from when it was last seen with one
    assert look(counter, client, 510) == pytest.approx(50)


def test_where_a_token_is_required_it_must_come_in_time():
    counter = Counter.of(auth={"anonymous": False}, server={"handshake_timeout": 10.0})
    client = counter.client()
    client.session.patterns = frozenset({Pattern("system_status")})

    assert look(counter, client, 9) == pytest.approx(1)
    assert look(counter, client, 10) == math.inf

    (told,) = client.take()
    assert told["data"] == {"code": "unauthorized", "message": "no token in time"}
    assert client.ending is not None
    assert client.ending.code == 4001
