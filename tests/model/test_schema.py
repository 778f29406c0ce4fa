"""Schemas: the fast ways and the careful one agree, and errors say what is wrong."""

from __future__ import annotations

import json

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptows.model import schema
from cryptows.model.errors import BadEvent
from cryptows.model.event import EventType, Field, FieldKind
from cryptows.model.schema import Schema, check_symbol, expectation, shown
from cryptows.model.types import ABOVE_ZERO, SEED_TYPES

FIELDS = {
    "price": Field(FieldKind.NUMBER, min=0),
    "quantity": Field(FieldKind.NUMBER, min=ABOVE_ZERO),
    "confidence": Field(FieldKind.NUMBER, min=0, max=1),
    "below": Field(FieldKind.NUMBER, max=10),
    "pnl": Field(FieldKind.NUMBER),
    "count": Field(FieldKind.INTEGER, min=0),
    "rank": Field(FieldKind.INTEGER, min=-2.5, max=2.5),
    "side": Field(FieldKind.STRING, choices=("buy", "sell")),
    "24h High": Field(FieldKind.NUMBER),
    "class": Field(FieldKind.STRING),
    "levels": Field(FieldKind.ARRAY),
    "detail": Field(FieldKind.OBJECT),
}
PLAIN = Schema(EventType("plain", (), fields=FIELDS))
FLAGGED = Schema(EventType("flagged", (), fields=FIELDS | {"live": Field(FieldKind.BOOLEAN)}))
UNDECLARED = Schema(EventType("undeclared", ()))
# The daemon reads these four of every type; a config may mean something else by them.
OTHERWISE = Schema(
    EventType(
        "otherwise",
        (),
        fields={
            "symbol": Field(FieldKind.INTEGER),
            "price": Field(FieldKind.OBJECT),
            "volume": Field(FieldKind.STRING),
            "size": Field(FieldKind.INTEGER),
        },
    )
)
CHOSEN = Schema(
    EventType("chosen", (), fields={"symbol": Field(FieldKind.STRING, choices=("BTC", "ETH"))})
)
SCHEMAS = [PLAIN, FLAGGED, UNDECLARED, OTHERWISE, CHOSEN]

NUMBERS = st.one_of(
    st.integers().map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(["0", "-0", "-0.0", "1e999", "-1e999", "1e-999", "9" * 400, "1E5", "5.0"]),
    st.sampled_from(["9007199254740991", "9007199254740992", "-9007199254740993", "2.5", "-3"]),
)
WORDS = st.sampled_from(
    [
        "buy", "BUY", "Buy", "bUy", "hold", "", "abc", "null", "nan", "inf", "-inf", "Infinity",
        "true", "1 ", " 1", "+1", ".5", "5.", ".", "1_0", "0x1", "1e5", "007", "BTC", "btc",
        "\u0661", "\u00bd", "a b", "x" * 64, "x" * 65, "a*", "\u00e9", "\u2028", "\x7f",
    ]
)  # fmt: skip
TEXTS = st.one_of(WORDS, NUMBERS, st.text()).flatmap(
    lambda text: st.sampled_from([json.dumps(text), json.dumps(text, ensure_ascii=False)])
)
OTHERS = st.sampled_from(
    ["null", "true", "false", "{}", "[]", '{"a":[1]}', "[[],{}]", '"\\u006eull"']
)
VALUES = st.one_of(NUMBERS, TEXTS, OTHERS)
NAMES = st.sampled_from([*FIELDS, "live", "symbol", "volume", "size", "unknown"])


@st.composite
def objects(draw):
    """Objects with fields we know, now and then twice."""
    pairs = draw(st.lists(st.tuples(NAMES, VALUES), max_size=4))
    return ("{" + ",".join(f'"{name}": {value}' for name, value in pairs) + "}").encode()


def outcome(read, data):
    """What reading came to: the four values, or the words of the error."""
    try:
        found = read(data)
        if found.symbol is not None:
            check_symbol(found.symbol)
    except BadEvent as error:
        return error.code, error.message
    return found.symbol, found.price, found.volume, found.size


def refusal(fields, data):
    with pytest.raises(BadEvent) as caught:
        Schema(EventType("t", (), fields=fields)).read(data)
    return caught.value.code, caught.value.message


