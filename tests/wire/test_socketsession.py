"""What each Socket.IO message means, given what came before it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptows.wire.engineio import ProtocolError
from cryptows.wire.socketsession import (
    MAX_CALLS,
    Ack,
    Connect,
    Event,
    Leave,
    SocketSession,
    Unknown,
)

NAMESPACES = frozenset(["/", "/custom"])
BINARY = '51-["m",{"_placeholder":true,"num":0}]'


def fresh(**options) -> SocketSession:
    return SocketSession(NAMESPACES, opened=0, connect_timeout=45, **options)


def joined(*namespaces: str, **options) -> SocketSession:
    session = fresh(**options)
    for namespace in namespaces or ("/",):
        session.receive(f"0{namespace},")
        session.accept(namespace, "sid")
    return session


def test_a_connect_is_put_to_the_application():
    session = fresh()

    assert session.receive('0{"token":"x"}') == Connect("/", {"token": "x"})
    assert session.accept("/", "sid").payload == b'40{"sid":"sid"}'
    assert session.receive('2["a"]') == Event("/", "a", [])


def test_each_namespace_is_joined_by_itself():
    session = joined("/")

    assert session.receive("0/custom") == Connect("/custom", None)
    assert session.accept("/custom", "sid", "pid").payload == b'40/custom,{"sid":"sid","pid":"pid"}'
    assert session.receive('2/custom,["a",1]') == Event("/custom", "a", [1])
    assert session.joined == ("/", "/custom")


def test_an_unknown_namespace_is_answered_and_the_connection_lives():
    session = fresh()

    answer = session.receive("0/random")

    assert isinstance(answer, Unknown)
    assert answer.answer.payload == b'44/random,{"message":"Invalid namespace"}'
    assert session.receive("0") == Connect("/", None)


def test_a_refused_client_may_try_again():
    session = fresh()
    session.receive('0{"token":"old"}')

    answer = session.refuse("/", "jwt expired", {"code": "token_expired"})

    assert answer.payload == b'44{"message":"jwt expired","data":{"code":"token_expired"}}'
    assert session.receive('0{"token":"new"}') == Connect("/", {"token": "new"})


@pytest.mark.parametrize("message", ['2["a"]', "31[]", "1", BINARY, '2/custom,["a"]', b"x", "abc"])
def test_only_a_connect_may_come_first(message):
    with pytest.raises(ProtocolError):
        fresh().receive(message)


@pytest.mark.parametrize("message", ["0", "0{}", '2["a"]', "1"])
def test_while_the_application_decides_nothing_may_come(message):
    session = fresh()
    session.receive("0")

    with pytest.raises(ProtocolError):
        session.receive(message)


@pytest.mark.parametrize(
    "message", ["0", '2/custom,["a"]', "1/custom", "3/custom,1[]", "4abc", "2{}"]
)
def test_what_a_joined_client_may_not_send(message):
    with pytest.raises(ProtocolError):
        joined("/").receive(message)


def test_a_client_may_leave_and_join_again():
    session = joined("/")

    assert session.receive("1") == Leave("/")
    session.leave("/", 10)

    with pytest.raises(ProtocolError, match="not joined"):
        session.receive('2["a"]')
    assert session.receive("0") == Connect("/", None)


# Deadlines


def test_a_client_that_joins_nothing_is_due():
    assert fresh().deadline() == 45


def test_a_client_whose_wish_is_being_decided_is_not_due():
    session = fresh()

    session.receive("0")

    assert session.deadline() == math.inf


def test_a_refusal_does_not_put_the_deadline_off():
    session = fresh()
    session.receive("0")
    session.refuse("/", "no")

    assert session.deadline() == 45


def test_a_client_that_has_joined_may_stay_and_one_that_left_everything_is_due_again():
    session = joined("/", "/custom")

    assert session.deadline() == math.inf
    session.leave("/", 100)
    assert session.deadline() == math.inf
    session.leave("/custom", 200)
    assert session.deadline() == 245


# Acks


def test_an_event_with_an_id_is_answered():
    session = joined("/")
    event = session.receive('212["echo","y"]')

    assert event == Event("/", "echo", ["y"], 12)
    assert [packet.payload for packet in session.ack(event, event.arguments)] == [b'4312["y"]']
    assert [packet.payload for packet in session.ack(event, [])] == [b"4312[]"]


def test_our_events_may_ask_for_an_ack_too():
    session = joined("/")

    packets = session.event("/", "q", ["x"], call="mine")

    assert [packet.payload for packet in packets] == [b'420["q","x"]']
    assert session.event("/", "q", ["x"])[0].payload == b'42["q","x"]'
    assert session.receive('30[{"ok":1}]') == Ack("mine", [{"ok": 1}])


def test_an_ack_counts_once_and_only_where_it_was_asked_for():
    session = joined("/", "/custom")
    session.event("/", "q", [], call="mine")

    assert session.receive("3/custom,0[]") is None
    assert session.receive("37[]") is None
    assert session.receive("30[]") == Ack("mine", [])
    assert session.receive("30[]") is None


def test_a_binary_ack_brings_its_data():
    session = joined("/")
    session.event("/", "q", [], call="mine")

    assert session.receive('61-0[{"_placeholder":true,"num":0}]') is None
    assert session.receive(b"\x01") == Ack("mine", [b"\x01"])


def test_outstanding_acks_are_bounded():
    session = joined("/")
    for number in range(MAX_CALLS + 1):
        session.event("/", "q", [], call=number)

    assert session.receive("30[]") is None
    assert session.receive("31[]") == Ack(1, [])
    assert session.receive(f"3{MAX_CALLS}[]") == Ack(MAX_CALLS, [])


def test_leaving_forgets_the_acks_of_that_namespace():
    session = joined("/", "/custom")
    session.event("/", "q", [], call="root")
    session.event("/custom", "q", [], call="custom")

    session.leave("/", 1)

    assert session.receive("3/custom,1[]") == Ack("custom", [])
    session.receive("0")
    session.accept("/", "sid")
    assert session.receive("30[]") is None


# Binary


def test_a_binary_event_waits_for_its_attachments():
    session = joined("/")

    first = session.receive('52-7["m",{"_placeholder":true,"num":1},{"_placeholder":true,"num":0}]')

    assert first is None
    assert session.receive(b"zero") is None
    assert session.receive(b"one") == Event("/", "m", [b"one", b"zero"], 7)
    assert session.receive('2["next"]') == Event("/", "next", [])


def test_placeholders_of_a_plain_event_are_just_data():
    event = joined("/").receive('2["m",{"_placeholder":true,"num":0}]')

    assert event == Event("/", "m", [{"_placeholder": True, "num": 0}])


@pytest.mark.parametrize("message", ['2["a"]', "0/custom", "1", BINARY])
def test_text_may_not_come_between_attachments(message):
    session = joined("/")
    session.receive(BINARY)

    with pytest.raises(ProtocolError, match="while attachments are due"):
        session.receive(message)


def test_binary_data_must_be_announced():
    with pytest.raises(ProtocolError, match="no packet announced"):
        joined("/").receive(b"\x01")


def test_the_bytes_of_attachments_are_bounded_together():
    session = joined("/", max_bytes=10)
    session.receive('52-["m",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]')
    session.receive(b"12345")

    assert session.receive(b"67890") == Event("/", "m", [b"12345", b"67890"])

    session.receive('52-["m",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]')
    session.receive(b"12345")
    with pytest.raises(ProtocolError, match="more than 10 bytes"):
        session.receive(b"678901")


messages = st.lists(
    st.sampled_from(
        ["0", "0/custom", "0/random", "1", "1/custom,", '2["a"]', '2/custom,["a",1]', '25["a"]',
         "30[]", BINARY, b"x", '61-0[{"_placeholder":true,"num":0}]', "4abc", "2{}"]
    )
    | st.text(max_size=8)
    | st.binary(max_size=8),
    max_size=20,
)  # fmt: skip


@given(messages=messages)
def test_any_sequence_gives_meanings_or_a_protocol_error(messages):
    session = fresh()
    for message in messages:
        try:
            meaning = session.receive(message)
        except ProtocolError:
            return
        match meaning:
            case Connect():
                assert meaning.namespace not in session.joined
                session.accept(meaning.namespace, "sid")
            case Event():
                assert meaning.namespace in session.joined
                session.event(meaning.namespace, "q", [], call=meaning)
            case Leave():
                session.leave(meaning.namespace, 1)


def test_what_may_hold_a_token_is_not_shown():
    secret = "marker-7f3a"
    session = fresh()

    wish = session.receive(f'0{{"token":"{secret}"}}')
    session.accept("/", "sid")
    event = session.receive(f'2["authenticate",{{"token":"{secret}"}}]')

    assert secret not in repr([wish, event])
    with pytest.raises(ProtocolError) as error:
        session.receive(f'{{"token":"{secret}"}}')
    assert secret not in str(error.value)
