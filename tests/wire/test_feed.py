"""Feed lines: what becomes of good ones, and the words for every kind of bad one."""

from __future__ import annotations

import json

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptows.config.load import defaults
from cryptows.model.channel import Access, ChannelClass, ChannelTable, Lane
from cryptows.model.errors import BadEvent
from cryptows.model.event import Event, EventType
from cryptows.wire import feed
from cryptows.wire.feed import FeedDecoder, Keepalive
from cryptows.wire.feedfields import MAX_DEPTH, Hello, line_id
from cryptows.wire.lines import LineReader, TooLong

NOW = 1_700_000_000_123
SETTINGS = defaults()
DECODER = FeedDecoder(SETTINGS)
MARKET = b'{"type":"market_data_update","data":{"symbol":"BTCUSDT","price":50000}}'
CODES = {"invalid_json", "invalid_event", "unknown_type", "unknown_channel"}


def decode(line):
    return DECODER.decode(line, NOW)


def refusal(line):
    with pytest.raises(BadEvent) as caught:
        decode(line)
    return caught.value.code, caught.value.message


def line(**fields):
    return json.dumps(fields).encode()


def market(**fields):
    return line(type="market_data_update", data={}, **fields)


def trade(**fields):
    return line(type="trade_execution", data={}, **fields)


# good lines


def test_an_event_holds_what_the_line_says_and_the_very_bytes_of_its_data():
    text = (
        b' { "ts":1, "data" : {"symbol":"BTCUSDT", "price":"50000.10" ,"volume":1e3,"x":[1, 2]} ,'
        b'"type":"market_data_update","id":"t-981","channel":"market_data",'
        b'"timestamp":1700000000000,"user_id":"123","more":{"a":1e999}}\r'
    )

    assert decode(text) == Event(
        "market_data_update",
        b'{"symbol":"BTCUSDT", "price":"50000.10" ,"volume":1e3,"x":[1, 2]}',
        1_700_000_000_000,
        symbol="BTCUSDT",
        price=50000.1,
        volume=1000.0,
        channel="market_data",
        user_id="123",
        id="t-981",
    )


def test_a_line_without_time_gets_the_daemons():
    assert decode(market()).timestamp == NOW


def test_null_is_as_good_as_absent():
    text = market(channel=None, user_id=None, id=None, timestamp=None)

    assert decode(text) == Event("market_data_update", b"{}", NOW)


def test_size_stands_in_for_volume():
    text = b'{"type":"market_data_update","data":{"price":1,"size":"0.5"}}'

    assert decode(text).volume == 0.5


def test_a_whole_timestamp_may_be_written_as_a_float():
    assert decode(b'{"type":"system_status","data":{},"timestamp":1.7e12}').timestamp == 17 * 10**11


def test_of_a_field_given_twice_the_last_counts():
    text = b'{"type":5,"data":{"a":1},"type":"system_status","data":{"a":2}}'

    assert decode(text) == Event("system_status", b'{"a":2}', NOW)


def test_text_beyond_ascii_is_forwarded_as_it_came():
    text = '{"type":"system_status","data":{"message":"grüß \\u00e9 \\ud83d\\ude00 😀"}}'

    assert decode(text.encode()).data.decode() == text[31:-1]


def test_data_may_nest_as_deep_as_clients_can_read():
    levels = MAX_DEPTH - 2
    deep = b'{"type":"system_status","data":{"a":' + b"[" * levels + b"]" * levels + b"}}"
    decoy = b'{"type":"system_status","data":{"a":"\\"' + b"[" * 500 + b'\\\\"}}'
    flat = b'{"type":"system_status","data":{"a":[' + b",".join([b"{}"] * 500) + b"]}}"

    assert all(isinstance(decode(text), Event) for text in (deep, decoy, flat))


# who gets it


