import re
import tomllib
from pathlib import Path

import pytest

from cryptows.config.channels import SEED_CHANNELS
from cryptows.config.declared import CHANNEL_RULES, SETTINGS, TYPE_RULES
from cryptows.config.layers import Document
from cryptows.config.load import defaults, load
from cryptows.config.template import settings_table, template
from tests.config.loading import comparable, load_text

FILE = Path(__file__).resolve().parents[2] / "config" / "cryptows.toml"
SETTING = re.compile(r"# ([a-z_.A-Z0-9]+ = .*)")


def uncommented(text: str) -> str:
    """Return the file with every setting in force, but without the examples."""
    parts = re.split(r"\n\n(?=# A (?:channel|type) of your own)", text)
    kept = [parts[0], *(part.partition("\n\n")[2] for part in parts[1:])]
    return "\n".join(SETTING.sub(r"\1", line) for line in "\n".join(kept).splitlines())


def examples(text: str) -> str:
    found = re.findall(r"# A (?:channel|type) of your own.*?\n#\n(.*?)\n\n", text, re.DOTALL)
    return "\n".join(
        line.removeprefix("#").removeprefix(" ") for line in "\n".join(found).split("\n")
    )


def test_the_file_in_the_repository_is_what_the_code_declares():
    assert FILE.read_text() == template()


def test_as_it_stands_it_changes_nothing():
    loaded = load_text(template())

    assert comparable(loaded.settings) == comparable(defaults())
    assert loaded.warnings == []
    assert set(loaded.origins.values()) == {"default"}


def test_uncommented_it_says_the_defaults():
    loaded = load_text(uncommented(template()))

    assert comparable(loaded.settings) == comparable(defaults())


def test_every_setting_is_in_it():
    loaded = load_text(uncommented(template()))

    assert {key for key, origin in loaded.origins.items() if origin == "default"} == set()


def test_its_examples_load():
    settings = load_text(examples(template())).settings

    assert settings.channels.find("liquidations") is not None
    assert settings.channels.find("user_7_orders") is not None
    assert set(settings.types["liquidation"].fields) == {"symbol", "price", "side"}


def test_values_can_be_set_in_it():
    text = template({"auth.secret_file": "token.key", "limits.requests": 7})

    settings = load(
        "/etc/x/c.toml", read=lambda path: [Document("/etc/x/c.toml", text.encode())]
    ).settings

    assert settings.auth.secret_file == "/etc/x/token.key"
    assert settings.limits.requests == 7
    assert set(tomllib.loads(text)["limits"]) == {"requests"}


def test_every_setting_says_why_it_exists():
    for declared in (*SETTINGS.values(), *CHANNEL_RULES.values(), *TYPE_RULES.values()):
        assert len(declared.doc) > 10, declared.key
        assert not declared.doc.endswith("."), declared.key


@pytest.mark.parametrize("key", SETTINGS)
def test_every_default_is_within_its_own_bounds(key):
    declared = SETTINGS[key]
    value = getattr(getattr(defaults(), declared.section), declared.name)

    assert value == declared.default
    assert declared.kind not in ("integer", "size", "duration") or (
        declared.min is not None
        and declared.max is not None
        and declared.min <= value <= declared.max
    )


def test_the_table_has_a_row_for_each_setting():
    rows = settings_table().splitlines()

    assert len(rows) == len(SETTINGS) + 2
    row = "| `limits.ban` | `5min` | a duration, 1s to 1d; reload |"
    assert f"{row} how long user and address stay out |" in rows
    assert all(row.count("|") == 5 for row in rows)


def test_every_channel_of_the_seed_is_in_it():
    assert set(tomllib.loads(template())["channels"]) == {c.name for c in SEED_CHANNELS}
