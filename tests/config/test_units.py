import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptows.config.units import format_duration, format_size, parse_duration, parse_size


@given(seconds=st.floats(min_value=0, allow_infinity=False))
def test_every_duration_reads_back_as_it_was_written(seconds):
    assert parse_duration(format_duration(seconds)) == seconds


@given(size=st.integers(min_value=0, max_value=1 << 60))
def test_every_size_reads_back_as_it_was_written(size):
    assert parse_size(format_size(size)) == size


@given(text=st.text(max_size=40))
def test_any_text_gives_a_quantity_or_a_value_error(text):
    for parse in (parse_duration, parse_size):
        try:
            assert parse(text) >= 0
        except ValueError:
            pass


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("20s", 20),
        ("5min", 300),
        ("100ms", 0.1),
        ("250us", 0.00025),
        ("1h", 3600),
        ("7d", 604800),
        ("0", 0),
        ("1.5", 1.5),
        ("1.5h", 5400),
        ("20 s", 20),
        (" 20s ", 20),
        (3, 3),
        (0.25, 0.25),
    ],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64KiB", 65536),
        ("1MiB", 1 << 20),
        ("2GiB", 2 << 30),
        ("1MB", 10**6),
        ("1KB", 1000),
        ("3GB", 3 * 10**9),
        ("1.5KiB", 1536),
        ("12B", 12),
        ("4096", 4096),
        (4096, 4096),
        (4096.0, 4096),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "s", "-1s", "1 hour", "1e3", "20S", "1s 2s", "٣s", "1" * 5000, "nan", "inf", math.inf],
)
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match=r"duration|units"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "KiB", "-1", "1.5B", "64kib", "1TiB", 0.5, math.nan])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match=r"size|units|whole"):
        parse_size(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.1, "100ms"),
        (0.00025, "250us"),
        (90, "90s"),
        (60, "1min"),
        (86400, "1d"),
        (36000, "10h"),
        (1.5, "1500ms"),
        (1 / 3, "0.3333333333333333s"),
        (5e-324, f"0.{'0' * 323}5s"),
    ],
)
def test_a_duration_is_written_with_the_largest_unit_that_divides_it(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0B"), (1, "1B"), (1000, "1KB"), (1024, "1KiB"), (1536, "1536B"), (1 << 30, "1GiB")],
)
def test_a_size_is_written_with_the_largest_unit_that_divides_it(size, text):
    assert format_size(size) == text
