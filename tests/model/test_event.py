"""Records: which stream they belong to."""

from cryptows.model.channel import Lane
from cryptows.model.event import Record


def test_a_stream_is_a_channel_and_a_symbol():
    record = Record(5, 2, "market_data", "BTC", Lane.MARKET, 1, b"{}", b"k.5")

    assert record.stream == ("market_data", "BTC")
