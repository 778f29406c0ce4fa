"""Channel names, their owners, and what a subscription covers."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptows.config.channels import SEED_CHANNELS
from cryptows.model.channel import (
    MAX_SYMBOL,
    Access,
    ChannelClass,
    ChannelTable,
    Lane,
    Pattern,
    glob,
)

SEED = ChannelTable(SEED_CHANNELS)
CLASSES = {rules.name: rules for rules in SEED_CHANNELS}

symbols = st.text("ABC-1", min_size=1, max_size=6)
globs = st.text("ABC-1*?[]!", min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("market_data", Pattern("market_data")),
        ("market_data:BTCUSDT", Pattern("market_data", "BTCUSDT")),
        ("market_data:BTC*", Pattern("market_data", "BTC*")),
        ("market_data:*", Pattern("market_data")),
        ("market_data:", Pattern("market_data", "")),
        ("market_data:A:B", Pattern("market_data", "A:B")),
        (":BTC", Pattern("", "BTC")),
        ("", Pattern("")),
    ],
)
def test_a_subscription_is_read(text, pattern):
    assert Pattern.parse(text) == pattern


@given(st.text("ab:*?", max_size=8))
def test_a_subscription_reads_the_same_when_it_is_written_out(text):
    pattern = Pattern.parse(text)

    assert Pattern.parse(str(pattern)) == pattern
    assert str(pattern) == text.removesuffix(":*") or text.count(":") > 1


@pytest.mark.parametrize(
    ("pattern", "symbol", "covered"),
    [
        ("c", None, True),
        ("c", "BTC", True),
        ("c:BTC", "BTC", True),
        ("c:BTC", "BTCUSDT", False),
        ("c:BTC", "btc", False),
        ("c:BTC", None, False),
        ("c:BTC*", "BTC", True),
        ("c:BTC*", "BTCUSDT", True),
        ("c:BTC*", "btcusdt", False),
        ("c:BTC*", None, False),
        ("c:*USDT", "BTCUSDT", True),
        ("c:*USDT", "BTCUSDT.P", False),
        ("c:?TC", "BTC", True),
        ("c:[AB]TC", "BTC", True),
        ("c:[!AB]TC", "BTC", False),
        ("c:BTC[", "BTC", False),
        ("c:**", "BTC", True),
        ("c:**", None, False),
    ],
)
def test_what_a_subscription_covers(pattern, symbol, covered):
    assert Pattern.parse(pattern).matches(symbol) is covered


def naive(pattern: str, symbol: str) -> bool:
    """Whether a glob of letters, `*` and `?` matches, worked out by hand."""
    if not pattern:
        return not symbol
    if pattern[0] == "*":
        return any(naive(pattern[1:], symbol[i:]) for i in range(len(symbol) + 1))
    return bool(symbol) and pattern[0] in ("?", symbol[0]) and naive(pattern[1:], symbol[1:])


@given(st.text("AB-*?", min_size=1, max_size=6), symbols)
def test_globs_match_as_worked_out_by_hand(pattern, symbol):
    assert Pattern("c", pattern).matches(symbol) is naive(pattern, symbol)


@given(globs | st.text(min_size=1, max_size=MAX_SYMBOL), symbols)
def test_any_glob_of_a_client_can_be_asked(pattern, symbol):
    # Warnings of `re` about odd sets would be errors here.
    assert Pattern("c", pattern).matches(symbol) in (True, False)


def test_a_glob_that_backtracks_costs_nothing():
    pattern = Pattern("c", "*A" * (MAX_SYMBOL // 2))

    assert not pattern.matches("A" * (MAX_SYMBOL - 1) + "B")


def test_compiled_globs_are_bounded():
    assert glob.cache_info().maxsize == 4096
    assert glob("A*") is glob("A*")
    assert isinstance(glob("A*"), re.Pattern)


def test_only_wildcards_make_a_glob():
    assert [Pattern.parse(f"c{s}").is_glob for s in ("", ":A", ":A*", ":A?", ":[A]", ":]")] == [
        False, False, True, True, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("market_data", (CLASSES["market_data"], None)),
        ("user_123_trades", (CLASSES["user_{id}_trades"], "123")),
        ("user_a.b-c_d_alerts", (CLASSES["user_{id}_alerts"], "a.b-c_d")),
        ("user_" + "x" * 64 + "_positions", (CLASSES["user_{id}_positions"], "x" * 64)),
        ("user_" + "x" * 65 + "_positions", None),
        ("user__trades", None),
        ("user_1_trades ", None),
        ("user_1_trades\n", None),
        ("xuser_1_trades", None),
        ("user_{id}_trades", None),
        ("user_é_trades", None),
        ("user_1:2_trades", None),
        ("user_1_other", None),
        ("market_data:BTC", None),
        ("", None),
    ],
)
def test_a_channel_name_belongs_to_a_class_and_perhaps_a_user(name, found):
    assert SEED.find(name) == found


@given(st.from_regex(r"\A[A-Za-z0-9._-]{1,64}\Z"))
def test_a_user_is_found_in_the_name_of_his_channel(user):
    for rules in SEED_CHANNELS:
        if rules.per_user:
            assert SEED.find(rules.of_user(user)) == (rules, user)


def test_a_class_is_a_family_when_its_name_holds_an_id():
    single = ChannelClass("news", Access.PUBLIC, Lane.PRIVATE, frozenset())
    family = ChannelClass("notes_{id}", Access.USER, Lane.PRIVATE, frozenset())

    assert (single.per_user, family.per_user) == (False, True)
    assert family.of_user("7") == "notes_7"
    assert ChannelTable((single, family)).find("notes_7") == (family, "7")
