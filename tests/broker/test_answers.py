"""What each request does and how it is answered."""

import attrs
import msgspec
import pytest

from cryptows.broker.auth import ANONYMOUS, Identity
from cryptows.broker.outbox import Outbox
from cryptows.broker.replay import Query, Recover
from cryptows.model.channel import Access, ChannelTable, Pattern, Role
from cryptows.model.errors import Refusal, RequestError
from cryptows.model.event import Event
from cryptows.wire.envelope import NATIVE, Packet
from cryptows.wire.requests import Request
from tests.broker.counter import NOW_MS, Client, Counter
from tests.broker.events import event

USER = Identity("7", Role.USER)
ADMIN = Identity("root", Role.ADMIN)


def status() -> Event:
    return event("system_status")


def quote(symbol: str, price: float) -> Event:
    return event("market_data_update", symbol, price=price, channel="market_data")


def error(answer: dict) -> tuple[str, str]:
    assert answer["type"] == "error"
    return answer["data"]["code"], answer["data"]["message"]


# subscribe


def test_a_subscription_is_confirmed_and_then_live():
    counter = Counter()
    client = counter.client(USER)

    answer = counter.ask(client, "subscribe", channels=["market_data:BTC"], id=7)
    counter.publish(quote("BTC", 5.0))

    assert answer == {
        "type": "subscription_confirmed", "timestamp": NOW_MS, "id": 7,
        "data": {"channels": ["market_data:BTC"], "denied": []},
    }  # fmt: skip
    assert [(e["channel"], e["seq"]) for e in client.take()] == [("market_data", 1)]
    assert client.session.patterns == client.audience.patterns == {Pattern("market_data", "BTC")}


def test_one_bad_channel_does_not_spoil_the_others():
    counter = Counter()
    client = counter.client(USER)

    answer = counter.ask(client, "subscribe", channels=["nonsense", "market_data"])

    assert answer["data"] == {
        "channels": ["market_data"],
        "denied": [{
            "channel": "nonsense", "code": "unknown_channel", "message": "there is no such channel",
        }],
    }  # fmt: skip


def test_if_all_are_denied_the_answer_is_an_error():
    counter = Counter()
    client = counter.client()

    answer = counter.ask(client, "subscribe", channels=["market_data", "nonsense"], id="x")

    assert answer["id"] == "x"
    assert answer["data"] == {
        "code": "forbidden", "message": "market_data: this channel needs a token",
        "denied": [
            {"channel": "market_data", "code": "forbidden",
             "message": "this channel needs a token"},
            {"channel": "nonsense", "code": "unknown_channel",
             "message": "there is no such channel"},
        ],
    }  # fmt: skip
    assert client.sent == []
    assert counter.counters.request_errors == {"forbidden": 1}


def test_a_subscription_begins_with_the_last_values():
    counter = Counter()
    for symbol, price in [("BTC", 5.0), ("ETH", 1.0)]:
        counter.publish(quote(symbol, price))
    counter.publish(status())
    client = counter.client(USER)

    counter.ask(client, "subscribe", channels=["market_data", "system_status", "trading_signals"])

    assert [(e["channel"], e["seq"], e["offset"], e["snapshot"]) for e in client.take()] == [
        ("market_data", 1, "k.1", True), ("market_data", 1, "k.2", True),
        ("system_status", 1, "k.3", True),
    ]  # fmt: skip
    counter.publish(status())
    assert [("snapshot" in e, e["seq"]) for e in client.take()] == [(False, 2)]


def test_whoever_subscribes_again_gets_no_second_snapshot():
    counter = Counter()
    counter.publish(status())
    client = counter.client()
    counter.ask(client, "subscribe", channels=["system_status"])

    answer = counter.ask(client, "subscribe", channels=["system_status"])

    assert answer["data"]["channels"] == ["system_status"]
    assert client.take() == []


def test_the_position_of_a_client_with_other_subscriptions_does_not_fall_back():
    counter = Counter()
    counter.publish(status())
    counter.publish(quote("BTC", 5.0))
    counter.now += 1
    counter.publish(quote("BTC", 6.0))

    fresh, old = counter.client(USER), counter.client(USER, "market_data")
    for client in (fresh, old):
        counter.ask(client, "subscribe", channels=["system_status"])

    ((text, offset),) = fresh.sent
    assert (msgspec.json.decode(text)["offset"], offset) == ("k.1", b"k.1")
    ((text, offset),) = old.sent
    assert (msgspec.json.decode(text)["offset"], offset) == ("k.1", b"k.3")


