"""What a ring keeps: held against a list of everything."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cryptows.broker.ring import SLACK, Ring
from cryptows.model.event import Record
from tests.broker.events import keeping, record
from tests.effort import effort


def positions(records: list[Record]) -> list[int]:
    return [record.n for record in records]


def ring(**limits) -> Ring:
    return Ring(keeping(**limits))


def test_a_ring_keeps_the_latest_events():
    kept = ring(events=3)

    for n in range(1, 6):
        kept.add(record(n))

    assert positions(kept.after(0, 10)) == [3, 4, 5]
    assert (len(kept), kept.lost) == (3, 2)


def test_a_ring_keeps_so_many_bytes():
    kept = ring(bytes=200)

    for n in range(1, 6):
        kept.add(record(n, size=80))

    assert positions(kept.after(0, 10)) == [4, 5]
    assert (kept.bytes, kept.lost) == (160, 3)


def test_an_event_over_all_bounds_is_not_kept_and_said_to_be_lost():
    kept = ring(bytes=200)
    kept.add(record(1))

    kept.add(record(2, size=201))

    assert (len(kept), kept.bytes, kept.lost) == (0, 0, 2)


def test_without_history_everything_is_lost_at_once():
    kept = ring(events=0)

    kept.add(record(5))

    assert (kept.after(0, 10), kept.lost) == ([], 5)


def test_a_ring_forgets_what_is_old():
    kept = ring(age=10)
    kept.expire(100)
    kept.add(record(1))
    kept.add(record(2))
    kept.expire(101)
    kept.add(record(3))
    kept.expire(105)

    kept.expire(110.9)
    assert positions(kept.after(0, 10)) == [1, 2, 3]
    kept.expire(111)
    assert (positions(kept.after(0, 10)), kept.lost) == ([3], 2)
    kept.expire(115)
    assert (len(kept), kept.lost, kept.bytes) == (0, 3, 0)


def test_the_age_is_that_of_the_daemons_clock_not_of_the_producers():
    kept = ring(age=10)
    kept.add(record(1))  # whose timestamp is in 1970

    kept.expire(100)

    assert len(kept) == 1


def test_what_is_remembered_of_ages_is_bounded():
    kept = ring(age=600, events=100)
    now = 0.0
    for n in range(1, 5000):
        now += 1
        kept.add(record(n))
        kept.expire(now)

    assert len(kept._marks) <= 60


def test_a_ring_does_not_hold_what_it_dropped_for_long():
    kept = ring(events=10)

    for n in range(1, 5000):
        kept.add(record(n))
        assert len(kept._records) <= 2 * 10 + SLACK


def test_the_bounds_may_be_changed():
    kept = ring(events=10)
    for n in range(1, 11):
        kept.add(record(n))

    kept.limit = keeping(events=3)
    kept.add(record(11))

    assert positions(kept.after(0, 10)) == [9, 10, 11]


class RingMachine(RuleBasedStateMachine):
    """Beside the ring a list with all records and when each came in."""

    def __init__(self) -> None:
        super().__init__()
        self.ring = ring(events=7, bytes=700, age=60.0)
        self.kept: list[tuple[float, Record]] = []
        self.now, self.n, self.lost = 0.0, 0, 0

    @rule(size=st.integers(20, 400), step=st.integers(1, 3))
    def add(self, size, step):
        self.n += step
        made = record(self.n, size=size)
        self.ring.add(made)
        self.kept.append((self.now, made))
        while len(self.kept) > 7 or sum(len(r.envelope) for _, r in self.kept) > 700:
            self.lost = self.kept.pop(0)[1].n

    @rule(step=st.sampled_from([0.5, 1, 5, 30, 61]))
    def expire(self, step):
        self.now += step
        self.ring.expire(self.now)
        # Nothing goes too early. It may go a little late: a 60th of the age, and looks apart.
        gone = len(self.kept) - len(self.ring)
        assert all(self.now - at >= 60 for at, _ in self.kept[:gone])
        if gone:
            self.lost = self.kept[gone - 1][1].n
            del self.kept[:gone]

    @rule()
    def wait_with_looks(self):
        for _ in range(62):
            self.now += 1
            self.ring.expire(self.now)
        if self.kept:
            self.lost = self.kept[-1][1].n
        self.kept.clear()

    @rule(n=st.integers(0, 60), most=st.integers(0, 9))
    def after(self, n, most):
        wanted = [r for _, r in self.kept if r.n > n][:most]
        assert self.ring.after(n, most) == wanted

    @invariant()
    def it_is_the_list(self):
        assert self.ring.after(0, 100) == [r for _, r in self.kept]
        assert len(self.ring) == len(self.kept)
        assert self.ring.bytes == sum(len(r.envelope) for _, r in self.kept)
        assert self.ring.lost == self.lost


TestRing = RingMachine.TestCase
TestRing.settings = effort(examples=40, steps=25)
