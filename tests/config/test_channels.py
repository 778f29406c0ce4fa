import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptows.config.channels import apply_rules, rules_of
from cryptows.config.load import defaults
from cryptows.model.channel import USER_ID, Access, ChannelClass, History, Lane
from tests.config.loading import load_text, problems_of


def channel(text: str, name: str) -> ChannelClass:
    channels = {c.name: c for c in load_text(text).settings.channels.classes}
    return channels[name]


def test_the_channels_of_the_seed_are_those_of_the_contract():
    rules = {
        c.name: (c.access, c.lane, c.throttle, c.snapshot, c.durable, c.symbols)
        for c in defaults().channels.classes
    }

    user = (Access.USER, Lane.PRIVATE, 0, False, True, False)
    admin = (Access.ADMIN, Lane.PRIVATE, 0, False, False, False)
    assert rules == {
        "system_status": (Access.PUBLIC, Lane.PRIVATE, 0, True, False, False),
        "market_data": (Access.AUTHENTICATED, Lane.MARKET, 0.1, True, False, True),
        "price_updates": (Access.AUTHENTICATED, Lane.MARKET, 0, True, False, True),
        "trading_signals": (Access.AUTHENTICATED, Lane.PRIVATE, 0, False, False, True),
        "user_{id}_trades": user,
        "user_{id}_positions": user,
        "user_{id}_alerts": user,
        "admin_alerts": admin,
        "all_trades": admin,
        "risk_alerts": admin,
        "system_metrics": (Access.ADMIN, Lane.MARKET, 0, True, False, False),
    }


def test_a_channel_may_carry_the_types_that_are_routed_to_it():
    types = {c.name: c.types for c in defaults().channels.classes}

    assert types["user_{id}_trades"] == {"trade_execution", "grid_update"}
    assert types["user_{id}_positions"] == {"position_update", "performance_metrics"}
    assert types["user_{id}_alerts"] == {"user_alert", "risk_alert"}
    assert types["admin_alerts"] == {"risk_alert", "user_alert", "system_status"}
    assert types["price_updates"] == {"market_data_update"}


def test_a_type_that_the_config_routes_to_a_channel_may_also_be_directed_there():
    text = "[channels.news]\naccess = 'public'\n[types.headline]\nchannels = ['news']\n"

    assert channel(text, "news").types == {"headline"}


def test_rules_are_changed_one_by_one():
    text = """
        [channels.market_data]
        throttle = "250ms"
        keep_extremes = false
        history = {events = 5, age = "1h"}
        max_age = "30s"
    """

    assert channel(text, "market_data") == ChannelClass(
        "market_data",
        Access.AUTHENTICATED,
        Lane.MARKET,
        frozenset({"market_data_update"}),
        throttle=0.25,
        keep_extremes=False,
        history=History(5, 8 << 20, 3600),
        snapshot=True,
        symbols=True,
        max_age=30,
    )


def test_a_new_channel_is_private_and_keeps_nothing_on_disk():
    text = '[channels."user_{id}_orders"]\naccess = "user"\n'

    assert channel(text, "user_{id}_orders") == ChannelClass(
        "user_{id}_orders", Access.USER, Lane.PRIVATE, frozenset()
    )


