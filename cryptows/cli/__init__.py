"""The command line: what a person or a script does with cryptows.

Results go to stdout, errors to stderr. Exit codes: 0 ok, also after SIGTERM and SIGINT; 1 failure;
2 wrong usage; 3 the daemon does not run; 78 wrong configuration. A command's module is imported
when the command is run, since start-up time is what people feel most in a command line.
"""

from __future__ import annotations

import importlib
from typing import Any

import click

from cryptows import __version__
from cryptows.cli.terminal import ConfigFailure, Failure, forget_stdout
from cryptows.model.errors import ConfigError, StartError

# In the order of the help, which is that of use.
COMMANDS = {
    "serve": "cryptows.cli.serve:serve",
    "demo": "cryptows.cli.demo:demo",
    "check": "cryptows.cli.config_:check",
    "config": "cryptows.cli.config_:config",
    "token": "cryptows.cli.token_:token",
    "publish": "cryptows.cli.publish:publish",
    "tail": "cryptows.cli.tail:tail",
    "status": "cryptows.cli.control:status",
    "reload": "cryptows.cli.control:reload",
    "drain": "cryptows.cli.control:drain",
    "version": "cryptows.cli.version:version",
}

ENDLESS = ("serve", "demo", "publish", "tail")  # those that a signal ends the normal way
INTERRUPTED = 130  # as shells have it: 128 and SIGINT


class Commands(click.Group):
    """The commands, imported on demand, with our errors turned into messages and exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            raise ConfigFailure(error.problems) from None
        except StartError as error:
            raise Failure(str(error)) from None
        except KeyboardInterrupt:
            # Before the command watched for signals; an unfinished `check` is no success.
            raise SystemExit(0 if ctx.invoked_subcommand in ENDLESS else INTERRUPTED) from None
        except BrokenPipeError:
            # Whoever read our output has seen enough, e.g. `cryptows tail … | head -3`.
            forget_stdout()
            raise SystemExit(0) from None


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="cryptows", message="%(prog)s %(version)s")
def cli() -> None:
    """Carry a trading bot's events from a local Unix socket to browsers and bots.

    \b
    Try it:             cryptows demo
    Set it up:          cryptows config init ./cryptows
                        cryptows serve --config ./cryptows/cryptows.toml
    Feed and listen:    cryptows publish events.ndjson
                        cryptows tail market_data:BTCUSDT

    Exit codes: 0 ok (also after SIGTERM and SIGINT), 1 failure, 2 wrong usage, 3 the daemon does
    not run, 78 wrong configuration.
    """
