"""Requests to a mount: what each wants, and the whole table of refusals in its order."""

import itertools

import pytest

from cryptows.wire import enginehttp
from cryptows.wire.enginehttp import Answer, Known, Rejected, Wish, bare, forbidden, wish

OPEN = {"EIO": "4", "transport": "polling"}
OPEN_WEBSOCKET = {"EIO": "4", "transport": "websocket"}
POLLING = {"transport": "polling", "sid": "X"}
WEBSOCKET = {"transport": "websocket", "sid": "X"}


@pytest.mark.parametrize(
    ("method", "query", "upgrade", "known", "expected"),
    [
        ("GET", OPEN, False, Known.UNKNOWN, Wish.OPEN_POLLING),
        ("GET", {**OPEN, "t": "1", "mine": "x"}, False, Known.UNKNOWN, Wish.OPEN_POLLING),
        ("GET", {**OPEN, "sid": ""}, False, Known.UNKNOWN, Wish.OPEN_POLLING),
        ("GET", OPEN_WEBSOCKET, True, Known.UNKNOWN, Wish.OPEN_WEBSOCKET),
        ("GET", POLLING, False, Known.POLLING, Wish.POLL),
        ("POST", POLLING, False, Known.POLLING, Wish.POST),
        ("GET", {**POLLING, "EIO": "3"}, False, Known.POLLING, Wish.POLL),  # only openings say it
        ("GET", WEBSOCKET, True, Known.POLLING, Wish.PROBE),
        ("GET", WEBSOCKET, True, Known.WEBSOCKET, Wish.PROBE),  # the session then refuses it
    ],
)  # fmt: skip
def test_what_a_request_wants(method, query, upgrade, known, expected):
    assert wish(method, query, upgrade=upgrade, known=known) is expected


REFUSALS = [
    # (status, body): requests as (method, query, upgrade, known)
    (
        (400, b'{"code":0,"message":"Transport unknown"}'),
        ("GET", {"EIO": "4"}, False, Known.UNKNOWN),
        ("GET", {"EIO": "4", "transport": "abc"}, True, Known.UNKNOWN),
    ),
    (
        (400, b'{"code":1,"message":"Session ID unknown"}'),
        ("GET", POLLING, False, Known.UNKNOWN),
        ("PUT", WEBSOCKET, True, Known.UNKNOWN),
    ),
    (
        (400, b'{"code":2,"message":"Bad handshake method"}'),
        ("POST", OPEN, False, Known.UNKNOWN),
        ("PUT", OPEN, False, Known.UNKNOWN),
        ("OPTIONS", OPEN, False, Known.UNKNOWN),
        ("POST", OPEN_WEBSOCKET, False, Known.UNKNOWN),
    ),
    (
        (400, b'{"code":3,"message":"Bad request"}'),
        ("GET", OPEN_WEBSOCKET, False, Known.UNKNOWN),
        ("GET", OPEN, True, Known.UNKNOWN),
        ("GET", {**OPEN, "j": "0"}, False, Known.UNKNOWN),
        ("GET", {**POLLING, "j": "0"}, False, Known.POLLING),
        ("GET", WEBSOCKET, False, Known.POLLING),
        ("GET", POLLING, False, Known.WEBSOCKET),
        ("POST", POLLING, False, Known.WEBSOCKET),
    ),
    (
        (400, b'{"code":5,"message":"Unsupported protocol version"}'),
        ("GET", {**OPEN, "EIO": "3"}, False, Known.UNKNOWN),
        ("GET", {"transport": "websocket"}, True, Known.UNKNOWN),
        ("GET", {**OPEN, "EIO": "\uff14"}, False, Known.UNKNOWN),  # a full-width 4
    ),
    (
        (405, b""),
        ("PUT", POLLING, False, Known.POLLING),
        ("DELETE", POLLING, False, Known.POLLING),
    ),
]


@pytest.mark.parametrize(
    ("answer", "request_"), [(answer, each) for answer, *requests in REFUSALS for each in requests]
)
def test_what_is_refused_and_how(answer, request_):
    method, query, upgrade, known = request_

    with pytest.raises(Rejected) as rejected:
        wish(method, query, upgrade=upgrade, known=known)

    assert (rejected.value.answer.status, rejected.value.answer.body) == answer
    assert rejected.value.answer.content_type == ("application/json" if answer[1] else "text/html")


def test_the_application_may_refuse_openings_and_sessions():
    answer = forbidden()
    for query, known in [(OPEN, Known.UNKNOWN), (POLLING, Known.POLLING)]:
        with pytest.raises(Rejected) as rejected:
            wish("GET", query, upgrade=False, known=known, refusal=answer)
        assert rejected.value.answer == Answer(
            403, b'{"code":4,"message":"Forbidden"}', "application/json"
        )


def test_a_refusal_may_say_why_and_when_to_come_back():
    answer = forbidden("banned", 429, (("Retry-After", "60"),))

    assert answer == Answer(
        429, b'{"code":4,"message":"banned"}', "application/json", (("Retry-After", "60"),)
    )


def test_the_checks_come_in_the_order_of_the_reference():
    """Everything is wrong at first; mending the first complaint shows the next."""
    wrong: dict = {
        "method": "POST",
        "query": {"EIO": "3", "sid": "X"},
        "origin": "http://\x00",
        "refusal": forbidden(),
    }
    mended: list[dict] = [
        {"query": {"EIO": "3", "sid": "X", "transport": "polling"}},
        {"origin": "http://x"},
        {"query": {"EIO": "3", "transport": "polling"}},
        {"method": "GET"},
        {"refusal": None},
        {"query": OPEN},
    ]
    seen: list[Wish | Answer] = []
    for mend in [{}, *mended]:
        wrong |= mend
        try:
            seen.append(wish(**wrong, upgrade=False, known=Known.UNKNOWN))
        except Rejected as rejected:
            seen.append(rejected.answer)

    assert seen == [
        enginehttp.UNKNOWN_TRANSPORT,
        enginehttp.BAD_REQUEST,
        enginehttp.UNKNOWN_SID,
        enginehttp.BAD_METHOD,
        forbidden(),
        enginehttp.UNSUPPORTED,
        Wish.OPEN_POLLING,
    ]


def test_a_refused_upgrade_gets_the_bare_message_unless_it_is_kept_out():
    assert bare(enginehttp.UNSUPPORTED) == Answer(400, b"Unsupported protocol version", "text/html")
    assert bare(enginehttp.OVERLAP) == enginehttp.OVERLAP
    assert bare(forbidden()) == forbidden()


def test_every_request_has_a_wish_or_a_refusal():
    methods = ["GET", "POST", "PUT", "HEAD", "OPTIONS", "X"]
    values = [None, "", "polling", "websocket", "4", "X"]
    for method, transport, eio, sid, upgrade, known in itertools.product(
        methods, values, values, values, [False, True], Known
    ):
        parts = {"transport": transport, "EIO": eio, "sid": sid}
        query = {key: value for key, value in parts.items() if value is not None}
        try:
            found = wish(method, query, upgrade=upgrade, known=known)
        except Rejected:
            continue
        assert (found in (Wish.POLL, Wish.POST, Wish.PROBE)) == bool(sid)