@given(data=objects(), kind=st.sampled_from(SCHEMAS))
def test_the_fast_ways_and_the_careful_one_agree(data, kind):
    try:
        data.decode()
    except UnicodeDecodeError:  # lone surrogates, which no line may hold
        return

    assert outcome(kind.read, data) == outcome(kind.read_carefully, data)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("price", '"abc"', 'data.price: expected a number, got "abc"'),
        ("price", "true", "data.price: expected a number, got true"),
        ("price", "[1]", "data.price: expected a number, got [1]"),
        ("price", '""', 'data.price: expected a number, got ""'),
        ("price", '"1e999"', 'data.price: expected a number, got "1e999"'),
        ("price", "1e999", "data.price: expected a number, got 1e999"),
        ("price", '"NaN"', 'data.price: expected a number, got "NaN"'),
        ("price", '"null"', 'data.price: expected a number, got "null"'),
        ("price", '"\\u006eull"', 'data.price: expected a number, got "\\u006eull"'),
        ("price", "-1", "data.price: expected a number, at least 0, got -1"),
        ("price", '"-0.5"', 'data.price: expected a number, at least 0, got "-0.5"'),
        ("quantity", "0", "data.quantity: expected a number above 0, got 0"),
        ("confidence", "1.5", "data.confidence: expected a number from 0 to 1, got 1.5"),
        ("confidence", '"1.5"', 'data.confidence: expected a number from 0 to 1, got "1.5"'),
        ("below", "11", "data.below: expected a number, at most 10, got 11"),
        ("count", "1.5", "data.count: expected an integer, got 1.5"),
        ("count", "-1", "data.count: expected an integer from 0 to 9007199254740991, got -1"),
        ("rank", "3", "data.rank: expected an integer from -2 to 2, got 3"),
        ("side", '"hold"', 'data.side: expected one of buy, sell, got "hold"'),
        ("side", "1", "data.side: expected a string, got 1"),
        ("class", "{}", "data.class: expected a string, got {}"),
        ("levels", '{"1":2}', 'data.levels: expected an array, got {"1":2}'),
        ("detail", "[]", "data.detail: expected an object, got []"),
        ("live", "1", "data.live: expected true or false, got 1"),
        ("live", '"true"', 'data.live: expected true or false, got "true"'),
    ],
)
def test_a_bad_value_is_refused_in_these_words(field, value, message):
    fields = FIELDS | {"live": Field(FieldKind.BOOLEAN)}

    assert refusal(fields, f'{{"{field}":{value}}}'.encode()) == ("invalid_event", message)


@pytest.mark.parametrize("symbol", ["BTCUSDT", "BTC-USD", "BTC/USDT:USDT", "é", "x" * 64, "a]b"])
def test_symbols_that_can_be_subscribed_to_pass(symbol):
    assert UNDECLARED.read(json.dumps({"symbol": symbol}).encode()).symbol == symbol


@pytest.mark.parametrize("symbol", ["", " ", "a b", "BTC*", "B?C", "[B", "a,b", "a\n", "x" * 65,
                                    "\u200b", "\x00", "\x7f", "\u2028", "\u00a0"])  # fmt: skip
def test_other_symbols_are_refused_whatever_the_type_declares(symbol):
    code, message = refusal({}, json.dumps({"symbol": symbol}).encode())

    assert code == "invalid_event"
    assert message.startswith(
        "data.symbol: expected 1 to 64 printable characters without blanks, *, ?, [ or commas, got "
    )


def test_a_symbol_is_a_string_even_where_it_is_not_declared():
    assert refusal({}, b'{"symbol":5}')[1] == "data.symbol: expected a string, got 5"


def test_undeclared_numbers_are_read_if_they_are_any():
    found = UNDECLARED.read(b'{"price":"1.5","volume":"much","size":[1]}')

    assert (found.price, found.volume, found.size) == (1.5, None, None)


def test_fields_that_a_config_means_otherwise_are_not_read():
    found = OTHERWISE.read(b'{"symbol":7,"price":{},"volume":"a lot","size":3}')

    assert (found.symbol, found.price, found.volume, found.size) == (None, None, None, 3)


def test_of_a_field_given_twice_the_last_counts_as_in_a_browser():
    assert PLAIN.read(b'{"price":"abc","price":2}').price == 2


def test_the_memory_of_symbols_is_bounded(monkeypatch):
    monkeypatch.setattr(schema, "KNOWN_SYMBOLS", 10)
    kind = Schema(SEED_TYPES["market_data_update"])

    for i in range(100):
        kind.read(b'{"symbol":"S%d"}' % i)

    assert len(kind._symbols) <= 10


def test_a_long_value_is_shortened_to_one_line():
    assert shown(b'"' + b"x" * 100 + b'"') == '"' + "x" * 36 + "..."
    assert shown(b"[1,\r\t 2]") == "[1, 2]"
    assert shown("é".encode() * 50) == "é" * 37 + "..."


@pytest.mark.parametrize(
    ("field", "words"),
    [
        (Field(FieldKind.NUMBER), "a number"),
        (Field(FieldKind.NUMBER, min=ABOVE_ZERO, max=5), "a number above 0, at most 5"),
        (Field(FieldKind.INTEGER, max=5), "an integer from -9007199254740991 to 5"),
        (Field(FieldKind.STRING), "a string"),
    ],
)
def test_an_expectation_is_told_in_words(field, words):
    assert expectation(field) == words


def test_choices_are_compared_without_regard_to_case():
    data = '{"side":"\u1e9e"}'.encode()
    kind = attrs.evolve(
        SEED_TYPES["trade_execution"], fields={"side": Field(FieldKind.STRING, choices=("ss",))}
    )

    assert outcome(Schema(kind).read, data) == (None, None, None, None)
