import pytest
from trio_websocket import ConnectionRejected

from cryptows.cli.endings import Ending, closed, rejected


@pytest.mark.parametrize(
    ("code", "come_back", "token_refused"),
    [
        (1000, True, False),
        (1001, True, False),
        (1006, True, False),
        (1009, False, False),
        (1011, True, False),
        (1012, True, False),
        (4001, False, True),
        (4002, False, True),
        (4008, True, False),
        (4010, True, False),
        (4029, True, False),
        (4031, False, False),
    ],
)
def test_the_come_back_column_of_the_contract(code, come_back, token_refused):
    ending = closed(code, "")

    assert (ending.come_back, ending.token_refused) == (come_back, token_refused)
    assert ending.why.startswith(f"closed with {code}")


def test_an_end_without_a_reason_is_explained():
    assert closed(4001, "").why == "closed with 4001: the token is missing, wrong or revoked"
    assert closed(4001, "jwt expired").why == "closed with 4001: jwt expired"


def test_only_a_ban_asks_for_a_wait():
    assert closed(4029, "", 3).wait == 3
    assert closed(4008, "", 3).wait is None


def an_answer(status, body=None, *headers):
    return ConnectionRejected(status, headers, body)


@pytest.mark.parametrize(
    ("status", "come_back", "token_refused"),
    [
        (301, False, False),
        (400, False, False),
        (401, False, True),
        (403, False, False),
        (404, False, False),
        (408, True, False),
        (429, True, False),
        (500, True, False),
        (503, True, False),
    ],
)
def test_an_answer_instead_of_the_handshake_says_whether_to_try_again(
    status, come_back, token_refused
):
    assert rejected(an_answer(status, b"why\n")) == Ending(
        f"refused with HTTP {status}: why", come_back=come_back, token_refused=token_refused
    )


def test_an_answer_may_have_no_body():
    assert rejected(an_answer(503)).why == "refused with HTTP 503"


def test_retry_after_is_honoured():
    assert rejected(an_answer(429, None, (b"Retry-After", b"17"))).wait == 17
    assert rejected(an_answer(429, None, (b"retry-after", b"Mon, 23 Nov 2026"))).wait is None
    assert rejected(an_answer(429, None, (b"date", b"17"))).wait is None
