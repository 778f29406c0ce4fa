"""`python -m cryptows` and the `cryptows` command."""

import os
import sys

ALLOCATOR = "PYTHONMALLOC"


def main() -> None:
    """Run the command line; ends the process with the exit code."""
    if sys.argv[1:2] == ["serve"] and ALLOCATOR not in os.environ:
        use_system_allocator()
    from cryptows.cli import cli

    cli.main(prog_name="cryptows")


def use_system_allocator() -> None:
    """Begin the program anew on the C library's allocator, which has to be said before it begins.

    It gives back what a crowd of clients took (`tasks/memory.py`), where the interpreter's own
    keeps a whole MiB for a single object in it. Delivery is as fast; taking events in costs up to a
    fifth more.
    """
    os.environ[ALLOCATOR] = "malloc"
    try:
        os.execv(sys.executable, sys.orig_argv)
    except OSError:
        pass  # as a user who may not see the interpreter: it goes without


if __name__ == "__main__":
    main()
