"""`cryptows check` and `cryptows config`: is it right, what is in force, a first file.

Neither needs the network, the daemon or access to the key, so that they run in a deployment's
pipeline and from systemd's ExecReload.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import click

from cryptows.cli.options import config_options, load_config, show_warnings
from cryptows.cli.terminal import ConfigFailure, Failure, say

KEY_FILE = "token.key"
CONFIG_FILE = "cryptows.toml"
KEY_BYTES = 48  # of chance; 64 characters, enough for HS512 (RFC 7518 3.2)
PRIVATE = 0o600
SYSTEM = Path("/etc")


@click.command(short_help="Find all mistakes of a config file.")
@click.argument("config_file", required=False, metavar="[FILE]")
@click.option("--strict", is_flag=True, help="Count warnings as errors.")
def check(config_file: str | None, strict: bool) -> None:
    """Check a config file, and report all that is wrong with it at once.

    FILE defaults to /etc/cryptows/cryptows.toml. Drop-ins beside it and the environment count as
    they would for `serve`. Key files are not read. Exit code 78 if anything is wrong.

    \b
    $ cryptows check cryptows.toml
    cryptows.toml:41: delivery.outbox is "0"; expected 4KiB to 64MiB (default 1MiB)
    """
    loaded = load_config(config_file, ())
    if strict and loaded.warnings:
        raise ConfigFailure(loaded.warnings)
    show_warnings(loaded)
    say(f"{', '.join(loaded.files) or 'the built-in defaults'}: ok")


@click.group(short_help="Show the settings in force, or write a first config file.")
def config() -> None:
    """Show the settings that are in force, or write a first config file."""


@config.command(short_help="Print every setting in force, and where it comes from.")
@config_options
@click.option("--defaults", is_flag=True, help="The built-in defaults, whatever is configured.")
def show(config_file: str | None, sets: tuple[str, ...], defaults: bool) -> None:
    """Print every setting in force as TOML, and where each comes from; secrets are masked.

    \b
    $ cryptows config show --set delivery.outbox=2MiB | grep outbox
    outbox = "2MiB"                               # --set
    """
    from cryptows.config.load import load
    from cryptows.config.show import show as as_toml

    if defaults and (config_file is not None or sets):
        raise click.UsageError("--defaults shows no other settings; leave out --config and --set")
    loaded = load(None) if defaults else load_config(config_file, sets)
    if not defaults:
        show_warnings(loaded)
    say(as_toml(loaded).rstrip("\n"))


@config.command(short_help="Write a commented config file and a generated key.")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), metavar="DIR")
def init(folder: Path) -> None:
    """Write a commented config file and a generated key into DIR, and refuse to overwrite.

    Both files are for you alone (0600). Outside /etc, the sockets and the store are put into DIR as
    well, so that no root is needed.

    \b
    $ cryptows config init ./cryptows
    cryptows/cryptows.toml  every setting, commented out at its default
    cryptows/token.key      a generated key, readable by you alone
    cryptows/state          the store
    """
    from cryptows.config.template import template

    values = {"auth.secret_file": KEY_FILE}
    local = SYSTEM not in folder.absolute().parents
    if local:
        values |= {
            "server.state_dir": "state",
            "server.control_socket": "control.sock",
            "feed.socket": "feed.sock",
        }
    made: list[tuple[Path, str]] = []
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        _refuse_to_overwrite(folder)
        file = folder / CONFIG_FILE
        _create(file, template(values))
        made.append((file, "every setting, commented out at its default"))
        _create(folder / KEY_FILE, secrets.token_urlsafe(KEY_BYTES) + "\n")
        made.append((folder / KEY_FILE, "a generated key, readable by you alone"))
        if local:
            (folder / "state").mkdir(mode=0o700, exist_ok=True)
            made.append((folder / "state", "the store"))
    except OSError as error:
        raise Failure(f"{error.filename}: {error.strerror}") from None
    width = max(len(str(path)) for path, _ in made)
    for path, what in made:
        say(f"{path!s:{width}}  {what}")


def _refuse_to_overwrite(folder: Path) -> None:
    for name in (CONFIG_FILE, KEY_FILE):
        if (folder / name).is_symlink() or (folder / name).exists():
            raise Failure(f"{folder / name} exists and is left as it is; nothing was written")


def _create(path: Path, text: str) -> None:
    # For nobody else, also where the umask would let them: a secret may be written in later.
    with open(path, "x", opener=lambda name, flags: os.open(name, flags, PRIVATE)) as file:
        file.write(text)
