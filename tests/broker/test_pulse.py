"""When a client is pinged, and when its silence has been too long."""

from hypothesis import given
from hypothesis import strategies as st

from cryptows.broker.pulse import Due, Pulse


def test_a_client_is_pinged_an_interval_after_it_came():
    pulse = Pulse(25, 20, 100)

    assert pulse.tick(100) == Due(125)
    assert pulse.tick(124) == Due(125)
    assert pulse.tick(125) == Due(145, ping=True)


def test_a_client_that_answers_is_pinged_each_interval():
    pulse = Pulse(25, 20, 100)
    pulse.tick(125)

    pulse.pong()

    assert pulse.tick(145) == Due(150)
    assert pulse.tick(150) == Due(170, ping=True)


def test_a_client_that_does_not_answer_in_time_is_given_up():
    pulse = Pulse(25, 20, 100)
    pulse.tick(125)

    assert pulse.tick(144.9) == Due(145)
    assert pulse.tick(145) == Due(145, overdue=True)
    assert pulse.tick(150) == Due(150, overdue=True)


def test_a_pong_is_waited_for_even_longer_than_an_interval():
    pulse = Pulse(interval=10, timeout=30, pinged_at=0)
    assert pulse.tick(10) == Due(20, ping=True)

    assert pulse.tick(20) == Due(30)  # no second ping while one waits
    assert pulse.tick(30) == Due(40)
    assert pulse.tick(40).overdue


def test_a_late_pong_does_not_put_off_the_next_ping_any_longer():
    pulse = Pulse(interval=10, timeout=30, pinged_at=0)
    pulse.tick(10)
    assert pulse.tick(20) == Due(30)

    pulse.pong()

    assert pulse.tick(30) == Due(40, ping=True)


def test_a_pong_that_nobody_asked_for_does_no_harm():
    pulse = Pulse(25, 20, 0)

    pulse.pong()

    assert pulse.tick(25) == Due(45, ping=True)


def test_a_late_tick_delays_the_next_ping_but_loses_nobody():
    pulse = Pulse(25, 20, 0)

    assert pulse.tick(60) == Due(80, ping=True)
    assert pulse.tick(79) == Due(80)


@given(
    interval=st.integers(1, 40),
    timeout=st.integers(1, 40),
    answers_after=st.integers(1, 60),
    late=st.lists(st.integers(0, 3), min_size=40, max_size=40),
)
def test_whoever_answers_in_time_stays_and_nobody_else(interval, timeout, answers_after, late):
    pulse, now, pinged_at, given_up_at = Pulse(interval, timeout, 0), 0, None, None
    for delay in late:
        due = pulse.tick(now)
        if due.overdue:
            given_up_at = now
            break
        if due.ping:
            assert pinged_at is None
            pinged_at = now
        assert due.next > now
        now = due.next + delay
        if pinged_at is not None and pinged_at + answers_after <= now:
            pulse.pong()
            pinged_at = None

    if given_up_at is not None:
        assert pinged_at is not None
        assert timeout <= given_up_at - pinged_at < answers_after
    else:
        assert answers_after <= timeout + 3 or answers_after <= interval + 3