@pytest.mark.parametrize(
    ("type_", "channel", "user_id", "found"),
    [
        ("system_status", "admin_alerts", None, None),
        ("risk_alert", "admin_alerts", None, None),
        ("user_alert", "admin_alerts", "7", "7"),
        ("risk_alert", None, "7", "7"),
        ("performance_metrics", None, None, None),
        ("trade_execution", "all_trades", "7", "7"),
        ("trade_execution", "user_7_trades", "7", "7"),
        ("trade_execution", "user_7_trades", None, "7"),
        ("risk_alert", "user_7_alerts", None, "7"),
        ("performance_metrics", "user_a.b-c_positions", None, "a.b-c"),
        ("market_data_update", "price_updates", None, None),
    ],
)
def test_channel_and_user_go_together(type_, channel, user_id, found):
    event = decode(line(type=type_, channel=channel, user_id=user_id, data={}))

    assert (event.channel, event.user_id) == (channel, found)


def test_a_channel_that_a_config_adds_carries_what_its_table_says():
    own = ChannelClass("own", Access.PUBLIC, Lane.MARKET, frozenset({"ping"}))
    routed = ChannelClass("routed", Access.PUBLIC, Lane.MARKET, frozenset())
    types = {"ping": EventType("ping", ("routed",)), "pong": EventType("pong", ())}
    settings = attrs.evolve(SETTINGS, channels=ChannelTable((own, routed)), types=types)
    decoder = FeedDecoder(settings)

    for channel in ("own", "routed"):
        text = line(type="ping", channel=channel, data={})
        assert decoder.decode(text, NOW) == Event("ping", b"{}", NOW, channel=channel)
    with pytest.raises(BadEvent, match='"own" does not carry pong, only ping'):
        decoder.decode(line(type="pong", channel="own", data={}), NOW)
    with pytest.raises(BadEvent, match=r'"routed" does not carry pong$'):
        decoder.decode(line(type="pong", channel="routed", data={}), NOW)


