"""The log: one event, one line, on one stream, and never a secret in it.

`configure` once, then every module has `log = structlog.get_logger()` and says
`log.info("client refused", client=7, code=4008)`: a constant phrase, so that it can be searched
and counted, and what varies as keys. People get text with colours on a terminal; journald gets
JSON with its `<N>` priority before every line (tracebacks are inside the line, else each of their
lines would be an entry of its own); everything else gets JSON.

The stdlib's `logging` (trio-websocket and others), warnings and exceptions that nobody caught take
the same way, so that they are redacted too. What repeats is held back and counted.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

import attrs
import msgspec
import structlog

from cryptows.redact import redact, redact_text, redact_trace

EventDict = MutableMapping[str, Any]

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
COLOURS = {"debug": 2, "info": 32, "warning": 33, "error": 31, "critical": 35}

MAX_LINE = 45_000  # bytes; journald cuts at 48 KiB (LineMax), and the rest has no priority
REPEATS = 5  # lines of one phrase at warning or above ...
REPEAT_WINDOW = 10.0  # ... within so many seconds; the rest is counted
MAX_PHRASES = 256  # phrases that are counted; more come only from libraries that format their own


@attrs.define
class RepeatLimit:
    """Holds back a phrase that repeats too fast, and counts what was held back."""

    burst: int = REPEATS
    window: float = REPEAT_WINDOW
    _phrases: dict[str, tuple[float, int]] = attrs.field(factory=dict)  # start of window, lines

    def admit(self, phrase: str, now: float) -> bool:
        """Whether a line may be written; if not it is counted, for due() to tell."""
        start, lines = self._phrases.get(phrase, (now, 0))
        if now >= start + self.window and lines <= self.burst:
            start, lines = now, 0
        if phrase not in self._phrases and len(self._phrases) >= MAX_PHRASES:
            del self._phrases[next(iter(self._phrases))]
        self._phrases[phrase] = (start, lines + 1)
        return lines < self.burst

    def due(self, now: float) -> list[tuple[str, int]]:
        """Return the phrases whose window has ended, each with how often it was held back."""
        ended = [p for p, (start, _) in self._phrases.items() if now >= start + self.window]
        held = [(phrase, self._phrases.pop(phrase)[1] - self.burst) for phrase in ended]
        return [(phrase, count) for phrase, count in held if count > 0]


@attrs.define
class _Output:
    """Where lines go and what they look like; one for the process, changed by configure()."""

    level: int = LEVELS["info"]
    stream: TextIO | None = None  # None: sys.stderr as it is at that moment
    render: Callable[[dict[str, Any]], str] = str  # until configure()
    repeats: RepeatLimit = attrs.field(factory=RepeatLimit)


_output = _Output()


class Logger(structlog.BoundLoggerBase):
    """structlog's bound logger, with a level that can change at run time at the cost of an if."""

    def debug(self, event: str, **keys: Any) -> None:
        if _output.level <= 10:
            self._proxy_to_logger("debug", event, **keys)

    def info(self, event: str, **keys: Any) -> None:
        if _output.level <= 20:
            self._proxy_to_logger("info", event, **keys)

    def warning(self, event: str, **keys: Any) -> None:
        if _output.level <= 30:
            self._proxy_to_logger("warning", event, **keys)

    def error(self, event: str, **keys: Any) -> None:
        if _output.level <= 40:
            self._proxy_to_logger("error", event, **keys)

    def exception(self, event: str, **keys: Any) -> None:
        """An error with the traceback of the exception that is being handled."""
        keys.setdefault("exc_info", True)
        self.error(event, **keys)

    def critical(self, event: str, **keys: Any) -> None:
        self._proxy_to_logger("critical", event, **keys)


class _Stream:
    """What structlog calls at the end of its processors: writes the finished line."""

    def msg(self, line: str) -> None:
        stream = _output.stream or sys.stderr
        try:
            stream.write(line + "\n")
            stream.flush()
        except (OSError, ValueError):
            pass  # a log that cannot be written (full disk, closed pipe) must not end the daemon

    debug = info = warning = error = critical = msg