def test_a_new_subscriber_hears_what_is_stale():
    counter = Counter()
    table = [attrs.evolve(c, max_age=5.0) for c in counter.table.classes]
    counter.settings = attrs.evolve(counter.settings, channels=ChannelTable(tuple(table)))
    counter.publisher.reconfigure(counter.table, counter.settings.types)
    counter.publish(status())
    counter.now += 10
    counter.freshness.check(counter.freshness.watched(), (), counter.now, counter.now_ms)
    client = counter.client()

    counter.ask(client, "subscribe", channels=["system_status"])

    value, notice = client.take()
    assert value["snapshot"]
    assert notice["data"] == {
        "status": "stale", "channel": "system_status", "symbol": None, "since": NOW_MS,
        "producer": "no_producer",
    }  # fmt: skip


def test_a_client_may_have_so_many_subscriptions():
    counter = Counter.of(limits={"subscriptions": 2})
    client = counter.client(USER)
    counter.ask(client, "subscribe", channels=["market_data", "price_updates"])

    assert error(counter.ask(client, "subscribe", channels=["system_status"])) == (
        "too_many_subscriptions", "system_status: a client may have 2",
    )  # fmt: skip


def test_a_snapshot_that_is_too_much_for_one_write_is_a_plan():
    counter = Counter()
    for number in range(400):
        counter.publish(quote(f"S{number}", 1.0))
    client = counter.client(USER)

    plan = counter.plan(client, "subscribe", channels=["market_data", "nonsense"])

    assert isinstance(plan, Recover)
    assert (plan.since, plan.granted) == (None, (Pattern("market_data"),))
    assert plan.denied[0]["channel"] == "nonsense"
    assert client.sent == []
    assert client.session.patterns == frozenset()


# subscribe with since


def test_a_subscription_with_since_is_a_plan():
    counter = Counter()
    for _ in range(3):
        counter.publish(status())
    client = counter.client()

    plan = counter.plan(client, "subscribe", channels=["system_status"], since="k.2")

    assert isinstance(plan, Recover)
    assert (plan.since, plan.known, plan.last) == (2, True, False)
    assert plan.patterns == {Pattern("system_status")}
    assert client.sent == []


def test_an_offset_of_a_history_that_was_lost_is_known_as_such():
    counter = Counter()

    plan = counter.plan(counter.client(), "subscribe", channels=["system_status"], since="old.7")

    assert isinstance(plan, Recover)
    assert (plan.since, plan.known) == (0, False)


def test_a_user_may_go_on_from_what_he_acknowledged_last():
    counter = Counter()

    plan = counter.plan(counter.client(USER), "subscribe", channels=["market_data"], since="last")

    assert isinstance(plan, Recover)
    assert plan.last


def test_since_with_no_granted_channel_gets_one_answer():
    counter = Counter()
    client = counter.client()

    answer = counter.ask(client, "subscribe", channels=["market_data"], since="k.0", id=1)

    assert error(answer) == ("forbidden", "market_data: this channel needs a token")
    assert (answer["id"], client.sent) == (1, [])


@pytest.mark.parametrize(
    ("since", "message"),
    [
        ("last", 'since: "last" needs a token'),
        ("", 'since: expected "<epoch>.<n>", got ""'),
        ("7", 'since: expected "<epoch>.<n>", got "7"'),
        (".7", 'since: expected "<epoch>.<n>", got ".7"'),
        ("k.", 'since: expected "<epoch>.<n>", got "k."'),
        ("k.-1", 'since: expected "<epoch>.<n>", got "k.-1"'),
        ("k.٣", 'since: expected "<epoch>.<n>", got "k.٣"'),
        ("k." + "1" * 19, 'since: expected "<epoch>.<n>", got "k.1111111111111111111"'),
        ("x" * 99, 'since: expected "<epoch>.<n>", got "' + "x" * 40 + '"'),
        ("k.1", "since: k.1 is ahead of the daemon"),
    ],
)
def test_an_offset_that_means_nothing_is_refused(since, message):
    counter = Counter()
    client = counter.client()

    answer = counter.ask(client, "subscribe", channels=["system_status"], since=since)

    assert error(answer) == ("bad_request", message)
    assert client.session.patterns == frozenset()


# unsubscribe


