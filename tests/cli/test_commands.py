"""The commands as a person types them, as far as they need no daemon."""

import ast
import errno
import json
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import cryptows
from cryptows.broker.auth import Verifier
from cryptows.cli import COMMANDS, cli
from cryptows.config.load import load
from cryptows.config.settings import Auth
from cryptows.files import read_documents

KEY = "k" * 40
NO_FILE = os.strerror(errno.ENOENT)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a command line in an empty folder and a clean environment."""
    for name in list(os.environ):
        if name.startswith("CRYPTOWS_") or name in ("JWT_SECRET", "FRONTEND_URL"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def run(*args, **options):
        result = CliRunner().invoke(cli, args, **options)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


def commands(group=cli, path=()):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize(("path", "command"), [*commands()], ids=str)
def test_every_command_explains_itself_with_an_example(run, path, command):
    result = run(*path, "--help")

    assert result.exit_code == 0
    assert command.get_short_help_str(70).endswith(".")
    if not isinstance(command, click.Group):
        assert re.search(rf"\$.*cryptows {' '.join(path)}\b", result.output)


def test_the_help_lists_all_commands_and_exit_codes(run):
    output = run("--help").output

    assert all(f"\n  {name} " in output for name in COMMANDS)
    assert "78 wrong configuration" in output


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["tail"],
        ["tail", "a", "--count", "0"],
        ["tail", "a", "--url", "http://127.0.0.1/ws"],
        ["tail", "a", "--url", "ws://127.0.0.1:x/ws"],
        ["tail", "a", "--url", "ws://127.0.0.1/ws", "--token", "x", "--token-file", "y"],
        ["publish", "--pace", "fast"],
        ["publish", "-", "--repeat", "2"],
        ["token", "make"],
        ["token", "make", "--user", "1", "--ttl", "soon"],
        ["token", "make", "--user", "1", "--ttl", "0s"],
        ["token", "make", "--user", "1", "--role", "king"],
        ["token", "make", "--user", "a b", "--set", f"auth.secret={KEY}"],
        ["demo", "--seconds", "0"],
        ["serve", "--log-level", "loud"],
        ["config", "show", "--defaults", "--set", "log.level=debug"],
    ],
    ids=" ".join,
)
def test_wrong_usage_has_exit_code_2_and_says_what_is_wrong(run, args):
    result = run(*args, input="")

    assert result.exit_code == 2
    assert "Error: " in result.stderr
    assert result.stdout == ""


def test_version(run):
    assert run("version").stdout == f"cryptows {cryptows.__version__}\n"
    assert run("--version").stdout == f"cryptows {cryptows.__version__}\n"


def test_version_as_json_tells_what_it_runs_on(run):
    told = json.loads(run("version", "--json").stdout)

    assert told["cryptows"] == cryptows.__version__
    assert told["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"trio", "trio-websocket", "msgspec"} <= set(told["libraries"])


def test_the_command_line_imports_nothing_that_takes_long():
    program = "import cryptows.cli, cryptows.cli.version, sys; print(sorted(sys.modules))"
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    slow = {"trio", "rich", "msgspec", "structlog", "prometheus_client", "jwt", "trio_websocket"}
    assert not slow & set(ast.literal_eval(answer.stdout))


# -- check


def test_check_says_ok(run):
    Path("a.toml").write_text('[log]\nlevel = "debug"\n')

    result = run("check", "a.toml")

    assert (result.exit_code, result.stdout, result.stderr) == (0, "a.toml: ok\n", "")


def test_check_reports_all_problems_at_once(run):
    Path("a.toml").write_text('[log]\nlevel = "loud"\n[limits]\nrequest = 5\nwindow = "0s"\n')

    result = run("check", "a.toml")

    assert result.exit_code == 78
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert [line.split(": ")[0] for line in lines] == ["a.toml:2", "a.toml:4", "a.toml:5"]
    assert "did you mean limits.requests?" in lines[1]


def test_check_of_a_missing_file_is_a_wrong_configuration(run):
    result = run("check", "nothing.toml")

    assert (result.exit_code, result.stderr) == (78, f"nothing.toml: cannot be read: {NO_FILE}\n")


def test_check_warns_and_strict_counts_warnings(run):
    Path("a.toml").write_text(f'[auth]\nsecret = "{KEY}"\n')

    plain, strict = run("check", "a.toml"), run("check", "--strict", "a.toml")

    assert (plain.exit_code, plain.stdout) == (0, "a.toml: ok\n")
    assert plain.stderr.startswith("warning: ")
    assert (strict.exit_code, strict.stdout) == (78, "")
    assert KEY not in plain.output + strict.output


def test_check_needs_no_key_file(run):
    Path("a.toml").write_text('[auth]\nsecret_file = "not-there"\n')

    assert run("check", "a.toml").exit_code == 0


# -- config


def test_config_show_tells_origins_and_masks_secrets(run):
    Path("a.toml").write_text('[delivery]\noutbox = "2MiB"\n')

    result = run(
        "config", "show", "--config", "a.toml", "--set", "log.level=debug",
        env={"JWT_SECRET": KEY},
    )  # fmt: skip

    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["outbox", "=", '"2MiB"', "#", "a.toml:2"] in lines
    assert ["level", "=", '"debug"', "#", "--set"] in lines
    assert ["secret", "=", '"***"', "#", "environment", "JWT_SECRET"] in lines
    assert KEY not in result.output


def test_config_show_defaults_ignores_the_environment(run):
    result = run("config", "show", "--defaults", env={"CRYPTOWS_LOG__LEVEL": "debug"})

    assert 'level = "info"' in result.stdout
    assert "environment" not in result.stdout


def test_config_init_writes_a_config_and_a_private_key_that_pass_check(run):
    result = run("config", "init", "new/folder")

    folder = Path("new/folder")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == [
        str(folder / name) for name in ("cryptows.toml", "token.key", "state")
    ]
    for name in ("cryptows.toml", "token.key"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    assert len((folder / "token.key").read_text().strip()) >= 64
    assert run("check", "--strict", str(folder / "cryptows.toml")).exit_code == 0
    settings = load(str(folder / "cryptows.toml"), read=read_documents).settings
    assert settings.auth.secret_file == "new/folder/token.key"
    assert settings.feed.socket == "new/folder/feed.sock"


def test_two_keys_differ(run):
    run("config", "init", "a")
    run("config", "init", "b")

    assert Path("a/token.key").read_text() != Path("b/token.key").read_text()


@pytest.mark.parametrize("existing", ["cryptows.toml", "token.key"])
def test_config_init_overwrites_nothing(run, existing):
    Path("a").mkdir()
    Path("a", existing).write_text("mine")

    result = run("config", "init", "a")

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"cryptows: a/{existing} exists and is left as it is; nothing was written\n"
    )
    assert [path.name for path in Path("a").iterdir()] == [existing]
    assert Path("a", existing).read_text() == "mine"


def test_config_init_follows_no_dangling_link(run):
    Path("a").mkdir()
    Path("a/token.key").symlink_to("elsewhere")

    assert run("config", "init", "a").exit_code == 1
    assert not Path("a/elsewhere").exists()


def test_config_init_says_what_cannot_be_written(run):
    Path("file").write_text("")

    result = run("config", "init", "file/folder")

    assert result.exit_code == 1
    assert result.stderr == "cryptows: file/folder: Not a directory\n"


# -- token


def test_token_make_prints_a_token_that_the_daemon_accepts(run):
    result = run(
        "token", "make", "--user", "123", "--role", "admin", "--ttl", "1h",
        "--set", f"auth.secret={KEY}",
    )  # fmt: skip

    identity = Verifier(Auth(), [KEY.encode()]).verify(result.stdout.strip(), time.time())
    assert (identity.user_id, identity.role) == ("123", "admin")
    assert identity.expires_at is not None
    assert 3500 < identity.expires_at - time.time() < 3700
    assert result.stderr.startswith("user 123, role admin, valid until ")


def test_token_make_q_prints_the_token_only(run):
    result = run("token", "make", "--user", "1", "-q", env={"JWT_SECRET": KEY})

    assert result.stderr == ""
    assert result.stdout.count(".") == 2


def test_token_make_takes_the_key_from_a_file(run):
    Path("key").touch(0o600)
    Path("key").write_text(KEY + "\n")

    made = run(
        "token", "make", "--user", "1", "-q", "--secret-file", "key", env={"JWT_SECRET": "x"}
    )
    checked = run("token", "check", made.stdout.strip(), "--secret-file", "key")

    assert checked.exit_code == 0


def test_token_make_never_ends_if_so_wanted(run):
    made = run("token", "make", "--user", "1", "--ttl", "never", env={"JWT_SECRET": KEY})
    checked = run("token", "check", "-", input=made.stdout, env={"JWT_SECRET": KEY})

    assert "valid for ever" in made.stderr
    assert checked.stdout.splitlines() == ["user:    1", "role:    user", "expires: never"]


def test_tokens_carry_what_the_configuration_asks_for(run):
    Path("a.toml").write_text(
        '[auth]\naudience = "x"\nissuer = "y"\nuser_claims = ["uid"]\nrole_claim = "r"\n'
        'algorithms = ["HS512"]\n'
    )
    more = {"env": {"JWT_SECRET": KEY * 2}}

    made = run("token", "make", "--config", "a.toml", "--user", "7", "--role", "admin", **more)
    checked = run("token", "check", "--config", "a.toml", made.stdout.strip(), **more)

    assert checked.stdout.splitlines()[:2] == ["user:    7", "role:    admin"]


def test_token_check_says_why_a_token_is_refused(run):
    made = run("token", "make", "--user", "1", "-q", env={"JWT_SECRET": "z" * 40})

    result = run("token", "check", made.stdout.strip(), env={"JWT_SECRET": KEY})

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "cryptows: refused with 4001: jwt signature does not match\n"


def test_without_a_key_it_says_where_one_may_come_from(run):
    result = run("token", "make", "--user", "1")

    assert result.exit_code == 78
    assert "JWT_SECRET in the environment" in result.stderr


# -- what needs a daemon, without one


@pytest.mark.parametrize("command", ["status", "reload", "drain"])
def test_without_a_daemon_the_exit_code_is_3(run, command):
    result = run(command, "--socket", "control.sock")

    assert (result.exit_code, result.stdout) == (3, "")
    assert "is not running" in result.stderr


def test_publish_without_a_daemon_has_exit_code_3(run):
    Path("events").write_text("{}\n")

    result = run("publish", "events", "--socket", "feed.sock")

    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == (
        "cryptows: no daemon listens on feed.sock; start one with `cryptows serve`\n"
    )


def test_publish_of_a_missing_file_fails(run):
    result = run("publish", "nothing", "--socket", "feed.sock")

    assert (result.exit_code, result.stderr) == (
        1,
        "cryptows: nothing: No such file or directory\n",
    )


def test_a_wrong_configuration_stops_serve_before_anything_is_opened(run):
    result = run("serve", "--set", "log.level=loud", "--set", "limits.ban=-1s")

    assert result.exit_code == 78
    assert len(result.stderr.splitlines()) == 2
