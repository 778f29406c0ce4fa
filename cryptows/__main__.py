"""`python -m cryptows` and the `cryptows` command."""

from cryptows.cli import cli


def main() -> None:
    """Run the command line; ends the process with the exit code."""
    cli.main(prog_name="cryptows")


if __name__ == "__main__":
    main()
