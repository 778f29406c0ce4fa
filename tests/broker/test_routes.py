"""Who gets an event: the index held against a walk over all clients."""

from __future__ import annotations

import attrs
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cryptows.broker.routes import NOTHING, Audience, Routes
from cryptows.model.channel import Pattern
from cryptows.wire.envelope import NATIVE, SOCKETIO_POLLING, SOCKETIO_WEBSOCKET, WIRES, Wire
from tests.effort import effort


@attrs.define(eq=False)
class Client:
    """What the routes keep of a client."""

    name: str
    audience: Audience = attrs.field(init=False)


def patterns(*texts: str) -> frozenset[Pattern]:
    return frozenset(map(Pattern.parse, texts))


def joined(routes: Routes, name: str, *texts: str, wire: Wire = NATIVE) -> Client:
    client = Client(name)
    routes.join(client, wire, patterns(*texts))
    return client


def reached(routes: Routes, channel: str, symbol: str | None = None) -> list[str]:
    """Whom an event reaches, as often as it does."""
    audiences = routes.audiences(channel, symbol)
    members = [member for audience in audiences for member in audience.members]
    return sorted(member.name for member in members if isinstance(member, Client))


def size(routes: Routes) -> int:
    """What the index holds."""
    return len(routes._audiences) + len(routes._whole) + len(routes._symbols) + len(routes._globs)


def test_a_whole_channel_brings_every_symbol_and_none():
    routes = Routes()
    joined(routes, "ann", "c")

    assert reached(routes, "c", "BTC") == reached(routes, "c", None) == ["ann"]
    assert reached(routes, "d", "BTC") == []


def test_a_symbol_brings_only_that_symbol():
    routes = Routes()
    joined(routes, "ann", "c:BTC")

    assert reached(routes, "c", "BTC") == ["ann"]
    assert reached(routes, "c", "ETH") == reached(routes, "c", None) == []


def test_a_glob_brings_what_it_matches():
    routes = Routes()
    joined(routes, "ann", "c:BTC*")

    assert reached(routes, "c", "BTCUSDT") == ["ann"]
    assert reached(routes, "c", "ETH") == reached(routes, "c", None) == []


def test_an_event_comes_once_however_many_patterns_cover_it():
    routes = Routes()
    joined(routes, "ann", "c:BTC", "c:B*", "c:*C")
    joined(routes, "bob", "c", "c:BTC", "c:B*")

    assert reached(routes, "c", "BTC") == ["ann", "bob"]


def test_whoever_comes_after_a_glob_was_asked_for_gets_the_next_event():
    routes = Routes()
    joined(routes, "ann", "c:B*")
    assert reached(routes, "c", "BTC") == ["ann"]

    bob, cleo = joined(routes, "bob", "c:BTC"), joined(routes, "cleo", "c")
    assert reached(routes, "c", "BTC") == ["ann", "bob", "cleo"]

    routes.leave(bob)
    routes.leave(cleo)
    assert reached(routes, "c", "BTC") == ["ann"]


def test_clients_with_the_same_wishes_share_an_audience_for_each_wire():
    routes = Routes()

    ann, bob = joined(routes, "ann", "c", "d"), joined(routes, "bob", "d", "c")
    cleo = joined(routes, "cleo", "c", "d", wire=SOCKETIO_WEBSOCKET)

    assert ann.audience is bob.audience is not cleo.audience
    assert list(routes) == [ann.audience, cleo.audience]
    assert list(ann.audience.members) == [ann, bob]
    assert ann.audience.wire is NATIVE


def test_a_client_may_leave_twice():
    routes = Routes()
    ann = joined(routes, "ann", "c")

    routes.leave(ann)
    routes.leave(ann)

    assert reached(routes, "c") == []
    assert size(routes) == 0


def test_a_client_that_moves_takes_its_new_wishes_to_the_same_wire():
    routes = Routes()
    ann = joined(routes, "ann", "c", wire=SOCKETIO_POLLING)

    routes.move(ann, patterns("d"))

    assert (reached(routes, "c"), reached(routes, "d")) == ([], ["ann"])
    assert ann.audience.wire is SOCKETIO_POLLING


