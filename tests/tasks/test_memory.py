"""When memory is given back, and that it can be."""

from __future__ import annotations

import ctypes

import pytest

from cryptows.tasks.memory import CROWD, Crowd, give_back


def given_back(counts: list[int]) -> list[int]:
    """Return at which of these numbers of clients memory was given back."""
    at: list[int] = []
    crowd = Crowd(lambda: at.append(clients))
    for clients in counts:
        crowd.look(clients)
    return at


@pytest.mark.parametrize(
    ("counts", "at"),
    [
        ([0, 0, CROWD - 1, 0], []),
        ([CROWD, CROWD // 2, CROWD // 4 + 1], []),
        ([CROWD, CROWD // 4, 0], [CROWD // 4]),
        ([8 * CROWD, 2 * CROWD, 2 * CROWD, 0, 0], [2 * CROWD, 0]),
        ([CROWD, 0, CROWD, 0], [0, 0]),
    ],
)
def test_memory_is_given_back_once_when_most_of_many_have_gone(counts, at):
    assert given_back(counts) == at


def test_a_crowd_that_comes_and_goes_between_two_looks_is_noticed():
    given: list[str] = []
    crowd = Crowd(lambda: given.append("back"))

    crowd.note(CROWD)
    crowd.look(0)

    assert given == ["back"]


def test_garbage_is_freed():
    class Node:
        gone = False

        def __del__(self):
            Node.gone = True

    node = Node()
    node.itself = node  # type: ignore[attr-defined]
    del node

    give_back()

    assert Node.gone


def test_a_c_library_without_trimming_will_do(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())

    give_back()
