"""Who is told what and when, without a disk and without a clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptows.config.settings import Store
from cryptows.store import jobs
from cryptows.store.jobs import Backlog
from cryptows.store.ledger import MAX_CURSORS, Ledger
from cryptows.store.sqlite import DisplacedError, Unstorable

from .stores import CORRUPT, FULL, Answers, error_of, record


def ledger_of(answers: Answers | None = None, **store) -> tuple[Ledger, Answers, list]:
    states: list[tuple[str, str, str]] = []
    settings = Store(**{"failures": 2, "retry": 1, "retry_max": 8, "timeout": 2, **store})

    def condemn(error: Exception) -> bool:
        return getattr(error, "sqlite_errorcode", 0) == CORRUPT[0]

    ledger = Ledger.of(settings, lambda *change: states.append(change), condemn)
    return ledger, answers or Answers(), states


def open_it(ledger: Ledger, now: float = 0.0) -> None:
    while ledger.is_closed:
        ledger.failed(error_of(*FULL), now)


def test_what_waits_becomes_one_batch_and_is_answered_in_order():
    ledger, answers, _ = ledger_of()
    for n in (1, 2, 3):
        assert ledger.put(answers.append(n, n + 10, id_=f"t-{n}"))
    ledger.set_cursor("u", 7)

    batch = ledger.begin(0)
    assert ledger.put(answers.append(4))
    assert ledger.waiting == 7
    ledger.committed(0.5)

    assert [r.n for r in batch.records] == [1, 11, 2, 12, 3, 13]
    assert (batch.ids, batch.cursors) == ([("t-1", 1), ("t-2", 2), ("t-3", 3)], {"u": 7})
    assert answers.given == [(1, True), (2, True), (3, True)]
    assert (ledger.cursors, ledger.waiting) == ({}, 1)
    counters = ledger.counters
    assert (counters.commits, counters.stored, counters.commit_seconds) == (1, 6, 0.5)


def test_a_failed_commit_is_tried_again_until_the_breaker_opens():
    ledger, answers, states = ledger_of()
    for n in (1, 2):
        ledger.put(answers.append(n))
    ledger.begin(0)
    ledger.put(answers.append(3))

    assert ledger.attempt_failed(error_of(*FULL), 0.1) is True
    assert answers.given == []
    assert ledger.attempt_failed(error_of(*FULL), 0.2) is False
    ledger.dropped(error_of(*FULL))

    assert answers.given == [(1, False), (2, False), (3, False)]
    assert states == [("closed", "open", FULL[1])]
    assert not ledger.put(answers.append(4))
    assert (ledger.counters.refused, ledger.counters.failures, ledger.counters.opened) == (4, 2, 1)
    assert ledger.lost == {("user_1_trades", "BTC"): (4, 4)}


def test_a_trial_closes_it_and_takes_along_what_was_lost():
    ledger, answers, states = ledger_of()
    open_it(ledger)
    ledger.put(answers.append(5))

    assert ledger.begin_trial(0.9) is None
    batch = ledger.begin_trial(1)
    assert batch is not None
    assert batch.lost == {("user_1_trades", "BTC"): (5, 5)}
    assert not ledger.put(answers.append(6))
    ledger.trial_ended(None, 1.1)

    assert ledger.is_taking
    assert ledger.lost == {("user_1_trades", "BTC"): (6, 6)}  # since the trial began
    assert states[1:] == [
        ("open", "half_open", "the pause is over"),
        ("half_open", "closed", "a trial write succeeded"),
    ]


def test_a_trial_that_fails_opens_it_for_longer():
    ledger, _, states = ledger_of()
    open_it(ledger)
    ledger.begin_trial(1)

    ledger.trial_ended(error_of(*FULL), 1.5)

    assert ledger.breaker.retry_at == 3.5
    assert states[-1] == ("half_open", "open", FULL[1])


@pytest.mark.parametrize("error", [DisplacedError("gone"), error_of(*CORRUPT)])
def test_damage_opens_it_at_once(error):
    ledger, _, _ = ledger_of(failures=5)

    ledger.failed(error, 0)

    assert ledger.breaker.state == "open"


def test_of_failing_reads_only_damage_counts():
    ledger, _, _ = ledger_of()

    for _ in range(9):
        ledger.read_failed(error_of(*FULL), 0)
    assert ledger.is_taking

    ledger.read_failed(error_of(*CORRUPT), 0)
    assert not ledger.is_taking


@pytest.mark.parametrize("end", ["commits", "fails"])
def test_an_overdue_commit_is_answered_while_it_goes_on(end):
    ledger, answers, _ = ledger_of()
    ledger.put(answers.append(1))
    ledger.begin(0)
    ledger.put(answers.append(2))

    ledger.overdue("too slow", 2)
    assert answers.given == [(1, False), (2, False)]
    assert ledger.is_closed
    assert not ledger.put(answers.append(3))  # else it would be stored before 1, or overtake it
    assert ledger.last_lost(["user_1_trades"]) == 3
    assert ledger.last_lost(["another"]) == 0

    if end == "commits":
        ledger.committed(3)
    else:
        assert ledger.attempt_failed(error_of(*FULL), 3) is False
        ledger.dropped(error_of(*FULL))

    assert len(answers.given) == 2
    assert answers.late == ([1] if end == "commits" else [])
    assert ledger.breaker.failed_in_a_row == 1  # counted once, and a late success resets nothing
    assert ledger.put(answers.append(4))
    assert ledger.lost == {("user_1_trades", "BTC"): (3, 3)}


def test_an_event_whose_commit_is_late_is_not_kept_until_it_is():
    ledger, answers, _ = ledger_of()
    ledger.put(answers.append(7))
    ledger.begin(0)
    assert ledger.last_lost(["user_1_trades"]) == 0  # nobody has seen it

    ledger.overdue("too slow", 2)
    assert ledger.last_lost(["user_1_trades"]) == 7
    ledger.committed(3)
    assert ledger.last_lost(["user_1_trades"]) == 0


def test_an_overdue_commit_opens_it_if_it_goes_on():
    ledger, _, _ = ledger_of(failures=3)
    ledger.begin(0)

    for now in (2, 4, 6):
        assert ledger.is_closed
        ledger.overdue("too slow", now)

    assert not ledger.is_closed


def test_an_overdue_trial_is_counted_once():
    ledger, _, _ = ledger_of()
    open_it(ledger)
    ledger.begin_trial(1)

    ledger.overdue("too slow", 3)
    ledger.trial_ended(None, 3.5)

    assert ledger.breaker.state == "open"
    assert ledger.breaker.retry_at == 5  # the second pause, from when it was overdue
    assert ledger.begin_trial(5) is not None


@pytest.mark.parametrize("alone", [False, True])
def test_what_cannot_be_stored_costs_only_itself(alone):
    ledger, answers, _ = ledger_of()
    ledger.set_cursor("u", 1)
    for n in [2] if alone else [1, 2, 3]:
        ledger.put(answers.append(n))
    poison = Unstorable("too large")

    batches = []
    while ledger.backlog.jobs:
        batch = ledger.begin(0)
        batches.append([r.n for r in batch.records])
        if 2 in batches[-1]:
            assert ledger.attempt_failed(poison, 0) is False
            ledger.dropped(poison)
        else:
            ledger.committed(0)
        if len(batches) == 1:
            ledger.put(answers.append(4))

    assert batches == ([[2], [2], [4]] if alone else [[1, 2, 3], [1], [2], [3], [4]])
    assert answers.given[-1] == (4, True)
    assert [n for n, kept in answers.given if not kept] == [2]
    assert ledger.breaker.failed_in_a_row == 0
    assert ledger.cursors == {}  # written with the last one


def test_a_cursor_that_cannot_be_stored_is_dropped():
    ledger, answers, _ = ledger_of()
    ledger.set_cursor("u", 1)
    ledger.put(answers.append(1))
    poison = Unstorable("odd")

    ledger.begin(0)
    ledger.dropped(poison)
    assert ledger.begin(0).cursors == {}
    ledger.committed(0)
    assert ledger.begin(0).cursors == {"u": 1}
    ledger.dropped(poison)

    assert ledger.cursors == {}
    assert answers.given == [(1, True)]


def test_a_cursor_does_not_keep_the_breaker_open():
    ledger, _, _ = ledger_of()
    open_it(ledger)
    ledger.set_cursor("u", 1)

    ledger.begin_trial(1)
    ledger.trial_ended(Unstorable("odd"), 1)

    assert ledger.cursors == {}


def test_cursors_never_go_back_and_are_bounded():
    ledger, _, _ = ledger_of()
    ledger.set_cursor("u", 5)
    ledger.set_cursor("u", 3)
    assert ledger.cursors == {"u": 5}

    batch = ledger.begin(0)
    ledger.set_cursor("u", 6)
    ledger.committed(0)
    assert batch.cursors == {"u": 5}
    assert ledger.cursors == {"u": 6}  # moved on while the other was written

    for n in range(MAX_CURSORS):
        ledger.set_cursor(f"u{n}", 1)
    assert len(ledger.cursors) == MAX_CURSORS
    assert "u" not in ledger.cursors


def test_an_append_made_by_an_answer_waits_behind_those_that_wait():
    ledger, answers, _ = ledger_of()

    def then(n: int, kept: bool) -> None:
        if n == 1:
            assert ledger.put(answers.append(9))

    answers.then = then
    for n in (1, 2):
        ledger.put(answers.append(n))
    open_it(ledger)

    assert answers.given == [(1, False), (2, False), (9, False)]


def test_closed_for_good_it_takes_nothing_and_muted_it_tells_nobody():
    ledger, answers, _ = ledger_of()
    ledger.put(answers.append(1))
    ledger.closing = True
    assert not ledger.put(answers.append(2))

    ledger.muted = True
    ledger.begin(0)
    ledger.committed(0)
    ledger.refuse()

    assert answers.given == []


def test_a_backlog_is_bounded_in_events_and_in_bytes(monkeypatch):
    answers = Answers()
    monkeypatch.setattr(jobs, "FULL_EVENTS", 4)
    backlog = Backlog()
    for n in range(1, 5):
        backlog.add(answers.append(n))
    assert not backlog.is_full
    backlog.add(answers.append(5))
    assert backlog.is_full

    monkeypatch.setattr(jobs, "FULL_EVENTS", 1000)
    monkeypatch.setattr(jobs, "FULL_BYTES", backlog.bytes)
    assert not backlog.is_full
    backlog.add(answers.append(6))
    assert backlog.is_full


def test_a_job_that_waits_alone_is_never_too_much(monkeypatch):
    monkeypatch.setattr(jobs, "FULL_EVENTS", 2)
    monkeypatch.setattr(jobs, "FULL_BYTES", 10)
    backlog = Backlog()

    backlog.add(Answers().append(1, 2, 3))

    assert not backlog.is_full


def test_a_batch_ends_at_events_or_bytes_and_holds_at_least_one(monkeypatch):
    answers = Answers()
    backlog = Backlog()
    for n in range(1, 6):
        backlog.add(answers.append(n))

    assert len(backlog.batch(2)) == 2
    monkeypatch.setattr(jobs, "BATCH_BYTES", 1)
    assert len(backlog.batch()) == 1
    assert len(backlog.batch(0)) == 0
    assert len(backlog.batch()) == len(backlog.batch()) == 1
    assert (backlog.batch(), backlog.events, backlog.bytes) == ([], 0, 0)


class Naive:
    """Drives a ledger with a disk that is a list, and checks each answer as it comes."""

    def __init__(self) -> None:
        self.ledger, self.answers, _ = ledger_of()
        self.now = 0.0
        self.made = 0
        self.taken: list[int] = []
        self.stored: list[int] = []
        self.told_lost = 0  # what the disk says is lost
        self.extras_dropped = False
        self.trying = False

    def put(self) -> None:
        self.made += 1
        if self.ledger.put(self.answers.append(self.made)):
            self.taken.append(self.made)
        else:
            # Refused, it is delivered at once: nothing that comes before it may be waiting.
            assert [n for n, _ in self.answers.given] == self.taken

    def wait(self) -> None:
        self.now += 1.5

    def chore_fails(self) -> None:
        self.ledger.failed(error_of(*FULL), self.now)

    def overdue(self) -> None:
        if self.ledger.flight:
            self.ledger.overdue("too slow", self.now)

    def begin(self) -> None:
        if self.ledger.flight is None:
            self.trying = not self.ledger.is_closed
            if self.trying:
                self.ledger.begin_trial(self.now)
            else:
                self.ledger.begin(self.now)

    def commit(self) -> None:
        flight = self.ledger.flight
        if flight is not None:
            self.stored += [r.n for r in flight.batch.records]
            self.told_lost = max([self.told_lost, *(n for _, n in flight.batch.lost.values())])
            if self.trying:
                self.ledger.trial_ended(None, self.now)
            else:
                self.ledger.committed(self.now)

    def fail(self, error: Exception | None = None) -> None:
        error = error or error_of(*FULL)
        if self.ledger.flight is None:
            return
        if self.trying:
            self.ledger.trial_ended(error, self.now)
        elif not self.ledger.attempt_failed(error, self.now):
            self.ledger.dropped(error)

    def poison(self) -> None:
        if self.ledger.flight is not None:
            self.extras_dropped = True
            self.fail(Unstorable("odd"))


steps = ["put", "put", "put", "begin", "commit", "fail", "overdue", "poison", "wait", "chore_fails"]


@given(actions=st.lists(st.sampled_from(steps), max_size=50))
def test_whatever_happens_each_append_is_answered_once_and_in_order(actions):
    naive = Naive()
    for action in actions:
        getattr(naive, action)()
    ledger = naive.ledger
    ledger.refuse()

    answers = naive.answers.given
    assert [n for n, _ in answers] == naive.taken
    assert {n for n, kept in answers if kept} <= set(naive.stored)
    assert naive.stored == sorted(set(naive.stored))
    if not naive.extras_dropped:
        # A client that asks for more than is stored is told: all that is missing is known to be.
        flying = {r.n for r in ledger.flight.batch.records} if ledger.flight else set()
        missing = set(range(1, naive.made + 1)) - set(naive.stored) - flying
        to_tell = [n for _, n in ledger.lost.values()]
        assert max(missing, default=0) <= max([naive.told_lost, *to_tell])


def test_what_is_lost_is_what_was_last_lost_of_each_stream():
    ledger, answers, _ = ledger_of()
    open_it(ledger)

    for n, channel in ((1, "a"), (2, "b"), (3, "a")):
        ledger.put(answers.append(n, channel=channel))

    assert ledger.lost == {("a", "BTC"): (3, 3), ("b", "BTC"): (2, 2)}
    assert record(1).stream == ("user_1_trades", "BTC")