def test_a_client_may_move_to_another_wire():
    routes = Routes()
    ann = joined(routes, "ann", "c", wire=SOCKETIO_POLLING)

    routes.move(ann, ann.audience.patterns, SOCKETIO_WEBSOCKET)

    assert reached(routes, "c") == ["ann"]
    assert ann.audience.wire is SOCKETIO_WEBSOCKET


def test_clients_are_counted_once_for_each_channel():
    routes = Routes()
    joined(routes, "ann", "c:BTC", "c:ETH", "d")
    joined(routes, "bob", "c:BTC", "c:ETH", "d")
    joined(routes, "cleo", "c", wire=SOCKETIO_POLLING)
    joined(routes, "dan")

    assert routes.counts() == {"c": 3, "d": 2}


TEXTS = st.sampled_from(
    ["c", "d", "c:A", "c:AB", "c:B", "c:A*", "c:*B", "c:?", "d:A", "d:[AB]", "c:*", "d:**"]
)
WISHES = st.frozensets(TEXTS.map(Pattern.parse), max_size=4)
STREAMS = [(c, s) for c in "cd" for s in (None, "A", "B", "AB", "X")]


class RoutesMachine(RuleBasedStateMachine):
    """Clients come, change their minds and go; a plain dict knows what each wants."""

    def __init__(self) -> None:
        super().__init__()
        self.routes = Routes()
        self.clients: dict[Client, tuple[Wire, frozenset[Pattern]]] = {}

    @rule(wire=st.sampled_from(WIRES), wishes=WISHES)
    def come(self, wire, wishes):
        client = Client(f"client {len(self.clients)}")
        self.routes.join(client, wire, wishes)
        self.clients[client] = wire, wishes

    @rule(data=st.data(), wishes=WISHES, wire=st.none() | st.sampled_from(WIRES))
    def move(self, data, wishes, wire):
        if self.clients:
            client = data.draw(st.sampled_from(list(self.clients)))
            self.routes.move(client, wishes, wire)
            self.clients[client] = wire or self.clients[client][0], wishes

    @rule(data=st.data())
    def go(self, data):
        if self.clients:
            client = data.draw(st.sampled_from(list(self.clients)))
            self.routes.leave(client)
            del self.clients[client]

    @invariant()
    def each_stream_reaches_whom_it_should_once(self):
        for channel, symbol in STREAMS:
            audiences = self.routes.audiences(channel, symbol)
            members = [m for audience in audiences for m in audience.members]
            wanted = [
                client
                for client, (_, wishes) in self.clients.items()
                if any(p.channel == channel and p.matches(symbol) for p in wishes)
            ]
            assert len(members) == len(wanted)
            assert set(members) == set(wanted)

    @invariant()
    def clients_know_their_audience(self):
        for client, (wire, wishes) in self.clients.items():
            assert client in client.audience.members
            assert (client.audience.wire, client.audience.patterns) == (wire, wishes)
        assert len(list(self.routes)) == len(set(self.clients.values()))

    @invariant()
    def nobody_leaves_anything_behind(self):
        if not self.clients:
            assert size(self.routes) == 0
        assert all(self.routes._globs.values())
        assert all(self.routes._whole.values())
        assert all(self.routes._symbols.values())


TestRoutes = RoutesMachine.TestCase
TestRoutes.settings = effort(examples=30, steps=25)


@given(st.lists(WISHES, max_size=8))
def test_what_is_remembered_of_globs_is_bounded_by_the_streams(many):
    routes = Routes()
    for number, wishes in enumerate(many):
        routes.join(Client(str(number)), NATIVE, wishes)
        for channel, symbol in STREAMS:
            routes.audiences(channel, symbol)

    assert sum(map(len, routes._found.values())) <= len(STREAMS)
    assert frozenset() == NOTHING
