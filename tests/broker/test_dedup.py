"""Which ids are known: held against a list of all that were ever added."""

from hypothesis import given
from hypothesis import strategies as st

from cryptows.broker.dedup import Dedup


def test_an_id_is_known_within_the_window():
    dedup = Dedup(window_ms=1000, capacity=10)

    dedup.add("t-1", b"k.7", now_ms=5000)

    assert dedup.find("t-1", 5000) == dedup.find("t-1", 5999) == b"k.7"
    assert dedup.find("t-1", 6000) is None
    assert dedup.find("t-2", 5000) is None


def test_an_id_that_comes_again_later_counts_anew():
    dedup = Dedup(1000, 10)
    dedup.add("t-1", b"k.7", 5000)

    dedup.add("t-1", b"k.9", 6500)

    assert dedup.find("t-1", 7000) == b"k.9"
    assert len(dedup) == 1


def test_the_oldest_id_makes_room():
    dedup = Dedup(1000, capacity=2)
    for number in range(3):
        dedup.add(f"t-{number}", b"", 5000 + number)

    assert [dedup.find(f"t-{number}", 5003) for number in range(3)] == [None, b"", b""]
    assert len(dedup) == 2


def test_old_ids_go_with_the_next_one():
    dedup = Dedup(1000, 100)
    for number in range(50):
        dedup.add(f"t-{number}", b"", 5000)

    dedup.add("new", b"", 6000)

    assert len(dedup) == 1


def test_without_a_window_nothing_is_remembered():
    dedup = Dedup(0, 100)

    dedup.add("t-1", b"", 5000)

    assert dedup.find("t-1", 5000) is None
    assert len(dedup) == 0


def test_a_clock_that_is_set_back_forgets_nothing():
    dedup = Dedup(1000, 100)
    dedup.add("t-1", b"k.1", 5000)

    dedup.add("t-2", b"k.2", 1000)

    assert (dedup.find("t-1", 1000), dedup.find("t-2", 1000)) == (b"k.1", b"k.2")


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 400)), max_size=60),
    st.integers(0, 1000),
    st.integers(1, 5),
)
def test_it_knows_what_a_list_of_everything_knows(steps, window, capacity):
    dedup, now = Dedup(window, capacity), 0
    added: list[tuple[str, int, bytes]] = []
    for number, (id_, step) in enumerate(steps):
        now += step
        latest = {id_: (at, offset) for id_, at, offset in added}  # the last one wins
        newest = sorted(latest.items(), key=lambda item: item[1])[-capacity:]
        known = {id_: offset for id_, (at, offset) in newest if now - at < window}

        assert dedup.find(id_, now) == known.get(id_)

        if id_ not in known:
            offset = b"k.%d" % number
            dedup.add(id_, offset, now)
            added.append((id_, now, offset))
        assert len(dedup) <= capacity