# bad lines


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        (b"{", "invalid_json", "not JSON: Input data was truncated"),
        (b"GET / HTTP/1.1", "invalid_json", "not JSON: invalid character (byte 0)"),
        (b'{"type":"a"} x', "invalid_json", "not JSON: trailing characters (byte 14)"),
        (b'\xef\xbb\xbf{"type":"a"}', "invalid_json", "not JSON: it starts with a byte order mark"),
        (
            b'{"type":"system_status","data":{"a":"\xff"}}',
            "invalid_json",
            "not UTF-8: invalid start byte (byte 37)",
        ),
        (
            b'{"type":"system_status","data":{"a":"\xed\xa0\x80"}}',
            "invalid_json",
            "not UTF-8: invalid continuation byte (byte 37)",
        ),
        (
            b'{"type":"system_status","data":{"a":NaN}}',
            "invalid_json",
            "not JSON: invalid character (byte 36)",
        ),
        (
            b'{"type":"system_status","data":{"a":"\x01"}}',
            "invalid_json",
            "not JSON: invalid character (byte 37)",
        ),
        (b"[1,2]", "invalid_event", "expected a JSON object, got [1,2]"),
        (b"null", "invalid_event", "expected a JSON object, got null"),
        (b"{}", "invalid_event", "type: missing; expected an event type"),
        (b'{"type":5,"data":{}}', "invalid_event", "type: expected a string, got 5"),
        (b'{"type":null,"data":{}}', "invalid_event", "type: expected a string, got null"),
        (b'{"type":"system_status"}', "invalid_event", "data: missing; expected an object"),
        (
            b'{"type":"market_update","data":{}}',
            "unknown_type",
            'type: "market_update" is not known; did you mean "market_data_update"?',
        ),
        (
            b'{"type":"zzz","data":{}}',
            "unknown_type",
            'type: "zzz" is not known; there are ' + ", ".join(SETTINGS.types),
        ),
        (
            b'{"type":"system_status","data":[1]}',
            "invalid_event",
            "data: expected an object, got [1]",
        ),
        (
            b'{"type":"system_status","data":null}',
            "invalid_event",
            "data: expected an object, got null",
        ),
        (market(channel=1), "invalid_event", "channel: expected a string, got 1"),
        (
            market(channel="market_dat"),
            "unknown_channel",
            'channel: "market_dat" is not known; did you mean "market_data"?',
        ),
        (
            market(channel="market_data:BTCUSDT"),
            "unknown_channel",
            'channel: "market_data:BTCUSDT" is not known; did you mean "market_data"?',
        ),
        (
            trade(channel="user_1_trade", user_id="1"),
            "unknown_channel",
            'channel: "user_1_trade" is not known; did you mean "user_{id}_trades"?',
        ),
        (
            trade(channel="user_1_trades", user_id="2"),
            "invalid_event",
            'channel: "user_1_trades" belongs to another user than user_id, "2"',
        ),
        (trade(), "invalid_event", "user_id: missing; trade_execution belongs to a user"),
        (
            trade(channel="all_trades"),
            "invalid_event",
            "user_id: missing; trade_execution belongs to a user",
        ),
        (trade(user_id=123), "invalid_event", "user_id: expected a string, got 123"),
        (
            trade(user_id="a/b"),
            "invalid_event",
            'user_id: expected up to 64 letters, digits, ".", "-" and "_", got "a/b"',
        ),
        (market(id=5), "invalid_event", "id: expected a string, got 5"),
        (market(id=""), "invalid_event", 'id: expected 1 to 128 characters, got ""'),
        (
            market(id="x" * 129),
            "invalid_event",
            f'id: expected 1 to 128 characters, got "{"x" * 36}...',
        ),
        (
            market(timestamp="1700000000000"),
            "invalid_event",
            'timestamp: expected an integer, Unix ms, got "1700000000000"',
        ),
        (
            market(timestamp=1700000000000.5),
            "invalid_event",
            "timestamp: expected an integer, Unix ms, got 1700000000000.5",
        ),
        (
            market(timestamp=True),
            "invalid_event",
            "timestamp: expected an integer, Unix ms, got true",
        ),
        (
            market(timestamp=1700000000),
            "invalid_event",
            "timestamp: expected Unix ms, got 1700000000 (that looks like seconds)",
        ),
        (market(timestamp=-1), "invalid_event", "timestamp: expected Unix ms, got -1"),
        (
            market(timestamp=1700000000000000),
            "invalid_event",
            "timestamp: expected Unix ms, got 1700000000000000",
        ),
        (
            b'{"type":"market_data_update","data":{},"timestamp":' + b"9" * 5000 + b"}",
            "invalid_event",
            f"timestamp: expected an integer, Unix ms, got {'9' * 37}...",
        ),
        (
            b'{"type":"trade_execution","user_id":"1","data":{"price":"abc"}}',
            "invalid_event",
            'data.price: expected a number, got "abc"',
        ),
    ],
)
def test_a_line_that_cannot_be_used_is_refused_in_these_words(text, code, message):
    assert refusal(text) == (code, message)


@pytest.mark.parametrize("half", ["\\ud800", "\\ud800 and more", "\\udc00", "\\ud800\\ud800"])
def test_half_of_a_surrogate_pair_is_refused_since_not_every_client_could_read_it(half):
    code, message = refusal(f'{{"type":"system_status","data":{{"a":"{half}"}}}}'.encode())

    assert (code, message[:10]) == ("invalid_json", "not JSON: ")


@pytest.mark.parametrize("user_id", ["", "x" * 65, "a b", "é", "a\n", "*", "../x"])
def test_other_user_ids_are_refused(user_id):
    assert refusal(trade(user_id=user_id))[0] == "invalid_event"


@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 2000, 200_000])
@pytest.mark.parametrize("brackets", [b"[]", b'{"":'])
def test_data_that_nests_too_deep_is_refused(levels, brackets):
    opening, closing = (b"[", b"]") if brackets == b"[]" else (brackets, b"}")
    text = b'{"type":"system_status","data":{"a":' + opening * levels + closing * levels + b"}}"

    assert refusal(text) == ("invalid_json", "nested more than 127 levels deep")


def test_brackets_that_never_close_are_refused_too():
    assert refusal(b'{"type":"system_status","data":' + b"[" * 1_000_000)[0] == "invalid_json"


def test_a_type_of_megabytes_is_refused_without_being_compared():
    code, message = refusal(line(type="x" * 1_000_000, data={}))

    assert (code, len(message) < 500) == ("unknown_type", True)


# other lines


