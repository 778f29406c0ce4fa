"""What a client's request says, and what is wrong with it."""

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptows.model.errors import RequestError
from cryptows.wire import requests
from cryptows.wire.requests import MAX_CHANNELS, MAX_ID, Request


def refusal(text: str | bytes) -> tuple[str, dict]:
    """What is said of a request on `/ws` that cannot be used."""
    with pytest.raises(RequestError) as caught:
        requests.decode(text)
    assert caught.value.code == "bad_request"
    return caught.value.message, caught.value.extra


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        (
            '{"type":"subscribe","channels":["market_data:BTCUSDT"],"id":7}',
            Request("subscribe", id=7, channels=["market_data:BTCUSDT"]),
        ),
        (
            b'{"type":"subscribe","channels":["a","b"],"since":"k3.9"}',
            Request("subscribe", channels=["a", "b"], since="k3.9"),
        ),
        ('{"type":"unsubscribe","channels":["a"]}', Request("unsubscribe", channels=["a"])),
        ('{"type":"list","id":"x"}', Request("list", id="x")),
        ('{"type":"ping"}', Request("ping")),
        (
            '{"type":"history","channel":"a","since":"k.1","limit":5,"order":"newest"}',
            Request("history", channel="a", since="k.1", limit=5, order="newest"),
        ),
        ('{"type":"authenticate","token":"t"}', Request("authenticate", token="t")),
        ('{"type":"ack","offset":"k.1"}', Request("ack", offset="k.1")),
        ('{"type":"ping","id":null,"other":[1,{}]}', Request("ping")),
        (f'{{"type":"ping","id":{-(2**63)}}}', Request("ping", id=-(2**63))),
    ],
)
def test_a_request_is_read(text, request_):
    assert requests.decode(text) == request_


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a JSON object"),
        ("{", "not a JSON object"),
        (b'{"type":"\xff"}', "not a JSON object"),
        ('{"type":"\\ud800"}', "not a JSON object"),
        ('{"a":' * 50_000, "not a JSON object"),
        ("[]", "expected object, got array"),
        ('"ping"', "expected object, got str"),
        ("{}", "object missing required field type"),
        ('{"type":7}', "type: expected str, got int"),
        ('{"type":"ping","id":1.5}', "id: expected int | str | null, got float"),
        ('{"type":"ping","id":true}', "id: expected int | str | null, got bool"),
        ('{"type":"ping","id":{}}', "id: expected int | str | null, got object"),
        (
            '{"type":"ping","id":9223372036854775808}',
            "id: expected text of up to 128 characters or an integer of 64 bits",
        ),
        (
            '{"type":"ping","id":"%s"}' % ("x" * (MAX_ID + 1)),
            "id: expected text of up to 128 characters or an integer of 64 bits",
        ),
    ],
)
def test_what_is_no_request_says_why(text, message):
    assert refusal(text) == (message, {})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ('"type":"subscribe"', "subscribe: channels must be a list of at least one channel"),
        (
            '"type":"subscribe","channels":[]',
            "subscribe: channels must be a list of at least one channel",
        ),
        (
            '"type":"unsubscribe","channels":null',
            "unsubscribe: channels must be a list of at least one channel",
        ),
        ('"type":"subscribe","channels":"a"', "channels: expected array | null, got str"),
        ('"type":"subscribe","channels":["a",5]', "channels[1]: expected str, got int"),
        ('"type":"subscribe","channels":["a"],"since":3', "since: expected str | null, got int"),
        ('"type":"history"', "history: channel is missing"),
        ('"type":"history","channel":""', "history: channel is missing"),
        ('"type":"history","channel":"a","limit":"9"', "limit: expected int | null, got str"),
        ('"type":"authenticate"', "authenticate: token is missing"),
        ('"type":"authenticate","token":""', "authenticate: token is missing"),
        ('"type":"ack"', "ack: offset is missing"),
        (
            '"type":"publish"',
            'type "publish" is not known; expected one of '
            "subscribe, unsubscribe, list, history, authenticate, ping, ack",
        ),
        (
            '"type":"%s"' % ("y" * 90),
            'type "%s" is not known; expected one of ' % ("y" * 40)
            + "subscribe, unsubscribe, list, history, authenticate, ping, ack",
        ),
    ],
)
def test_a_wrong_request_says_what_is_wrong_and_echoes_its_id(fields, message):
    assert refusal(f'{{{fields},"id":"q1"}}') == (message, {"id": "q1"})
    assert refusal(f'{{{fields},"id":12}}') == (message, {"id": 12})
    assert refusal(f"{{{fields}}}") == (message, {})


