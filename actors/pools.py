"""Pools: which workers a board has, how many it should have, and what became of them. Half of the router."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from flock_ray.actors.worker import pool_of
from flock_ray.core import wire
from flock_ray.core.scaling import UP_AFTER_S, PoolView, target_workers
from flock_ray.errors import ConfigurationError
from flock_ray.ports import PeerGoneError, Peers, Spawner, WorkerLink

SHARED = "shared"

MAX_DOUBLINGS = 20
"""Of the pause after a worker that did not come to work: far more than any setting allows, and no number overflows."""


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """Times and limits of the control plane."""

    permit_ttl_s: float = 10.0
    """How long permits hold without renewal."""
    renew_every_s: float = 2.0
    heartbeat_s: float = 1.0
    """How long a worker's `watch` call takes."""
    heartbeat_deadline_s: float = 10.0
    """A worker that has not answered for so long is declared dead: it is stopped, or cut off. A process
    that dies is noticed at once, by its failing call."""
    adopt_after_s: float = 3.0
    """A new router waits so long for workers that only shards know of before it declares them dead."""
    decide_every_s: float = 0.1
    """Shortest time between two scaling decisions."""
    max_credit: int = 1024
    """Most attempts of one agent that one worker may hold."""
    max_shared_workers: int = 1
    drain_timeout_s: float = 30.0
    slow_start_s: float = 5.0
    """A worker that takes longer than this to start is shown as trouble in `pools`."""
    max_backoff_s: float = 30.0
    """Longest pause after workers of a pool that failed to start, or to load the board's agents."""
    check_wait_s: float = 10.0
    """How long a deploy waits for a worker to try its agents on."""