def test_hello_introduces_a_producer():
    assert decode(b'{"hello":{"producer":"grid-bot","acks":true}}') == Hello("grid-bot", True)
    assert decode(b'{"hello":{}}') == Hello(None, False)
    assert decode(b'{"hello":{"producer":null,"acks":null,"more":1}}') == Hello(None, False)


@pytest.mark.parametrize(
    ("hello", "message"),
    [
        ("[]", "hello: expected an object, got []"),
        ('{"producer":5}', "hello.producer: expected a string, got 5"),
        ('{"producer":""}', 'hello.producer: expected 1 to 64 printable characters, got ""'),
        ('{"producer":"\\n"}', 'hello.producer: expected 1 to 64 printable characters, got "\\n"'),
        ('{"acks":1}', "hello.acks: expected true or false, got 1"),
    ],
)
def test_a_bad_hello_is_refused_in_these_words(hello, message):
    assert refusal(f'{{"hello":{hello}}}'.encode()) == ("invalid_event", message)


def test_keepalive_names_streams():
    text = b'{"keepalive":["market_data:BTCUSDT","system_status","user_1_trades"]}'

    assert decode(text) == Keepalive(("market_data:BTCUSDT", "system_status", "user_1_trades"))


@pytest.mark.parametrize(
    ("streams", "code", "message"),
    [
        ("{}", "invalid_event", "keepalive: expected an array of up to 1000 streams, got {}"),
        ("[5]", "invalid_event", "keepalive[0]: expected a string, got 5"),
        ("[null]", "invalid_event", "keepalive[0]: expected a string, got null"),
        (
            '["system_status","market"]',
            "unknown_channel",
            'keepalive[1]: "market" is not known; did you mean "market_data"?',
        ),
        (
            '["market_data:*"]',
            "invalid_event",
            "keepalive[0]: expected 1 to 64 printable characters without blanks, *, ?, [ or commas,"
            ' got "*"',
        ),
        (
            json.dumps(["market_data"] * 1001),
            "invalid_event",
            "keepalive: expected an array of up to 1000 streams, got 1001",
        ),
    ],
)
def test_a_bad_keepalive_is_refused_in_these_words(streams, code, message):
    assert refusal(f'{{"keepalive":{streams}}}'.encode()) == (code, message)


def test_a_batch_is_its_events():
    text = b'{"batch":[%b, {"timestamp":1.7e12,"type":"system_status","data":{}}]}' % MARKET

    assert decode(text) == [decode(MARKET), Event("system_status", b"{}", 1_700_000_000_000)]


@pytest.mark.parametrize(
    ("batch", "code", "message"),
    [
        ("{}", "invalid_event", "batch: expected an array of 1 to 1000 events, got {}"),
        ("[]", "invalid_event", "batch: expected an array of 1 to 1000 events, got 0"),
        (
            json.dumps([0] * 1001),
            "invalid_event",
            "batch: expected an array of 1 to 1000 events, got 1001",
        ),
        ("[5]", "invalid_event", "batch[0]: expected an object, got 5"),
        (
            f'[{MARKET.decode()},{{"hello":{{}}}}]',
            "invalid_event",
            "batch[1].type: missing; expected an event type",
        ),
        (
            '[{"type":"market_data_update","data":{"price":"abc"}}]',
            "invalid_event",
            'batch[0].data.price: expected a number, got "abc"',
        ),
        (
            '[{"type":"system_statu","data":{}}]',
            "unknown_type",
            'batch[0].type: "system_statu" is not known; did you mean "system_status"?',
        ),
    ],
)
def test_one_bad_event_refuses_its_whole_batch(batch, code, message):
    assert refusal(f'{{"batch":{batch}}}'.encode()) == (code, message)


def test_a_line_with_a_type_is_an_event_whatever_else_it_holds():
    assert decode(market(hello={}, batch=5, keepalive=1)) == decode(market())


# ids in answers


@pytest.mark.parametrize(
    ("text", "id"),
    [
        (b'{"id":"t-1","type":5}', "t-1"),
        (b'{"id":5}', None),
        (b'{"id":""}', None),
        (b'{"id":null}', None),
        (b'{"id":"' + b"x" * 129 + b'"}', None),
        (b'{"id":"t-1"', None),
        (b'{"id":"\xff"}', None),
        (b"[" * 100_000, None),
        (b"[]", None),
    ],
)
def test_an_answer_repeats_an_id_that_could_be_one(text, id):
    assert line_id(text) == id


