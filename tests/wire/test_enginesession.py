"""The states of an Engine.IO session: its table walked, its polls, its upgrade, its clock."""

import contextlib
import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptows.wire import enginehttp
from cryptows.wire.enginehttp import Known, Rejected
from cryptows.wire.engineio import Incoming, Kind, ProtocolError, Timing
from cryptows.wire.enginesession import (
    NEXT,
    Due,
    EngineSession,
    PollAnswer,
    State,
    Step,
)

TIMING = Timing(ping_interval=25, ping_timeout=20, upgrade_timeout=10, noop_delay=0.03, linger=30)
PROBE = Incoming(Kind.PING, "probe")
UPGRADE = Incoming(Kind.UPGRADE)
PONG = Incoming(Kind.PONG)


def session_in(state: State, now: float = 0.0) -> EngineSession:
    """Bring a session into a state by the way a client takes."""
    if state is State.WEBSOCKET:
        return EngineSession("sid", TIMING, now, State.WEBSOCKET)
    session = EngineSession("sid", TIMING, now)
    if state in (State.PROBING, State.UPGRADING):
        assert session.start_probe(now)
    if state is State.UPGRADING:
        assert session.probe(PROBE, now)
    if state is State.CLOSING:
        session.end(now)
    if state is State.CLOSED:
        session.lose()
    assert session.state is state
    return session


STEPS = {
    Step.PROBE_CAME: lambda s: s.start_probe(0),
    Step.PROBE_SPOKE: lambda s: s.probe(PROBE, 0),
    Step.PROBE_FAILED: lambda s: s.fail_probe(0),
    Step.SWITCH: lambda s: s.probe(UPGRADE, 0),
    Step.END: lambda s: s.end(0),
    Step.FETCHED: lambda s: s.finish_poll(PollAnswer.LAST, 0),
    Step.LOST: lambda s: s.lose(),
}


@pytest.mark.parametrize(("state", "step"), list(itertools.product(State, Step)))
def test_every_step_leads_where_the_table_says_or_nowhere(state, step):
    session = session_in(state)
    expected = NEXT.get((state, step), state)
    if (state, step) == (State.CLOSING, Step.SWITCH):
        expected = State.CLOSED  # the client fetches its last packets by switching over

    try:
        STEPS[step](session)
    except ProtocolError:
        assert expected is state

    assert session.state is expected


def test_no_step_leads_out_of_the_end():
    assert not [step for state, step in NEXT if state is State.CLOSED]


def test_requests_see_what_a_session_is():
    assert {state: session_in(state).known for state in State} == {
        State.POLLING: Known.POLLING,
        State.PROBING: Known.POLLING,
        State.UPGRADING: Known.POLLING,
        State.WEBSOCKET: Known.WEBSOCKET,
        State.CLOSING: Known.POLLING,
        State.CLOSED: Known.UNKNOWN,
    }
    assert [state for state in State if session_in(state).ending] == [State.CLOSING, State.CLOSED]


# Packets


@pytest.mark.parametrize("state", [State.POLLING, State.WEBSOCKET])
@pytest.mark.parametrize("data", ["", "hello", b"", b"\x01"])
def test_a_message_passes(state, data):
    assert session_in(state).receive(Incoming(Kind.MESSAGE, data), 1) == data


@pytest.mark.parametrize("kind", [Kind.OPEN, Kind.UPGRADE, Kind.NOOP, Kind.PONG])
def test_packets_that_make_no_sense_but_do_no_harm_are_ignored(kind):
    session = session_in(State.WEBSOCKET)

    assert session.receive(Incoming(kind), 1) is None
    assert session.state is State.WEBSOCKET


@pytest.mark.parametrize("data", ["", "probe"])
def test_a_ping_from_the_client_is_an_error(data):
    with pytest.raises(ProtocolError, match="the server pings"):
        session_in(State.WEBSOCKET).receive(Incoming(Kind.PING, data), 1)


@pytest.mark.parametrize("state", [State.CLOSING, State.CLOSED])
@pytest.mark.parametrize("kind", list(Kind))
def test_after_the_end_nothing_is_taken(state, kind):
    assert session_in(state).receive(Incoming(kind, "x"), 1) is None


