"""Strict JSON: what is refused, and that whatever is read can be written again."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptows.wire import strictjson
from cryptows.wire.strictjson import MAX_DEPTH, BadJson

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(value=values)
def test_what_json_can_say_comes_back_as_it_was(value):
    assert strictjson.decode(json.dumps(value)) == value
    assert strictjson.decode(strictjson.encode(value)) == value


@given(text=st.text() | st.binary())
def test_anything_at_all_gives_a_value_that_can_be_written_or_bad_json(text):
    try:
        value = strictjson.decode(text)
    except BadJson:
        return

    assert strictjson.decode(strictjson.encode(value)) == value


@pytest.mark.parametrize(
    "text",
    [
        "", "NaN", "[Infinity]", "-Infinity", "1e999", "1" * 5000, "01", "+1", ".5", "1 2", "'a'",
        '"\\ud800"', '["\\udc00\\ud800"]', '"\x01"', "\ufeff1", "[1,]", '{"a":1,}', "[" * 100_000,
        "[" * 100_000 + "]" * 100_000, b'"\xff"', b'"\xed\xa0\x80"', '"\ud800"',
    ],
)  # fmt: skip
def test_what_other_parsers_let_pass_is_refused(text):
    with pytest.raises(BadJson):
        strictjson.decode(text)


@pytest.mark.parametrize(("left", "right"), [("[", "]"), ('{"a":', "}")])
def test_depth_is_bounded(left, right):
    strictjson.decode(left * (MAX_DEPTH - 1) + "[]" + right * (MAX_DEPTH - 1))

    with pytest.raises(BadJson, match="nested deeper than 64"):
        strictjson.decode(left * MAX_DEPTH + "[]" + right * MAX_DEPTH)


def test_brackets_in_strings_are_not_depth():
    text = json.dumps(["[" * 200, {"{" * 200: 1}])

    assert strictjson.decode(text) == json.loads(text)
    assert strictjson.decode(text.encode()) == json.loads(text)
