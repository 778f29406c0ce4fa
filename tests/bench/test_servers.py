import json

import jwt
import pytest

from bench.measure import load_options
from bench.servers import KEY, STAMP, Place, Server, nats_event, nats_subscribe, servers
from bench.work import FAN_OUT, IDLE, INGEST, SLOW, SYMBOLS

SERVERS = {server.name: server for server in servers()}


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(tmp_path, 8001, 8002)


@pytest.mark.parametrize("server", SERVERS.values(), ids=lambda server: server.name)
@pytest.mark.parametrize("by_symbol", [False, True])
def test_an_event_holds_one_stamp_of_the_length_that_the_load_client_writes(server, by_symbol):
    text = server.dialect.event("S001", by_symbol)

    assert text.count("@T") == 1
    assert STAMP in text


def test_a_peer_gets_its_room_and_the_daemon_its_symbol():
    peer = json.loads(SERVERS["node-ws"].dialect.event("S001", True))
    own = json.loads(SERVERS["cryptows"].dialect.event("S001", True))

    assert peer["channel"] == "market_data:S001"
    assert "channel" not in own
    assert own["data"]["symbol"] == "S001"


def test_a_nats_message_tells_the_length_of_its_payload():
    head, payload, rest = nats_event("S001", True).split("\r\n")

    assert head == f"PUB market_data:S001 {len(payload)}"
    assert rest == ""


def test_a_nats_client_subscribes_to_each_topic_and_asks_for_a_pong():
    [message] = nats_subscribe(["market_data:S001", "market_data:S002"])

    assert message.split("\r\n")[1:] == [
        "SUB market_data:S001 1", "SUB market_data:S002 2", "PING", "",
    ]  # fmt: skip


def test_a_socketio_client_connects_first():
    connect, subscribe = SERVERS["cryptows-sio"].dialect.inits(["market_data"])

    claims = jwt.decode(json.loads(connect.removeprefix("40"))["token"], KEY, algorithms=["HS256"])
    assert claims["sub"] == "bench"
    assert json.loads(subscribe.removeprefix("42")) == ["subscribe", {"channels": ["market_data"]}]


def test_the_daemons_key_is_for_its_eyes_only(place):
    command = SERVERS["cryptows"].command(place)

    assert f"auth.secret_file={place.folder / 'key'}" in command
    assert (place.folder / "key").stat().st_mode & 0o777 == 0o600
    assert not any(KEY in part for part in command)


def test_what_is_said_lies_in_files_in_the_load_clients_form(place):
    options = load_options(SERVERS["cryptows-sio"], SYMBOLS, place)

    clients = (place.folder / "inits").read_text().split("\0")
    events = (place.folder / "events").read_text().split("\0")
    assert (len(clients) - 1, clients[-1]) == (SYMBOLS.clients, "")
    assert all(len(client.split("\x1e")) == 2 for client in clients[:-1])
    assert (len(events) - 1, events[-1]) == (SYMBOLS.symbols, "")
    assert options[options.index("--feed") + 1] == f"unix:{place.feed}"


def test_where_nothing_is_published_the_load_client_gets_no_feed(place):
    assert "--feed" not in load_options(SERVERS["nats"], IDLE, place)


@pytest.mark.parametrize("work", [SYMBOLS, SLOW, INGEST], ids=lambda work: work.name)
def test_the_floor_does_only_what_it_can(work):
    floor: Server = SERVERS["floor"]

    assert floor.can(FAN_OUT[0])
    assert not floor.can(work)
    assert SERVERS["cryptows"].can(work)
