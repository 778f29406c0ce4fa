"""Lines come out the same however their bytes were split, and waiting ones are bounded."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from cryptows.wire.lines import LineReader, TooLong

MAX_LINE = 8
TOO_LONG = TooLong(MAX_LINE)
LINES = st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")), max_size=9)


@st.composite
def pieces_of(draw, whole):
    """The bytes in any pieces, empty ones too."""
    cuts = draw(st.lists(st.integers(0, len(whole)), max_size=12).map(sorted))
    return [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


@given(lines=LINES, data=st.data())
def test_lines_do_not_depend_on_how_the_bytes_were_split(lines, data):
    whole = b"".join(line + b"\n" for line in lines)
    reader = LineReader(MAX_LINE)

    found = [line for piece in data.draw(pieces_of(whole)) for line in reader.feed(piece)]

    assert found == [line if len(line) <= MAX_LINE else TOO_LONG for line in lines]
    assert reader.count == len(lines)
    assert reader.rest() == []


@given(whole=st.binary(max_size=60), data=st.data())
def test_no_more_than_a_line_ever_waits(whole, data):
    reader = LineReader(MAX_LINE)

    for piece in data.draw(pieces_of(whole)):
        reader.feed(piece)
        assert reader.waiting <= MAX_LINE


def test_a_line_of_just_the_longest_length_passes_and_one_byte_more_does_not():
    reader = LineReader(MAX_LINE)

    assert reader.feed(b"12345678\n123456789\n1\n") == [b"12345678", TOO_LONG, b"1"]


def test_an_overlong_line_is_told_at_once_and_skipped_to_its_end():
    reader = LineReader(MAX_LINE)

    assert reader.feed(b"123456789") == [TOO_LONG]
    assert reader.feed(b"more") == []
    assert reader.feed(b"more\nnext\n") == [b"next"]
    assert reader.count == 2


def test_empty_lines_count():
    reader = LineReader(MAX_LINE)

    assert reader.feed(b"\n\r\na\n") == [b"", b"\r", b"a"]
    assert reader.count == 3


def test_what_waits_at_the_end_is_the_rest():
    reader = LineReader(MAX_LINE)
    reader.feed(b"a\nhalf")

    assert reader.rest() == [b"half"]
    assert reader.count == 2
    assert reader.rest() == []


def test_the_rest_of_an_overlong_line_is_nothing():
    reader = LineReader(MAX_LINE)
    reader.feed(b"123456789")

    assert reader.rest() == []


def test_megabytes_without_a_newline_cost_bounded_memory():
    reader = LineReader(1 << 20)
    chunk = b"x" * (1 << 16)
    tracemalloc.start()

    found = [line for _ in range(3200) for line in reader.feed(chunk)]  # 200 MiB

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == [TooLong(1 << 20)]
    assert peak < 4 << 20
