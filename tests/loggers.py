"""The loggers of the package, for tests that configure them: all tests share one process."""

from __future__ import annotations

import sys

import structlog


def forget_configuration() -> None:
    """Make every logger as it was before `cryptows.log.configure`.

    A configured logger keeps what it was first used with, where no later test can capture it.
    """
    structlog.reset_defaults()
    for name, module in list(sys.modules.items()):
        if name.startswith("cryptows."):
            for word in ("log", "_log"):
                logger = getattr(module, word, None)
                if logger is not None and hasattr(logger, "bind"):
                    vars(logger).pop("bind", None)
