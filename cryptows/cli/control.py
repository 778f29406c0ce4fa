"""`cryptows status`, `reload` and `drain`: asking the running daemon over its control socket."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import click

from cryptows.cli.options import config_options, load_settings
from cryptows.cli.terminal import Failure, NotRunning, say, show_pairs

F = TypeVar("F", bound=Callable[..., Any])
RELOAD = 30.0  # seconds for an answer; a reload reads a few files
GRACE = 10.0  # seconds on top of server.drain

json_option = click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
socket_option = click.option(
    "--socket", "path", metavar="PATH", help="The control socket, else server.control_socket."
)


@click.command(short_help="Say how the daemon is.")
@json_option
@socket_option
@config_options
def status(as_json: bool, path: str | None, config_file: str | None, sets: tuple[str, ...]) -> None:
    """Say how the daemon is; exit code 3 if it does not run.

    \b
    $ cryptows status
    status:         ready
    version:        0.1.0
    pid:            31703
    uptime:         3.2
    clients:        2
    """
    path = path or load_settings(config_file, sets).server.control_socket
    _show(ask(path, "status"), as_json)


@click.command(short_help="Let the daemon read its configuration again.")
@json_option
@socket_option
@config_options
def reload(as_json: bool, path: str | None, config_file: str | None, sets: tuple[str, ...]) -> None:
    """Let the daemon read its configuration again; returns when it is in force.

    All or nothing: if anything in it is wrong, everything stays as it was, the problems are
    printed, and the exit code is 78. What needs a restart is listed as pending.

    \b
    $ cryptows reload
    applied: limits.requests
    pending: server.listen
    """
    path = path or load_settings(config_file, sets).server.control_socket
    _show(ask(path, "reload", RELOAD), as_json)


@click.command(short_help="Let the daemon say goodbye and end.")
@json_option
@socket_option
@config_options
def drain(as_json: bool, path: str | None, config_file: str | None, sets: tuple[str, ...]) -> None:
    """Let the daemon say goodbye to its clients and end, as SIGTERM does; returns when they went.

    \b
    $ cryptows drain
    drained: 212
    """
    server = load_settings(config_file, sets).server
    _show(ask(path or server.control_socket, "drain", server.drain + GRACE), as_json)


def ask(path: str, command: str, timeout: float = 10.0, **fields: Any) -> dict[str, Any]:
    """Return the daemon's answer; raises Failure with the exit code for what went wrong."""
    from cryptows import control_client

    try:
        answer = control_client.ask(path, command, timeout, **fields)
    except control_client.NotRunningError as error:
        raise NotRunning(str(error)) from None
    except control_client.ControlError as error:
        raise Failure(str(error)) from None
    if answer.pop("ok", False):
        return answer
    raise refusal(answer.get("error"))


def refusal(error: Any) -> Exception:
    """Return what a negative answer is: a refused configuration, or another failure."""
    from cryptows.model.errors import ConfigError

    if not isinstance(error, dict):
        return Failure("the daemon refused and did not say why")
    if error.get("code") == "invalid_config":
        return ConfigError(error.get("problems") or [str(error.get("message"))])
    return Failure(f"the daemon refused: {error.get('message')} ({error.get('code')})")


def _show(answer: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        say(json.dumps(answer))
        return
    show_pairs(flat(answer))


def flat(answer: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Return an answer as names and texts; an inner object's names get its own before them."""
    for name, value in answer.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        elif isinstance(value, str):
            yield f"{prefix}{name}", value
        elif isinstance(value, Sequence):
            yield f"{prefix}{name}", ", ".join(map(_text, value)) or "none"
        else:
            yield f"{prefix}{name}", _text(value)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value)