def test_the_channels_of_one_request_are_bounded():
    at_most = msgspec.json.encode({"type": "subscribe", "channels": ["a"] * MAX_CHANNELS})
    too_many = msgspec.json.encode({"type": "unsubscribe", "channels": ["a"] * (MAX_CHANNELS + 1)})

    assert len(requests.decode(at_most).channels or ()) == MAX_CHANNELS
    assert refusal(too_many) == ("unsubscribe: at most 1000 channels in one request", {})


@pytest.mark.parametrize("id_", ["x" * (MAX_ID + 1), 1.5, True, None, [], 2**63])
def test_an_id_that_cannot_be_used_is_not_echoed(id_):
    with pytest.raises(RequestError) as caught:
        requests.decode(msgspec.json.encode({"type": 5, "id": id_}))

    assert caught.value.extra == {}


def test_over_socket_io_the_event_is_the_type():
    argument = {"channels": ["a"], "id": 3, "type": "something else"}

    assert requests.convert("subscribe", argument) == Request("subscribe", id=3, channels=["a"])
    assert requests.convert("ping", None) == Request("ping")


@pytest.mark.parametrize(
    ("name", "argument", "message", "extra"),
    [
        ("subscribe", ["a"], "subscribe: expected an object as argument", {}),
        ("ping", 0, "ping: expected an object as argument", {}),
        ("subscribe", {"channels": "a", "id": 3}, "channels: expected array | null, got str",
         {"id": 3}),
        ("subscribe", {"id": 3}, "subscribe: channels must be a list of at least one channel",
         {"id": 3}),
        ("history", {"channel": 5, "id": [1]}, "channel: expected str | null, got int", {}),
        ("nonsense", {}, 'type "nonsense" is not known; expected one of '
         "subscribe, unsubscribe, list, history, authenticate, ping, ack", {}),
    ],
)  # fmt: skip
def test_a_wrong_event_says_what_is_wrong(name, argument, message, extra):
    with pytest.raises(RequestError) as caught:
        requests.convert(name, argument)

    assert (caught.value.code, caught.value.message) == ("bad_request", message)
    assert caught.value.extra == extra


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(
    st.sampled_from([*Request.__struct_fields__, "x"]),
    json_values | st.sampled_from(requests.TYPES) | st.lists(st.text(max_size=3), max_size=3),
    max_size=6,
)


def outcome(read: Callable[..., Request], *arguments: object) -> Request | RequestError:
    try:
        return read(*arguments)
    except RequestError as error:
        return error


@given(st.binary(max_size=60) | objects.map(msgspec.json.encode))
def test_any_bytes_are_a_request_or_a_bad_request(data):
    found = outcome(requests.decode, data)

    if isinstance(found, RequestError):
        assert found.code == "bad_request"
        assert found.message
        msgspec.json.encode(found.extra)  # it can be answered
    else:
        assert found.type in requests.TYPES


@given(st.text(max_size=20), json_values | objects)
def test_any_socket_io_event_is_a_request_or_a_bad_request(name, argument):
    found = outcome(requests.convert, name, argument)

    assert found.code == "bad_request" if isinstance(found, RequestError) else found.type == name