def test_after_unsubscribing_nothing_comes_any_more():
    counter = Counter()
    client = counter.client(USER, "market_data:BTC", "system_status")

    answer = counter.ask(client, "unsubscribe", channels=["market_data:BTC"], id=3)
    counter.publish(quote("BTC", 5.0))
    counter.publish(status())

    assert answer == {
        "type": "unsubscription_confirmed", "timestamp": NOW_MS, "id": 3,
        "data": {"channels": ["market_data:BTC"]},
    }  # fmt: skip
    assert [e["channel"] for e in client.take()] == ["system_status"]
    assert client.session.patterns == {Pattern("system_status")}


def test_what_was_never_subscribed_is_unsubscribed_all_the_same():
    counter = Counter()
    client = counter.client(USER, "market_data:BTC")
    audience = client.audience

    for channels in (["nonsense", "market_data", "market_data:ETH", "nonsense"], [""]):
        answer = counter.ask(client, "unsubscribe", channels=channels)
        assert answer["data"] == {"channels": channels}

    assert client.audience is audience
    assert client.session.patterns == {Pattern("market_data", "BTC")}


def test_a_star_is_the_whole_channel_in_both_directions():
    counter = Counter()
    client = counter.client(USER)

    assert counter.ask(client, "subscribe", channels=["market_data:*"])["data"]["channels"] == [
        "market_data",
    ]  # fmt: skip
    counter.ask(client, "unsubscribe", channels=["market_data"])

    assert client.session.patterns == frozenset()


# the others


def test_a_list_says_what_one_has_and_may_have():
    counter = Counter()
    client = counter.client(USER, "system_status", "market_data:B*", "market_data:A")

    assert counter.ask(client, "list", id=1) == {
        "type": "list", "timestamp": NOW_MS, "id": 1,
        "data": {
            "subscribed": ["market_data:A", "market_data:B*", "system_status"],
            "channels": [
                "system_status", "market_data", "price_updates", "trading_signals",
                "user_7_trades", "user_7_positions", "user_7_alerts",
            ],
        },
    }  # fmt: skip


def test_a_ping_is_answered():
    counter = Counter()

    assert counter.ask(counter.client(), "ping", id="p") == {
        "type": "pong", "data": {}, "timestamp": NOW_MS, "id": "p",
    }  # fmt: skip


def test_a_history_request_is_a_plan():
    counter = Counter()

    plan = counter.plan(counter.client(USER), "history", channel="market_data:B*", limit=5)

    assert isinstance(plan, Query)
    assert (plan.pattern, plan.limit) == (Pattern("market_data", "B*"), 5)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"channel": "all_trades"}, ("forbidden", "all_trades: this channel is not for role user")),
        ({"channel": "market_data", "limit": 0},
         ("bad_request", "limit: expected 1 to 1000, got 0")),
        ({"channel": "market_data", "order": "x"},
         ("bad_request", 'order: expected oldest or newest, got "x"')),
    ],
)  # fmt: skip
def test_a_history_request_that_cannot_be_met_says_why(fields, told):
    counter = Counter()

    assert error(counter.ask(counter.client(USER), "history", **fields)) == told


def read_history(sizes: list[int], *, more: bool = False, **fields) -> tuple[list[int], bool]:
    """What a client is shown of these events, and whether there are more."""
    counter = Counter.of(delivery={"outbox": 4096})
    client = counter.client(USER)
    plan = counter.plan(client, "history", channel="market_data", id=2, **fields)
    assert isinstance(plan, Query)
    events = [msgspec.json.encode({"n": n, "pad": "x" * size}) for n, size in enumerate(sizes)]

    counter.answers.history(client, plan, events, more, NOW_MS)

    (answer,) = client.take()
    assert (answer["type"], answer["id"], answer["data"]["channel"]) == (
        "history", 2, "market_data",
    )  # fmt: skip
    return [shown["n"] for shown in answer["data"]["events"]], answer["data"]["more"]


def test_history_is_shown_whole_if_it_fits():
    assert read_history([10, 20]) == ([0, 1], False)
    assert read_history([10, 20], more=True) == ([0, 1], True)
    assert read_history([]) == ([], False)


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"since": "k.0"}, [0, 1]),
        ({"order": "newest"}, [0, 1]),
        ({}, [1, 2]),  # the latest, oldest first
        ({"since": "k.0", "order": "newest"}, [0, 1]),
    ],
)
def test_history_is_cut_where_one_reads_last(fields, shown):
    assert read_history([900, 900, 900], **fields) == (shown, True)


