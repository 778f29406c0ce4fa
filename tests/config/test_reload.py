import pytest

from cryptows.config.load import defaults, load
from cryptows.config.reload import changed, merge_live, other_keys
from cryptows.config.settings import Settings
from tests.config.loading import comparable


def settings(*sets: str) -> Settings:
    return load(None, sets).settings


def test_nothing_changed():
    assert changed(defaults(), defaults()) == ([], [])
    assert comparable(merge_live(defaults(), defaults())) == comparable(defaults())


def test_live_settings_take_effect_and_the_others_wait():
    new = settings("log.level=debug", "limits.requests=7", "server.drain=1s", "feed.socket=/x")

    live, pending = changed(defaults(), new)
    merged = merge_live(defaults(), new)

    assert live == ["limits.requests", "log.level"]
    assert pending == ["server.drain", "feed.socket"]
    expected = settings("log.level=debug", "limits.requests=7")
    assert comparable(merged) == comparable(expected)
    assert changed(merged, new) == ([], pending)


def test_keys_and_origins_are_live():
    new = settings("auth.secret_file=/k", "auth.previous_secret_file=/o", "cors.origins=http://a")

    live, pending = changed(defaults(), new)

    assert live == ["auth.secret_file", "auth.previous_secret_file", "cors.origins"]
    assert pending == []


@pytest.mark.parametrize(
    ("old", "new", "live", "found"),
    [
        (["a"], ["a"], [], []),
        (["a"], ["b"], [], ["auth.secret_file"]),
        (["a", "p"], ["a", "q"], [], ["auth.previous_secret_file"]),
        (["a", "p"], ["b", "a"], [], ["auth.secret_file", "auth.previous_secret_file"]),
        (["a"], ["b", "a"], ["auth.previous_secret_file"], ["auth.secret_file"]),
        (["b", "a"], ["b"], ["auth.previous_secret_file"], []),
        (["a"], ["b"], ["auth.secret_file"], []),
        (["a"], ["b"], ["auth.secret"], []),
        (["a", "p"], ["b", "q"], ["auth.secret"], ["auth.previous_secret_file"]),
    ],
)
def test_a_key_file_that_holds_another_key_has_changed_though_its_name_has_not(
    old, new, live, found
):
    def keys(names: list[str]) -> list[bytes]:
        return [name.encode() for name in names]

    assert other_keys(keys(old), keys(new), live) == found


def test_a_channels_rules_are_live_but_its_durability_waits():
    new = settings(
        "channels.user_{id}_trades.access=user",
        "channels.user_{id}_trades.history=5",
        "channels.user_{id}_trades.durable=false",
        "channels.market_data.throttle=1s",
    )

    live, pending = changed(defaults(), new)
    merged = merge_live(defaults(), new)

    assert live == ["channels.market_data.throttle", "channels.user_{id}_trades.history.events"]
    assert pending == ["channels.user_{id}_trades.durable"]
    assert comparable(merged) == comparable(
        settings("channels.user_{id}_trades.history=5", "channels.market_data.throttle=1s")
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], ["channels.market_data.lane=private", "channels.market_data.throttle=0"]),
        (["channels.all_trades.lane=market", "channels.all_trades.throttle=1s"], []),
    ],
)
def test_a_throttle_waits_with_the_lane_that_it_would_contradict(before, after):
    old, new = settings(*before), settings(*after)
    name = (before or after)[0].split(".")[1]

    live, pending = changed(old, new)

    assert live == []
    assert pending == [f"channels.{name}.lane", f"channels.{name}.throttle"]
    assert comparable(merge_live(old, new)) == comparable(old)


def test_a_new_channel_is_live_and_a_removed_one_stays_until_the_next_start():
    old = settings("channels.old.access=public")
    new = settings("channels.new.access=public")

    live, pending = changed(old, new)
    merged = merge_live(old, new)

    assert (live, pending) == (["channels.new"], ["channels.old"])
    assert merged.channels.find("new") is not None
    assert merged.channels.find("old") is not None


def test_types_are_live():
    new = settings("types.headline.channels=system_status", "types.risk_alert.fields.level=number")

    live, pending = changed(defaults(), new)

    assert live == ["channels.system_status.types", "types.risk_alert", "types.headline"]
    assert pending == []
    assert merge_live(defaults(), new).types == new.types
