"""`cryptows version`."""

from __future__ import annotations

import click

from cryptows import __version__
from cryptows.cli.terminal import say

LIBRARIES = ("trio", "trio-websocket", "wsproto", "h11", "msgspec", "pyjwt", "structlog")


@click.command(short_help="Print the version.")
@click.option("--json", "as_json", is_flag=True, help="Also the versions of what it runs on.")
def version(as_json: bool) -> None:
    """Print the version.

    \b
    $ cryptows version
    cryptows 0.1.0
    """
    if not as_json:
        say(f"cryptows {__version__}")
        return
    import json
    import platform
    from importlib import metadata

    say(
        json.dumps({
            "cryptows": __version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "libraries": {name: metadata.version(name) for name in LIBRARIES},
        })
    )  # fmt: skip
