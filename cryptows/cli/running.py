"""Commands that run in Trio until they are done or somebody stops them."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import click
import trio

from cryptows.model.errors import CryptowsError

T = TypeVar("T")

# SIGHUP is what a closed terminal sends.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# What the person is told of, or what needs no word at all; anything else is a bug.
EXPECTED = (CryptowsError, click.ClickException, BrokenPipeError)


def run_until_signal(work: Callable[[], Awaitable[None]]) -> bool:
    """Run `work`; cancel it at a signal. Return whether it ended by itself."""

    async def watched() -> bool:
        with trio.open_signal_receiver(*ENDING) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_at_signal, signals, nursery.cancel_scope)
                await work()
                nursery.cancel_scope.cancel()
                return True
        return False

    try:
        return run(watched)
    except KeyboardInterrupt:  # before the signals were watched, or after
        return False


def run(work: Callable[[], Awaitable[T]]) -> T:
    """Run `work` in Trio and return its value.

    An expected error comes out as it was raised, however many nurseries it went through.
    """
    try:
        return trio.run(work)
    except BaseExceptionGroup as group:
        expected, bugs = group.split(EXPECTED)
        if bugs is not None or expected is None:
            raise
        raise first_of(expected) from None


async def _cancel_at_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error within a group of groups."""
    first = group.exceptions[0]
    return first_of(first) if isinstance(first, BaseExceptionGroup) else first
