"""The README says what the code does: tables, snippets, commands and codes are held against it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench.report import splice
from cryptows import __version__
from cryptows.broker.counters import KNOWN_CODES
from cryptows.cli import COMMANDS, cli
from cryptows.cli.config_ import config
from cryptows.cli.token_ import token
from cryptows.config.declared import CHANNEL_RULES, SETTINGS
from cryptows.config.layers import Document
from cryptows.config.load import defaults, load
from cryptows.config.template import settings_table
from cryptows.model.event import UserField
from cryptows.wire.requests import TYPES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    """The text below a heading, up to the next one of its level."""
    level = re.search(rf"^(#+) {re.escape(title)}$", README, re.MULTILINE)
    assert level is not None, title
    rest = README[level.end() :]
    end = re.search(rf"^#{{1,{len(level[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def first_cells(text: str) -> set[str]:
    """What stands in backticks in the first column of the tables."""
    return {
        name
        for row in re.findall(r"^\|([^|]*)\|", text, re.MULTILINE)
        for name in re.findall(r"`([^`]+)`", row)
    }


def source() -> str:
    return "\n".join(path.read_text() for path in sorted((ROOT / "cryptows").rglob("*.py")))


# --- configuration


def test_the_table_of_settings_is_the_one_that_the_code_makes():
    between = re.search(r"<!-- settings -->\n\n(.*?)\n<!-- /settings -->", README, re.DOTALL)

    assert between is not None
    assert between[1] == settings_table()


@pytest.mark.parametrize("block", blocks("toml"))
def test_every_piece_of_configuration_loads_without_a_warning(block):
    def read(_path: str | None) -> list[Document]:
        return [Document("README.md", block.encode())]

    loaded = load("README.md", (), {}, read)

    assert loaded.warnings == []


def test_every_setting_that_is_named_exists():
    sections = {key.partition(".")[0] for key in SETTINGS}
    named = set(re.findall(rf"`((?:{'|'.join(sections)})\.[a-z_]+)", README))

    assert named - set(SETTINGS) - {"feed.sock"} == set()


def test_every_channel_every_rule_and_every_event_type_has_its_row():
    channels = first_cells(section("Channels"))
    types = first_cells(section("Event types"))

    settings = defaults()
    assert {c.name for c in settings.channels.classes} <= channels
    assert {rule.partition(".")[0] for rule in CHANNEL_RULES} <= channels
    assert set(settings.types) <= types
    assert {str(user) for user in UserField} <= set(
        re.findall(r"`([a-z]+)`", section("Channels and types of your own"))
    )


# --- commands


def test_every_command_that_is_named_exists_and_every_one_that_exists_is_named():
    named = set(re.findall(r"\bcryptows ([a-z]+)\b", "\n".join(code_of(README))))
    run = set(re.findall(r"\./run ([a-z]+)\b", README))

    whole = set(re.findall(r"\bcryptows ([a-z]+ [a-z]+)\b", "\n".join(code_of(README))))
    groups = {"config": config, "token": token}
    of_groups = {f"{name} {sub}" for name, group in groups.items() for sub in group.commands}

    assert named == set(COMMANDS)
    assert {name for name in whole if name.split()[0] in groups} == of_groups
    assert run <= {*COMMANDS, "test", "bench"}


def code_of(text: str) -> list[str]:
    """What stands in backticks, in indented lines and in blocks of commands."""
    fenced = re.findall(r"^```(?:console|sh)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    commands = [line for block in fenced for line in block.splitlines()]
    commands = [line for line in commands if re.match(r"(?:\$ |\S*=\$\()?(?:\S+ )*cryptows ", line)]
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^    (\S.*)$", outside, re.MULTILINE)
    quoted = re.findall(r"(?<!`)`([^`\n]+)`", outside)
    unwanted = ("systemctl", "journalctl", "systemd-analyze", "usermod")
    return [c for c in [*commands, *indented, *quoted] if not c.startswith(unwanted)]


def test_every_option_that_is_named_exists():
    known = {"--help"}
    for name in COMMANDS:
        command = cli.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        for each in (command, *getattr(command, "commands", {}).values()):
            known |= {option for parameter in each.params for option in parameter.opts}

    named: set[str] = set()
    for code in code_of(README):
        if re.search(r"\bcryptows [a-z]", code):
            named |= set(re.findall(r"(?<=\s)--[a-z-]+", code))

    assert named
    assert named - known == set()


# --- what goes over the wires


def test_every_close_code_of_the_code_has_its_row():
    rows = re.findall(r"^\| (\d{4}) \|", section("How a connection ends"), re.MULTILINE)
    only_clients_say = {1001, 1003, 1005, 1010, 1013}
    ours = {int(code) for code in re.findall(r"\b(40\d\d)\b", source())} - {4096}

    assert ours <= KNOWN_CODES
    assert {int(row) for row in rows} == KNOWN_CODES - only_clients_say


def test_every_error_code_of_the_feed_has_its_row():
    code = r"BadEvent\(\s*\"([a-z_]+)\""
    found = set(re.findall(code, source()))

    assert found >= {"invalid_json", "unknown_type", "line_too_long", "not_stored"}
    assert found - first_cells(section("The feed: events come in")) == set()


def test_every_error_code_of_requests_has_its_row():
    found = set(re.findall(r"RequestError\(\s*\"([a-z_]+)\"", source()))
    found |= set(re.findall(r"(?:return|why =) \(?\"([a-z]+_?[a-z]+_?[a-z]*)\", f?\"", source()))
    found |= {"unauthorized", "token_expired"}

    assert found >= {"bad_request", "forbidden", "too_many_subscriptions"}
    assert found - first_cells(section("Messages")) == set()


def test_every_request_and_every_message_has_its_row():
    requests = set(
        re.findall(r'^\| `\{"type":"(\w+)"', section("Plain WebSocket: `/ws`"), re.MULTILINE)
    )
    messages = set(re.findall(r"envelope\.message\(\s*\"(\w+)\"", source()))
    messages |= set(re.findall(r"return message\(\"(\w+)\"", source()))

    assert requests == set(TYPES)
    assert messages >= {"connection", "heartbeat", "skipped", "error"}
    assert messages - first_cells(section("Messages")) == set()


def test_every_metric_that_is_named_exists():
    named = re.findall(r"`cryptows_(\w\w+)", section("Health, metrics, statistics"))
    code = (ROOT / "cryptows/tasks/metrics.py").read_text()

    assert [name for name in named if f'"{name.removesuffix("_total")}"' not in code] == []


def test_every_exit_code_has_its_row():
    rows = re.findall(r"^\| (\d+) \|", section("Signals and exit codes"), re.MULTILINE)

    assert rows == ["0", "1", "2", "3", "78"]


# --- snippets


def test_every_line_of_json_is_json():
    lines = [line for block in blocks("json") for line in block.splitlines()]

    assert len(lines) > 10
    for line in lines:
        assert isinstance(json.loads(line), dict), line


def test_every_piece_of_python_compiles():
    assert blocks("python")
    for block in blocks("python"):
        compile(block, "README.md", "exec")


class Page(HTMLParser):
    """Collects the elements of a page and what its scripts hold."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.script = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.script += data


