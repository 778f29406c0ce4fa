"""Who a client is and what it may have: the state table walked, and every denial."""

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptows.broker.auth import ANONYMOUS, Identity
from cryptows.broker.session import STEPS, Session, State, Step
from cryptows.config.load import defaults
from cryptows.model.channel import MAX_SYMBOL, Access, ChannelTable, Pattern, Role
from cryptows.model.errors import Refusal, RequestError

TABLE = defaults().channels
USER = Identity("7", Role.USER)
ADMIN = Identity("root", Role.ADMIN)
SUPER = Identity("boss", Role.SUPER_ADMIN)
EVERYBODY = [ANONYMOUS, USER, ADMIN, SUPER]


def session(identity: Identity = ANONYMOUS, *subscribed: str) -> Session:
    return Session("c-1", identity, "192.0.2.1", frozenset(map(Pattern.parse, subscribed)))


# states


def test_a_session_begins_with_or_without_a_token():
    assert session().state is State.ANONYMOUS
    assert session(USER).state is State.AUTHENTICATED
    assert (session().authenticated, session(USER).authenticated) == (False, True)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("step", Step)
def test_every_step_from_every_state_is_in_the_table_or_changes_nothing(state, step):
    it = session()
    it.state = state

    taken = it.step(step)

    expected = {
        (State.ANONYMOUS, Step.AUTHENTICATE): State.AUTHENTICATED,
        (State.ANONYMOUS, Step.END): State.ENDING,
        (State.ANONYMOUS, Step.LOSE): State.ENDED,
        (State.AUTHENTICATED, Step.AUTHENTICATE): State.AUTHENTICATED,
        (State.AUTHENTICATED, Step.END): State.ENDING,
        (State.AUTHENTICATED, Step.LOSE): State.ENDED,
        (State.ENDING, Step.LOSE): State.ENDED,
    }.get((state, step))
    assert taken == (expected is not None)
    assert it.state is (expected or state)


@given(st.lists(st.sampled_from(Step), max_size=8))
def test_a_session_ends_once_and_for_ever(steps):
    it, open_before = session(), True
    for step in steps:
        it.step(step)
        assert it.open <= open_before
        open_before = it.open

    assert it.open == (not {Step.END, Step.LOSE} & set(steps))
    assert (it.state is State.ENDED) == (Step.LOSE in steps)


def test_the_table_names_only_what_there_is():
    assert {state for state, _ in STEPS} == set(State) - {State.ENDED}
    assert {step for _, step in STEPS} == set(Step)


# tokens


def test_a_first_token_makes_somebody_of_a_client():
    it = session()

    assert it.authenticate(USER, TABLE) == ()

    assert (it.identity, it.state) == (USER, State.AUTHENTICATED)


def test_a_fresh_token_takes_the_place_of_the_old_one():
    it = session(USER)
    fresh = attrs.evolve(USER, expires_at=99.0)

    it.authenticate(fresh, TABLE)

    assert it.identity is fresh


def test_a_token_of_another_user_is_refused():
    it = session(USER, "market_data")

    with pytest.raises(Refusal) as caught:
        it.authenticate(ADMIN, TABLE)

    assert (caught.value.code, caught.value.reason, caught.value.come_back) == (
        4001, "the token belongs to another user", False,
    )  # fmt: skip
    assert (it.identity, len(it.patterns)) == (USER, 1)


@pytest.mark.parametrize("step", [Step.END, Step.LOSE])
def test_a_session_that_has_ended_takes_no_token(step):
    it = session()
    it.step(step)

    with pytest.raises(Refusal) as caught:
        it.authenticate(USER, TABLE)

    assert (caught.value.code, caught.value.reason) == (4001, "the session has ended")
    assert it.identity is ANONYMOUS


def test_a_token_of_a_lesser_role_loses_what_it_does_not_cover():
    it = session(ADMIN, "all_trades", "market_data:BTC*", "system_metrics")

    lost = it.authenticate(attrs.evolve(ADMIN, role=Role.USER), TABLE)

    assert set(map(str, lost)) == {"all_trades", "system_metrics"}
    assert it.patterns == {Pattern("market_data", "BTC*")}


def test_a_reload_may_take_subscriptions_away():
    it = session(USER, "market_data", "price_updates:BTC", "gone")
    changed = {"market_data": Access.ADMIN, "price_updates": Access.PUBLIC}
    table = ChannelTable(tuple(
        attrs.evolve(c, access=changed.get(c.name, c.access)) for c in TABLE.classes
    ))  # fmt: skip

    assert set(it.review(table)) == {Pattern("market_data"), Pattern("gone")}
    assert it.patterns == {Pattern("price_updates", "BTC")}


# who may what: protocol section 3

SIGNED_IN = ["market_data", "price_updates", "trading_signals"]
ADMINS = ["admin_alerts", "all_trades", "risk_alerts", "system_metrics"]


def own(user: str) -> list[str]:
    return [f"user_{user}_{what}" for what in ("trades", "positions", "alerts")]


@pytest.mark.parametrize(
    ("identity", "channels"),
    [
        (ANONYMOUS, ["system_status"]),
        (USER, ["system_status", *SIGNED_IN, *own("7")]),
        (ADMIN, ["system_status", *SIGNED_IN, *own("root"), *ADMINS]),
        (SUPER, ["system_status", *SIGNED_IN, *own("boss"), *ADMINS]),
    ],
)
def test_a_client_is_told_what_it_may_subscribe_to(identity, channels):
    it = session(identity)

    assert it.available(TABLE) == channels
    assert it.subscribe(channels, TABLE, 100).denied == ()