def test_the_close_of_a_client_ends_the_session():
    session = session_in(State.POLLING)

    session.receive(Incoming(Kind.CLOSE), 1)

    assert session.closed


# GET and POST


def test_a_poll_waits_for_packets():
    session = session_in(State.POLLING)
    session.start_poll()

    assert session.poll_answer(False, 1) is PollAnswer.WAIT
    assert session.poll_answer(True, 1) is PollAnswer.PACKETS
    session.finish_poll(PollAnswer.PACKETS, 1)
    assert not session.polling
    assert session.state is State.POLLING


def test_a_second_poll_ends_the_session_and_the_first_gets_the_close():
    session = session_in(State.POLLING)
    session.start_poll()

    with pytest.raises(Rejected) as rejected:
        session.start_poll()

    assert rejected.value.answer == enginehttp.OVERLAP
    assert session.closed
    assert session.poll_answer(False, 1) is PollAnswer.LAST


def test_a_poll_given_up_before_it_was_served_costs_the_one_behind_it():
    session = session_in(State.POLLING)
    session.start_poll()

    with pytest.raises(Rejected):
        session.start_poll(given_up=True)

    assert session.closed
    assert session.poll_answer(False, 1) is PollAnswer.GONE


def test_a_second_post_ends_the_session():
    session = session_in(State.POLLING)
    session.start_post()

    with pytest.raises(Rejected) as rejected:
        session.start_post()

    assert rejected.value.answer == enginehttp.OVERLAP
    assert session.closed


def test_one_post_after_another_is_fine():
    session = session_in(State.POLLING)
    session.start_post()
    session.finish_post()

    session.start_post()

    assert not session.closed


def test_a_closed_session_is_unknown_to_polls_and_posts():
    session = session_in(State.CLOSED)

    for start in (session.start_poll, session.start_post):
        with pytest.raises(Rejected) as rejected:
            start()
        assert rejected.value.answer == enginehttp.UNKNOWN_SID


def test_a_client_that_closes_gets_its_poll_back_with_a_noop():
    session = session_in(State.POLLING)
    session.start_poll()

    session.receive(Incoming(Kind.CLOSE), 1)

    assert session.poll_answer(True, 1) is PollAnswer.NOOP


@pytest.mark.parametrize("state", [State.POLLING, State.PROBING, State.UPGRADING, State.CLOSING])
def test_a_poll_that_the_client_gives_up_ends_the_session(state):
    session = session_in(state)
    session.start_poll()

    session.abort_poll()

    assert session.closed


def test_a_poll_given_up_after_the_upgrade_does_no_harm():
    session = session_in(State.UPGRADING)
    session.start_poll()
    session.probe(UPGRADE, 1)

    session.abort_poll()

    assert session.state is State.WEBSOCKET


# The end from our side


def test_the_last_packets_wait_for_a_poll():
    session = session_in(State.POLLING)

    session.end(100)

    assert session.state is State.CLOSING
    session.start_poll()
    assert session.poll_answer(True, 101) is PollAnswer.PACKETS
    session.finish_poll(PollAnswer.PACKETS, 101)
    session.start_poll()
    assert session.poll_answer(False, 102) is PollAnswer.LAST
    session.finish_poll(PollAnswer.LAST, 102)
    assert session.closed


def test_a_quiet_end_has_no_close_packet():
    session = session_in(State.POLLING)

    session.end(100, quietly=True)

    session.start_poll()
    assert session.poll_answer(True, 101) is PollAnswer.PACKETS
    session.finish_poll(PollAnswer.PACKETS, 101)
    session.start_poll()
    assert session.poll_answer(False, 102) is PollAnswer.GONE
    session.finish_poll(PollAnswer.GONE, 102)
    assert session.closed


def test_the_last_packets_do_not_wait_for_ever():
    session = session_in(State.POLLING)
    session.end(100)

    assert session.deadline() == 130
    assert session.advance(129.9) == []
    assert session.advance(130) == [Due.LINGER_OVER]
    assert session.closed


