"""What an HTTP request to an Engine.IO mount wants, or the answer that refuses it.

The order of the checks is the reference's, because clients and its test suite see which error comes
first. Two differ on purpose: the origin is enforced for every request of both transports, and `EIO`
is checked before a WebSocket's 101, where the reference answers with garbage behind it.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping

import attrs

from cryptows.model.errors import CryptowsError
from cryptows.wire import strictjson
from cryptows.wire.engineio import PROTOCOL

JSON = "application/json"
HTML = "text/html"  # the reference's type of `ok`: old browsers offer text/plain as a download
TEXT = "text/plain; charset=UTF-8"

Headers = tuple[tuple[str, str], ...]


@attrs.frozen
class Answer:
    """A whole HTTP answer, but for the headers that every answer gets."""

    status: int
    body: bytes = b""
    content_type: str = HTML
    headers: Headers = ()


class Rejected(CryptowsError):
    """A request is answered with an error."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"HTTP {answer.status}")
        self.answer = answer


def _error(code: int, message: str, status: int = 400) -> Answer:
    return Answer(status, strictjson.encode({"code": code, "message": message}), JSON)


UNKNOWN_TRANSPORT = _error(0, "Transport unknown")
UNKNOWN_SID = _error(1, "Session ID unknown")
BAD_METHOD = _error(2, "Bad handshake method")
BAD_REQUEST = _error(3, "Bad request")
UNSUPPORTED = _error(5, "Unsupported protocol version")
OVERLAP = Answer(400)  # a second GET or POST while one is under way
BAD_CONTENT = Answer(400)  # a POST of application/octet-stream, as the reference has it
TOO_LARGE = Answer(413)
NOT_ALLOWED = Answer(405, headers=(("Allow", "GET, POST"),))


def forbidden(message: str = "Forbidden", status: int = 403, headers: Headers = ()) -> Answer:
    """Return the answer to a client that may not come in."""
    return attrs.evolve(_error(4, message, status), headers=headers)


def bare(answer: Answer) -> Answer:
    """Return the form that a refused WebSocket upgrade gets: the message without JSON around it.

    A refusal that is not about the query (403 and the like) keeps its body.
    """
    if answer.status != 400 or answer.content_type != JSON:
        return answer
    message = strictjson.decode(answer.body)["message"]
    return Answer(400, message.encode(), HTML)


class Wish(enum.Enum):
    """What a request wants."""

    OPEN_POLLING = enum.auto()
    OPEN_WEBSOCKET = enum.auto()
    POLL = enum.auto()
    POST = enum.auto()
    PROBE = enum.auto()  # a WebSocket for a session that polls


class Known(enum.Enum):
    """What the mount knows of the session that a request names."""

    UNKNOWN = enum.auto()
    POLLING = enum.auto()
    WEBSOCKET = enum.auto()


# What no header value may hold; h11 refuses these already, other doors may not.
_BAD_ORIGIN = re.compile(r"[^\t\x20-\x7e\x80-\xff]")


def wish(
    method: str,
    query: Mapping[str, str],
    *,
    upgrade: bool,
    known: Known,
    origin: str | None = None,
    refusal: Answer | None = None,
) -> Wish:
    """Return what a request wants; raise Rejected.

    `upgrade` says whether it asks for a WebSocket, `known` what is known of the session that it
    names, `refusal` what the application would answer instead of letting it in.
    """
    transport, sid = query.get("transport"), query.get("sid")
    if transport not in ("polling", "websocket"):
        raise Rejected(UNKNOWN_TRANSPORT)
    if origin is not None and _BAD_ORIGIN.search(origin):
        raise Rejected(BAD_REQUEST)
    # JSONP lets any page read the answers; a WebSocket on the polling transport means nothing.
    senseless = "j" in query or upgrade is not (transport == "websocket")
    if sid:
        if known is Known.UNKNOWN:
            raise Rejected(UNKNOWN_SID)
        if senseless or (known is Known.WEBSOCKET and not upgrade):
            raise Rejected(BAD_REQUEST)
        if refusal is not None:
            raise Rejected(refusal)
        return Wish.PROBE if upgrade else _by_method(method)
    if method != "GET":
        raise Rejected(BAD_METHOD)
    if senseless:
        raise Rejected(BAD_REQUEST)
    if refusal is not None:
        raise Rejected(refusal)
    if query.get("EIO") != PROTOCOL:
        raise Rejected(UNSUPPORTED)
    return Wish.OPEN_WEBSOCKET if upgrade else Wish.OPEN_POLLING


def _by_method(method: str) -> Wish:
    match method:
        case "GET":
            return Wish.POLL
        case "POST":
            return Wish.POST
        case _:
            raise Rejected(NOT_ALLOWED)
