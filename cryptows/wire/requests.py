"""What clients ask: one strict reading of a request, whichever dialect carried it.

On `/ws` a request is a JSON object in a text frame; over Socket.IO its `type` is the event's name
and the rest its argument. Protocol sections 4 and 5.
"""

from __future__ import annotations

from typing import Any

import msgspec

from cryptows.model.errors import RequestError

TYPES = ("subscribe", "unsubscribe", "list", "history", "authenticate", "ping", "ack")
MAX_ID = 128  # characters of a request's id, which the answer echoes
MAX_NUMBER = 1 << 63  # a numeric id is smaller: what every JSON library can write
MAX_CHANNELS = 1000  # in one request: each may have to be denied with a reason


class Request(msgspec.Struct):
    """One request. Fields that its type does not use are ignored."""

    type: str
    id: str | int | None = None
    channels: list[str] | None = None
    channel: str | None = None
    token: str | None = None
    since: str | None = None
    limit: int | None = None
    order: str | None = None
    offset: str | None = None


_LIST = ", ".join(TYPES)
_decoder = msgspec.json.Decoder(Request)
_object = msgspec.json.Decoder(dict[str, Any])


def decode(text: str | bytes) -> Request:
    """Read a request from JSON; raise RequestError(`bad_request`) that says what is wrong."""
    try:
        return checked(_decoder.decode(text))
    except msgspec.ValidationError as error:
        raise RequestError("bad_request", _readable(error), _id_of(text)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise RequestError("bad_request", "not a JSON object") from None


def convert(type_: str, argument: Any) -> Request:
    """Make a request of a Socket.IO event's name and argument; raise RequestError."""
    if argument is None:
        argument = {}
    if not isinstance(argument, dict):
        raise RequestError("bad_request", f"{type_}: expected an object as argument")
    try:
        return checked(msgspec.convert({**argument, "type": type_}, Request))
    except msgspec.ValidationError as error:
        raise RequestError("bad_request", _readable(error), _plain_id(argument)) from None


def checked(request: Request) -> Request:
    """Return the request if it has all that its type needs; raise RequestError otherwise."""
    if not _is_usable(request.id):
        expected = f"text of up to {MAX_ID} characters or an integer of 64 bits"
        raise RequestError("bad_request", f"id: expected {expected}")
    problem = _problem(request)
    if problem:
        extra = {} if request.id is None else {"id": request.id}
        raise RequestError("bad_request", problem, extra)
    return request


def _problem(request: Request) -> str | None:
    match request.type:
        case "subscribe" | "unsubscribe" if not request.channels:
            return f"{request.type}: channels must be a list of at least one channel"
        case "subscribe" | "unsubscribe" if len(request.channels or ()) > MAX_CHANNELS:
            return f"{request.type}: at most {MAX_CHANNELS} channels in one request"
        case "history" if not request.channel:
            return "history: channel is missing"
        case "authenticate" if not request.token:
            return "authenticate: token is missing"
        case "ack" if not request.offset:
            return "ack: offset is missing"
        case type_ if type_ not in TYPES:
            return f'type "{type_[:40]}" is not known; expected one of {_LIST}'
    return None


def _readable(error: msgspec.ValidationError) -> str:
    """Turn msgspec's text into ours: "Expected `int`, got `str` - at `$.limit`"."""
    what, _, where = str(error).partition(" - at ")
    where = where.strip("`").removeprefix("$.")
    what = what.replace("`", "")
    return f"{where}: {what[0].lower()}{what[1:]}" if where else f"{what[0].lower()}{what[1:]}"


def _id_of(text: str | bytes) -> dict[str, Any]:
    """The id of a request that is wrong elsewhere, so that its error can echo it."""
    try:
        return _plain_id(_object.decode(text))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}


def _plain_id(request: dict[str, Any]) -> dict[str, Any]:
    id_ = request.get("id")
    return {"id": id_} if id_ is not None and _is_usable(id_) else {}


def _is_usable(id_: Any) -> bool:
    """Whether an answer can echo it."""
    if isinstance(id_, int) and not isinstance(id_, bool):
        return -MAX_NUMBER <= id_ < MAX_NUMBER
    return id_ is None or (isinstance(id_, str) and len(id_) <= MAX_ID)
