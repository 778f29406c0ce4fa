"""The commented config file: every setting at its default, with its unit and why it exists.

`config/cryptows.toml` is this text, and `config init` writes it. Table headers are live, settings
are comments: what is uncommented stands in the right table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cryptows.config import event_types
from cryptows.config.channels import SEED_CHANNELS, rules_of
from cryptows.config.declared import (
    CHANNEL_RULES,
    REQUIRED,
    SECTIONS,
    SETTINGS,
    TYPE_RULES,
    Declared,
)
from cryptows.config.load import defaults
from cryptows.config.show import header, toml_key, toml_value
from cryptows.config.values import default_text, expected
from cryptows.model.channel import ChannelClass
from cryptows.model.event import EventType

COMMENT_COLUMN = 40  # where the unit begins, unless the value is longer
HEAD = """\
cryptows: every setting, commented out at its default.

Durations are written 100ms, 20s, 5min, 1h, 7d; a plain number is seconds. Sizes are written
64KiB, 1MiB, 1MB; a plain number is bytes. Relative paths start in the folder of this file.

Stronger than this file are, in this order: conf.d/*.toml beside it, by name; the environment,
such as CRYPTOWS_DELIVERY__OUTBOX=2MiB (also JWT_SECRET for auth.secret and FRONTEND_URL for
cors.origins); and flags, such as --set delivery.outbox=2MiB.

Settings marked "reload" change with `cryptows reload`, the others at the next start. `cryptows
check` finds mistakes; `cryptows config show` tells what is in force and where it comes from."""
SECTION_NOTES = {
    "server": "Where clients connect.",
    "feed": "Where producers write events, one JSON object a line.",
    "auth": "Tokens. A key has to come from somewhere: auth.secret_file is the best place.",
    "cors": "Which pages may connect, over HTTP and over every WebSocket.",
    "limits": "What one client may ask for, and how many there may be.",
    "heartbeat": "Pings of WebSocket and Engine.IO, and the heartbeat message.",
    "delivery": "What a slow client gets. Each client's memory is bounded by these.",
    "recovery": "Socket.IO's connection state recovery.",
    "store": "Durable channels, and the circuit breaker around the disk.",
    "log": "Logs go to stderr.",
}
CHANNELS_NOTE = """\
Channels: who may subscribe and how each is delivered. The tables of the built-in ones follow;
a table with a new name adds a channel, which must say its access. A name with {id} is a family
with one channel for each user. The rules:
"""
HISTORY_NOTE = """\
history may also be written history = {events = 5000, age = "1h"}, or history = 5000 for the
events alone."""
NEW_CHANNEL = """\
A channel of your own, and one for each user:

[channels.liquidations]
access = "authenticated"
lane = "market"
throttle = "250ms"
symbols = true
history = {events = 5000, age = "1h"}

[channels."user_{id}_orders"]
access = "user"
durable = true"""
TYPES_NOTE = """\
Event types: where the events of a type go and what their `data` may hold. The tables of the
built-in ones follow; a table with a new name adds a type. The rules:
"""
FIELDS_NOTE = """\
fields: what is checked; a field may always be absent or null, and undeclared fields pass unseen.
  NAME = {type = "number", min = 0, max = 1}; type is one of number, integer, string, boolean,
  object and array; min, above and max are for numbers (which may be decimal strings), choices
  for strings. A field of a built-in type may be declared anew; reload"""
NEW_TYPE = """\
A type of your own:

[types.liquidation]
channels = ["liquidations"]
fields.symbol = {type = "string"}
fields.price = {type = "number", above = 0}
fields.side = {type = "string", choices = ["buy", "sell"]}"""


def template(values: Mapping[str, Any] | None = None) -> str:
    """Return the config file; `values` (key -> what TOML holds) are set, the others comments."""
    values = values or {}
    lines = [*_comment(HEAD)]
    for section in SECTIONS:
        lines += ["", "", *_comment(SECTION_NOTES[section]), header([section])]
        for declared in SETTINGS.values():
            if declared.section == section:
                lines += ["", *_setting(declared, values)]
    lines += [
        "",
        "",
        *_comment(CHANNELS_NOTE),
        *_rules(CHANNEL_RULES),
        "#",
        *_comment(HISTORY_NOTE),
    ]
    lines += ["", *_comment(NEW_CHANNEL)]
    for channel in SEED_CHANNELS:
        lines += ["", *_channel(channel)]
    lines += ["", "", *_comment(TYPES_NOTE), *_rules(TYPE_RULES), *_comment(FIELDS_NOTE)]
    lines += ["", *_comment(NEW_TYPE)]
    for kind in defaults().types.values():
        lines += ["", *_type(kind)]
    return "\n".join(lines) + "\n"


def settings_table() -> str:
    """Return the settings as a Markdown table, for the README."""
    lines = ["| key | default | what it may be | meaning |", "|---|---|---|---|"]
    for declared in SETTINGS.values():
        default = f"`{default_text(declared)}`" if declared.default not in ("", ()) else ""
        lines.append(f"| `{declared.key}` | {default} | {_allowed(declared)} | {declared.doc} |")
    return "\n".join(lines) + "\n"


def _setting(declared: Declared, values: Mapping[str, Any]) -> Iterator[str]:
    given = declared.key in values
    value = values[declared.key] if given else declared.to_toml(declared.default)
    line = f"{'' if given else '# '}{declared.name} = {toml_value(value)}"
    yield from _comment(f"{declared.doc[0].upper()}{declared.doc[1:]}.")
    yield f"{line:<{COMMENT_COLUMN}}  # {_allowed(declared)}"


def _rules(rules: Mapping[str, Declared]) -> Iterator[str]:
    for rule in rules.values():
        yield from _comment(f"{rule.key}: {rule.doc}")
        required = "; required in a new table" if rule.default is REQUIRED else ""
        yield f"#   {_allowed(rule)}{required}"


def _allowed(declared: Declared) -> str:
    """Return the unit and range of a setting, and whether it changes on reload."""
    what = expected(declared).partition(" (default ")[0]
    kinds = {"duration": "a duration, ", "size": "a size, ", "integer": "a number, "}
    return kinds.get(declared.kind, "") + what + ("; reload" if declared.live else "")


def _channel(channel: ChannelClass) -> Iterator[str]:
    yield header(["channels", channel.name])
    for rule, value in rules_of(channel).items():
        yield f"# {rule} = {toml_value(CHANNEL_RULES[rule].to_toml(value))}"


def _type(kind: EventType) -> Iterator[str]:
    yield header(["types", kind.name])
    for rule, value in event_types.rules_of(kind).items():
        yield f"# {rule} = {toml_value(TYPE_RULES[rule].to_toml(value))}"
    for name, field in kind.fields.items():
        yield f"# fields.{toml_key(name)} = {toml_value(event_types.field_to_toml(field))}"


def _comment(text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield f"# {line}" if line else "#"
