"""The options that several commands share, and how they become settings."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cryptows.cli.terminal import note

if TYPE_CHECKING:
    from cryptows.config.load import Loaded
    from cryptows.config.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])


def config_options(command: F) -> F:
    """Add --config and --set."""
    sets = click.option(
        "--set",
        "sets",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a setting, e.g. --set log.level=debug; may be repeated.",
    )
    config_file = click.option(
        "--config",
        "config_file",
        metavar="FILE",
        help="The config file; without it /etc/cryptows/cryptows.toml if that exists, else the "
        "built-in defaults.",
    )
    return config_file(sets(command))


def load_config(config_file: str | None, sets: Sequence[str]) -> Loaded:
    """Return the settings from all layers; raises ConfigError."""
    from cryptows.config.load import load
    from cryptows.files import read_documents

    return load(config_file, sets, os.environ, read_documents)


def load_settings(config_file: str | None, sets: Sequence[str]) -> Settings:
    """Return the settings for a command that only wants to know where the daemon is."""
    return load_config(config_file, sets).settings


def show_warnings(loaded: Loaded) -> None:
    """Write what an operator should know about the settings."""
    for warning in loaded.warnings:
        note(f"warning: {warning}")