def test_an_acknowledged_offset_is_kept():
    counter = Counter()
    counter.publish(status())

    answer = counter.ask(counter.client(USER), "ack", offset="k.1", id=1)

    assert answer == {"type": "ack", "data": {"offset": "k.1"}, "timestamp": NOW_MS, "id": 1}
    assert counter.cursors == {"7": 1}


def test_an_offset_of_another_history_is_answered_and_not_kept():
    counter = Counter()

    assert counter.ask(counter.client(USER), "ack", offset="old.9")["type"] == "ack"
    assert counter.cursors == {}


@pytest.mark.parametrize(
    ("identity", "offset", "message"),
    [
        (ANONYMOUS, "k.0", "ack: needs a token"),
        (USER, "k.1", "offset: k.1 is ahead of the daemon"),
        (USER, "1", 'offset: expected "<epoch>.<n>", got "1"'),
    ],
)
def test_an_acknowledgement_that_means_nothing_is_refused(identity, offset, message):
    counter = Counter()

    assert error(counter.ask(counter.client(identity), "ack", offset=offset)) == (
        "bad_request", message,
    )  # fmt: skip


def test_a_type_that_nobody_checked_is_a_bug():
    counter = Counter()

    with pytest.raises(AssertionError, match="nonsense"):
        counter.plan(counter.client(), "nonsense")


@pytest.mark.parametrize("type_", ["subscribe", "list", "history", "ack"])
def test_where_a_token_is_required_it_comes_first(type_):
    counter = Counter.of(auth={"anonymous": False})

    answer = counter.ask(
        counter.client(), type_, channels=["system_status"], channel="system_status", offset="k.0"
    )

    assert error(answer) == ("unauthorized", "authenticate first: a token is required here")
    assert counter.ask(counter.client(), "ping")["type"] == "pong"


# authenticate


def test_a_first_token_opens_channels():
    counter = Counter()
    client = counter.client()

    answer = counter.ask(client, "authenticate", token=counter.token("7"), id=1)

    assert answer["type"] == "authenticated"
    assert answer["data"]["userId"] == "7"
    assert answer["data"]["role"] == "user"
    assert answer["data"]["clientId"] == "c-1"
    assert "user_7_trades" in answer["data"]["channels"]
    assert answer["data"]["expiresAt"] == NOW_MS + 3_605_000  # with auth.leeway
    assert "unsubscribed" not in answer["data"]
    assert counter.seats.of_user("7") == 1


def test_a_token_without_an_end_has_none():
    counter = Counter()

    answer = counter.ask(counter.client(), "authenticate", token=counter.token("7", ttl=None))

    assert answer["data"]["expiresAt"] is None


def test_a_wrong_first_token_ends_the_session():
    counter = Counter()
    client = counter.client()

    answer = counter.ask(client, "authenticate", token="a.b.c", id=1)

    assert error(answer) == ("unauthorized", "jwt malformed: unreadable header or payload")
    assert client.ending is not None
    assert (client.ending.code, client.ending.come_back) == (4001, False)


def test_an_expired_first_token_ends_the_session_so_that_it_may_come_back():
    counter = Counter()
    client = counter.client()

    answer = counter.ask(client, "authenticate", token=counter.token("7", ttl=-100))

    assert error(answer) == ("token_expired", "jwt expired")
    assert client.ending is not None
    assert (client.ending.code, client.ending.come_back) == (4002, True)


@pytest.mark.parametrize("user", ["7", "8"])
def test_a_wrong_fresh_token_leaves_the_old_one_in_force(user):
    counter = Counter()
    client = counter.client(USER, "market_data")

    answer = counter.ask(client, "authenticate", token=counter.token(user, ttl=-100))

    assert error(answer)[0] == "token_expired"
    assert client.ending is None
    assert client.session.identity is USER


def test_a_token_of_another_user_changes_nothing():
    counter = Counter()
    client = counter.client(USER)

    answer = counter.ask(client, "authenticate", token=counter.token("8"))

    assert error(answer) == ("unauthorized", "the token belongs to another user")
    assert (counter.seats.of_user("7"), counter.seats.of_user("8")) == (1, 0)


def test_a_token_with_fewer_rights_takes_the_others_away():
    counter = Counter()
    client = counter.client(ADMIN, "all_trades", "system_metrics", "market_data")

    answer = counter.ask(client, "authenticate", token=counter.token("root", "user"))

    assert answer["data"]["unsubscribed"] == ["all_trades", "system_metrics"]
    assert client.audience.patterns == {Pattern("market_data")}


