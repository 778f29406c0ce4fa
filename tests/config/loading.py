"""Loading a config from text, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from cryptows.config.layers import Document
from cryptows.config.load import Loaded, Reader, load
from cryptows.config.settings import Settings
from cryptows.model.errors import ConfigError


def reader(*texts: str, names: Sequence[str] = ("cryptows.toml", "conf.d/10.toml")) -> Reader:
    """Return a reader of these files."""
    documents = [Document(name, text.encode()) for name, text in zip(names, texts, strict=False)]
    return lambda path: documents


def load_text(
    *texts: str, sets: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> Loaded:
    """Load the main file and its drop-in from text."""
    return load("cryptows.toml", sets, environ, reader(*texts))


def comparable(settings: Settings) -> dict[str, Any]:
    """Return what makes settings equal; a channel table knows only its own identity."""
    parts = {field.name: getattr(settings, field.name) for field in attrs.fields(Settings)}
    return {**parts, "channels": settings.channels.classes}


def problems_of(
    *texts: str, sets: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> list[str]:
    """Return what is wrong with a config, nothing if it can be used."""
    try:
        load_text(*texts, sets=sets, environ=environ)
    except ConfigError as error:
        return list(error.problems)
    return []
