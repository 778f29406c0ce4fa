"""The seed's channels, and what the config makes of them.

A `[channels.NAME]` table changes a channel of the seed or adds one. Deny by default: a new channel
has to say who may read it. Combinations that would break a promise of the delivery guarantees are
refused: a throttle on a private lane would drop a user's fills, and so it has no exception; who
wants it sets `lane = "market"` and says thereby that only the newest counts.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import attrs

from cryptows.config.declared import CHANNEL_RULES
from cryptows.config.units import format_duration
from cryptows.config.values import expected
from cryptows.model.channel import (
    NAME,
    USER_ID,
    Access,
    ChannelClass,
    ChannelTable,
    History,
    Lane,
)
from cryptows.model.event import EventType

MIB = 1 << 20
MAX_NAME = 128  # of a channel, with the longest user id (64) in it
# A screen that reconnects wants the last minutes of prices; a user's own events are on disk too.
MARKET_HISTORY = History(events=10_000, bytes=8 * MIB, age=600.0)
USER_HISTORY = History(events=200, bytes=MIB // 8, age=600.0)

Rules = Mapping[str, Any]  # rule ("throttle", "history.events") -> value


class GivenChannels(Protocol):
    """What the config says of channels, see `given.py`."""

    channels: dict[str, dict[str, Any]]
    broken: set[str]

    def place(self, section: str, name: str, rule: str) -> str:
        """Return where a rule stands."""


def _market(name: str, access: Access, types: Iterable[str], **rules: Any) -> ChannelClass:
    return ChannelClass(name, access, Lane.MARKET, frozenset(types), snapshot=True, **rules)


def _user(name: str, *types: str) -> ChannelClass:
    return ChannelClass(
        name, Access.USER, Lane.PRIVATE, frozenset(types), history=USER_HISTORY, durable=True
    )


def _admin(name: str, *types: str) -> ChannelClass:
    return ChannelClass(name, Access.ADMIN, Lane.PRIVATE, frozenset(types))


_PRICES = {"symbols": True, "history": MARKET_HISTORY}
SEED_CHANNELS: tuple[ChannelClass, ...] = (
    ChannelClass(
        "system_status", Access.PUBLIC, Lane.PRIVATE, frozenset({"system_status"}), snapshot=True
    ),
    _market("market_data", Access.AUTHENTICATED, ["market_data_update"], throttle=0.1, **_PRICES),
    _market("price_updates", Access.AUTHENTICATED, ["market_data_update"], **_PRICES),
    ChannelClass(
        "trading_signals",
        Access.AUTHENTICATED,
        Lane.PRIVATE,
        frozenset({"trading_signal"}),
        symbols=True,
    ),
    _user("user_{id}_trades", "trade_execution", "grid_update"),
    _user("user_{id}_positions", "position_update", "performance_metrics"),
    _user("user_{id}_alerts", "user_alert", "risk_alert"),
    _admin("admin_alerts", "risk_alert", "user_alert", "system_status"),
    _admin("all_trades", "trade_execution"),
    _admin("risk_alerts", "risk_alert"),
    _market("system_metrics", Access.ADMIN, ["performance_metrics"]),
)


def merge_channels(
    given: GivenChannels, types: Mapping[str, EventType]
) -> tuple[ChannelTable, list[str]]:
    """Return the channels of the seed with what the config says of them, and what is wrong."""
    merged = {channel.name: channel for channel in SEED_CHANNELS}
    problems: list[str] = []
    for name, rules in given.channels.items():
        channel = merged.get(name)
        if channel is None:
            wrong = wrong_name(name)
            if wrong is None and "access" not in rules:
                choices = expected(CHANNEL_RULES["access"])
                wrong = f"channels.{name}.access is missing; expected {choices}"
            if wrong:
                if f"channels.{name}" not in given.broken:
                    problems.append(f"{given.place('channels', name, '')}: {wrong}")
                continue
            channel = ChannelClass(name, Access(rules["access"]), Lane.PRIVATE, frozenset())
        merged[name] = apply_rules(channel, rules)
    for channel in merged.values():
        found = [*_unknown_types(channel, types)]
        if f"channels.{channel.name}" not in given.broken:
            found += _contradictions(channel)
        problems += (
            f"{given.place('channels', channel.name, rule)}: channels.{channel.name}.{rule} {text}"
            for rule, text in found
        )
    problems += _overlaps([*merged.values()], given)
    routed = _routed(types)
    classes = (
        attrs.evolve(c, types=c.types | routed.get(c.name, frozenset())) for c in merged.values()
    )
    return ChannelTable(tuple(classes)), problems


def apply_rules(channel: ChannelClass, rules: Rules) -> ChannelClass:
    """Return the channel with some of its rules replaced."""
    history = {k.removeprefix("history."): v for k, v in rules.items() if k.startswith("history.")}
    plain = {k: v for k, v in rules.items() if not k.startswith("history.")}
    readers: dict[str, Callable[[Any], Any]] = {"access": Access, "lane": Lane, "types": frozenset}
    values = {k: readers.get(k, lambda v: v)(v) for k, v in plain.items()}
    return attrs.evolve(channel, history=attrs.evolve(channel.history, **history), **values)


def rules_of(channel: ChannelClass) -> dict[str, Any]:
    """Return every rule of a channel by its key in the config."""
    return {
        rule: getattr(channel.history, rule.removeprefix("history."))
        if rule.startswith("history.")
        else getattr(channel, rule)
        for rule in CHANNEL_RULES
    }


def wrong_name(name: str) -> str | None:
    """Return what is wrong with a channel's name, if anything."""
    plain = name.replace("{id}", "x" * 64, 1)
    if NAME.fullmatch(plain):
        return None
    what = 'letters, digits, "-", "_" and ".", and {id} for the user\'s id at most once'
    if len(plain) > MAX_NAME:
        what += f"; at most {MAX_NAME} characters with a user id of 64"
    return f"channel {json.dumps(name)} is no name; a name is {what}"