@pytest.mark.parametrize("identity", EVERYBODY)
def test_the_channels_of_others_are_for_super_admins(identity):
    outcome = session(identity).subscribe(own("8"), TABLE, 100)

    assert len(outcome.granted) == (3 if identity is SUPER else 0)


@given(st.sampled_from(EVERYBODY), st.sampled_from([*SIGNED_IN, *ADMINS, *own("7"), *own("8")]))
def test_rights_only_grow_with_the_role(identity, channel):
    def may(who: Identity) -> bool:
        return not session(who).subscribe([channel], TABLE, 9).denied

    if channel.startswith("user_"):
        assert may(identity) == (identity is SUPER or (identity is USER and "_7_" in channel))
    else:
        assert may(ANONYMOUS) <= may(USER) <= may(ADMIN) <= may(SUPER)


# subscriptions


def granted(it: Session, *asked: str, most: int = 100) -> list[str]:
    return [str(pattern) for pattern in it.subscribe(asked, TABLE, most).granted]


def denial(it: Session, asked: str, most: int = 100) -> dict[str, str]:
    outcome = it.subscribe([asked], TABLE, most)
    assert (outcome.granted, outcome.patterns) == ((), it.patterns)
    (denied,) = outcome.denied
    return denied


def test_what_is_granted_comes_on_top_of_what_there_was():
    it = session(USER, "market_data:BTC")

    outcome = it.subscribe(["market_data:E*", "price_updates"], TABLE, 100)

    assert outcome.patterns == {
        Pattern("market_data", "BTC"), Pattern("market_data", "E*"), Pattern("price_updates"),
    }  # fmt: skip
    assert outcome.granted == (Pattern("market_data", "E*"), Pattern("price_updates"))
    assert it.patterns == {Pattern("market_data", "BTC")}  # it is for the caller to change it


def test_one_bad_channel_does_not_spoil_the_others():
    outcome = session(USER).subscribe(["market_data", "nonsense", "all_trades"], TABLE, 100)

    assert outcome.granted == (Pattern("market_data"),)
    assert [denied["code"] for denied in outcome.denied] == ["unknown_channel", "forbidden"]


def test_a_channel_asked_for_twice_counts_once():
    outcome = session(USER).subscribe(
        ["market_data", "market_data", "market_data:*", "nonsense", "nonsense"], TABLE, 1
    )

    assert outcome.granted == (Pattern("market_data"),)
    assert len(outcome.denied) == 1


def test_what_is_subscribed_already_is_granted_again_and_takes_no_room():
    it = session(USER, "market_data")

    assert granted(it, "market_data", most=1) == ["market_data"]
    assert denial(it, "price_updates", most=1) == {
        "channel": "price_updates", "code": "too_many_subscriptions",
        "message": "a client may have 1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("identity", "channel", "code", "message"),
    [
        (USER, "nonsense", "unknown_channel", "there is no such channel"),
        (USER, "", "unknown_channel", "there is no such channel"),
        (USER, ":BTC", "unknown_channel", "there is no such channel"),
        (USER, "user__trades", "unknown_channel", "there is no such channel"),
        (ANONYMOUS, "market_data", "forbidden", "this channel needs a token"),
        (ANONYMOUS, "user_7_trades", "forbidden", "this channel needs a token"),
        (ANONYMOUS, "all_trades", "forbidden", "this channel needs a token"),
        (USER, "user_8_trades", "forbidden", "this channel is not for role user"),
        (ADMIN, "user_7_trades", "forbidden", "this channel is not for role admin"),
        (USER, "all_trades", "forbidden", "this channel is not for role user"),
        (USER, "system_status:BTC", "bad_request", "system_status cannot be subscribed by symbol"),
        (USER, "user_7_trades:BTC", "bad_request",
         "user_{id}_trades cannot be subscribed by symbol"),
        (USER, "market_data:", "bad_request", "a symbol has 1 to 64 characters"),
        (USER, "market_data:" + "X" * (MAX_SYMBOL + 1), "bad_request",
         "a symbol has 1 to 64 characters"),
    ],
)  # fmt: skip
def test_a_denial_says_why(identity, channel, code, message):
    assert denial(session(identity), channel) == {
        "channel": channel, "code": code, "message": message,
    }  # fmt: skip


def test_symbols_and_globs_are_granted_where_there_are_symbols():
    asked = ["market_data:BTCUSDT", "price_updates:BTC*", "trading_signals:" + "X" * MAX_SYMBOL]

    assert granted(session(USER), *asked) == asked


def test_a_denial_repeats_only_the_beginning_of_a_long_name():
    assert denial(session(USER), "x" * 5000)["channel"] == "x" * 200


# history


def test_what_may_be_subscribed_may_be_read():
    assert session(USER).readable("market_data:B*", TABLE) == Pattern("market_data", "B*")


@pytest.mark.parametrize(
    ("channel", "code", "message"),
    [
        ("all_trades", "forbidden", "all_trades: this channel is not for role user"),
        ("nonsense", "unknown_channel", "nonsense: there is no such channel"),
        ("x" * 900, "unknown_channel", "x" * 200 + ": there is no such channel"),
    ],
)
def test_what_may_not_be_subscribed_may_not_be_read(channel, code, message):
    with pytest.raises(RequestError) as caught:
        session(USER).readable(channel, TABLE)

    assert (caught.value.code, caught.value.message) == (code, message)


def test_a_session_says_who_it_is():
    assert session(ADMIN).describe() == {"clientId": "c-1", "userId": "root", "role": "admin"}
    assert session().describe() == {"clientId": "c-1", "userId": None, "role": "anonymous"}
