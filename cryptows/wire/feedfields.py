"""A feed line field by field: what the first decode stumbled over, and the words for it.

Values stay JSON text (`msgspec.Raw`) until their field says what they should be, so a number of
thousands of digits in a field that nobody asked for is nobody's trouble, and an error message
repeats a value as the producer wrote it.
"""

from __future__ import annotations

import codecs
import difflib
import functools
import itertools
import math

import attrs
import msgspec

from cryptows.model.errors import BadEvent
from cryptows.model.schema import bad_value, shown

MAX_ID = 128  # characters of an event's id: the dedup window keeps 100 000 of them
MAX_PRODUCER = 64  # characters of a producer's name, which stands in logs
MAX_NAMED = 20  # known names that an error message lists
# Clients decode what we forward, and e.g. Rust's serde_json stops at 128 levels.
MAX_DEPTH = 127
# The end of the year 9999, the last that most date libraries know.
MAX_TIMESTAMP = 253_402_300_799_999
# As ms these are three months of 1970, as seconds the years 2001 to 2286: surely seconds.
SECONDS = range(1_000_000_000, 10_000_000_000)

# Turns what opens into 2 and what closes into 0; less one, that is a step of the depth.
BRACKETS = bytes.maketrans(b"[{]}", b"\2\2\0\0")
NOT_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))

# What a decoder raises for bytes that do not fit; UnicodeDecodeError is a ValueError.
NOT_DECODED = (msgspec.DecodeError, ValueError, RecursionError)

Fields = dict[str, bytes]  # the JSON text of each field
_fields_of = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_items_of = msgspec.json.Decoder(list[msgspec.Raw]).decode


class Line(msgspec.Struct, gc=False):
    """The fields of an event's line; others are skipped."""

    type: str
    data: msgspec.Raw
    channel: str | None = None
    user_id: str | None = None
    id: str | None = None
    timestamp: int | None = None


@attrs.frozen
class Hello:
    """`{"hello":{"producer":"grid-bot","acks":true}}`: how a producer introduces itself."""

    producer: str | None = None
    acks: bool = False


def line_id(line: bytes) -> str | None:
    """Return the id that the answer to a line repeats: any that could be an event's."""
    try:
        id = string({name: bytes(raw) for name, raw in _fields_of(line).items()}, "id")
    except (BadEvent, *NOT_DECODED):
        return None
    return id if id and len(id) <= MAX_ID else None


def check_text(line: bytes) -> None:
    """Raise BadEvent if a line is too deep, or no UTF-8: decoders see that only where they look."""
    if line.startswith(codecs.BOM_UTF8):
        raise BadEvent("invalid_json", "not JSON: it starts with a byte order mark")
    try:
        line.decode()
    except UnicodeDecodeError as error:
        text = f"not UTF-8: {error.reason} (byte {error.start})"
        raise BadEvent("invalid_json", text) from None
    # Brackets inside strings count here too, so this only tells when to look closer.
    if line.count(b"{") + line.count(b"[") > MAX_DEPTH and _is_too_deep(line):
        raise BadEvent("invalid_json", f"nested more than {MAX_DEPTH} levels deep")


def _is_too_deep(line: bytes) -> bool:
    # Without escaped backslashes and then escaped quotes, every quote begins or ends a string.
    outside = line.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2]
    steps = b"".join(outside).translate(BRACKETS, NOT_BRACKETS)
    return any(depth > MAX_DEPTH for depth in itertools.accumulate(step - 1 for step in steps))


def object_of(raw: bytes) -> Fields:
    """Return the JSON text of each field of an object; the last one counts, as in a browser."""
    try:
        return {name: bytes(value) for name, value in _fields_of(raw).items()}
    except msgspec.ValidationError:
        text = f"expected a JSON object, got {shown(raw)}"
        raise BadEvent("invalid_event", text) from None
    except msgspec.DecodeError as error:
        reason = str(error).removeprefix("JSON is malformed: ")
        raise BadEvent("invalid_json", f"not JSON: {reason}") from None


def texts(raw: bytes) -> list[bytes] | None:
    try:
        return [bytes(item) for item in _items_of(raw)]
    except msgspec.ValidationError:
        return None


def head(fields: Fields) -> Line:
    """Return the fields of an event's line from their JSON texts."""
    for name, expected in (("type", "an event type"), ("data", "an object")):
        if name not in fields:
            raise BadEvent("invalid_event", f"{name}: missing; expected {expected}")
    type_ = string(fields, "type")
    if type_ is None:
        raise bad_value("type", "a string", fields["type"])
    return Line(
        type_,
        msgspec.Raw(fields["data"]),
        string(fields, "channel"),
        string(fields, "user_id"),
        string(fields, "id"),
        _timestamp(fields.get("timestamp", b"null")),
    )


def string(fields: Fields, name: str) -> str | None:
    """Return a field that is a string, None if it is null or not there."""
    raw = fields.get(name, b"null")
    if raw == b"null":
        return None
    if raw[:1] != b'"':
        raise bad_value(name, "a string", raw)
    text: str = msgspec.json.decode(raw)
    return text


def _timestamp(raw: bytes) -> int | None:
    """Return the time in a JSON value; a whole number may be written as a float, as in 1.7e12."""
    if raw == b"null":
        return None
    value = float(raw) if raw[:1] in b"-0123456789" else math.nan
    if not value.is_integer():
        raise bad_value("timestamp", "an integer, Unix ms", raw)
    return int(value)


def check_timestamp(value: int) -> None:
    if not 0 <= value <= MAX_TIMESTAMP or value in SECONDS:
        hint = " (that looks like seconds)" if value in SECONDS else ""
        text = f"timestamp: expected Unix ms, got {shown(b'%d' % value)}{hint}"
        raise BadEvent("invalid_event", text)


def hello(raw: bytes, _now_ms: int) -> Hello:
    if raw[:1] != b"{":
        raise bad_value("hello", "an object", raw)
    fields = {f"hello.{name}": value for name, value in object_of(raw).items()}
    producer = string(fields, "hello.producer")
    if producer is not None and not (0 < len(producer) <= MAX_PRODUCER and producer.isprintable()):
        expected = f"1 to {MAX_PRODUCER} printable characters"
        raise bad_value("hello.producer", expected, fields["hello.producer"])
    acks = fields.get("hello.acks", b"null")
    if acks not in (b"true", b"false", b"null"):
        raise bad_value("hello.acks", "true or false", acks)
    return Hello(producer, acks == b"true")


@functools.lru_cache(maxsize=256)  # a wrong producer is wrong thousands of times a second
def no_such(name: str, known: tuple[str, ...]) -> str:
    """Return that a name is not known, with the nearest one that is."""
    found = shown(msgspec.json.encode(name))
    near = difflib.get_close_matches(name, known, n=1) if len(name) <= MAX_ID else []
    if near:
        return f'{found} is not known; did you mean "{near[0]}"?'
    return f"{found} is not known; there are " + ", ".join(known[:MAX_NAMED])