def test_history_may_be_a_number_of_events():
    assert channel("channels.all_trades.history = 7", "all_trades").history == History(events=7)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "[channels.mine]\nlane = 'market'",
            "2: channels.mine.access is missing; "
            'expected "public", "authenticated", "user" or "admin"',
        ),
        (
            "[channels.mine]",
            "1: channels.mine.access is missing; "
            'expected "public", "authenticated", "user" or "admin"',
        ),
        (
            "[channels.mine]\naccess = 'all'\nthrottle = 5",
            '2: channels.mine.access is "all"; '
            'expected "public", "authenticated", "user" or "admin"',
        ),
        (
            "[channels.'a/b']\naccess = 'public'",
            '2: channel "a/b" is no name; a name is letters, digits, "-", "_" and ".", '
            "and {id} for the user's id at most once",
        ),
        (
            "[channels.'a_{id}_{id}']\naccess = 'user'",
            '2: channel "a_{id}_{id}" is no name; a name is letters, digits, "-", "_" and ".", '
            "and {id} for the user's id at most once",
        ),
        (
            f"[channels.'{'x' * 65}{{id}}']\naccess = 'user'",
            f'2: channel "{"x" * 65}{{id}}" is no name; a name is letters, digits, "-", "_" and '
            '".", and {id} for the user\'s id at most once; '
            "at most 128 characters with a user id of 64",
        ),
        (
            "[channels.mine]\naccess = 'user'",
            '2: channels.mine.access is "user"; expected {id} in the name',
        ),
        (
            "[channels.'my_{id}']\naccess = 'admin'",
            '2: channels.my_{id}.access is "admin"; expected "user" in a channel with {id}',
        ),
        (
            "[channels.all_trades]\n\nthrottle = '1s'",
            '3: channels.all_trades.throttle is 1s in lane "private", where nothing is skipped; '
            'expected 0s or lane "market"',
        ),
        (
            "[channels.market_data]\nlane = 'private'",
            '2: channels.market_data.throttle is 100ms in lane "private", where nothing is '
            'skipped; expected 0s or lane "market"',
        ),
        (
            "[channels.market_data]\ndurable = true",
            '2: channels.market_data.durable is true in lane "market", where events are skipped; '
            'expected false or lane "private"',
        ),
        (
            "[channels.market_data]\nlane = 'private '\nthrottle = '1s'\ndurable = true",
            '2: channels.market_data.lane is "private "; '
            'expected "private" or "market" (default "market")',
        ),
        (
            "[channels.all_trades]\ntypes = ['trade_exec']",
            '2: channels.all_trades.types has "trade_exec", which is no event type; '
            "did you mean trade_execution?",
        ),
        (
            "[channels.all_trades]\ntypes = ['x']",
            '2: channels.all_trades.types has "x", which is no event type; expected event types',
        ),
        (
            "[channels.user_7_trades]\naccess = 'public'",
            "2: channels user_{id}_trades and user_7_trades have the same name for some user; "
            "expected names that differ before or after {id}",
        ),
        (
            "[channels.'{id}']\naccess = 'user'",
            "2: channels {id} and system_status have the same name for some user; "
            "expected names that differ before or after {id}",
        ),
        (
            "[channels.'user_{id}_more_trades']\naccess = 'user'",
            "2: channels user_{id}_more_trades and user_{id}_trades have the same name for some "
            "user; expected names that differ before or after {id}",
        ),
        (
            "[channels.market_data]\nhistory = 'all'",
            '2: channels.market_data.history is "all"; expected 0 to 10000000 (default 10000)',
        ),
        (
            "[channels.market_data]\nthrottle = 'x'",
            '2: channels.market_data.throttle is "x"; expected 0s to 1h (default 100ms)',
        ),
        (
            "[channels.price_updates]\nthrottle = 'x'",
            '2: channels.price_updates.throttle is "x"; expected 0s to 1h (default 0s)',
        ),
        (
            "[channels.'user_{id}_trades']\ndurable = 'x'",
            '2: channels.user_{id}_trades.durable is "x"; expected true or false (default true)',
        ),
        (
            "[channels.'user_{id}_trades']\nhistory.events = 'x'",
            '2: channels.user_{id}_trades.history.events is "x"; '
            "expected 0 to 10000000 (default 200)",
        ),
        (
            "[channels.risk_alerts]\naccess = 'x'",
            '2: channels.risk_alerts.access is "x"; '
            'expected "public", "authenticated", "user" or "admin" (default "admin")',
        ),
        (
            "[channels.admin_alerts]\ntypes = 5",
            "2: channels.admin_alerts.types is 5; expected a list of text "
            '(default ["risk_alert", "system_status", "user_alert"])',
        ),
        (
            "[channels.mine]\naccess = 'public'\nthrottle = 'x'",
            '3: channels.mine.throttle is "x"; expected 0s to 1h (default 0s)',
        ),
        (
            "[channels.market_data]\nhistory = {event = 5}",
            "2: unknown setting channels.market_data.history.event; "
            "did you mean channels.market_data.history.events?",
        ),
    ],
)
def test_what_a_channel_may_not_be(text, problem):
    assert f"cryptows.toml:{problem}" in problems_of(text)


@pytest.mark.parametrize(
    "text",
    [
        "[channels.mine]\naccess = 'all'\nthrottle = 5",
        "[channels.market_data]\nlane = 'private '\nthrottle = '1s'\ndurable = true",
        "[channels.user_7_trades]\naccess = 'public'",
    ],
)
def test_what_follows_from_a_mistake_is_not_reported_too(text):
    assert len(problems_of(text)) == 1


families = st.text("ab_", max_size=3).flatmap(
    lambda before: st.text("ab_", max_size=3).map(lambda after: f"{before}{{id}}{after}")
)


@given(
    names=st.lists(families, min_size=2, max_size=3, unique=True),
    user=st.text("ab_", min_size=1, max_size=5),
)
def test_no_two_users_share_a_channel_of_an_accepted_config(names, user):
    text = "".join(f"[channels.'{name}']\naccess = 'user'\n" for name in names)
    if problems_of(text):
        return
    channels = load_text(text).settings.channels
    assert USER_ID.fullmatch(user)

    for family in (c for c in channels.classes if c.per_user):
        assert channels.find(family.of_user(user)) == (family, user)


def test_rules_read_back_as_they_were_written():
    for one in defaults().channels.classes:
        rules = rules_of(one)

        blank = ChannelClass(one.name, Access.PUBLIC, Lane.MARKET, frozenset())

        assert apply_rules(blank, rules) == one
