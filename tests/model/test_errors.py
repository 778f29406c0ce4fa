"""What expected errors carry, and how they read."""

from cryptows.model.errors import (
    BadEvent,
    ConfigError,
    CryptowsError,
    Refusal,
    RequestError,
    StartError,
)


def test_a_config_error_lists_its_problems_a_line_each():
    error = ConfigError(["a.toml:1: x", "a.toml:2: y"])

    assert str(error) == "a.toml:1: x\na.toml:2: y"
    assert error.problems == ("a.toml:1: x", "a.toml:2: y")


def test_a_bad_event_has_code_and_message():
    error = BadEvent("unknown_type", "type: no such type")

    assert (str(error), error.code) == ("type: no such type", "unknown_type")
    assert error.message == str(error)


def test_a_request_error_keeps_its_own_copy_of_what_else_is_said():
    more = {"retryAfterMs": 5}

    error = RequestError("rate_limited", "slowly", more)
    more.clear()

    assert (error.code, error.message, error.extra) == (
        "rate_limited", "slowly", {"retryAfterMs": 5},
    )  # fmt: skip
    assert RequestError("bad_request", "what").extra == {}


def test_a_refusal_says_whether_to_come_back():
    refusal = Refusal(4029, "banned", come_back=False, retry_after=300)

    assert (refusal.code, refusal.reason, refusal.come_back, refusal.retry_after) == (
        4029, "banned", False, 300,
    )  # fmt: skip
    assert str(refusal) == "banned"


def test_all_expected_errors_are_of_one_family():
    errors = [
        ConfigError([]), StartError("x"), BadEvent("c", "m"), RequestError("c", "m"),
        Refusal(1012, "r", come_back=True),
    ]  # fmt: skip

    assert all(isinstance(error, CryptowsError) for error in errors)