def test_a_client_in_the_middle_of_its_upgrade_may_fetch_the_last_packets_by_it():
    session = session_in(State.UPGRADING)
    session.end(1)

    assert not session.probe(UPGRADE, 2)

    assert session.closed


# The upgrade


def test_an_upgrade_step_by_step():
    session = session_in(State.POLLING)
    session.start_poll()

    assert session.start_probe(1)
    assert session.poll_answer(False, 1) is PollAnswer.WAIT
    assert session.probe(PROBE, 1.1)
    assert session.poll_answer(False, 1.1) is PollAnswer.NOOP
    session.finish_poll(PollAnswer.NOOP, 1.1)
    assert not session.probe(UPGRADE, 1.2)

    assert session.state is State.WEBSOCKET


def test_probe_and_upgrade_may_come_together_while_a_poll_waits():
    session = session_in(State.PROBING)
    session.start_poll()

    session.probe(PROBE, 1)
    session.probe(UPGRADE, 1)

    assert session.state is State.WEBSOCKET
    assert session.poll_answer(True, 1) is PollAnswer.NOOP


def test_polls_during_an_upgrade_end_soon_but_do_not_spin():
    session = session_in(State.PROBING)
    session.probe(PROBE, 1)
    answered = []

    now = 1.0
    for _ in range(4):
        session.start_poll()
        if session.poll_answer(False, now) is PollAnswer.WAIT:
            now = session.noop_at()
        assert session.poll_answer(False, now) is PollAnswer.NOOP
        session.finish_poll(PollAnswer.NOOP, now)
        answered.append(now)

    assert answered == pytest.approx([1.0, 1.03, 1.06, 1.09])


def test_events_still_go_by_polling_during_an_upgrade():
    session = session_in(State.UPGRADING)
    session.start_poll()

    assert session.poll_answer(True, 1) is PollAnswer.PACKETS


def test_outside_an_upgrade_no_poll_ends_by_itself():
    assert session_in(State.POLLING).noop_at() == math.inf
    assert session_in(State.PROBING).noop_at() == math.inf


@pytest.mark.parametrize(
    "packet",
    [Incoming(Kind.PING), Incoming(Kind.PING, "Probe"), Incoming(Kind.MESSAGE, "x"), UPGRADE, PONG],
)
def test_a_websocket_that_does_not_probe_first_is_refused_and_polling_goes_on(packet):
    session = session_in(State.PROBING)

    with pytest.raises(ProtocolError, match="2probe"):
        session.probe(packet, 1)
    session.fail_probe(1)

    assert session.state is State.POLLING


def test_a_second_probe_packet_is_refused():
    with pytest.raises(ProtocolError):
        session_in(State.UPGRADING).probe(PROBE, 1)


@pytest.mark.parametrize(
    "state", [State.PROBING, State.UPGRADING, State.WEBSOCKET, State.CLOSING, State.CLOSED]
)
def test_only_a_session_that_polls_may_be_probed(state):
    session = session_in(state)

    assert not session.start_probe(1)
    assert session.state is state


@pytest.mark.parametrize("state", [State.PROBING, State.UPGRADING])
def test_an_upgrade_has_ten_seconds(state):
    session = session_in(state)

    assert session.deadline() == 10
    assert session.advance(9.9) == []
    assert session.advance(10) == [Due.PROBE_OVERDUE]
    assert session.state is State.POLLING
    assert session.start_probe(11)  # it may try again


# Heartbeats


@pytest.mark.parametrize("state", [State.POLLING, State.WEBSOCKET])
def test_pings_are_counted_from_the_opening_and_then_from_the_last_pong(state):
    session = session_in(state, now=100)

    assert session.deadline() == 125
    assert session.advance(124.9) == []
    assert session.advance(125) == [Due.PING]
    assert session.deadline() == 145
    session.receive(PONG, 131)
    assert session.deadline() == 156
    assert session.advance(156) == [Due.PING]


