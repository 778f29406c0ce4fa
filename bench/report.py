"""The results as Markdown: one summary for the README, and a table for each work."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.durable import BATCH, BATCHES, CLIENTS, MISSED, Durable
from bench.figures import Figures, ratio
from bench.work import FAN_OUT, IDLE, INGEST, SLOW, SYMBOLS, WORKS, Work

Table = Sequence[Sequence[str]]  # the first row is the head
Column = tuple[str, Callable[[Figures], str]]
NOTHING = "–"
BEGIN, END = "<!-- bench: written by ./run bench -->", "<!-- /bench -->"

METHOD = """\
Written by `./run bench`. One server after the other does the same work: it takes events on a Unix
socket (NATS: over TCP) and gives each to its subscribers over WebSocket on loopback. The server is
pinned to one CPU; the load client, in C, to another, and it decodes no JSON. Ratios within a run
are what to compare; the numbers themselves belong to the machine. *floor* is a C loop of `send()`
that can do nothing else: what the system calls cost by themselves.

Latency is from the moment the event is written (or was due, when the server did not read) to its
receipt. *missing*: deliveries that had not come ten seconds after the end. *(behind)*: the server
took or passed on less than was offered while it was measured.
"""


def results(
    figures: Sequence[Figures],
    titles: dict[str, str],
    machine: Sequence[str],
    durable: Durable | None = None,
) -> str:
    """Return the whole of RESULTS.md."""
    parts = ["# Measurements", METHOD, "\n".join(f"- {line}" for line in machine)]
    if figures:
        parts += ["## Summary", summary(figures, titles)]
        parts += ["## Latency against offered load", "![p99 against offered load](latency.svg)"]
    for work in WORKS:
        done = [f for f in figures if f.work.name == work.name]
        if done:
            parts += [f"## {done[0].work.title}", markdown(details(done, figures, titles))]
    if durable is not None:
        parts += ["## Durable events", kept(durable)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def summary(figures: Sequence[Figures], titles: dict[str, str]) -> str:
    """Return the table that the README shows: a row for each server."""
    cells = {(f.server, f.work.name): f for f in figures}
    columns: list[tuple[str, Work, Callable[[Figures], str]]] = [
        *((f"{_rate(work)}, 500 clients", work, _per_cpu) for work in FAN_OUT),
        ("50 symbols, 300 clients", SYMBOLS, _per_cpu),
        ("p99 at 1000/s", FAN_OUT[1], lambda f: f"{f.report.p99_ms:.2f} ms"),
        ("events in, nobody listens", INGEST, lambda f: f"{short(f.taken_per_second)}/s"),
        ("idle connection", IDLE, lambda f: f"{f.kib_per_client:.1f} KiB"),
        ("connects", IDLE, lambda f: f"{short(f.connects_per_second)}/s"),
    ]
    done = {f.work.name for f in figures}
    columns = [column for column in columns if column[1].name in done]
    rows = [["server", *(title for title, _, _ in columns)]]
    for server in dict.fromkeys(f.server for f in figures):
        found = [(cells.get((server, work.name)), show) for _, work, show in columns]
        rows.append([titles[server], *(show(f) if f else NOTHING for f, show in found)])
    note = "Deliveries for each CPU-second of the server, where nothing else is said."
    return f"{note}\n\n{markdown(rows)}"


def kept(durable: Durable) -> str:
    """Return the table of what no peer does."""
    sent, missed = short(BATCHES * BATCH), short(MISSED)
    stored = f"{sent} trades of one producer, {BATCH} in flight, acknowledged after the commit"
    back = f"{CLIENTS} clients that come back at once after a restart, {missed} events each"
    return markdown([
        ["what", "figure"],
        [stored, f"{short(durable.acknowledged)} events/s"],
        [back, f"{durable.recovery:.1f} s"],
    ])  # fmt: skip


def details(done: Sequence[Figures], figures: Sequence[Figures], titles: dict[str, str]) -> Table:
    """Return the table of one work."""
    work = done[0].work
    columns: list[Column] = [("server", lambda f: titles[f.server])]
    if work.rate is None:
        columns += [
            ("KiB for each idle connection", lambda f: f"{f.kib_per_client:.1f}"),
            ("connects/s", lambda f: short(f.connects_per_second)),
            ("CPU for each connect, ms", lambda f: f"{f.connect_cpu_ms:.2f}"),
        ]
    elif not work.listening:
        columns += [
            ("events/s", lambda f: short(f.taken_per_second)),
            ("server CPU", lambda f: _share(f.report.server_cpu, f)),
        ]
    else:
        columns += _fan_out_columns(done)
    if work.name == SLOW.name:
        without = {f.server: f.report.p99_ms for f in figures if f.work.name == FAN_OUT[1].name}
        columns.append(
            ("p99 ÷ without", lambda f: _times(f.report.p99_ms, without.get(f.server, 0)))
        )
    return [[title for title, _ in columns], *([show(f) for _, show in columns] for f in done)]


def _fan_out_columns(done: Sequence[Figures]) -> list[Column]:
    floor = next((f.per_cpu_second for f in done if f.server == "floor"), 0.0)
    columns: list[Column] = [
        ("deliveries/s", lambda f: short(f.per_second) + (" (behind)" if f.overloaded else "")),
        ("per CPU-second", lambda f: short(f.per_cpu_second)),
        ("÷ floor", lambda f: _times(f.per_cpu_second, floor)),
        ("p50 ms", lambda f: f"{f.report.p50_ms:.2f}"),
        ("p99 ms", lambda f: f"{f.report.p99_ms:.2f}"),
        ("p99.9 ms", lambda f: f"{f.report.p999_ms:.2f}"),
        ("missing", lambda f: str(f.lost)),
        ("server CPU", lambda f: _share(f.report.server_cpu, f)),
        ("client CPU", lambda f: _share(f.report.client_cpu, f)),
    ]
    return [column for column in columns if floor or column[0] != "÷ floor"]


def markdown(rows: Table) -> str:
    """Return a table, its columns aligned in the source too, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [_line(row, widths) for row in rows]
    rule = [("-" * width) if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join([lines[0], f"| {' | '.join(rule)} |", *lines[1:]])


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = (
        text.ljust(width) if i == 0 else text.rjust(width)
        for i, (text, width) in enumerate(zip(row, widths, strict=True))
    )
    return f"| {' | '.join(cells)} |"


def splice(text: str, table: str) -> str:
    """Return a README with the table between its two marks; unchanged where it has none."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{begin}\n\n{table}\n\n{end}{after}" if end else text


def short(number: float) -> str:
    """Return a number to three digits, thousands apart: 596 000."""
    if number < 1000:
        return f"{number:.3g}"
    digits = len(str(int(number)))
    return f"{round(number, 3 - digits):,.0f}".replace(",", " ")


def _rate(work: Work) -> str:
    return f"{work.rate:g}/s"


def _per_cpu(figures: Figures) -> str:
    return short(figures.per_cpu_second) + (" (behind)" if figures.overloaded else "")


def _times(part: float, whole: float) -> str:
    return f"{ratio(part, whole):.2f}" if whole else NOTHING


def _share(cpu: float, figures: Figures) -> str:
    return f"{100 * ratio(cpu, figures.report.seconds):.0f} %"
