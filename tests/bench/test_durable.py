"""Measuring durable events: on a small scale, against the real daemon."""

from __future__ import annotations

import socket

import pytest

from bench import durable
from bench.durable import REPLAYED, Crowd, expect_ok, measure_durable
from bench.measure import Bench, MeasureError
from bench.servers import servers

pytestmark = pytest.mark.e2e


def test_every_trade_is_acknowledged_and_comes_back_to_everyone(monkeypatch, tmp_path):
    for name, value in (("BATCHES", 3), ("MISSED", 300), ("CLIENTS", 5)):
        monkeypatch.setattr(durable, name, value)

    found = measure_durable(Bench(tmp_path, 0, 0), servers()[0])

    assert found.acknowledged > 0
    assert found.recovery > 0


def test_an_event_is_counted_once_however_its_bytes_come():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        crowd = Crowd([ours])
        for byte in (b"{" + REPLAYED) * 3:
            theirs.send(bytes((byte,)))
            crowd._read(ours)

        assert crowd.count(ours) == 3


def test_a_client_that_is_closed_is_told():
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(MeasureError, match="closed a client"):
        Crowd([ours]).read_until(1)


def test_a_client_that_misses_events_is_told():
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(MeasureError, match="1 clients miss events"):
        Crowd([ours]).read_until(1, limit=0.01)


def test_what_is_not_acknowledged_is_told():
    with pytest.raises(MeasureError, match="not acknowledged"):
        expect_ok(b'{"ok":false}\n')