@dataclass(slots=True)
class WorkerEntry:
    """A worker as the router knows it."""

    id: str
    link: WorkerLink
    state: str = "starting"
    """starting, ready, draining."""
    version: int = 0
    """Of the table it has."""
    load: wire.WorkerLoad | None = None
    watcher: asyncio.Task[None] | None = None
    dismissed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once it is lost or retired: its `attach` call ends, and with that its process."""


@dataclass(slots=True)
class Pool:
    """Workers of one agent, or of all light ones."""

    info: wire.PoolInfo
    changed_at: float = 0.0
    busy_at: float = 0.0
    starting: set[str] = field(default_factory=set)
    error: str = ""
    failures: int = 0
    """Workers in a row that did not come to work."""
    retry_at: float = 0.0


class PoolKeeper:
    """Starts, watches and ends workers; `Router` says what they run and what they may."""

    def __init__(
        self,
        num_shards: int,
        *,
        peers: Peers,
        spawner: Spawner,
        monotonic: Callable[[], float],
        settings: RouterSettings | None,
    ) -> None:
        """Start without workers."""
        self._num_shards = num_shards
        self._peers = peers
        self._spawner = spawner
        self._monotonic = monotonic
        self._settings = settings or RouterSettings()
        self._version = 0
        """Of the table; 0 before the first deploy."""
        self._packages: dict[str, wire.AgentPackage] = {}
        self._pools: dict[str, Pool] = {}
        self._workers: dict[str, WorkerEntry] = {}
        self._lost: dict[str, float] = {}
        self._reports: dict[int, wire.ShardReport] = {}
        self._reported_at: dict[int, float] = {}
        self._change: asyncio.Future[None] | None = None
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._recovered = asyncio.Event()
        self._started_at = monotonic()
        self._closed = False

    async def _install_at(self, entry: WorkerEntry) -> None:
        raise NotImplementedError  # the router's

    def _regrant(self) -> None:
        raise NotImplementedError  # the router's

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _wait_for_change(self, wait_s: float) -> None:
        """Wait until workers or agents change, or the time is over."""
        if self._change is None:
            self._change = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._change], timeout=wait_s)

    # -- workers -------------------------------------------------------------------------------

    async def attach(self, worker: str, version: int) -> None:
        """Register a worker; ends when the worker has to end, fails when this router dies."""
        if worker in self._lost:
            return  # declared dead while it was stopped or cut off: what it had is done elsewhere
        entry = self._workers.get(worker)
        if entry is None:
            entry = WorkerEntry(worker, self._peers.worker(worker), version=version)
            self._workers[worker] = entry
            await self._recovered.wait()
            await self._make_ready(entry)
        await entry.dismissed.wait()

    async def _make_ready(self, entry: WorkerEntry) -> None:
        pool = self._pools.get(pool_of(entry.id))
        try:
            # Without packages there is nothing to install yet: whoever deploys them brings them to all workers.
            while self._packages and entry.version < self._version:
                await self._install_at(entry)
        except Exception as error:  # it died, or can't load an agent
            if pool is not None:
                self._note_failure(pool, error)
            self._forget(entry.id)
            return
        if pool is not None:
            pool.starting.discard(entry.id)
            pool.failures, pool.error = 0, ""
        entry.state = "ready"
        entry.watcher = self._spawn(self._watch(entry))
        self._regrant()

    async def _watch(self, entry: WorkerEntry) -> None:
        """Follow a worker until it is gone: its failing call is how its death is noticed."""
        wait_s = self._settings.heartbeat_s
        while True:
            try:
                blob = await asyncio.wait_for(
                    entry.link.watch(wait_s), wait_s + self._settings.heartbeat_deadline_s
                )
            except (PeerGoneError, TimeoutError):
                break
            entry.load = wire.decode_load(blob)
            if entry.load.stuck_threads and entry.state == "ready":
                # Threads that can't be stopped, or a blocked user loop, are got rid of with their process.
                self._spawn(self._retire(entry))
        self._forget(entry.id)
        with contextlib.suppress(Exception):  # dead already, or cut off: fenced by the attempt numbers
            await self._spawner.stop(entry.id)

    def _forget(self, worker: str) -> None:
        entry = self._workers.pop(worker, None)
        pool = self._pools.get(pool_of(worker))
        if pool is not None:
            pool.starting.discard(worker)
        if entry is not None:
            entry.dismissed.set()
        self._lost[worker] = self._monotonic()
        while len(self._lost) > 1000:
            del self._lost[next(iter(self._lost))]
        self._regrant()
        self._wake.set()

    async def _retire(self, entry: WorkerEntry) -> None:
        """Take a worker out of service: no permits, finish, end."""
        entry.state = "draining"
        self._regrant()
        self._wake.set()
        await asyncio.sleep(0.1)
        with contextlib.suppress(PeerGoneError):
            await entry.link.drain(self._settings.drain_timeout_s)
        if entry.watcher is not None:
            entry.watcher.cancel()
        with contextlib.suppress(Exception):  # it may have died by itself
            await self._spawner.stop(entry.id)
        self._forget(entry.id)

    # -- scaling -------------------------------------------------------------------------------

    async def _decide_forever(self) -> None:
        await self._recovered.wait()
        if self._version:
            await self._adopt_workers()
        while not self._closed:
            for name, pool in list(self._pools.items()):
                self._scale(name, pool)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._next_look_s())
            self._wake.clear()
            await asyncio.sleep(self._settings.decide_every_s)

    async def _adopt_workers(self) -> None:
        """Find the workers of the former router: those alive are on their way to `attach` and not to be replaced."""
        known: set[str] = set()
        for index in range(self._num_shards):
            with contextlib.suppress(PeerGoneError):
                known.update(wire.decode_report(await self._peers.shard(index).report()).workers)
        await asyncio.gather(*(self._probe(worker) for worker in sorted(known - set(self._workers))))
        deadline = self._started_at + self._settings.adopt_after_s
        while (left := deadline - self._monotonic()) > 0 and known - set(self._workers) - set(self._lost):
            await self._wait_for_change(left)

    async def _probe(self, worker: str) -> None:
        """Declare a worker lost at once if its process is gone."""
        try:
            await asyncio.wait_for(self._peers.worker(worker).watch(0.0), self._settings.adopt_after_s)
        except PeerGoneError as gone:
            if gone.final:
                self._forget(worker)
        except TimeoutError:
            return  # stopped, maybe: it gets as long as all the others to attach

    def _next_look_s(self) -> float:
        """Look again soon at a pool that may have to grow, otherwise when something is reported."""
        now = self._monotonic()
        views = (self._view(name, pool, now) for name, pool in self._pools.items())
        growing = any(view.ready and view.workers < view.max for view in views)
        retries = [pool.retry_at - now for pool in self._pools.values() if pool.retry_at > now]
        return min([UP_AFTER_S if growing else self._settings.renew_every_s, *retries])

    def _scale(self, name: str, pool: Pool) -> None:
        now = self._monotonic()
        view = self._view(name, pool, now)
        if view.ready or view.running:
            pool.busy_at = now
        have, target = view.workers, target_workers(view)
        if target > have and now >= pool.retry_at:
            pool.changed_at = now
            for _ in range(target - have):
                self._start_one(name, pool)
        elif target < have:
            idle = [e for e in self._workers.values() if pool_of(e.id) == name and e.state == "ready"]
            for entry in idle[: have - target]:
                pool.changed_at = now
                self._spawn(self._retire(entry))

    def _view(self, name: str, pool: Pool, now: float) -> PoolView:
        ready = running = 0
        oldest = 0.0
        for report in self._reports.values():
            for demand in report.demand:
                package = self._packages.get(demand.agent)
                mine = package.pool.name == name if package is not None else name == SHARED
                if mine:
                    ready += demand.ready
                    running += demand.running
                    if demand.oldest_us:
                        since = now - self._reported_at[report.shard]
                        oldest = max(oldest, (report.now_us - demand.oldest_us) / 1e6 + since)
        alive = {e.id for e in self._workers.values() if pool_of(e.id) == name and e.state != "draining"}
        return PoolView(
            min=pool.info.min,
            max=pool.info.max or self._settings.max_shared_workers,
            workers=len(alive | pool.starting),
            ready=ready,
            running=running,
            oldest_age_s=oldest,
            idle_s=now - pool.busy_at,
            since_change_s=now - pool.changed_at,
            idle_timeout_s=pool.info.idle_timeout_s,
        )

    def _start_one(self, name: str, pool: Pool) -> None:
        worker = f"{name}:{uuid4().hex[:12]}"
        pool.starting.add(worker)
        self._spawn(self._start_worker(worker, pool))

    async def _start_worker(self, worker: str, pool: Pool) -> None:
        info = pool.info
        resources = dict(info.resources)
        try:
            starting = self._spawn(
                self._spawner.start(
                    worker, num_cpus=info.num_cpus, num_gpus=info.num_gpus, resources=resources
                )
            )
            done, _ = await asyncio.wait([starting], timeout=self._settings.slow_start_s)
            if not done:
                pool.error = (
                    f"a worker has not started within {self._settings.slow_start_s:g} s: is there room for "
                    f"{info.num_cpus:g} CPUs, {info.num_gpus:g} GPUs, {resources}?"
                )
            await starting
        except Exception as error:  # whatever the cluster says: shown in `pools`, tried again later
            self._note_failure(pool, error)
            pool.starting.discard(worker)
            self._wake.set()

    def _note_failure(self, pool: Pool, error: Exception) -> None:
        """Show why a worker did not come to work, and wait before the next one."""
        pool.failures += 1
        pool.error = f"{type(error).__name__}: {error}"
        pause_s = 0.5 * 2 ** min(pool.failures, MAX_DOUBLINGS)
        pool.retry_at = self._monotonic() + min(self._settings.max_backoff_s, pause_s)

    # -- questions -----------------------------------------------------------------------------

    async def worker_for(self, agent: str) -> str:
        """Return a worker that hosts an agent, starting one if there is none.

        Raises:
            ConfigurationError: No such agent.
        """
        await self._recovered.wait()
        package = self._packages.get(agent)
        if package is None:
            raise ConfigurationError(f"No agent {agent!r} is on this board.")
        name = package.pool.name
        while True:
            ready = [e for e in self._workers.values() if pool_of(e.id) == name and e.state == "ready"]
            if ready:
                return min(ready, key=lambda e: e.load.queued if e.load is not None else 0).id
            pool = self._pools[name]
            if not pool.starting:
                self._start_one(name, pool)
            await self._wait_for_change(self._settings.renew_every_s)

    async def pools(self) -> dict[str, dict[str, Any]]:
        """Return workers, demand and trouble by pool."""
        await self._recovered.wait()
        now = self._monotonic()
        out: dict[str, dict[str, Any]] = {}
        for name, pool in self._pools.items():
            view = self._view(name, pool, now)
            out[name] = {
                "workers": sorted(e.id for e in self._workers.values() if pool_of(e.id) == name),
                "starting": len(pool.starting),
                "ready": view.ready,
                "running": view.running,
                "min": view.min,
                "max": view.max,
                "error": pool.error,
            }
        return out
