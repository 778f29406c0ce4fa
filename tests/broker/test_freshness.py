"""When subscribers hear that a stream fell silent, and what."""

import attrs
import msgspec

from cryptows.broker.freshness import Freshness
from cryptows.broker.journal import Journal, Stream
from cryptows.model.channel import ChannelTable, Pattern
from tests.broker.events import channel, market

PRICES = market("prices", max_age=5.0)
NEWS = channel("news")
NOW_MS = 1_700_000_000_000


@attrs.define
class World:
    """A journal, who is connected, and the clocks: Unix time goes along with the steady one."""

    journal: Journal = attrs.field(factory=lambda: Journal("k", 100))
    freshness: Freshness = attrs.field(init=False)
    connected: set[str] = attrs.field(factory=lambda: {"bot"})

    def __attrs_post_init__(self) -> None:
        self.freshness = Freshness(self.journal)

    def hear(self, symbol: str | None, now: float) -> Stream:
        stream = self.journal.stream(PRICES, "prices", symbol)
        stream.hear(now, "bot")
        return stream

    def check(self, now: float) -> list[tuple[str | None, dict]]:
        """Return what is told of each stream by its symbol."""
        at = NOW_MS + int(now * 1000)
        streams = self.freshness.watched()
        found = self.freshness.check(streams, self.connected, now, at)
        told = [(stream.symbol, msgspec.json.decode(text)) for stream, text in found]
        assert all(e["type"] == "system_status" and e["timestamp"] == at for _, e in told)
        return [(symbol, envelope["data"]) for symbol, envelope in told]


def status(status: str, symbol: str | None, since: float, **more: str) -> dict:
    return {
        "status": status, "channel": "prices", "symbol": symbol,
        "since": NOW_MS + int(since * 1000), **more,
    }  # fmt: skip


def test_a_stream_is_stale_once_it_was_silent_for_longer_than_it_may():
    world = World()
    world.hear("BTC", now=10)

    assert world.check(15) == []
    assert world.check(15.5) == [("BTC", status("stale", "BTC", 10, producer="quiet"))]
    assert world.check(16) == []
    assert len(world.freshness) == 1


def test_a_dead_feed_is_told_from_a_quiet_market():
    world = World(connected=set())
    world.hear("BTC", now=10)

    assert world.check(16) == [("BTC", status("stale", "BTC", 10, producer="no_producer"))]


def test_a_producer_that_goes_while_its_stream_is_stale_is_told():
    world = World()
    world.hear("BTC", now=10)
    world.check(16)

    world.connected.clear()
    assert world.check(17) == [("BTC", status("stale", "BTC", 10, producer="no_producer"))]

    world.connected.add("bot")  # it is back, and has said nothing yet
    assert world.check(18) == []


def test_a_stream_that_speaks_again_is_fresh():
    world = World()
    world.hear("BTC", now=10)
    world.check(16)

    world.hear("BTC", now=17)

    assert world.check(18) == [("BTC", status("fresh", "BTC", 18))]
    assert world.check(19) == []
    assert len(world.freshness) == 0


def test_a_keepalive_keeps_a_stream_fresh():
    world = World()
    for symbol in ("BTC", "ETH", "XRP"):
        world.hear(symbol, now=10)

    world.freshness.keep_alive(["prices:BTC", "prices:E*", "prices:NEW", "other"], "bot", now=14)

    assert [symbol for symbol, _ in world.check(16)] == ["XRP"]
    world.freshness.keep_alive(["prices"], "bot", now=17)
    assert [data["status"] for _, data in world.check(18)] == ["fresh"]


def test_whoever_sent_the_keepalive_is_the_producer_from_then_on():
    world = World(connected={"other"})
    world.hear("BTC", now=10)

    world.freshness.keep_alive(["prices:BTC"], "other", now=11)

    assert world.check(20) == [("BTC", status("stale", "BTC", 11, producer="quiet"))]


def test_channels_without_a_max_age_are_never_stale():
    world = World()
    world.journal.stream(NEWS, "news", None).hear(10, "bot")

    assert world.freshness.watched() == []
    assert world.check(1e6) == []


def test_a_stream_that_is_not_watched_any_more_is_called_fresh():
    world = World()
    world.hear("BTC", now=10)
    world.check(16)

    world.journal.reconfigure(ChannelTable((attrs.evolve(PRICES, max_age=0.0),)))

    assert world.check(17) == [("BTC", status("fresh", "BTC", 17))]
    assert world.check(18) == []


def test_a_stream_without_an_event_yet_is_not_stale():
    world = World()
    world.journal.stream(PRICES, "prices", "BTC")  # whose event was refused, say

    assert world.check(16) == []


def test_new_subscribers_hear_what_is_stale_among_what_they_will_see():
    world = World()
    for symbol in ("BTC", "ETH", None):
        world.hear(symbol, now=10)
    assert world.freshness.notices([Pattern("prices")], NOW_MS) == []
    world.check(16)

    def noticed(*texts: str) -> list[dict]:
        notices = world.freshness.notices(map(Pattern.parse, texts), NOW_MS)
        return [msgspec.json.decode(text)["data"] for text in notices]

    assert noticed("prices:BTC") == [status("stale", "BTC", 10, producer="quiet")]
    assert [data["symbol"] for data in noticed("prices:E*", "prices:BTC")] == ["BTC", "ETH"]
    assert [data["symbol"] for data in noticed("prices")] == ["BTC", "ETH", None]
    assert noticed("news", "prices:XRP") == []
