"""Answers leave in the order of the lines, whenever they become known."""

from __future__ import annotations

import json
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cryptows.model.errors import BadEvent
from cryptows.model.event import Event
from cryptows.wire import feedanswers
from cryptows.wire.feedanswers import Acks, Answers, Complaints, refusal

BAD = BadEvent("invalid_event", 'data.price: expected a number, got "abc"')
NOT_STORED = BadEvent("not_stored", "delivered, but not stored")


class Desk:
    """Answers, and what they were heard to say."""

    def __init__(self, acks=True):
        self.calls = 0
        self.errors = Counter[str]()
        self.answers = Answers(self._ready, self._error, acks)

    def _ready(self):
        self.calls += 1

    def _error(self, code):
        self.errors[code] += 1

    def taken(self):
        return [json.loads(text) for text in self.answers.take().splitlines()]


def test_a_refusal_is_the_line_of_the_contract():
    assert refusal(BAD, 17, "t-981") == (
        b'{"ok":false,"line":17,"id":"t-981","error":{"code":"invalid_event",'
        b'"message":"data.price: expected a number, got \\"abc\\""}}\n'
    )
    assert refusal(BadEvent("forbidden", "no")) == (
        b'{"ok":false,"error":{"code":"forbidden","message":"no"}}\n'
    )


def test_an_ack_is_the_line_of_the_contract():
    desk = Desk()

    desk.answers.expect(2, 't"1').done(b"k3f.42", 12, None, False)
    desk.answers.expect(3, None).done(b"k3f.43", 0, None, False)
    desk.answers.expect(4, "t-1").done(None, 0, None, True)

    assert desk.answers.take() == (
        b'{"ok":true,"line":2,"id":"t\\"1","offset":"k3f.42","delivered_to":12}\n'
        b'{"ok":true,"line":3,"offset":"k3f.43","delivered_to":0}\n'
        b'{"ok":true,"line":4,"id":"t-1","delivered_to":0,"duplicate":true}\n'
    )
    assert desk.calls == 3


def test_what_is_known_early_waits_for_what_is_not():
    desk = Desk()
    first, second = desk.answers.expect(1, None), desk.answers.expect(2, None)
    desk.answers.refuse(3, None, BAD)
    desk.answers.accept(4)

    second.done(b"a.2", 1, None, False)
    assert (desk.taken(), desk.calls) == ([], 0)
    first.done(b"a.1", 1, None, False)

    assert [answer["line"] for answer in desk.taken()] == [1, 2, 3, 4]
    assert desk.answers.is_empty


@given(order=st.permutations(range(8)), acks=st.booleans())
def test_answers_keep_the_order_of_lines_whatever_the_order_they_are_known_in(order, acks):
    desk = Desk()
    places = [desk.answers.expect(line, None) for line in range(8)]

    for i in order:
        places[i].done(b"a.%d" % i, 0, None if acks else NOT_STORED, False)

    assert [answer["line"] for answer in desk.taken()] == list(range(8))
    assert desk.errors == ({} if acks else {"not_stored": 8})


def test_a_batch_line_gets_one_answer_with_the_last_offset_and_the_sum():
    desk = Desk()
    place = desk.answers.expect(5, None, 3)
    acks = Acks([place, place, place])

    acks.done_for(0)(b"a.1", 2, None, False)
    acks.done_for(1)(None, 0, None, True)
    assert desk.taken() == []
    acks.done_for(2)(b"a.2", 3, None, False)

    assert desk.taken() == [{"ok": True, "line": 5, "offset": "a.2", "delivered_to": 5}]


def test_a_batch_line_with_an_error_gets_the_first_one():
    desk = Desk()
    place = desk.answers.expect(5, "b", 2)

    place.done(b"a.1", 2, NOT_STORED, False)
    place.done(b"a.2", 2, None, False)

    assert desk.answers.take() == refusal(NOT_STORED, 5, "b")


def test_a_batch_of_duplicates_is_one():
    desk = Desk()
    place = desk.answers.expect(5, None, 2)

    place.done(None, 0, None, True)
    place.done(b"a.1", 0, None, True)

    assert desk.taken() == [
        {"ok": True, "line": 5, "offset": "a.1", "delivered_to": 0, "duplicate": True}
    ]


def test_without_acks_only_what_could_not_be_used_is_told():
    desk = Desk(acks=False)
    events = [Event("system_status", b"{}", 0, id=id) for id in ("a", None, "c")]
    complaints = Complaints(desk.answers, [7, 8, 9], events)

    desk.answers.accept(6)
    complaints.done_for(0)(b"a.1", 1, None, False)
    complaints.done_for(1)(b"a.2", 1, NOT_STORED, False)
    complaints.done_for(2)(None, 0, BadEvent("too_many_streams", "full"), False)

    assert desk.answers.take() == refusal(BadEvent("too_many_streams", "full"), 9, "c")
    assert desk.errors == {"too_many_streams": 1}


def test_too_many_open_places_are_full(monkeypatch):
    monkeypatch.setattr(feedanswers, "MAX_PLACES", 2)
    desk = Desk()
    first = desk.answers.expect(1, None)
    assert not desk.answers.is_full

    desk.answers.expect(2, None)
    assert desk.answers.is_full
    first.done(b"a.1", 0, None, False)

    assert not desk.answers.is_full


def test_too_many_unread_bytes_are_full(monkeypatch):
    monkeypatch.setattr(feedanswers, "MAX_READY", len(refusal(BAD, 1)) + 1)
    desk = Desk()

    desk.answers.refuse(1, None, BAD)
    assert not desk.answers.is_full
    desk.answers.refuse(2, None, BAD)

    assert desk.answers.is_full
    desk.answers.take()
    assert not desk.answers.is_full


def test_answers_to_a_producer_that_reads_no_more_are_forgotten():
    desk = Desk()
    place = desk.answers.expect(1, None)
    desk.answers.refuse(2, None, BAD)

    desk.answers.stop_listening()
    place.done(b"a.1", 0, None, False)

    assert desk.answers.is_empty
    assert desk.answers.take() == b""
    assert desk.errors == {"invalid_event": 1}
