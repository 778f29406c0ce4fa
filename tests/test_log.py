"""One event, one line, in the form its reader wants, and no secret in any of them."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import warnings

import pytest
import structlog

from cryptows import log as logs
from tests.loggers import forget_configuration

MARKER = "hunter2-Marker0123456789"


@pytest.fixture(autouse=True)
def logging_as_it_was():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    hooks = sys.excepthook, sys.unraisablehook, threading.excepthook
    yield
    root.handlers[:], root.level = handlers, level
    sys.excepthook, sys.unraisablehook, threading.excepthook = hooks
    logging.captureWarnings(False)
    forget_configuration()


def configured(level: str = "info", format: str = "json", **environ: str):
    stream = io.StringIO()
    logs.configure(level, format, stream, environ)
    return structlog.get_logger(), stream


def lines(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def without_time(stream: io.StringIO) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "ts"} for line in lines(stream)]


def test_a_line_is_json_with_time_level_and_phrase_first():
    log, stream = configured()

    log.info("client refused", client=7, code=4008)

    (line,) = lines(stream)
    assert list(line) == ["ts", "level", "event", "client", "code"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["ts"])
    assert without_time(stream) == [
        {"level": "info", "event": "client refused", "client": 7, "code": 4008}
    ]


@pytest.mark.parametrize("level", list(logs.LEVELS))
def test_every_level_has_its_priority_for_the_journal(level):
    log, stream = configured("debug", "journald")

    getattr(log, level)("something happened")

    prefix, _, rest = stream.getvalue().partition(">")
    assert prefix == f"<{logs.PRIORITIES[level]}"
    assert json.loads(rest)["level"] == level


def test_lines_below_the_level_are_not_written_and_the_level_can_change():
    log, stream = configured("warning")

    log.debug("no")
    log.info("no")
    log.warning("yes")
    logs.set_level("debug")
    log.debug("yes")
    logs.set_level("error")
    log.warning("no")
    log.error("yes")

    assert [line["event"] for line in lines(stream)] == ["yes", "yes", "yes"]


def test_a_bound_key_is_in_every_line():
    log, stream = configured()

    log = log.bind(client=7)
    log.info("one")
    log.info("two", code=1)

    assert without_time(stream) == [
        {"level": "info", "event": "one", "client": 7},
        {"level": "info", "event": "two", "client": 7, "code": 1},
    ]


def test_a_traceback_is_inside_its_one_line():
    log, stream = configured(format="journald")

    try:
        raise ValueError("first\nsecond")
    except ValueError:
        log.exception("client task failed", client=7)

    (text,) = stream.getvalue().splitlines()
    line = json.loads(text.removeprefix("<3>"))
    assert line["event"] == "client task failed"
    assert line["exception"].endswith("ValueError: first\nsecond")
    assert "Traceback (most recent call last)" in line["exception"]


def test_a_group_of_exceptions_is_one_line_too():
    log, stream = configured()

    log.error("nursery failed", exc_info=ExceptionGroup("two", [ValueError("a"), TypeError("b")]))

    (line,) = lines(stream)
    assert "ValueError: a" in line["exception"]
    assert "TypeError: b" in line["exception"]


def test_no_secret_gets_into_any_form_of_the_log():
    token = f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.{MARKER}"
    phrase = f"bad token {MARKER}"
    for format in ("json", "journald", "text"):
        log, stream = configured("debug", format)

        log.info("client connected", token=MARKER, headers=[(b"cookie", MARKER.encode())])
        log.warning(phrase, path=f"/ws?token={MARKER}&x=1", auth={"token": MARKER})
        log.bind(authorization=MARKER).error("refused", nested={"a": [{"sid": MARKER}]}, t=token)
        try:
            raise ValueError(f"bad handshake: {{'authorization': 'Bearer {MARKER}'}} {token}")
        except ValueError as error:
            log.exception("client failed", error=error)
        logging.getLogger("other").warning("got %s", f"Authorization: Bearer {MARKER}")

        assert len(stream.getvalue()) > 500
        assert MARKER not in stream.getvalue()


def test_the_stdlib_logs_the_same_way():
    _, stream = configured("debug")
    other = logging.getLogger("trio-websocket")

    other.debug("frame %r", b"never wanted")
    other.info("connected %d", 7)
    other.warning("broken %d", 1, 2)  # a wrong format costs nothing but its arguments
    try:
        raise LookupError("x")
    except LookupError:
        other.exception("failed")

    first, second, third = without_time(stream)
    assert first == {"level": "info", "event": "connected 7", "logger": "trio-websocket"}
    assert second == {"level": "warning", "event": "broken %d", "logger": "trio-websocket"}
    assert third.pop("exception").endswith("LookupError: x")
    assert third == {"level": "error", "event": "failed", "logger": "trio-websocket"}


def test_the_stdlib_is_quiet_unless_debugging():
    _, stream = configured("info")

    logging.getLogger("other").info("no")
    logging.getLogger("other").log(35, "between warning and error")

    assert without_time(stream) == [
        {"level": "warning", "event": "between warning and error", "logger": "other"}
    ]


def test_warnings_of_the_interpreter_are_logged():
    _, stream = configured()

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        logging.captureWarnings(False)

    (line,) = lines(stream)
    assert line["logger"] == "py.warnings"
    assert "DeprecationWarning: old" in line["event"]


def test_repeated_warnings_are_held_back_and_told_later(monkeypatch):
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    log, stream = configured()

    for n in range(50):
        log.warning("feed line refused", line=n)
        log.info("repeats as it likes")
    now += logs.REPEAT_WINDOW
    logs.report_repeats()
    log.warning("feed line refused", line=51)
    logs.report_repeats()

    warned = [line for line in without_time(stream) if line["level"] == "warning"]
    assert [line.get("line") for line in warned] == [0, 1, 2, 3, 4, None, 51]
    assert warned[5] == {
        "level": "warning",
        "event": "repeated lines held back",
        "phrase": "feed line refused",
        "count": 45,
    }
    assert len([line for line in lines(stream) if line["level"] == "info"]) == 50


def test_a_quiet_phrase_starts_anew_without_a_report():
    limit = logs.RepeatLimit(burst=2, window=10)

    assert [limit.admit("x", now) for now in (0, 1, 2)] == [True, True, False]
    assert limit.admit("y", 0)
    assert limit.admit("y", 11)
    assert limit.due(9) == []
    assert limit.due(10) == [("x", 1)]
    assert limit.due(30) == []
    assert limit.admit("x", 31)


def test_how_many_phrases_are_counted_is_bounded():
    limit = logs.RepeatLimit()

    for n in range(10 * logs.MAX_PHRASES):
        limit.admit(f"phrase {n}", 0)

    assert len(limit._phrases) == logs.MAX_PHRASES


def test_a_line_fits_into_one_entry_of_the_journal():
    log, stream = configured()

    log.info("big", exception_like="x", **{f"field{n}": "\x01" * 4000 for n in range(20)})
    log.error(
        "worse", **{f"f{n}": "é" * 4000 for n in range(20)}, exc_info=ValueError("\x01" * 9000)
    )

    for line in stream.getvalue().splitlines():
        assert len(line.encode()) <= logs.MAX_LINE
    first, second = lines(stream)
    assert first["event"] == "big"
    assert first["dropped"][:2] == ["exception_like", "field0"]
    assert second["exception"].endswith("\x01")


def test_text_is_for_people():
    log, stream = configured(format="text")

    log.info("listening", address="127.0.0.1:3000", why="so be it", n=1, none=None, empty="")
    log.error("failed", exc_info=ValueError("a\nb"))

    first, *rest = stream.getvalue().splitlines()
    assert re.fullmatch(
        r'\d\d:\d\d:\d\d\.\d{3} info     listening  address=127\.0\.0\.1:3000  why="so be it"'
        r'  n=1  none=null  empty=""',
        first,
    )
    assert rest[1:] == ["    ValueError: a", "    b"]


def test_text_cannot_be_faked_by_what_clients_send():
    log, stream = configured(format="text")

    log.info("client refused", reason="x\n12:00:00 error fake\x1b[2J")

    (line,) = stream.getvalue().splitlines()
    assert r'reason="x\n12:00:00 error fake\u001b[2J"' in line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environ", "colours"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"TERM": "xterm"}, True)],
)
def test_a_terminal_gets_text_and_colours_if_it_wants_them(environ, colours):
    stream = Terminal()

    logs.configure("info", "auto", stream, environ)
    structlog.get_logger().warning("hello", n=1)

    assert ("\x1b[33m" in stream.getvalue()) is colours
    assert "hello" in stream.getvalue()


def test_the_format_is_chosen_by_where_the_stream_leads(tmp_path):
    with (tmp_path / "log").open("w") as stream:
        stat = os.fstat(stream.fileno())
        here = f"{stat.st_dev}:{stat.st_ino}"

        assert logs.choose_format(stream, {"JOURNAL_STREAM": here}) == "journald"
        assert logs.choose_format(stream, {"JOURNAL_STREAM": "1:2"}) == "json"
        assert logs.choose_format(stream, {}) == "json"
    assert logs.choose_format(io.StringIO(), {"JOURNAL_STREAM": here}) == "json"
    assert logs.choose_format(Terminal(), {"JOURNAL_STREAM": here}) == "text"


def test_a_stream_that_cannot_be_written_harms_nobody():
    stream = io.StringIO()
    logs.configure("info", "json", stream, {})
    stream.close()

    structlog.get_logger().info("nobody reads this")


def test_without_a_stream_lines_go_to_stderr_as_it_is_then(capsys):
    logs.configure("info", "json", environ={})

    structlog.get_logger().info("hello")

    assert json.loads(capsys.readouterr().err)["event"] == "hello"


def test_exceptions_that_nobody_caught_are_logged(capsys):
    _, stream = configured()
    logs.install_hooks()

    try:
        raise ValueError(f"token={MARKER}")
    except ValueError as error:
        sys.excepthook(ValueError, error, error.__traceback__)
    thread = threading.Thread(target=int, args=("x",))
    thread.start()
    thread.join()

    class Bad:
        def __del__(self) -> None:
            raise RuntimeError("in __del__")

    Bad()

    assert [(line["event"], line["level"]) for line in lines(stream)] == [
        ("uncaught exception", "critical"),
        ("uncaught exception", "critical"),
        ("exception ignored", "error"),
    ]
    assert "in __del__" in lines(stream)[2]["exception"]
    assert MARKER not in stream.getvalue()
    assert capsys.readouterr().err == ""


def test_a_thread_that_exits_without_an_error_says_nothing():
    _, stream = configured()
    logs.install_hooks()

    threading.excepthook(threading.ExceptHookArgs((SystemExit, None, None, None)))

    assert stream.getvalue() == ""


def test_structlogs_own_capture_works_on_our_loggers():
    log, stream = configured()
    log.info("before")

    with structlog.testing.capture_logs() as captured:
        log.info("within", n=1)

    assert captured == [{"event": "within", "n": 1, "log_level": "info"}]
    assert len(lines(stream)) == 1


def test_a_process_under_the_journal_writes_priorities(tmp_path):
    """JOURNAL_STREAM names the file that is the process's stderr, as systemd sets it."""
    program = (
        "import structlog; from cryptows import log; log.configure();"
        "structlog.get_logger().warning('hello', token='abc')"
    )
    target = tmp_path / "stderr"
    with target.open("w") as stream:
        stat = os.fstat(stream.fileno())
        subprocess.run(
            [sys.executable, "-c", program],
            stderr=stream, check=True,
            env={**os.environ, "JOURNAL_STREAM": f"{stat.st_dev}:{stat.st_ino}",
                 "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip

    line = target.read_text()

    assert line.startswith('<4>{"ts":')
    assert line.endswith('"level":"warning","event":"hello","token":"***"}\n')