def test_data_from_the_client_is_no_pong():
    session = session_in(State.WEBSOCKET)
    session.advance(25)

    session.receive(Incoming(Kind.MESSAGE, "busy"), 30)

    assert session.advance(45) == [Due.PONG_MISSING]
    assert session.closed


def test_a_pong_that_nobody_asked_for_puts_nothing_off():
    session = session_in(State.WEBSOCKET)

    session.receive(PONG, 20)

    assert session.deadline() == 25


def test_both_steps_count_from_the_opening_even_if_nobody_looked_in_between():
    session = session_in(State.POLLING)

    assert session.advance(45) == [Due.PING, Due.PONG_MISSING]


def test_a_closed_session_has_no_deadline():
    session = session_in(State.CLOSED)

    assert session.deadline() == math.inf
    assert session.advance(1e9) == []


def test_heartbeats_are_held_during_an_upgrade_and_go_on_after_it():
    session = session_in(State.POLLING)
    session.start_probe(24)
    session.probe(PROBE, 24)

    assert session.advance(26) == []
    session.probe(UPGRADE, 30)

    assert session.advance(30) == [Due.PING]
    assert session.deadline() == 50


def test_an_upgrade_does_not_reset_the_ping_timer():
    session = session_in(State.POLLING)
    session.start_probe(5)
    session.probe(PROBE, 5)
    session.probe(UPGRADE, 6)

    assert session.deadline() == 25


def test_a_pong_owed_when_an_upgrade_began_may_come_after_it():
    session = session_in(State.POLLING)
    session.advance(25)
    session.start_probe(44)
    session.probe(PROBE, 44)

    assert session.advance(46) == []
    session.probe(UPGRADE, 47)

    assert session.advance(66.9) == []
    assert session.advance(67) == [Due.PONG_MISSING]


def test_a_failed_upgrade_lets_the_heartbeat_go_on():
    session = session_in(State.POLLING)
    session.start_probe(20)

    assert session.advance(30) == [Due.PROBE_OVERDUE, Due.PING]


def answer_poll(session: EngineSession, now: float, *, packets: bool) -> None:
    answer = session.poll_answer(packets, now)
    if session.polling and answer is not PollAnswer.WAIT:
        session.finish_poll(answer, now)


def abort_poll(session: EngineSession) -> None:
    if session.polling:
        session.abort_poll()


ACTIONS = {
    "a poll": lambda s, now: s.start_poll(),
    "its answer": lambda s, now: answer_poll(s, now, packets=False),
    "its answer with packets": lambda s, now: answer_poll(s, now, packets=True),
    "its abort": lambda s, now: abort_poll(s),
    "a post": lambda s, now: s.start_post(),
    "its answer ": lambda s, now: s.finish_post(),
    "a probe": lambda s, now: s.start_probe(now),
    "2probe": lambda s, now: s.probe(PROBE, now),
    "5": lambda s, now: s.probe(UPGRADE, now),
    "a lost probe": lambda s, now: s.fail_probe(now),
    "our end": lambda s, now: s.end(now),
    "a lost transport": lambda s, now: s.lose(),
    "a message": lambda s, now: s.receive(Incoming(Kind.MESSAGE, "x"), now),
    "a pong": lambda s, now: s.receive(PONG, now),
    "a close": lambda s, now: s.receive(Incoming(Kind.CLOSE), now),
    "time": lambda s, now: s.advance(now),
}


@given(actions=st.lists(st.tuples(st.sampled_from(list(ACTIONS)), st.floats(0, 15)), max_size=40))
def test_any_sequence_keeps_the_session_in_a_state_that_ends_by_itself(actions):
    """Whatever comes, only Rejected and ProtocolError are raised, and time ends every session."""
    session, now = EngineSession("sid", TIMING, 0), 0.0
    for name, wait in actions:
        now += wait
        with contextlib.suppress(Rejected, ProtocolError):
            ACTIONS[name](session, now)

    for _ in range(6):
        now = max(now, min(session.deadline(), 1e12))
        session.advance(now)

    assert session.closed


def test_a_lost_transport_is_lost_once():
    session = session_in(State.CLOSED)

    session.end(1)
    session.lose()
    session.fail_probe(1)

    assert session.closed
