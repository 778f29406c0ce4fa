"""The daemon: opens everything, runs the tasks in one nursery, and ends them in the right order.

What can fail fails before READY: keys, sockets, store. A stop refuses new clients at once, lets the
producers have their answers, says 1012 to every client within `server.drain`, and ends with exit 0.
A second signal ends it at once.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import secrets
import signal
import socket
import time
from collections.abc import MutableMapping

import attrs
import structlog
import trio

import cryptows
from cryptows import log as logs
from cryptows.broker.health import State
from cryptows.broker.journal import Journal
from cryptows.config.keys import read_keys
from cryptows.config.load import Loaded
from cryptows.files import read_key_file
from cryptows.model.errors import Refusal
from cryptows.notify import Notifier, listen_fds, watchdog_interval
from cryptows.tasks import stats
from cryptows.tasks.acceptor import Acceptor, prepare
from cryptows.tasks.connection import Site
from cryptows.tasks.dispatcher import Dispatcher
from cryptows.tasks.endpoint import WebSocketSite
from cryptows.tasks.hub import Hub
from cryptows.tasks.ingest import FeedBatch, Ingest, open_feed
from cryptows.tasks.listeners import adopt, open_listeners
from cryptows.tasks.metrics import Metrics
from cryptows.tasks.pages import PATHS, Pages

log = structlog.get_logger()

QUEUED_BATCHES = 16  # reads of producers that may wait for the dispatcher; then they are not read
RESTARTING = Refusal(1012, "the daemon restarts; come back", come_back=True)


@attrs.define(eq=False)
class Daemon:
    """One running daemon."""

    loaded: Loaded
    environ: MutableMapping[str, str]
    notifier: Notifier
    hub: Hub
    acceptor: Acceptor
    ingest: Ingest
    rates: stats.Rates = attrs.field(factory=stats.Rates)
    _serving: trio.CancelScope = attrs.field(factory=trio.CancelScope)  # the listeners
    _stopping: trio.Event = attrs.field(factory=trio.Event)


async def serve(loaded: Loaded, environ: MutableMapping[str, str] = os.environ) -> None:
    """Run until a signal; raises ConfigError and StartError before anything is served."""
    faulthandler.enable()
    settings = loaded.settings
    logs.configure(settings.log.level, settings.log.format, environ=environ)
    for warning in loaded.warnings:
        log.warning("configuration", detail=warning)
    keys = read_keys(settings, loaded.origins, read_key_file, environ)
    passed = listen_fds(environ)
    async with trio.open_nursery() as nursery:
        with contextlib.ExitStack() as stack:
            feed = stack.enter_context(open_feed(settings.feed, passed.get("feed", [])))
            listeners = adopt(passed.get("http", [])) or open_listeners(
                settings.server.listen, settings.server.backlog
            )
            for listener in listeners:
                stack.enter_context(listener)
                prepare(listener, settings.delivery.kernel_buffer, settings.heartbeat.timeout * 2)
            journal = Journal(secrets.token_hex(4), settings.limits.streams)
            hub = Hub(settings, tuple(keys.all), nursery, journal)
            await _run(loaded, environ, hub, listeners, feed)


async def _run(
    loaded: Loaded,
    environ: MutableMapping[str, str],
    hub: Hub,
    listeners: list[socket.socket],
    feed: socket.socket,
) -> None:
    notifier = Notifier.from_environ(environ)
    events_in, events = trio.open_memory_channel[FeedBatch](QUEUED_BATCHES)
    rates = stats.Rates()
    pages = Pages(hub, Metrics(hub, time.time()), rates)
    websocket = WebSocketSite(hub)
    sites: dict[str, Site] = {"/ws": websocket, **dict.fromkeys(PATHS, pages)}
    acceptor = Acceptor(hub, sites.get)
    ingest = Ingest(hub.settings, hub.counters, events_in)
    hub.feed = ingest
    nursery = hub.nursery
    nursery.start_soon(Dispatcher(hub, events).run)
    nursery.start_soon(hub.reaper.run)
    nursery.start_soon(stats.watch, hub, rates, notifier, watchdog_interval(environ))
    async with trio.open_nursery() as serving:
        for listener in listeners:
            serving.start_soon(acceptor.run, listener)
        serving.start_soon(ingest.run, feed)
        hub.health.state = State.RUNNING
        freeze()
        notifier.ready("ready")
        log.info("ready", version=cryptows.__version__, listen=list(hub.settings.server.listen))
        await _wait_for_stop()
        hub.draining = True
        hub.health.state = State.DRAINING
        notifier.stopping("draining")
        log.info("draining", clients=len(hub.clients))
        serving.cancel_scope.cancel()
    await _drain(hub)
    nursery.cancel_scope.cancel()
    log.info("stopped")


def freeze() -> None:
    """Keep what the start allocated out of every later collection: shorter pauses."""
    gc.collect()
    gc.freeze()


async def _wait_for_stop() -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("signal", name=signal.Signals(number).name)
            return


async def _drain(hub: Hub) -> None:
    """Say 1012 to everybody and wait until they have gone, at most `server.drain`."""
    with trio.move_on_after(hub.settings.server.drain):
        for number, client in enumerate(list(hub.clients.values())):
            client.end(RESTARTING)
            if not number % 64:
                await trio.lowlevel.checkpoint()
        while hub.clients:
            await trio.sleep(0.02)
