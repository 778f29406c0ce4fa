"""The daemon: runs the tasks in one nursery, and ends them in the right order.

What can fail fails before READY, in `opening.py`: keys, sockets, store. A stop refuses new clients
at once, lets the producers have their answers, says 1012 to every client within `server.drain`,
closes the store last and ends with exit 0. A second signal ends it without further goodbyes.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, MutableMapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import structlog
import trio

import cryptows
from cryptows import log as logs
from cryptows.broker.health import State
from cryptows.broker.journal import Journal
from cryptows.config.keys import read_keys
from cryptows.config.load import Loaded
from cryptows.config.reload import changed, merge_live, other_keys
from cryptows.config.settings import Settings
from cryptows.files import read_key_file
from cryptows.model.channel import USER_ID
from cryptows.model.errors import CryptowsError, Refusal, StartError
from cryptows.notify import Notifier, watchdog_interval
from cryptows.opening import Opened, open_all
from cryptows.redact import protect
from cryptows.store import revocations
from cryptows.store.writer import StoreTask
from cryptows.tasks import housekeeper, stats
from cryptows.tasks.acceptor import Acceptor
from cryptows.tasks.clock import now_ms
from cryptows.tasks.connection import Site
from cryptows.tasks.control import Command, serve_control
from cryptows.tasks.dashboard import Dashboard
from cryptows.tasks.dispatcher import Dispatcher
from cryptows.tasks.endpoint import WebSocketSite
from cryptows.tasks.hub import RESTARTING, Hub
from cryptows.tasks.ingest import FeedBatch, FeedStats, Ingest
from cryptows.tasks.keeper import Keeper
from cryptows.tasks.metrics import Metrics
from cryptows.tasks.pages import PATHS, Pages
from cryptows.tasks.recover import DashboardMount, timing

log = structlog.get_logger()

QUEUED_BATCHES = 16  # reads of producers that may wait for the dispatcher; then they are not read
REVOKED = Refusal(4001, "jwt revoked", come_back=False)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
LOOK = 0.02  # seconds between two looks at who is still here
LAST_EVENTS = 1.0  # seconds that a stop waits for them to be delivered
GOODBYES = 64  # said before the other tasks get a turn


async def serve(
    loaded: Loaded,
    environ: MutableMapping[str, str] = os.environ,
    reread: Callable[[], Loaded] | None = None,
) -> None:
    """Run until a signal; raises ConfigError and StartError before anything is served.

    `reread` is how a reload gets the settings anew; without it there is no reload.
    """
    faulthandler.enable()
    settings = loaded.settings
    logs.configure(settings.log.level, settings.log.format, environ=environ)
    for warning in loaded.warnings:
        log.warning("configuration", detail=warning)
    with ExitStack() as stack:
        opened = open_all(loaded, environ, stack)
        async with trio.open_nursery() as nursery:
            journal = Journal(
                opened.database.file.epoch, settings.limits.streams, opened.database.file.position,
                opened.database.streams(),
            )  # fmt: skip
            hub = Hub(settings, opened.keys, nursery, journal, revocations=opened.revocations)
            daemon = Daemon(hub, loaded, environ, reread, Notifier.from_environ(environ))
            await daemon.run(opened)
            nursery.cancel_scope.cancel()
    log.info("stopped")


class Daemon:
    """The running daemon: its tasks, and what can be asked of it over the control socket."""

    def __init__(
        self,
        hub: Hub,
        loaded: Loaded,
        environ: Mapping[str, str],
        reread: Callable[[], Loaded] | None,
        notifier: Notifier,
    ) -> None:
        self.hub, self.loaded, self.environ = hub, loaded, environ
        self._reread, self._notifier = reread, notifier
        self._started_at = time.time()
        self._stop = trio.Event()
        self._stopped = trio.Event()
        self._reloading = trio.Lock()
        self._sent, self._events = trio.open_memory_channel[FeedBatch](QUEUED_BATCHES)
        self._dispatcher = Dispatcher(hub, self._events, wake_in=self._sent.clone())
        self._ingest = Ingest(
            hub.settings, self._sent, now_ms, FeedStats(hub.counters), self._dispatcher.rests_until
        )
        self._rates = stats.Rates()
        self._websocket = WebSocketSite(hub)
        pages = Pages(hub, Metrics(hub, self._started_at), self._rates)
        self._dashboards = DashboardMount(hub, Dashboard, timing(hub.settings))
        sites: dict[str, Site] = {
            "/ws": self._websocket,
            **dict.fromkeys(("/socket.io", "/socket.io/"), self._dashboards),
            **dict.fromkeys(PATHS, pages),
        }
        self._acceptor = Acceptor(hub, sites.get)
        hub.feed = self._ingest

    async def run(self, opened: Opened) -> None:
        """Run until a stop is asked for and done."""
        hub = self.hub
        hub.store = StoreTask(hub.settings, opened.database, on_state=self._store_changed)
        await hub.nursery.start(hub.store.run)
        for id_, n, seen_at in opened.database.ids():
            hub.publisher.dedup.add(id_, hub.journal.offset_of(n), seen_at)
        dispatcher = self._dispatcher
        dispatcher.keeper = Keeper(hub, hub.store, dispatcher.wake)
        hub.publisher.store, hub.wake = True, dispatcher.wake
        watchdog = watchdog_interval(self.environ)
        start = hub.nursery.start_soon
        start(dispatcher.run)
        start(hub.reaper.run)
        start(housekeeper.run, hub, self._dashboards.recoveries.__len__)
        start(stats.watch, hub, self._rates, self._notifier, watchdog)
        start(serve_control, _trio_listener(opened.control), self._commands())
        with trio.open_signal_receiver(*SIGNALS) as signals:
            start(self._heed, signals)
            await self._serve(opened, hub.store)

    async def _serve(self, opened: Opened, store: StoreTask) -> None:
        async with trio.open_nursery() as feeding:
            opened.feed.socket.setblocking(False)
            feeding.start_soon(self._ingest.serve, opened.feed.socket)
            async with trio.open_nursery() as serving:
                for listener in opened.http:
                    serving.start_soon(self._acceptor.run, listener)
                self._ready()
                await self._stop.wait()
                self._drain_begins()
                # The producers' last answers and the goodbyes share the time there is.
                feeding.cancel_scope.deadline = trio.current_time() + self.hub.settings.server.drain
                self._ingest.stop()
                await self._deliver_the_last()
                await self._say_goodbye()
                serving.cancel_scope.cancel()
        with trio.move_on_after(self.hub.settings.store.timeout):
            # What producers without acks wrote last; nobody else waits for it to be stored.
            while not self._dispatcher.idle:  # noqa: ASYNC110
                await trio.sleep(LOOK)
        await store.aclose()
        self._stopped.set()
        await trio.sleep(LOOK)  # `cryptows drain` gets its answer

    async def _deliver_the_last(self) -> None:
        """Let what producers were told is accepted reach the clients before the goodbyes."""
        with trio.move_on_after(LAST_EVENTS):
            await trio.sleep(LOOK)  # what was read is on its way to the dispatcher
            while not self._dispatcher.idle:  # noqa: ASYNC110
                await trio.sleep(LOOK)

    def _ready(self) -> None:
        hub = self.hub
        hub.health.state = State.RUNNING
        hub.health.reloaded_at = time.time()
        # What the start allocated stays out of every later collection: shorter pauses.
        gc.collect()
        gc.freeze()
        self._notifier.ready("ready")
        listen = list(hub.settings.server.listen)
        log.info("ready", version=cryptows.__version__, listen=listen)

    # the end

    async def _heed(self, signals: AsyncIterator[int]) -> None:
        """Stop at the first signal, at once at the second; SIGHUP reloads, SIGUSR1 shows tasks."""
        async for number in signals:
            log.info("signal", name=signal.Signals(number).name)
            if number == signal.SIGUSR1:
                log.info("tasks", tree=task_tree(trio.lowlevel.current_root_task()))
            elif number == signal.SIGHUP:
                # Beside, because a file that cannot be read for long must not put a stop off.
                self.hub.nursery.start_soon(self._reload_quietly)
            elif self._stop.is_set():
                self.hub.nursery.cancel_scope.cancel()
            else:
                self._stop.set()

    def _drain_begins(self) -> None:
        hub = self.hub
        hub.draining = True
        hub.health.state = State.DRAINING
        self._notifier.stopping("draining")
        log.info("draining", clients=len(hub.clients))

    async def _say_goodbye(self) -> None:
        """Say 1012 to everybody and wait until they have gone, at most `server.drain`."""
        hub = self.hub
        with trio.move_on_after(hub.settings.server.drain):
            # Those that have opened a session of Engine.IO may not be clients of the hub yet.
            opened = [*hub.clients.values(), *self._dashboards.clients.values()]
            for number, client in enumerate(opened):
                client.end(RESTARTING)
                if not number % GOODBYES:
                    await trio.lowlevel.checkpoint()
            while hub.clients:  # noqa: ASYNC110 - they end in many ways, and this once
                await trio.sleep(LOOK)

    # commands

    def _commands(self) -> dict[str, Command]:
        return {
            "status": self._status,
            "reload": self._reload,
            "drain": self._drain,
            "revoke": self._revoke,
            "restore": self._restore,
        }

    async def _status(self, _request: Mapping[str, Any]) -> Mapping[str, Any]:
        hub = self.hub
        gauges = hub.gauges()
        return {
            "status": hub.health.status,
            "version": cryptows.__version__,
            "pid": os.getpid(),
            "uptime": round(time.time() - self._started_at, 1),
            "clients": gauges.clients,
            "producers": gauges.producers,
            "store": hub.health.store,
            "offset": hub.journal.offset.decode(),
            "pendingRestart": list(hub.health.pending_restart),
        }

    async def _drain(self, _request: Mapping[str, Any]) -> Mapping[str, Any]:
        clients = len(self.hub.clients)
        self._stop.set()
        await self._stopped.wait()
        return {"drained": clients - len(self.hub.clients)}

    async def _revoke(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Refuse all tokens that a user has by now, and end the clients that came with them."""
        hub, user_id = self.hub, _user_in(request)
        hub.revocations.revoke_user(user_id, time.time())
        ended = 0
        for client in list(hub.clients.values()):
            if client.session.identity.user_id == user_id:
                ended += 1
                hub.answers.turn_away(client, REVOKED, now_ms())
        log.info("tokens revoked", user=user_id, clients=ended)
        await self._save_revocations()
        return {"revoked": user_id, "clients": ended}

    async def _restore(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Take a revocation back."""
        user_id = _user_in(request)
        restored = self.hub.revocations.restore_user(user_id)
        log.info("tokens restored", user=user_id)
        await self._save_revocations()
        return {"restored": user_id, "wasRevoked": restored}

    async def _save_revocations(self) -> None:
        folder = Path(self.hub.settings.server.state_dir)
        data = self.hub.revocations.dump()
        await trio.to_thread.run_sync(revocations.save, folder, data)

    async def _reload(self, _request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Take over the settings that can change while running: all, or none if one is wrong."""
        async with self._reloading:  # else an older reading could be taken over last
            return await self._reload_now()

    async def _reload_now(self) -> Mapping[str, Any]:
        hub = self.hub
        if self._reread is None:
            raise StartError("this daemon has no configuration to read again")
        if self._stop.is_set():
            raise StartError("the daemon is stopping")
        self._notifier.reloading("reading the configuration")
        try:
            loaded = await trio.to_thread.run_sync(self._reread)
            keys = read_keys(loaded.settings, loaded.origins, read_key_file, self.environ)
        except Exception as error:
            hub.health.reload_ok = False
            hub.counters.reload_failures += 1
            log.error("reload refused", reason=str(error))
            raise
        finally:
            self._notifier.ready("ready")
        protect(keys.all)
        live, pending = changed(hub.settings, loaded.settings)
        live = [*other_keys(hub.keys, keys.all, live), *live]
        hub.keys = tuple(keys.all)
        self._take_over(merge_live(hub.settings, loaded.settings))
        hub.health.reload_ok, hub.health.reloaded_at = True, time.time()
        hub.health.pending_restart = tuple(pending)
        hub.counters.reloads += 1
        log.info("reloaded", applied=live, pending=pending)
        return {"applied": live, "pending": pending}

    def _take_over(self, settings: Settings) -> None:
        self.hub.reconfigure(settings)
        self._ingest.reconfigure(settings)
        self._acceptor.reconfigure()
        logs.set_level(settings.log.level)

    async def _reload_quietly(self) -> None:
        """Reload for a signal, whose sender gets no answer but the log."""
        try:
            await self._reload({})
        except CryptowsError:
            pass  # it was logged
        except Exception:
            log.exception("reload failed")

    # the store

    def _store_changed(self, old: str, new: str, reason: str) -> None:
        """Tell everybody who has to know that durable events are (not) being stored."""
        hub = self.hub
        hub.health.store, hub.health.store_error = new, "" if new == "closed" else reason
        (log.info if new == "closed" else log.error)(
            "store state", before=old, now=new, reason=reason
        )
        hub.announce_store(new, reason, now_ms())


def task_tree(task: trio.lowlevel.Task | None) -> list[str]:
    """Return a task and those below it, indented; of the same name under one only how many."""
    if task is None:
        return []
    children: dict[str, list[trio.lowlevel.Task]] = {}
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            children.setdefault(child.name, []).append(child)
    lines = [task.name]
    for name, same in children.items():
        head, *below = task_tree(same[0])
        lines.append(f"  {head}" if len(same) == 1 else f"  {len(same)} x {name}")
        lines += [f"  {line}" for line in below]
    return lines


def _user_in(request: Mapping[str, Any]) -> str:
    user_id = request.get("user")
    if not isinstance(user_id, str) or not USER_ID.fullmatch(user_id):
        raise CryptowsError("user: expected letters, digits, '.', '-', '_', at most 64")
    return user_id


def _trio_listener(sock: socket.socket) -> trio.SocketListener:
    sock.setblocking(False)
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))