# any lines


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
    st.sampled_from(["market_data", "user_1_trades", "1", "2", "system_status", "BTCUSDT", "buy"]),
)  # fmt: skip
JSON = st.recursive(
    SCALARS, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=3)
)
DATA = st.dictionaries(
    st.sampled_from(["symbol", "price", "side", "volume", "size", "levels", "x"]),
    SCALARS | st.integers(1, 9),
    max_size=4,
)
EVENTS = st.fixed_dictionaries(
    {"type": st.sampled_from([*SETTINGS.types, "other"]) | SCALARS, "data": DATA | JSON},
    optional={
        "channel": SCALARS,
        "user_id": SCALARS,
        "id": SCALARS,
        "timestamp": SCALARS | st.integers(0, 10**14),
    },
)
BYTES = st.one_of(
    EVENTS.map(json.dumps),
    EVENTS.map(lambda event: json.dumps(event, ensure_ascii=False)),
    st.fixed_dictionaries({"batch": st.lists(EVENTS, max_size=3)}).map(json.dumps),
    st.dictionaries(st.sampled_from(["hello", "keepalive", "batch", "type"]), JSON).map(json.dumps),
    JSON.map(json.dumps),
).map(lambda text: text.encode(errors="surrogatepass"))


@st.composite
def mangled(draw):
    """A line with some bytes exchanged, cut out or put in."""
    text = bytearray(draw(BYTES))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(text)))
        text[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(text)


def outcome(read, text):
    """What a line came to: what it says, or code and words of the error."""
    try:
        return read(text, NOW)
    except BadEvent as error:
        return error.code, error.message


@given(text=BYTES | mangled() | st.binary(max_size=60))
def test_any_bytes_are_something_or_a_documented_error(text):
    found = outcome(DECODER.decode, text)

    if isinstance(found, tuple):
        code, message = found
        assert code in CODES
        assert 0 < len(message) < 1000
        assert "\n" not in message
        message.encode()
        return

    for event in found if isinstance(found, list) else [found]:
        if isinstance(event, Event):
            strict = json.loads(event.data, parse_constant=pytest.fail)
            assert isinstance(strict, dict)
            assert event.data in text
            assert event.type in SETTINGS.types
            assert event.symbol is None or event.symbol == strict["symbol"]


@given(text=BYTES | mangled())
def test_the_short_way_and_the_careful_one_agree(text):
    assert outcome(DECODER.decode, text) == outcome(DECODER._decode_carefully, text)


@given(texts=st.lists(EVENTS.map(json.dumps), max_size=9), data=st.data())
def test_events_do_not_depend_on_how_the_bytes_were_split(texts, data):
    whole = b"".join(text.encode() + b"\n" for text in texts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=9)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    reader = LineReader(max_line=4096)

    lines = [found for piece in pieces for found in reader.feed(piece)]

    assert lines == [text.encode() for text in texts]
    assert TooLong(4096) not in lines


def test_the_memory_of_names_is_bounded(monkeypatch):
    monkeypatch.setattr(feed, "REMEMBERED", 10)
    decoder = FeedDecoder(SETTINGS)

    for i in range(100):
        decoder.decode(trade(user_id=f"u{i}", channel=f"user_u{i}_trades"), NOW)

    assert len(decoder._users) <= 10
    assert len(decoder._kinds["trade_execution"].channels) <= 10


def test_what_msgspec_skips_is_still_strict_json():
    """`data` is forwarded unread, so the decoder must refuse what a browser could not parse."""
    for bad in (
        b"01",
        b"1.",
        b"-",
        b".5",
        b"tru",
        b'"\\q"',
        b'"\t"',
        b"[1,]",
        b"{,}",
        b"'a'",
        b"+1",
    ):
        with pytest.raises(msgspec.DecodeError):
            feed._line(b'{"type":"system_status","data":{"a":' + bad + b"}}")
