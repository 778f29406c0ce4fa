"""`./run bench`: measure and print tables; a whole run also writes them where they are shown."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import attrs

from bench.durable import Durable, measure_durable
from bench.figures import Figures
from bench.machine import describe
from bench.measure import Bench, MeasureError
from bench.plot import Series, plot
from bench.report import results, splice, summary
from bench.servers import HERE, PEERS, Server, servers
from bench.work import FAN_OUT, SWEEP, WORKS, Work, quick

RESULTS = HERE / "RESULTS.md"
README = HERE.parent / "README.md"
DURABLE = "durable"  # beside the works: what only the daemon does


@attrs.frozen
class Plan:
    """What one run measures."""

    servers: list[Server]
    works: list[Work]
    durable: bool  # whether the daemon's durable events are measured too
    out: Path | None  # where the results go, beside the terminal
    readme: bool  # whether the README's table is renewed


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the arguments say; return 1 when a measurement failed."""
    plan = read_arguments(arguments)
    present = find_present(plan.servers)
    try:
        with tempfile.TemporaryDirectory(prefix="cryptows-bench-tools-") as folder:
            bench = Bench.prepare(Path(folder))
            figures, failed = measure(bench, present, plan.works)
            durable = measure_kept(bench, plan)
    except MeasureError as error:
        note(str(error))
        return 1
    if figures or durable is not None:
        publish(figures, durable, plan)
    return 1 if failed else 0


def read_arguments(arguments: Sequence[str] | None) -> Plan:
    """Read the command line; ends the program when it makes no sense."""
    known = {server.name: server for server in servers()}
    works = {work.name: [work] for work in WORKS} | {"sweep": list(SWEEP)}
    parser = argparse.ArgumentParser(prog="./run bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short and small: to see that it runs")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", choices=[*known, *works, DURABLE],
        help=f"servers ({', '.join(known)}) and works ({', '.join([*works, DURABLE])});"
        " all of a kind if none",
    )  # fmt: skip
    parser.add_argument("--seconds", type=float, help="how long each measurement takes")
    parser.add_argument("--out", type=Path, help="write the results there, and latency.svg beside")
    given = parser.parse_args(arguments)

    chosen_servers = [known[name] for name in known if name in given.only] or list(known.values())
    named = [name for name in works if name in given.only]
    names = named or ([] if DURABLE in given.only else list(works))
    chosen = [work for name in names for work in works[name]]
    if given.quick:
        chosen = [quick(work) for work in chosen]
    if given.seconds:
        chosen = [attrs.evolve(work, seconds=given.seconds) for work in chosen]
    whole = not (given.quick or given.only or given.seconds)
    out = given.out or (RESULTS if whole else None)
    durable = DURABLE in given.only or not (named or given.quick)
    return Plan(chosen_servers, chosen, durable, out, readme=whole and given.out is None)


def find_present(wanted: Sequence[Server]) -> list[Server]:
    """Return the servers that can run here, the Node ones after installing them; tell of others."""
    if any("npm ci" in server.missing() for server in wanted) and shutil.which("npm"):
        note("installing the Node peers")
        subprocess.run(["npm", "ci", "--prefix", PEERS, "--silent"], check=False)
    present = [server for server in wanted if not server.missing()]
    for server in wanted:
        if server not in present:
            note(f"{server.name} is left out: {server.missing()}")
    return present


def measure(
    bench: Bench, present: Sequence[Server], works: Sequence[Work]
) -> tuple[list[Figures], int]:
    """Measure work by work, the servers one after the other; return figures and failures."""
    if bench.server_cpu == bench.client_cpu:
        note("only one CPU: server and load client share it, the figures say little")
    figures, failed = [], 0
    todo = [(work, server) for work in works for server in present if server.can(work)]
    for number, (work, server) in enumerate(todo, 1):
        note(f"[{number}/{len(todo)}] {server.name}: {work.title}")
        try:
            figures.append(bench.run(server, work))
        except MeasureError as error:
            note(f"{server.name} failed: {error}")
            failed += 1
    return figures, failed


def measure_kept(bench: Bench, plan: Plan) -> Durable | None:
    """Measure durable events, if that is wanted of the daemon."""
    own = [server for server in plan.servers if server.name == "cryptows"]
    if not (plan.durable and own):
        return None
    note("cryptows: durable events")
    return measure_durable(bench, own[0])


def publish(figures: Sequence[Figures], durable: Durable | None, plan: Plan) -> None:
    """Print the results, and write them where the plan says."""
    titles = {server.name: server.title for server in plan.servers}
    text = results(figures, titles, describe(), durable)
    print(text)
    if plan.out is None:
        return
    plan.out.write_text(text)
    drawing = latency_plot(figures, titles)
    if drawing:
        plan.out.with_name("latency.svg").write_text(drawing)
    if plan.readme and README.exists():
        README.write_text(splice(README.read_text(), summary(figures, titles)))


def latency_plot(figures: Sequence[Figures], titles: dict[str, str]) -> str:
    """Return the plot of p99 against offered load, empty where nothing fits it."""
    names = {work.name for work in (*FAN_OUT, *SWEEP)}
    drawn = [f for f in figures if f.work.name in names and f.work.rate and f.report.p99_ms > 0]
    series = [
        Series(
            titles[server].replace("`", ""),
            tuple((f.work.rate or 0, f.report.p99_ms) for f in drawn if f.server == server),
            frozenset(f.work.rate or 0 for f in drawn if f.server == server and f.overloaded),
        )
        for server in dict.fromkeys(f.server for f in drawn)
    ]
    title = "p99 latency, 500 clients of one channel, one core"
    return plot(series, title, "events/s offered (each to 500 clients)", "ms") if series else ""


def note(text: str) -> None:
    """Tell whoever waits."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
