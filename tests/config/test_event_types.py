import math

import pytest

from cryptows.config.event_types import field_to_toml, read_field
from cryptows.config.load import defaults
from cryptows.model.event import EventType, Field, FieldKind, UserField
from cryptows.model.types import SEED_TYPES
from tests.config.loading import load_text, problems_of


def test_the_defaults_are_the_types_of_the_seed():
    assert defaults().types == SEED_TYPES


def test_a_type_may_be_added_with_its_channel_and_schema():
    text = """
        [channels.liquidations]
        access = "authenticated"

        [types.liquidation]
        channels = ["liquidations"]
        fields.price = {type = "number", above = 0, max = 1e9}
        fields.side = {type = "string", choices = ["buy", "sell"]}
        fields.count = "integer"
    """

    assert load_text(text).settings.types["liquidation"] == EventType(
        "liquidation",
        ("liquidations",),
        fields={
            "price": Field(FieldKind.NUMBER, math.ulp(0.0), 1e9),
            "side": Field(FieldKind.STRING, choices=("buy", "sell")),
            "count": Field(FieldKind.INTEGER),
        },
    )


def test_a_type_of_the_seed_may_be_changed():
    text = """
        [types.risk_alert]
        user = "required"
        user_channels = []
        channels = ["user_{id}_alerts"]
        [types.risk_alert.fields]
        threshold = {type = "number", min = 1}
    """

    kind = load_text(text).settings.types["risk_alert"]

    assert kind.channels == ("user_{id}_alerts",)
    assert kind.user is UserField.REQUIRED
    assert kind.user_channels is None
    assert kind.fields == {**SEED_TYPES["risk_alert"].fields, "threshold": read_field(
        {"type": "number", "min": 1}
    )}  # fmt: skip


def test_an_optional_user_may_have_channels_of_its_own():
    text = "[types.system_status]\nuser = 'optional'\nuser_channels = ['user_{id}_alerts']\n"

    assert load_text(text).settings.types["system_status"].user_channels == ("user_{id}_alerts",)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[types.new]\nuser = 'none'",
         "2: types.new.channels is missing; expected a list of channels"),
        ("[types.new]", "1: types.new.channels is missing; expected a list of channels"),
        ("[types.new.fields]\na = 'string'",
         "2: types.new.channels is missing; expected a list of channels"),
        ("[types.new]\nchannels = 5", "2: types.new.channels is 5; expected a list of text"),
        ("[types.error]\nchannels = []",
         '2: event type "error" is a message of the daemon itself; expected another name'),
        ("[types.'a b']\nchannels = []",
         '2: event type "a b" is no name; a name is letters, digits, "-", "_" and "." '
         "up to 64 characters"),
        ("[types.new]\nchannels = ['market_dat']",
         '2: types.new.channels has "market_dat", which is no channel; did you mean market_data?'),
        ("[types.new]\nchannels = ['x']",
         '2: types.new.channels has "x", which is no channel; expected channels'),
        ("[types.new]\nchannels = ['user_{id}_trades']",
         '2: types.new.channels has "user_{id}_trades"; expected no {id} unless user = "required"'),
        ("[types.system_status]\nuser_channels = ['system_status']",
         '2: types.system_status.user_channels is set; expected it only with user = "optional"'),
        ("[types.system_status]\nuser = 'maybe'",
         '2: types.system_status.user is "maybe"; expected "none", "optional" or "required" '
         '(default "none")'),
        ("[types.trade_execution]\nuser = 'maybe'",
         '2: types.trade_execution.user is "maybe"; expected "none", "optional" or "required" '
         '(default "required")'),
        ("[types.new]\nchannels = []\nuser = 'maybe'",
         '3: types.new.user is "maybe"; expected "none", "optional" or "required" '
         '(default "none")'),
        ("[types.system_status.fields]\na = {}",
         "2: types.system_status.fields.a is {}; expected {type = …} with type "
         '"number", "integer", "string", "boolean", "object" or "array"'),
        ("[types.system_status.fields]\na = 5",
         "2: types.system_status.fields.a is 5; expected {type = …} with type "
         '"number", "integer", "string", "boolean", "object" or "array"'),
        ("[types.system_status.fields]\na = {type = 'string', least = 1}",
         '2: types.system_status.fields.a is {"type": "string", "least": 1}; '
         '"least" is unknown; expected type, min, above, max, choices'),
        ("[types.system_status.fields]\na = {type = 'string', min = 1}",
         '2: types.system_status.fields.a is {"type": "string", "min": 1}; '
         'min is only for "number" and "integer"'),
        ("[types.system_status.fields]\na = {type = 'number', min = 'x'}",
         '2: types.system_status.fields.a is {"type": "number", "min": "x"}; min is no number'),
        ("[types.system_status.fields]\na = {type = 'number', max = inf}",
         '2: types.system_status.fields.a is {"type": "number", "max": Infinity}; '
         "max is no number"),
        ("[types.system_status.fields]\na = {type = 'number', max = true}",
         '2: types.system_status.fields.a is {"type": "number", "max": true}; max is no number'),
        ("[types.system_status.fields]\na = {type = 'number', min = 2, max = 1}",
         '2: types.system_status.fields.a is {"type": "number", "min": 2, "max": 1}; '
         "its least value is greater than its greatest"),
        ("[types.system_status.fields]\na = {type = 'number', min = 2, above = 1}",
         '2: types.system_status.fields.a is {"type": "number", "min": 2, "above": 1}; '
         "min and above are both given"),
        ("[types.system_status.fields]\na = {type = 'number', choices = ['a']}",
         '2: types.system_status.fields.a is {"type": "number", "choices": ["a"]}; '
         'choices is only for "string"'),
        ("[types.system_status.fields]\na = {type = 'string', choices = [1]}",
         '2: types.system_status.fields.a is {"type": "string", "choices": [1]}; '
         "choices is no list of text"),
    ],
)  # fmt: skip
def test_what_a_type_may_not_be(text, problem):
    assert problems_of(text) == [f"cryptows.toml:{problem}"]


@pytest.mark.parametrize(
    "field",
    [field for kind in SEED_TYPES.values() for field in kind.fields.values()]
    + [Field(FieldKind.NUMBER, -1.5, 2), Field(FieldKind.ARRAY)],
)
def test_a_field_reads_back_as_it_was_written(field):
    assert read_field(field_to_toml(field)) == field


def test_a_wrong_field_does_not_hide_a_wrong_channel():
    text = "[types.new]\nchannels = ['x']\nfields.a = 5\n"

    assert len(problems_of(text)) == 2
