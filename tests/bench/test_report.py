import re

import pytest

from bench.figures import Figures, Report
from bench.report import BEGIN, END, details, markdown, results, short, splice, summary
from bench.work import FAN_OUT, IDLE, INGEST, SLOW, WORKS, Work

TITLES = {"cryptows": "cryptows `/ws`", "floor": "floor (C)"}


def figures(server: str, work: Work, *, p99: float = 2.0, cpu: float = 2.0) -> Figures:
    published = int((work.rate or 0) * work.seconds)
    deliveries = work.expected(published)
    report = Report(
        clients=work.clients, connect_seconds=1, connect_cpu=1, idle_kib=16.0 * work.clients,
        seconds=work.seconds, server_cpu=cpu, client_cpu=1, published=published,
        published_in_window=published, delivered=deliveries, delivered_in_window=deliveries,
        p50_ms=1, p99_ms=p99, p999_ms=3,
    )  # fmt: skip
    return Figures(server, work, report)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"), (0.5, "0.5"), (12.345, "12.3"), (999, "999"), (1000, "1 000"),
        (83_456, "83 500"), (596_412, "596 000"), (2_345_678, "2 350 000"),
    ],
)  # fmt: skip
def test_a_number_has_three_digits_and_its_thousands_apart(number, text):
    assert short(number) == text


def test_a_table_is_aligned_in_the_source():
    text = markdown([["server", "n"], ["a", "10"], ["longer name", "5"]])

    assert text.splitlines() == [
        "| server      |  n |",
        "| ----------- | -: |",
        "| a           | 10 |",
        "| longer name |  5 |",
    ]


def test_the_table_of_a_work_compares_with_the_floor():
    done = [figures("floor", FAN_OUT[0], cpu=1), figures("cryptows", FAN_OUT[0], cpu=2)]

    head, floor, own = details(done, done, TITLES)

    assert own[0] == "cryptows `/ws`"
    assert (floor[head.index("÷ floor")], own[head.index("÷ floor")]) == ("1.00", "0.50")


def test_without_the_floor_there_is_no_column_for_it():
    done = [figures("cryptows", FAN_OUT[0])]

    assert "÷ floor" not in details(done, done, TITLES)[0]


def test_the_table_of_slow_clients_compares_with_the_run_without():
    done = [figures("cryptows", SLOW, p99=3)]

    head, own = details(done, [*done, figures("cryptows", FAN_OUT[1], p99=2.5)], TITLES)

    assert own[head.index("p99 ÷ without")] == "1.20"


def test_the_summary_has_only_what_was_measured():
    text = summary([figures("cryptows", IDLE), figures("floor", INGEST)], TITLES)

    head = text.splitlines()[2]
    assert [cell.strip() for cell in head.strip("|").split("|")] == [
        "server", "events in, nobody listens", "idle connection", "connects",
    ]  # fmt: skip
    assert re.search(r"cryptows.*\|\s+– \|\s+16.0 KiB \|", text)


def test_the_results_tell_the_machine_and_have_a_section_for_each_work():
    text = results([figures("cryptows", work) for work in WORKS], TITLES, ["a machine", "trio 1"])

    assert "- a machine\n- trio 1\n" in text
    assert all(f"\n## {work.title}\n" in text for work in WORKS)


def test_the_readme_gets_the_table_between_its_marks():
    readme = f"# cryptows\n\n{BEGIN}\nold\n{END}\n\nmore\n"

    once = splice(readme, "| new |")

    assert once == f"# cryptows\n\n{BEGIN}\n\n| new |\n\n{END}\n\nmore\n"
    assert splice(once, "| new |") == once


@pytest.mark.parametrize("readme", ["", "# no marks\n", f"{BEGIN}\nno end\n"])
def test_a_readme_without_marks_stays_as_it_is(readme):
    assert splice(readme, "| new |") == readme
