"""The work that every server gets: how many clients, what they want, and what is published.

The channel is always `market_data`. With `symbols`, events are spread over so many symbols and each
client subscribes to its own few of them.
"""

from __future__ import annotations

import random
from collections import Counter

import attrs

CHANNEL = "market_data"
SEED = 5  # of every random choice here: all servers get the same work


@attrs.frozen
class Work:
    """One measurement."""

    name: str
    title: str
    clients: int = 500
    rate: float | None = 1000.0  # events a second; 0: as fast as they are read; None: no events
    symbols: int = 0
    each: int = 0  # symbols of one client; 0: the whole channel
    slow: int = 0  # clients that stop reading
    listening: bool = True  # whether anyone wants what is published
    seconds: float = 5.0
    warm: float = 1.0

    @property
    def routed(self) -> bool:
        """Whether clients want different things."""
        return bool(self.symbols) or not self.listening

    def topics(self, client: int) -> list[str]:
        """Return what one client subscribes to."""
        if not self.listening:
            return [f"{CHANNEL}:NONE"]
        if not self.symbols:
            return [CHANNEL]
        choice = random.Random(SEED * 1_000_003 + client).sample(range(self.symbols), self.each)
        return [f"{CHANNEL}:{symbol(number)}" for number in sorted(choice)]

    def feed(self) -> list[str]:
        """Return the symbols of the events in turn; the producer begins anew at the end."""
        numbers = list(range(max(1, self.symbols)))
        random.Random(SEED).shuffle(numbers)
        return [symbol(number) for number in numbers]

    def expected(self, published: int) -> int:
        """Return how many deliveries so many events must make, slow clients aside."""
        wanted = Counter(
            topic for client in range(self.slow, self.clients) for topic in self.topics(client)
        )
        turns, feed = divmod(published, len(self.feed())), self.feed()
        return sum(
            (turns[0] + (place < turns[1])) * (wanted[CHANNEL] + wanted[f"{CHANNEL}:{name}"])
            for place, name in enumerate(feed)
        )


def symbol(number: int) -> str:
    """Return the name of a symbol."""
    return f"S{number:03}"


FAN_OUT = tuple(
    Work(f"fan-{rate}", f"500 clients, one channel, {rate} events/s", rate=rate)
    for rate in (100, 1000, 4000)
)
SYMBOLS = Work(
    "symbols", "300 clients, 50 symbols, 5 each, 1000 events/s", clients=300, symbols=50, each=5
)
SLOW = Work("slow", "500 clients of which 50 stop reading, 1000 events/s", slow=50)
INGEST = Work(
    "ingest", "events that nobody wants, as fast as they are read",
    clients=1, rate=0, listening=False,
)  # fmt: skip
IDLE = Work("idle", "1000 clients that connect, subscribe and wait", clients=1000, rate=None)
WORKS = (*FAN_OUT, SYMBOLS, SLOW, INGEST, IDLE)

# The plot has these beside the fan-out works above.
SWEEP = tuple(
    Work(f"sweep-{rate}", f"500 clients, one channel, {rate} events/s", rate=rate, seconds=3)
    for rate in (50, 200, 500, 2000, 8000)
)


def quick(work: Work) -> Work:
    """Return the same work, short and with a fifth of the clients: to see that it runs."""
    return attrs.evolve(
        work,
        title=f"quick: {work.title}",
        clients=work.clients // 5 or 1,
        slow=work.slow // 5,
        seconds=1.0,
        warm=0.3,
    )
