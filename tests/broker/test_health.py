"""When the daemon says it is alive, ready, and what ails it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptows.broker.health import LAG_HIGH, LAG_LOW, Answer, Health, State


@pytest.mark.parametrize(
    ("health", "status", "word"),
    [
        (Health(), 503, "starting"),
        (Health(State.RUNNING), 200, "ready"),
        (Health(State.RUNNING, overloaded=True), 503, "overloaded"),
        (Health(State.DRAINING), 503, "draining"),
        (Health(State.DRAINING, overloaded=True), 503, "draining"),
    ],
)
def test_ready_means_new_clients_are_welcome_and_alive_means_it_answers(health, status, word):
    assert health.readyz() == Answer(status, b'{"status":"%s","store":"ok"}\n' % word.encode())
    assert health.readyz(verbose=True).status == status
    assert health.healthz() == Answer(200, b'{"status":"ok"}\n')


def test_a_failed_store_is_told_but_turns_no_client_away():
    health = Health(State.RUNNING, store="open", store_error="disk full; next try in 4 s")

    assert health.readyz() == Answer(200, b'{"status":"ready","store":"open"}\n')
    assert "[-] store: disk full; next try in 4 s" in health.readyz(verbose=True).body.decode()


def test_the_list_for_people():
    health = Health(State.RUNNING, reload_ok=False, pending_restart=("server.listen",), lag=0.0123)

    answer = health.readyz(verbose=True)

    assert answer.content_type == "text/plain; charset=utf-8"
    assert answer.body.decode() == (
        "[+] state: running\n"
        "[+] loop: 12.3 ms late\n"
        "[+] store: breaker closed\n"
        "[-] config: last reload was bad\n"
        "[ ] waiting for a restart: server.listen\n"
        "ready\n"
    )


def test_overload_needs_three_late_samples_and_five_good_ones_to_end():
    health = Health(State.RUNNING)
    samples = [0.6, 0.6, 0.0, 0.6, 0.6, 0.6, 0.05, 0.05, 0.05, 0.05, 0.2, *[0.05] * 5]

    changes = [(n, health.overloaded) for n, lag in enumerate(samples) if health.observe_lag(lag)]

    assert changes == [(5, True), (15, False)]
    assert health.lag == 0.05


@given(st.lists(st.floats(min_value=LAG_LOW, max_value=LAG_HIGH, exclude_max=True)))
def test_between_the_two_bounds_nothing_changes(samples):
    for overloaded in (False, True):
        health = Health(State.RUNNING, overloaded=overloaded)

        assert not any(health.observe_lag(lag) for lag in samples)
        assert health.overloaded is overloaded
