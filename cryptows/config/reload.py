"""Reload: which changes take effect at once, and which wait for the next start.

As PostgreSQL does it: what is live is applied, the rest stays as it was and is listed as pending.
A channel's lane and durability wait, since events already queued and stored were promised by them;
a channel's throttle waits together with its lane, which it would contradict.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from cryptows.config.channels import apply_rules, rules_of
from cryptows.config.declared import CHANNEL_RULES, SECTIONS, SETTINGS
from cryptows.config.settings import Settings
from cryptows.model.channel import ChannelClass, ChannelTable


def changed(old: Settings, new: Settings) -> tuple[list[str], list[str]]:
    """Return the keys that differ: those that take effect at once, and those that wait."""
    live: list[str] = []
    pending: list[str] = []
    for key, declared in SETTINGS.items():
        if _value(old, key) != _value(new, key):
            (live if declared.live else pending).append(key)
    before, after = _channels(old), _channels(new)
    pending += (f"channels.{name}" for name in before if name not in after)
    for name, channel in after.items():
        if name not in before:
            live.append(f"channels.{name}")
            continue
        waiting = _waiting(before[name], channel)
        rules = rules_of(before[name])
        for rule, value in rules_of(channel).items():
            if value != rules[rule]:
                (pending if rule in waiting else live).append(f"channels.{name}.{rule}")
    types = {**old.types, **new.types}
    live += (f"types.{name}" for name in types if old.types.get(name) != new.types.get(name))
    return live, pending


def other_keys(old: Sequence[bytes], new: Sequence[bytes], live: Sequence[str]) -> list[str]:
    """Return the settings of key files that hold another key, though their names stayed.

    `old` and `new` are the keys that tokens are checked with, the current one first; `live` are
    the settings known to differ.
    """
    if len(old) != len(new):  # auth.previous_secret_file came or went, and is in `live`
        old, new = old[:1], new[:1]
    names = ("auth.secret_file", "auth.previous_secret_file")
    differing = [name for name, a, b in zip(names, old, new, strict=False) if a != b]
    if "auth.secret" in live:
        differing = [name for name in differing if name != "auth.secret_file"]
    return [name for name in differing if name not in live]


def merge_live(old: Settings, new: Settings) -> Settings:
    """Return the settings that a running daemon goes on with: live keys of new, others of old."""
    sections: dict[str, Any] = {}
    for section in SECTIONS:
        values = {
            declared.name: _value(new, key)
            for key, declared in SETTINGS.items()
            if declared.section == section and declared.live
        }
        sections[section] = attrs.evolve(getattr(old, section), **values)
    before, after = _channels(old), _channels(new)
    merged = {name: _merge(before.get(name), channel) for name, channel in after.items()}
    kept = {name: channel for name, channel in before.items() if name not in after}
    table = ChannelTable((*merged.values(), *kept.values()))
    return Settings(channels=table, types=new.types, **sections)


def _merge(old: ChannelClass | None, new: ChannelClass) -> ChannelClass:
    if old is None:
        return new
    rules = rules_of(old)
    return apply_rules(new, {rule: rules[rule] for rule in _waiting(old, new)})


def _waiting(old: ChannelClass, new: ChannelClass) -> set[str]:
    """Return the rules of a channel that keep their old value until the next start."""
    waiting = {rule for rule, declared in CHANNEL_RULES.items() if not declared.live}
    return waiting | {"throttle"} if old.lane is not new.lane else waiting


def _value(settings: Settings, key: str) -> Any:
    declared = SETTINGS[key]
    return getattr(getattr(settings, declared.section), declared.name)


def _channels(settings: Settings) -> dict[str, ChannelClass]:
    return {channel.name: channel for channel in settings.channels.classes}
