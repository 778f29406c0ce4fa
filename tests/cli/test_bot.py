import itertools
import json
import random

import pytest

from cryptows.cli.bot import GRID_USER, SIGNAL_USER, STEP, Bot
from cryptows.config.load import defaults
from cryptows.model.event import Event
from cryptows.model.types import SEED_TYPES
from cryptows.wire.feed import FeedDecoder

BEGIN = 1_700_000_000_000.0


def reports(steps, seed=1):
    bot = Bot(random.Random(seed))
    return [event for i in range(steps) for event in bot.step(BEGIN + i * STEP * 1000)]


def test_the_first_two_steps_report_every_type_of_event():
    assert {event["type"] for event in reports(2)} == set(SEED_TYPES)


def test_both_users_trade_and_hold_positions_within_a_minute():
    events = reports(round(60 / STEP))

    for kind in ("trade_execution", "position_update", "performance_metrics"):
        assert {GRID_USER, SIGNAL_USER} <= {e.get("user_id") for e in events if e["type"] == kind}


def test_admins_are_addressed_through_their_channel():
    assert "admin_alerts" in {event.get("channel") for event in reports(2)}


@pytest.mark.parametrize("seed", range(5))
def test_the_feed_accepts_every_event(seed):
    decoder = FeedDecoder(defaults())

    for event in reports(2000, seed):
        decoded = decoder.decode(json.dumps(event).encode(), 0)

        assert isinstance(decoded, Event)
        assert decoded.type == event["type"]
        assert decoded.timestamp == event["timestamp"]


def test_ids_of_trades_are_unique():
    ids = [event["id"] for event in reports(3000) if "id" in event]

    assert len(ids) > 10
    assert len(set(ids)) == len(ids)


def test_a_pair_ticks_slower_than_its_channel_is_throttled():
    found = defaults().channels.find("market_data")
    times: dict[str, list[float]] = {}

    for event in reports(500):
        if event["type"] == "market_data_update":
            times.setdefault(event["data"]["symbol"], []).append(event["data"]["sentAt"])

    gaps = [b - a for at in times.values() for a, b in itertools.pairwise(at)]
    assert found is not None
    assert min(gaps) > 2 * found[0].throttle * 1000


def test_a_run_is_determined_by_its_chance():
    assert reports(300, seed=3) == reports(300, seed=3)
    assert reports(300, seed=3) != reports(300, seed=4)


def test_risk_alerts_name_the_user_whose_exposure_is_too_high():
    alerts = [e for e in reports(4000) if e["type"] == "risk_alert" and "user_id" in e]

    assert alerts
    assert all(a["data"]["exposure"] > a["data"]["threshold"] for a in alerts)