def configure(
    level: str = "info",
    format: str = "auto",
    stream: TextIO | None = None,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Set up structlog and the stdlib's logging; may be called again."""
    stream = stream or sys.stderr
    format = choose_format(stream, environ) if format == "auto" else format
    _output.stream = None if stream is sys.stderr else stream
    _output.repeats = RepeatLimit()
    if format == "text":
        colours = stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
        _output.render = render_colours if colours else render_text
    else:
        _output.render = render_journal if format == "journald" else render_json
    structlog.configure(
        processors=_PROCESSORS,
        wrapper_class=Logger,
        logger_factory=lambda *_: _Stream(),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers[:] = [_StdlibHandler()]
    logging.captureWarnings(True)
    set_level(level)


def set_level(level: str) -> None:
    """Change the least level that is written."""
    _output.level = LEVELS[level]
    # Libraries' debug lines hold whole frames, thousands a second: never wanted, and unsafe.
    logging.getLogger().setLevel(logging.INFO if level == "debug" else logging.WARNING)


def choose_format(stream: TextIO, environ: Mapping[str, str]) -> str:
    """Return text on a terminal, journald where the stream leads to the journal, else json."""
    try:
        if stream.isatty():
            return "text"
        stat = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return "json"  # a stream without a descriptor, e.g. StringIO
    # systemd.exec(5): device and inode of the journal's socket. An inherited variable alone says
    # nothing: the stream may have been redirected since.
    return "journald" if environ.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}" else "json"


def install_hooks() -> None:
    """Log exceptions that nobody caught as one line too, instead of a traceback of many."""

    def uncaught(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        _log.critical("uncaught exception", exc_info=(kind, error, trace))

    def unraisable(args: Any) -> None:
        info = (args.exc_type, args.exc_value, args.exc_traceback)
        _log.error("exception ignored", where=args.object, message=args.err_msg, exc_info=info)

    def in_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None:
            uncaught(args.exc_type, args.exc_value, args.exc_traceback)

    sys.excepthook, sys.unraisablehook, threading.excepthook = uncaught, unraisable, in_thread


def report_repeats() -> None:
    """Write how often phrases were held back; the stats task calls it now and then."""
    for phrase, count in _output.repeats.due(time.monotonic()):
        _log.warning("repeated lines held back", phrase=phrase, count=count)


# --- from the arguments of a call to a line


def _limit_repeats(_logger: Any, level: str, keys: EventDict) -> EventDict:
    phrase = keys.pop("_phrase", keys.get("event"))
    if LEVELS[level] >= LEVELS["warning"] and not _output.repeats.admit(
        str(phrase), time.monotonic()
    ):
        raise structlog.DropEvent
    return keys


def _clean(_logger: Any, level: str, keys: EventDict) -> EventDict:
    """Order the keys and redact them all, the phrase and the traceback included."""
    exception = keys.pop("exception", None)
    line: dict[str, Any] = {
        "ts": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": level,
        "event": redact_text(str(keys.pop("event", ""))),
    }
    for key, value in keys.items():
        line[key] = redact(value, key)
    if exception is not None:
        line["exception"] = redact_trace(str(exception))
    return line


def _render(_logger: Any, _level: str, line: EventDict) -> str:
    return _output.render(dict(line))


# One list for ever: cached loggers hold on to it, and structlog.testing.capture_logs edits it.
_PROCESSORS: list[Any] = [_limit_repeats, structlog.processors.format_exc_info, _clean, _render]

_encode = msgspec.json.Encoder().encode


def render_json(line: dict[str, Any]) -> str:
    """Return the line as JSON; of one that is too long only what matters most."""
    text = _encode(line)
    if len(text) > MAX_LINE:
        kept = {key: line[key] for key in ("ts", "level", "event")}
        dropped = [key[:32] for key in line if key not in kept][:32]
        # six bytes each in the worst case, a control character as \\u001b
        trace = str(line.get("exception", ""))[-MAX_LINE // 16 :]
        text = _encode({**kept, "dropped": dropped, "exception": trace})
    return text.decode()


def render_journal(line: dict[str, Any]) -> str:
    """Return the line as JSON behind the priority that journald takes off (sd-daemon(3))."""
    return f"<{PRIORITIES[line['level']]}>{render_json(line)}"


def render_text(line: dict[str, Any], colours: bool = False) -> str:
    """Return the line for people: local time, level, phrase, keys; a traceback goes below."""
    line = dict(line)
    exception = line.pop("exception", None)
    at = datetime.fromisoformat(line.pop("ts")).astimezone().strftime("%H:%M:%S.%f")[:-3]
    level, event = line.pop("level"), _printable(line.pop("event"))
    keys = "".join(f"  {_printable(key)}={_text_value(value)}" for key, value in line.items())
    if colours:
        text = (
            f"\x1b[2m{at}\x1b[0m \x1b[{COLOURS[level]}m{level:8}\x1b[0m {event}\x1b[2m{keys}\x1b[0m"
        )
    else:
        text = f"{at} {level:8} {event}{keys}"
    if exception is None:
        return text
    return "\n".join([text, *(f"    {_printable(part)}" for part in exception.splitlines())])


def render_colours(line: dict[str, Any]) -> str:
    """Return the line for people on a terminal."""
    return render_text(line, colours=True)


def _text_value(value: Any) -> str:
    text = value if isinstance(value, str) else _encode(value).decode()
    plain = isinstance(value, str) and text and not any(c in text for c in ' "=')
    return _printable(text if plain or not isinstance(value, str) else _encode(text).decode())


def _printable(text: str) -> str:
    """Return the text with escapes for what could move the cursor or fake another line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class _StdlibHandler(logging.Handler):
    """Sends the records of the stdlib's logging through the processors above."""

    def emit(self, record: logging.LogRecord) -> None:
        """Never raises: a library's broken format must not end whoever called it."""
        try:
            message = record.getMessage()
        except Exception:
            message = str(record.msg)
        keys: dict[str, Any] = {"logger": record.name, "_phrase": f"{record.name}: {record.msg}"}
        if record.exc_info:
            keys["exc_info"] = record.exc_info
        level = next(n for n, v in reversed(LEVELS.items()) if v <= max(record.levelno, 10))
        getattr(_log, level)(message, **keys)


_log = structlog.get_logger()