def test_a_banned_user_cannot_sign_in_from_elsewhere():
    counter = Counter()
    counter.bans.ban("7", "198.51.100.9", counter.now)
    client = counter.client()

    answer = counter.ask(client, "authenticate", token=counter.token("7"), id=1)

    assert answer["data"] == {
        "code": "rate_limited", "message": "banned for breaking the rate limit",
        "retryAfterMs": 300_000,
    }  # fmt: skip
    assert client.ending is not None
    assert (client.ending.code, client.ending.come_back) == (4029, False)
    assert counter.seats.of_user("7") == 0


def test_a_user_with_too_many_connections_cannot_sign_in_on_another():
    counter = Counter.of(limits={"connections_per_user": 1})
    counter.client(USER)
    client = counter.client()

    answer = counter.ask(client, "authenticate", token=counter.token("7"))

    assert answer["data"] == {
        "code": "rate_limited", "message": "too many connections of this user, at most 1",
        "retryAfterMs": 5000,
    }  # fmt: skip
    assert client.ending is not None
    assert client.ending.code == 4029


# limits


def test_the_limit_of_requests_is_exact():
    counter = Counter.of(limits={"requests": 3, "window": 60.0})
    client = counter.client(USER)
    for _ in range(3):
        assert counter.ask(client, "ping")["type"] == "pong"

    counter.now += 59
    assert counter.ask(client, "ping", id=9) == {
        "type": "error", "timestamp": NOW_MS + 59_000, "id": 9,
        "data": {"code": "rate_limited", "message": "more than 3 requests in 60 s",
                 "retryAfterMs": 1000},
    }  # fmt: skip

    counter.now += 1
    assert counter.ask(client, "ping")["type"] == "pong"


def test_whoever_does_not_listen_is_banned():
    counter = Counter.of(limits={"requests": 1, "strikes": 2})
    client = counter.client(USER)
    answers = [counter.ask(client, "ping") for _ in range(4)]

    assert [a["type"] for a in answers] == ["pong", "error", "error", "error"]
    assert answers[-1]["data"] == {
        "code": "rate_limited", "retryAfterMs": 300_000,
        "message": "rate limit broken again and again; come back in 300 s",
    }  # fmt: skip
    assert client.ending is not None
    assert (client.ending.code, client.ending.retry_after) == (4029, 300)
    assert counter.bans.retry_after("7", "elsewhere", counter.now) == 300
    assert counter.bans.retry_after(None, "192.0.2.1", counter.now) == 300
    assert (counter.counters.requests, counter.counters.rate_limited, counter.counters.bans) == (
        4, 3, 1,
    )  # fmt: skip


def test_a_user_is_limited_over_all_of_his_connections():
    counter = Counter.of(limits={"requests": 2})
    one, two = counter.client(USER), counter.client(USER, address="198.51.100.9")
    counter.ask(one, "ping")
    counter.ask(two, "ping")

    assert counter.ask(one, "ping")["type"] == counter.ask(two, "ping")["type"] == "error"
    assert counter.ask(counter.client(), "ping")["type"] == "pong"


# what could not be read, or not be carried out


def test_a_request_that_could_not_be_read_is_answered_and_counts():
    counter = Counter.of(limits={"requests": 1})
    client = counter.client()
    wrong = RequestError("bad_request", "not a JSON object", {"id": 7})

    counter.answers.refuse(client, wrong, counter.now, counter.now_ms)
    counter.answers.refuse(client, wrong, counter.now, counter.now_ms)

    first, second = client.take()
    assert first == {
        "type": "error", "timestamp": NOW_MS, "id": 7,
        "data": {"code": "bad_request", "message": "not a JSON object"},
    }  # fmt: skip
    assert second["data"]["code"] == "rate_limited"


def test_the_answer_to_what_could_not_be_read_may_need_more_than_an_id():
    counter = Counter()
    client = counter.client()
    blank = Request("subscribe")

    wrong = RequestError("bad_request", "what", {"id": 7})
    counter.answers.refuse(client, wrong, counter.now, counter.now_ms, blank)

    assert client.asked == [blank]
    assert blank.id == 7


def test_what_could_not_be_carried_out_is_answered():
    counter = Counter()
    client = counter.client()

    wrong = RequestError("bad_request", "history is not available now")
    counter.answers.reject(client, wrong, Request("history", id=4), NOW_MS)

    (answer,) = client.take()
    assert (answer["id"], answer["data"]["message"]) == (4, "history is not available now")