def _contradictions(channel: ChannelClass) -> Iterator[tuple[str, str]]:
    """Return rules that do not go together: the rule to blame, and the text."""
    if channel.per_user != (channel.access is Access.USER):
        wanted = '"user" in a channel with {id}' if channel.per_user else "{id} in the name"
        yield "access", f'is "{channel.access}"; expected {wanted}'
    if channel.lane is Lane.PRIVATE and channel.throttle > 0:
        found = format_duration(channel.throttle)
        yield (
            "throttle",
            f'is {found} in lane "private", where nothing is skipped; expected 0s or lane "market"',
        )
    if channel.lane is Lane.MARKET and channel.durable:
        yield (
            "durable",
            'is true in lane "market", where events are skipped; expected false or lane "private"',
        )


def _unknown_types(
    channel: ChannelClass, types: Mapping[str, EventType]
) -> Iterator[tuple[str, str]]:
    for name in sorted(channel.types - types.keys()):
        close = difflib.get_close_matches(name, types, n=1)
        guess = f"; did you mean {close[0]}?" if close else "; expected event types"
        yield "types", f'has "{name}", which is no event type{guess}'


def _overlaps(channels: Sequence[ChannelClass], given: GivenChannels) -> Iterator[str]:
    """Return channels whose names another one covers: one user could read another's."""
    seed = {channel.name for channel in SEED_CHANNELS}
    families = [channel.name for channel in channels if channel.per_user]
    for number, family in enumerate(families):
        prefix, _, suffix = family.partition("{id}")
        covered = re.compile(f"{re.escape(prefix)}{USER_ID.pattern}{re.escape(suffix)}", re.ASCII)
        others = [c.name for c in channels if not c.per_user and covered.fullmatch(c.name)]
        for other in families[:number]:
            before, _, after = other.partition("{id}")
            if _nested(prefix, before, str.startswith) and _nested(suffix, after, str.endswith):
                others.append(other)
        for other in others:
            place = given.place("channels", family if other in seed else other, "")
            yield (
                f"{place}: channels {family} and {other} have the same name for some user; "
                "expected names that differ before or after {id}"
            )


def _nested(one: str, other: str, contains: Callable[[str, str], bool]) -> bool:
    return contains(one, other) or contains(other, one)


def _routed(types: Mapping[str, EventType]) -> dict[str, frozenset[str]]:
    """Return the event types that reach each channel by their default routes."""
    found: dict[str, frozenset[str]] = {}
    for kind in types.values():
        for channel in (*kind.channels, *(kind.user_channels or ())):
            found[channel] = found.get(channel, frozenset()) | {kind.name}
    return found
