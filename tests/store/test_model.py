"""The database as a whole against dicts: any order of writing, reading, pruning and crashing."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cryptows.model.channel import Lane
from cryptows.model.event import Record
from cryptows.store.jobs import Batch
from cryptows.store.keeping import CLOSE_GAP
from cryptows.store.rows import StoredEvent
from cryptows.store.sqlite import Database

from .stores import crash, settings_for

channels = st.sampled_from(["user_1_trades", "user_2_trades", "user_2_alerts"])
symbols = st.sampled_from([None, "BTC", "ETH"])
KEEP = 8


class StoreMachine(RuleBasedStateMachine):
    """What a naive store with dicts would say, beside the real one."""

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.now = 1_000_000.0
        self.events: dict[int, StoredEvent] = {}
        self.gone: dict[str, int] = {}
        self.seqs: dict[tuple[str, str | None], int] = {}
        self.cursors: dict[str, int] = {}
        self.ids: list[tuple[str, int]] = []
        self.handed_out = 0
        self.settings = settings_for(self.folder, keep_events=KEEP, keep=60)
        self.stored_at: dict[int, float] = {}
        self.open()
        self.epoch = self.database.file.epoch

    def open(self) -> None:
        self.database = Database(self.settings, now=lambda: self.now)
        assert self.database.file.position >= self.handed_out
        self.handed_out = self.database.file.position

    def make(self, channel: str, symbol: str | None) -> Record:
        self.handed_out += 1
        n = self.handed_out
        seq = self.seqs[channel, symbol] = self.seqs.get((channel, symbol), 0) + 1
        return Record(n, seq, channel, symbol, Lane.PRIVATE, n, b"{%d}" % n, b"")

    @rule(
        streams=st.lists(st.tuples(channels, symbols), max_size=12),
        cursor=st.none() | st.tuples(st.sampled_from("uv"), st.integers(0, 99)),
        ids=st.lists(st.text(max_size=3).filter(lambda t: t.isascii()), max_size=2),
    )
    def write(self, streams, cursor, ids):
        records = [self.make(*stream) for stream in streams]
        pairs = [(id_, self.handed_out) for id_ in ids]
        self.database.write(Batch(records, pairs, dict([cursor] if cursor else [])))
        for r in records:
            self.events[r.n] = StoredEvent(r.n, r.channel, r.symbol, r.seq, r.timestamp, r.envelope)
            self.stored_at[r.n] = self.now
        self.ids += pairs
        if cursor:
            self.cursors[cursor[0]] = max(cursor[1], self.cursors.get(cursor[0], 0))

    @rule(stream=st.tuples(channels, symbols))
    def lose(self, stream):
        r = self.make(*stream)
        self.database.file.top = r.n
        self.database.write(Batch(lost={(r.channel, r.symbol or ""): (r.seq, r.n)}))
        self.gone[r.channel] = r.n

    @rule(
        which=st.lists(channels, unique=True),
        back=st.integers(0, 30),
        limit=st.integers(1, 20),
        until=st.none() | st.integers(0, 30),
        newest=st.booleans(),
    )
    def read(self, which, back, limit, until, newest):
        since = max(0, self.handed_out - back)
        end = None if until is None else since + until
        found = self.database.read(which, since, limit, end, newest)
        expected = [
            e for n, e in self.events.items()
            if e.channel in which and n > since and (end is None or n <= end)
        ]  # fmt: skip
        assert found == (expected[::-1] if newest else expected)[:limit]
        assert self.database.floor(which) == max([self.gone.get(c, 0) for c in which], default=0)

    @rule(seconds=st.sampled_from([1.0, 20.0, 61.0]))
    def let_time_pass(self, seconds):
        self.now += seconds

    @rule()
    def prune(self):
        self.database.sweep()
        for step in self.database.prunable():
            self.database.prune(step)
        for channel in {e.channel for e in self.events.values()}:
            of_it = [n for n, e in self.events.items() if e.channel == channel]
            old = [n for n in of_it if self.stored_at[n] < self.now - 60]
            for n in sorted({*old, *of_it[:-KEEP]}):
                del self.events[n]
                self.gone[channel] = max(n, self.gone.get(channel, 0))

    @rule()
    def sweep(self):
        self.database.sweep()

    @rule()
    def inspect(self):
        self.database.inspect()

    @rule()
    def restart(self):
        self.database.close(position=self.handed_out)
        before = self.handed_out
        self.open()
        assert self.handed_out == before + CLOSE_GAP

    @rule()
    def crash(self):
        crash(self.database)
        self.open()

    @rule()
    def probe(self):
        self.database.probe(Batch())

    @invariant()
    def nothing_else_has_changed(self):
        if not hasattr(self, "database"):
            return
        assert self.database.file.epoch == self.epoch
        assert self.database.streams() == self.seqs
        assert [(id_, n) for id_, n, _ in self.database.ids()] == self.ids
        assert {u: self.database.cursor(u) for u in "uv"} == {u: self.cursors.get(u) for u in "uv"}

    def teardown(self):
        if hasattr(self, "database"):
            self.database.close()
            shutil.rmtree(self.folder)


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = hypothesis_settings(max_examples=25, stateful_step_count=25)