# what nobody asked for


def test_a_client_is_welcomed_with_who_it_is_and_where_the_journal_stands():
    counter = Counter()
    counter.publish(status())
    client = counter.client(USER)

    counter.answers.welcome(client, NOW_MS)

    ((text, offset),) = client.sent
    assert offset == b"k.1"
    assert msgspec.json.decode(text) == {
        "type": "connection", "timestamp": NOW_MS, "offset": "k.1",
        "data": {
            "clientId": "c-1", "userId": "7", "role": "user", "epoch": "k",
            "heartbeatInterval": 25_000, "channels": client.session.available(counter.table),
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("refusal", "data"),
    [
        (Refusal(4001, "jwt revoked", come_back=False),
         {"code": "unauthorized", "message": "jwt revoked"}),
        (Refusal(4029, "banned", come_back=False, retry_after=0.0001),
         {"code": "rate_limited", "message": "banned", "retryAfterMs": 1}),
        (Refusal(4031, "taken", come_back=False), {"code": "forbidden", "message": "taken"}),
    ],
)  # fmt: skip
def test_a_client_that_is_turned_away_hears_why(refusal, data):
    counter = Counter()
    client = counter.client()

    counter.answers.turn_away(client, refusal, NOW_MS)

    assert client.take() == [{"type": "error", "data": data, "timestamp": NOW_MS}]
    assert client.ending is refusal


def beat(counter: Counter, client: Client) -> dict:
    text = counter.answers.heartbeat(client, counter.now, counter.now_ms)
    envelope = msgspec.json.decode(text)
    assert (envelope["type"], envelope["timestamp"]) == ("heartbeat", counter.now_ms)
    return dict(envelope["data"])


def test_a_heartbeat_tells_how_old_each_subscription_is():
    counter = Counter()
    client = counter.client(
        USER, "market_data", "market_data:ETH", "market_data:B*", "price_updates"
    )
    counter.publish(quote("ETH", 1.0))
    counter.now += 2
    counter.publish(quote("BTC", 1.0))
    counter.now += 0.5

    assert beat(counter, client) == {
        "lagMs": 0, "skipped": 0,
        "channels": {
            "market_data": 500, "market_data:ETH": 2500, "market_data:B*": 500,
            "price_updates": None,
        },
    }  # fmt: skip


def test_a_heartbeat_tells_how_far_behind_the_client_is():
    counter = Counter()
    client = counter.client(USER)
    client.skipped = 3
    client.outbox = Outbox(NATIVE, 1 << 20, 10.0, skipped=4)
    client.outbox.put(Packet(b"{}"), counter.now - 1.25)

    assert beat(counter, client) == {"lagMs": 1250, "skipped": 7, "channels": {}}


def closed_to_users(table: ChannelTable) -> ChannelTable:
    """The same channels, market data for admins only."""
    return ChannelTable(tuple(
        attrs.evolve(c, access=Access.ADMIN) if c.name == "market_data" else c
        for c in table.classes
    ))  # fmt: skip


def test_after_a_reload_a_client_loses_what_it_may_not_have_any_more():
    counter = Counter()
    client = counter.client(USER, "market_data:BTC", "market_data", "price_updates")
    same = counter.client(USER, "price_updates")
    counter.settings = attrs.evolve(counter.settings, channels=closed_to_users(counter.table))

    for each in (client, same):
        counter.answers.review(each, NOW_MS)

    assert client.take() == [{
        "type": "unsubscription_confirmed", "timestamp": NOW_MS,
        "data": {"channels": ["market_data", "market_data:BTC"], "reason": "not allowed any more"},
    }]  # fmt: skip
    assert client.audience is same.audience
    assert same.take() == []


def test_a_client_that_is_still_recovering_is_not_let_in_by_a_reload():
    counter = Counter()
    client = counter.client(USER, "market_data", "price_updates")
    counter.routes.move(client, frozenset())
    counter.settings = attrs.evolve(counter.settings, channels=closed_to_users(counter.table))

    counter.answers.review(client, NOW_MS)

    assert client.session.patterns == {Pattern("price_updates")}
    assert client.audience.patterns == frozenset()


def test_deadlines_are_looked_at_for_one_client():
    counter = Counter()
    client = counter.client()

    assert counter.answers.check_session(client, counter.now, counter.now_ms / 1000) == 1060.0
