"""The router: subscription table, pools and permits. Control plane only: no artifact passes through it.

Everything it knows is soft. A new one learns the table from the shards, the workers from their
`attach` calls, and the shards go on with the permits they hold meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from uuid import uuid4

from flock_ray.actors.pools import SHARED, Pool, PoolKeeper, RouterSettings, WorkerEntry
from flock_ray.actors.worker import pool_of
from flock_ray.core import wire
from flock_ray.core.schema import merge_types
from flock_ray.core.state import MATCH_AGENT
from flock_ray.errors import ConfigurationError, DeployConflictError, FlockError
from flock_ray.ports import PeerGoneError, Peers, Spawner


class Router(PoolKeeper):
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
        super().__init__(num_shards, peers=peers, spawner=spawner, monotonic=monotonic, settings=settings)
        self._installed = 0
        """Version that every shard and worker was told."""
        self._blobs: dict[str, bytes] = {}
        self._granted: dict[int, tuple[int, int]] = {}
        """By shard: the permits it has, and the number of the batch that said so last."""
        self._grants_version = 1
        self._batch_number = 0
        self._deploying = asyncio.Lock()
        self.incarnation = uuid4().hex
        self._failure: FlockError | None = None

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
        self._spawn(self._recover(first))
        self._spawn(self._decide_forever())

    async def close(self) -> None:
        """End all workers and stop."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        workers = {*self._workers, *(worker for pool in self._pools.values() for worker in pool.starting)}
        # Some may be dead already.
        await asyncio.gather(*(self._spawner.stop(worker) for worker in workers), return_exceptions=True)

    # -- the table -----------------------------------------------------------------------------

    async def deploy(self, packages: list[bytes], replace: bool) -> tuple[int, dict[str, bytes]]:
        """Add or change agents, and return the version in force with every agent of the board.

        Returns once every shard and every worker has the table.

        Raises:
            DeployConflictError: Another driver deployed a different agent under the same name.
            ConfigurationError: A worker can't load an agent.
            StoreCorruptError: A shard of the board can't recover.
        """
        await self._recovered.wait()
        if self._failure is not None:
            raise self._failure
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

    async def _install_everywhere(self) -> None:
        table = wire.encode(self._table())
        await asyncio.gather(*(self._install_at_shard(i, table) for i in range(self._num_shards)))
        entries = [e for e in self._workers.values() if e.state != "draining"]
        results = await asyncio.gather(
            *(self._install_at(entry) for entry in entries), return_exceptions=True
        )
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
            merge_types((info for package in packages for info in package.types), ()),
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
        if not report.has_agents and self._installed:
            # It has come back from its journal, which has the table and no code.
            self._spawn(self._bring_code(report.shard))
        if self._holds_all(report):
            await self._wait_for_change(self._settings.renew_every_s)
        self._batch_number += 1
        batch = wire.GrantBatch(self._batch_number, self._settings.permit_ttl_s, [])
        if self._holds_all(report):
            batch.renews = report.grant_seq
        else:
            batch.grants, batch.lost = self._grants(), tuple(self._lost)
        self._granted[report.shard] = self._grants_version, self._batch_number
        return wire.encode(batch)

    def _holds_all(self, report: wire.ShardReport) -> bool:
        """Say whether a shard has the permits in force: it took the last batch, and nothing has changed since."""
        return self._granted.get(report.shard) == (self._grants_version, report.grant_seq)

    async def _bring_code(self, shard: int) -> None:
        with contextlib.suppress(PeerGoneError):  # gone again: its successor will ask
            await self._install_at_shard(shard, wire.encode(self._table()))

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
        by_pool: dict[str, list[wire.Allowance]] = {}
        for name, package in self._packages.items():
            limit = package.info.max_concurrency
            by_pool.setdefault(package.pool.name, []).append(wire.Allowance(name, max(credit, limit), limit))
        workers: dict[str, list[str]] = {}
        for entry in self._workers.values():
            if entry.state == "ready":
                workers.setdefault(pool_of(entry.id), []).append(entry.id)
        matching = wire.Allowance(MATCH_AGENT, credit, credit)
        return [wire.Grant(tuple(ids), (*by_pool.get(pool, ()), matching)) for pool, ids in workers.items()]

    def _regrant(self) -> None:
        self._grants_version += 1
        if self._change is not None:
            self._change.set_result(None)
            self._change = None

    # -- recovery ------------------------------------------------------------------------------

    async def _recover(self, first: bool) -> None:
        """Learn the newest table from the shards and bring those up to date that lag behind.

        Shards that have come back from their journals know the table and not the code; workers have it, and
        without them the drivers bring it again. Until then what is open waits.
        """
        try:
            answers = [await self._ask_table(index) for index in range(self._num_shards)]
        except FlockError as failure:  # a shard can't recover: no board can be made of the others
            self._failure = failure
            self._recovered.set()
            return
        self._version = max(version for version, _ in answers)
        self._blobs = next((blobs for version, blobs in answers if version == self._version and blobs), {})
        if self._version and not self._blobs and not first:
            self._blobs = await self._ask_workers()
        self._packages = {name: wire.decode_package(blob) for name, blob in self._blobs.items()}
        if self._packages:
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

    async def _ask_workers(self) -> dict[str, bytes]:
        """Return the packages of the table in force from any worker that attaches in time; else none."""
        deadline = self._monotonic() + self._settings.adopt_after_s
        asked: set[str] = set()
        while (left := deadline - self._monotonic()) > 0:
            for entry in [e for e in self._workers.values() if e.id not in asked]:
                asked.add(entry.id)
                with contextlib.suppress(PeerGoneError):
                    version, blobs = await entry.link.packages()
                    if version == self._version:
                        return blobs
            await self._wait_for_change(min(left, self._settings.decide_every_s))
        return {}

    async def num_shards(self) -> int:
        """Return the number of shards of the board."""
        return self._num_shards

    async def attend(self, known: str) -> str:
        """Return the id of this router once it is another than `known`: a driver then brings its agents again."""
        if known == self.incarnation:
            await asyncio.Event().wait()
        return self.incarnation
