"""The router: subscription table, pools and permits. Control plane only: no artifact passes through it.

Everything it knows is soft. A new one learns the table from the shards, the workers from their
`attach` calls, and the shards go on with the permits they hold meanwhile.
"""

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
from flock_ray.core.state import MATCH_AGENT
from flock_ray.errors import ConfigurationError, DeployConflictError, FlockError
from flock_ray.ports import PeerGoneError, Peers, Spawner, WorkerLink

SHARED = "shared"


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


class Router:
    """Keeps the table, starts and ends workers, hands out permits."""

    def __init__(
        self,
        num_shards: int,
        *,
        peers: Peers,
        spawner: Spawner,
        monotonic: Callable[[], float],
        settings: RouterSettings | None = None,
    ) -> None:
        """Create a router; `start` sets it to work.

        Args:
            num_shards: Shards of the board.
            peers: Finds shards.
            spawner: Starts workers.
            monotonic: A clock in seconds that never goes back.
            settings: None for the defaults.
        """
        self._num_shards = num_shards
        self._peers = peers
        self._spawner = spawner
        self._monotonic = monotonic
        self._settings = settings or RouterSettings()
        self._version = 0
        self._installed = 0
        """Version that every shard and worker was told."""
        self._packages: dict[str, wire.AgentPackage] = {}
        self._blobs: dict[str, bytes] = {}
        self._pools: dict[str, Pool] = {}
        self._workers: dict[str, WorkerEntry] = {}
        self._lost: dict[str, float] = {}
        self._reports: dict[int, wire.ShardReport] = {}
        self._reported_at: dict[int, float] = {}
        self._granted: dict[int, int] = {}
        self._grants_version = 1
        self._batch_number = 0
        self._change: asyncio.Future[None] | None = None
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._recovered = asyncio.Event()
        self._deploying = asyncio.Lock()
        self._started_at = monotonic()
        self._closed = False

    def start(self, *, first: bool = True) -> None:
        """Begin to work; call once, on the loop that serves the router.

        Args:
            first: No router of this board was there before. Then a worker starts at once: it takes as long
                as all the rest, and the first deploy tries its agents on it.
        """
        if first:
            shared = wire.PoolInfo(SHARED, 1, self._settings.max_shared_workers)
            self._pools[SHARED] = Pool(shared, busy_at=self._monotonic())
            self._start_one(SHARED, self._pools[SHARED])
        self._spawn(self._recover())
        self._spawn(self._decide_forever())

    async def close(self) -> None:
        """End all workers and stop."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        workers = {*self._workers, *(worker for pool in self._pools.values() for worker in pool.starting)}
        # Some may be dead already.
        await asyncio.gather(*(self._spawner.stop(worker) for worker in workers), return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- the table -----------------------------------------------------------------------------

    async def deploy(self, packages: list[bytes], replace: bool) -> tuple[int, dict[str, bytes]]:
        """Add or change agents, and return the version in force with every agent of the board.

        Returns once every shard and every worker has the table.

        Raises:
            DeployConflictError: Another driver deployed a different agent under the same name.
            ConfigurationError: A worker can't load an agent.
        """
        await self._recovered.wait()
        async with self._deploying:
            new = {(p := wire.decode_package(blob)).info.name: (p, blob) for blob in packages}
            changed = {name: entry for name, entry in new.items() if self._differs(name, entry[0], replace)}
            if changed:
                await self._try_on_a_worker({name: blob for name, (_, blob) in changed.items()})
                for name, (package, blob) in changed.items():
                    self._packages[name], self._blobs[name] = package, blob
                self._version += 1
            if self._installed != self._version:  # also when an earlier deploy failed halfway
                self._refresh_pools()
                await self._install_everywhere()
                self._installed = self._version
                self._regrant()
        return self._version, self._blobs

    def _differs(self, name: str, package: wire.AgentPackage, replace: bool) -> bool:
        known = self._packages.get(name)
        if known is None:
            return True
        if known.fingerprint == package.fingerprint:
            return False
        if known.owner != package.owner and not replace:
            raise DeployConflictError(
                f"Agent {name!r} is deployed on this board by another driver with different code or "
                "declarations. Give this one another name or namespace, or replace the old one on purpose: "
                "Flock(replace_agents=True)."
            )
        return True

    async def _try_on_a_worker(self, blobs: dict[str, bytes]) -> None:
        """Have one worker load new agents before the board depends on them; nothing is tried without a worker."""
        deadline = self._monotonic() + self._settings.check_wait_s
        while True:
            entry = next((e for e in self._workers.values() if e.state == "ready"), None)
            if entry is not None:
                try:
                    return await entry.link.check(blobs)
                except PeerGoneError:
                    await asyncio.sleep(self._settings.decide_every_s)  # until its watcher has noticed
            left = deadline - self._monotonic()
            if left <= 0:
                return
            if entry is None:
                await self._wait_for_change(left)

    async def _wait_for_change(self, wait_s: float) -> None:
        """Wait until workers or agents change, or the time is over."""
        if self._change is None:
            self._change = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._change], timeout=wait_s)

    async def _install_everywhere(self) -> None:
        table = wire.encode(self._table())
        await asyncio.gather(
            *(self._install_at_shard(i, table) for i in range(self._num_shards))
        )
        entries = [e for e in self._workers.values() if e.state != "draining"]
        results = await asyncio.gather(*(self._install_at(entry) for entry in entries), return_exceptions=True)
        for result in results:
            if isinstance(result, FlockError):
                raise result
            if isinstance(result, Exception) and not isinstance(result, PeerGoneError):
                raise ConfigurationError(
                    f"A worker could not load the board's agents: {type(result).__name__}: {result}. "
                    "Is everything they import installed on the cluster, or in the job's working_dir?"
                ) from result

    async def _install_at_shard(self, index: int, table: bytes) -> None:
        """Bring a shard the table; one that is only cut off gets it later."""
        while True:
            try:
                await self._peers.shard(index).install(table, self._blobs)
                return
            except PeerGoneError as gone:
                if gone.final:
                    raise
                await asyncio.sleep(self._settings.decide_every_s)

    async def _install_at(self, entry: WorkerEntry) -> None:
        entry.version = await entry.link.install(self._version, self._blobs)

    def _table(self) -> wire.TableSpec:
        packages = [self._packages[name] for name in sorted(self._packages)]
        return wire.TableSpec(
            self._version,
            tuple(package.info for package in packages),
            tuple(spec for package in packages for spec in package.subscriptions),
        )

    def _refresh_pools(self) -> None:
        infos = {package.pool.name: package.pool for package in self._packages.values()}
        for name, info in infos.items():
            if name == SHARED:
                info = wire.PoolInfo(SHARED, 1, self._settings.max_shared_workers)
            if name in self._pools:
                self._pools[name].info = info
            else:
                self._pools[name] = Pool(info, busy_at=self._monotonic())
        self._wake.set()

    # -- permits -------------------------------------------------------------------------------

    async def exchange(self, blob: bytes) -> bytes:
        """Take a ShardReport and answer with a GrantBatch: at once after a change, else at renewal time."""
        report = wire.decode_report(blob)
        await self._recovered.wait()
        await self._take_report(report)
        if self._granted.get(report.shard) == self._grants_version:
            await self._wait_for_change(self._settings.renew_every_s)
        self._granted[report.shard] = self._grants_version
        self._batch_number += 1
        batch = wire.GrantBatch(self._batch_number, self._settings.permit_ttl_s, self._grants(), tuple(self._lost))
        return wire.encode(batch)

    async def demand(self, blob: bytes) -> None:
        """Take a ShardReport because work waits."""
        await self._take_report(wire.decode_report(blob))

    async def _take_report(self, report: wire.ShardReport) -> None:
        self._reports[report.shard] = report
        self._reported_at[report.shard] = self._monotonic()
        unknown = [w for w in report.workers if w not in self._workers and w not in self._lost]
        if unknown and self._monotonic() - self._started_at > self._settings.adopt_after_s:
            for worker in unknown:
                self._forget(worker)
        if any(d.ready for d in report.demand):
            self._wake.set()

    def _grants(self) -> list[wire.Grant]:
        """Permits for one shard: each may use a replica's whole concurrency, the worker enforces it."""
        credit = max(1, self._settings.max_credit // self._num_shards)
        grants = []
        for entry in self._workers.values():
            if entry.state != "ready":
                continue
            pool = pool_of(entry.id)
            for name, package in self._packages.items():
                if package.pool.name == pool:
                    limit = package.info.max_concurrency
                    grants.append(wire.Grant(name, entry.id, max(credit, limit), limit))
            grants.append(wire.Grant(MATCH_AGENT, entry.id, credit, credit))
        return grants

    def _regrant(self) -> None:
        self._grants_version += 1
        if self._change is not None:
            self._change.set_result(None)
            self._change = None

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
            while entry.version < self._version:
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
                blob = await asyncio.wait_for(entry.link.watch(wait_s), wait_s + self._settings.heartbeat_deadline_s)
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
            # Workers of the former router are on their way to `attach`: don't replace them.
            await asyncio.sleep(self._settings.adopt_after_s)
        while not self._closed:
            for name, pool in list(self._pools.items()):
                self._scale(name, pool)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._next_look_s())
            self._wake.clear()
            await asyncio.sleep(self._settings.decide_every_s)

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

    async def _start_worker(self, worker: str, pool: Pool) -> None:
        info = pool.info
        asked = {"num_cpus": info.num_cpus, "num_gpus": info.num_gpus, "resources": dict(info.resources)}
        try:
            starting = self._spawn(self._spawner.start(worker, **asked))
            done, _ = await asyncio.wait([starting], timeout=self._settings.slow_start_s)
            if not done:
                pool.error = f"no room (yet) for a worker that asks for {asked}: it has not started so far"
            await starting
        except Exception as error:  # whatever the cluster says: shown in `pools`, tried again later
            self._note_failure(pool, error)
            pool.starting.discard(worker)
            self._wake.set()

    def _note_failure(self, pool: Pool, error: Exception) -> None:
        """Show why a worker did not come to work, and wait before the next one."""
        pool.failures += 1
        pool.error = f"{type(error).__name__}: {error}"
        pool.retry_at = self._monotonic() + min(self._settings.max_backoff_s, 0.5 * 2**pool.failures)

    # -- recovery and questions ----------------------------------------------------------------

    async def _recover(self) -> None:
        """Learn the newest table from the shards and bring those up to date that lag behind."""
        for index in range(self._num_shards):
            version, blobs = await self._ask_table(index)
            if version > self._version:
                self._version, self._blobs = version, blobs
        self._packages = {name: wire.decode_package(blob) for name, blob in self._blobs.items()}
        if self._version:
            table = wire.encode(self._table())
            for index in range(self._num_shards):
                with contextlib.suppress(PeerGoneError):
                    await self._install_at_shard(index, table)
            self._installed = self._version
        self._refresh_pools()
        self._started_at = self._monotonic()
        self._recovered.set()

    async def _ask_table(self, index: int) -> tuple[int, dict[str, bytes]]:
        while True:
            try:
                return await self._peers.shard(index).table()
            except PeerGoneError:
                await asyncio.sleep(0.1)

    async def worker_for(self, agent: str) -> str:
        """Return a worker that hosts an agent, starting one if there is none.

        Raises:
            ConfigurationError: No such agent.
        """
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

    def _start_one(self, name: str, pool: Pool) -> None:
        worker = f"{name}:{uuid4().hex[:12]}"
        pool.starting.add(worker)
        self._spawn(self._start_worker(worker, pool))

    async def pools(self) -> dict[str, dict[str, Any]]:
        """Return workers, demand and trouble by pool."""
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
