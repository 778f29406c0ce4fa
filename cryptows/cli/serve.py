"""`cryptows serve`: the daemon, in the foreground."""

from __future__ import annotations

import click

from cryptows.cli.options import config_options, load_config


@click.command(short_help="Run the daemon in the foreground.")
@config_options
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="The same as --set log.level=…",
)
@click.option(
    "--log-format",
    type=click.Choice(["auto", "text", "json", "journald"]),
    help="The same as --set log.format=…",
)
def serve(
    config_file: str | None, sets: tuple[str, ...], log_level: str | None, log_format: str | None
) -> None:
    """Run the daemon in the foreground; logs go to stderr.

    Without --config it takes /etc/cryptows/cryptows.toml, without that its built-in defaults; only
    the key of the tokens has no default. SIGTERM and Ctrl-C stop it: clients are told to come back,
    and the exit code is 0. A wrong configuration is reported whole, with exit code 78, before
    anything is opened.

    \b
    $ cryptows config init ./cryptows
    $ cryptows serve --config ./cryptows/cryptows.toml
    """
    from functools import partial

    from cryptows import daemon, log
    from cryptows.cli.running import run

    for name, value in (("log.level", log_level), ("log.format", log_format)):
        if value is not None:
            sets = (*sets, f"{name}={value}")
    reread = partial(load_config, config_file, sets)
    loaded = reread()
    log.install_hooks()
    run(partial(daemon.serve, loaded, reread=reread))