def test_the_page_for_socketio_is_whole_and_short(tmp_path):
    (text,) = blocks("html")
    page = Page()

    page.feed(text)
    page.close()

    assert page.open == []
    assert len(text.splitlines()) <= 25
    assert ("script", {"src": "socket.io.min.js"}) in page.seen
    for name in re.findall(r"getElementById\('(\w+)'\)", page.script):
        assert any(attributes.get("id") == name for _, attributes in page.seen)
    node = shutil.which("node")
    if node:
        script = tmp_path / "page.js"
        script.write_text(page.script)
        subprocess.run([node, "--check", script], check=True)


def test_links_and_files_lead_somewhere():
    made_by_the_bench = {"bench/latency.svg", "bench/RESULTS.md"}
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target in made_by_the_bench or (ROOT / target).exists(), target
    for name in re.findall(r"(?<![\w/])(systemd/[\w./-]+\.\w+)", README):
        assert (ROOT / name).exists(), name


def test_links_within_the_page_lead_to_a_heading():
    text = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}

    assert set(re.findall(r"\]\(#([^)]+)\)", README)) - anchors == set()


def test_the_bench_can_put_its_table_in():
    spliced = splice(README, "| the table |")

    assert "| the table |" in spliced
    assert spliced != README


def test_the_changelog_has_the_version_that_runs():
    assert re.search(rf"^## {re.escape(__version__)} - \d{{4}}-\d\d-\d\d$", CHANGELOG, re.MULTILINE)


def test_the_installation_lets_the_daemons_user_read_its_configuration():
    steps = section("Installation as a service")

    # `config init` writes it for root alone.
    written = steps.index("cryptows config init /etc/cryptows\n")
    for step in ("chgrp cryptows", "chmod 640"):
        assert steps.index(f"\n{step} /etc/cryptows/cryptows.toml\n") > written
