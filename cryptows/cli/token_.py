"""`cryptows token`: make tokens for tests and bots, and find out why one is refused."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from cryptows.cli.control import ask, socket_option
from cryptows.cli.options import config_options, load_config, load_settings
from cryptows.cli.terminal import Failure, note, say, show_pairs

if TYPE_CHECKING:
    from cryptows.config.keys import Keys
    from cryptows.config.settings import Auth

ROLES = ("user", "admin", "super_admin")
NEVER = "never"


def _ttl(_ctx: click.Context, _param: click.Parameter, value: str) -> float | None:
    """Read `90`, `15min`, `1h`, `30d` or `never`."""
    from cryptows.config.units import parse_duration

    if value == NEVER:
        return None
    try:
        seconds = parse_duration(value)
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise click.BadParameter(
            f'"{value}" is no duration; expected e.g. 15min, 1h, 30d or {NEVER}'
        )
    return seconds


secret_file_option = click.option(
    "--secret-file", metavar="FILE", help="The key; the same as --set auth.secret_file=FILE."
)


@click.group(short_help="Make, check and revoke tokens.")
def token() -> None:
    """Make, check or revoke tokens with the daemon's own key.

    The key is the one of the configuration: auth.secret_file, or JWT_SECRET in the environment.
    """


@token.command(short_help="Print a token.")
@click.option("--user", required=True, metavar="ID", help="Whose token: the user id.")
@click.option("--role", type=click.Choice(ROLES), default="user", show_default=True)
@click.option(
    "--ttl",
    callback=_ttl,
    default="1h",
    show_default=True,
    metavar="TIME",
    help="Its life, or never.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print the token only.")
@secret_file_option
@config_options
def make(
    user: str,
    role: str,
    ttl: float | None,
    quiet: bool,
    secret_file: str | None,
    config_file: str | None,
    sets: tuple[str, ...],
) -> None:
    """Print a token; what it says goes to stderr.

    \b
    $ export CRYPTOWS_TOKEN=$(cryptows token make --user 123 --role admin --ttl 1h -q)
    $ cryptows tail all_trades
    """
    from cryptows.broker.auth import make_token

    auth, keys = read_auth(config_file, sets, secret_file)
    claims = {
        name: value for name, value in (("aud", auth.audience), ("iss", auth.issuer)) if value
    }
    if auth.role_claim != "role":
        claims[auth.role_claim] = role
    if auth.user_claims[0] != "sub":
        claims[auth.user_claims[0]] = user
    now = time.time()
    try:
        made = make_token(keys.current, auth.algorithms[0], user, role, ttl, now, **claims)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if not quiet:
        until = "for ever" if ttl is None else f"until {_date(now + ttl)}"
        note(f"user {user}, role {role}, valid {until}, signed with {auth.algorithms[0]}")
    say(made)


@token.command(name="check", short_help="Say whose a token is, or why it is refused.")
@click.argument("text", metavar="[TOKEN|-]", default="-")
@secret_file_option
@config_options
def check_token(
    text: str, secret_file: str | None, config_file: str | None, sets: tuple[str, ...]
) -> None:
    """Say whose a token is, or why it is refused (exit code 1); `-` reads it from stdin.

    Revocations are the running daemon's, and not looked at.

    \b
    $ echo $CRYPTOWS_TOKEN | cryptows token check
    user:    123
    role:    admin
    expires: 2026-11-23 18:42:07 UTC
    """
    from cryptows.broker.auth import Verifier
    from cryptows.model.errors import Refusal

    if text == "-":
        text = sys.stdin.readline()
    auth, keys = read_auth(config_file, sets, secret_file)
    try:
        identity = Verifier(auth, keys.all).verify(text.strip(), time.time())
    except Refusal as refusal:
        raise Failure(f"refused with {refusal.code}: {refusal.reason}") from None
    expires = identity.expires_at
    show_pairs([
        ("user", identity.user_id),
        ("role", identity.role),
        ("expires", NEVER if expires is None else _date(expires - auth.leeway)),
    ])  # fmt: skip


@token.command(short_help="Refuse all tokens that a user has by now.")
@click.option("--user", required=True, metavar="ID", help="Whose tokens: the user id.")
@socket_option
@config_options
def revoke(user: str, path: str | None, config_file: str | None, sets: tuple[str, ...]) -> None:
    """Refuse all tokens that a user has by now, and end the clients that came with them.

    The running daemon does it and keeps it over restarts. A token made later is accepted.

    \b
    $ cryptows token revoke --user 123
    revoked: 123
    clients: 2
    """
    path = path or load_settings(config_file, sets).server.control_socket
    show_pairs(ask(path, "revoke", user=user).items())


@token.command(short_help="Take a revocation back.")
@click.option("--user", required=True, metavar="ID", help="Whose tokens: the user id.")
@socket_option
@config_options
def restore(user: str, path: str | None, config_file: str | None, sets: tuple[str, ...]) -> None:
    """Take a revocation back.

    \b
    $ cryptows token restore --user 123
    restored:   123
    wasRevoked: True
    """
    path = path or load_settings(config_file, sets).server.control_socket
    show_pairs(ask(path, "restore", user=user).items())


def read_auth(
    config_file: str | None, sets: Sequence[str], secret_file: str | None
) -> tuple[Auth, Keys]:
    """Return the settings of tokens and the keys; raises ConfigError."""
    from cryptows.config.keys import read_keys
    from cryptows.files import read_key_file

    if secret_file is not None:
        # `auth.secret` would go before it, and whoever names a file means that one.
        sets = (*sets, f"auth.secret_file={secret_file}", "auth.secret=")
    loaded = load_config(config_file, sets)
    keys = read_keys(loaded.settings, loaded.origins, read_key_file, os.environ)
    return loaded.settings.auth, keys


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
