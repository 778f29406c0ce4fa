"""The seed's channels, and what the config makes of them.

A `[channels.NAME]` table changes a channel of the seed or adds one. Deny by default: a new channel
has to say who may read it. Combinations that would break a promise of the delivery guarantees are
refused: a throttle on a private lane would drop a user's fills, and so it has no exception; who
wants it sets `lane = "market"` and says thereby that only the newest counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import attrs

from cryptows.config.declared import CHANNEL_RULES
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
Place = Callable[[str, str], str]  # (channel, rule) -> where it stands; "" for the channel itself


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
    given: Mapping[str, Rules], types: Mapping[str, EventType], place: Place
) -> tuple[ChannelTable, list[str]]:
    """Return the channels of the seed with what the config says of them, and what is wrong."""
    merged = {channel.name: channel for channel in SEED_CHANNELS}
    problems: list[str] = []
    for name, rules in given.items():
        channel = merged.get(name)
        if channel is None:
            wrong = wrong_name(name)
            if wrong or "access" not in rules:
                choices = ", ".join(f'"{choice}"' for choice in CHANNEL_RULES["access"].choices)
                missing = f"channels.{name}.access is missing; expected one of {choices}"
                problems.append(f"{place(name, '')}: {wrong or missing}")
                continue
            channel = ChannelClass(name, Access(rules["access"]), Lane.PRIVATE, frozenset())
        merged[name] = apply_rules(channel, rules)
    for channel in merged.values():
        for rule, problem in _contradictions(channel):
            where = place(channel.name, rule)
            problems.append(f"{where}: channels.{channel.name}{problem}")
    problems += _overlaps(merged.values(), place)
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
    return f'channel "{name}" is no name; a name is {what}'


def _contradictions(channel: ChannelClass) -> Iterator[tuple[str, str]]:
    """Return rules of one channel that do not go together: the rule to blame, and the text."""
    if channel.per_user != (channel.access is Access.USER):
        wanted = '"user" in a channel with {id}' if channel.per_user else "{id} in the name"
        yield "access", f'.access is "{channel.access}"; expected {wanted}'
    if channel.lane is Lane.PRIVATE and channel.throttle > 0:
        yield (
            "throttle",
            (
                '.throttle is set in lane "private", where nothing may be skipped; '
                'expected 0s, or lane = "market"'
            ),
        )
    if channel.lane is Lane.MARKET and channel.durable:
        yield (
            "durable",
            (
                '.durable is set in lane "market", where events are skipped; '
                'expected false, or lane = "private"'
            ),
        )


def _overlaps(channels: Iterable[ChannelClass], place: Place) -> Iterator[str]:
    """Return channels whose names another one covers: one user could read another's."""
    singles = [c.name for c in channels if not c.per_user]
    families = [c.name for c in channels if c.per_user]
    for number, family in enumerate(families):
        prefix, _, suffix = family.partition("{id}")
        covered = re.compile(f"{re.escape(prefix)}{USER_ID.pattern}{re.escape(suffix)}", re.ASCII)
        others = [name for name in singles if covered.fullmatch(name)]
        for other in families[:number]:
            before, _, after = other.partition("{id}")
            if _nested(prefix, before, str.startswith) and _nested(suffix, after, str.endswith):
                others.append(other)
        for other in others:
            seed = other in {c.name for c in SEED_CHANNELS}
            yield (
                f"{place(family if seed else other, '')}: channels {family} and {other} can have "
                "the same name for some user; expected names that differ before or after {id}"
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
