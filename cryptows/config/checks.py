"""What settings must be to each other."""

from __future__ import annotations

from collections.abc import Mapping

from cryptows.config.settings import Settings


def cross_check(
    settings: Settings, origins: Mapping[str, str]
) -> tuple[Settings, list[str], list[str]]:
    """Return the settings, what is wrong with their combination, and warnings."""
    return settings, [], []
