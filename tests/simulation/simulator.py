"""A whole cluster in one process, seeded: the real shards, router and workers over links that fail.

Everything that is random comes from one seed: the order in which ready callbacks run, delays, lost
requests and replies, repeated requests, failing journals, clocks, crashes and the workload itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar
from unittest import mock

from flock_ray.actors.limits import ShardSettings
from flock_ray.actors.pools import RouterSettings
from flock_ray.actors.shard import Shard
from flock_ray.actors.worker import Worker
from flock_ray.adapters.memory_payloads import MemoryPayloads
from flock_ray.board import Board, BoardLinks
from flock_ray.core.ids import owned_slots
from flock_ray.core.registry import TypeRegistry, type_registry
from flock_ray.errors import PoolSaturatedError, StaleEpochError, StoreUnavailableError
from flock_ray.opening import Opened
from flock_ray.ports import PeerGoneError
from flock_ray.testing import VirtualClock, VirtualFlock
from flock_ray.testing.local import LocalBoard, inline
from tests.simulation.disk import SimDisk
from tests.simulation.links import SimLink
from tests.simulation.loop import SeededLoop
from tests.simulation.store import SimStore
from tests.simulation.world import World

T = TypeVar("T")


class SimShard(Shard):
    """A shard whose host starts it again."""

    board: SimBoard
    is_outrun = False

    def outrun(self) -> None:
        self.is_outrun = True
        if self.board.shards[self.index] is self:
            self.board.world.send(self.board.restart_shard(self.index))


class SimBoard(LocalBoard):
    """A board over links that fail, whose parts can be killed."""

    def __init__(
        self, world: World, num_shards: int, *, registry: TypeRegistry, max_payload_bytes: int
    ) -> None:
        self.world = world
        self.zombies: list[Shard] = []
        self.gone = False
        """Everything died: nothing of this board is started again."""
        super().__init__(
            num_shards,
            clock=VirtualClock(),
            registry=registry,
            shard_settings=ShardSettings(
                snapshot_bytes=world.rng.choice((500, 5_000, 10**9)),
                max_artifacts=world.rng.choice((20, None)),
                max_open=world.rng.choice((15, 200_000)),
                inline_payload_bytes=world.inline_payload_bytes,
            ),
            max_workers=2,
            max_payload_bytes=max_payload_bytes,
            store=lambda index: SimStore(
                world, world.disks.setdefault(index, SimDisk(everywhere=world.disks)), index
            ),
            router_settings=RouterSettings(max_shared_workers=world.rng.choice((1, 2, 3))),
        )

    def _make_shard(self, index: int) -> SimShard:
        made = SimShard(
            index, self.num_shards, owned_slots(index, self.num_shards), store=self._store(index),
            clock=self.world.clock(index), peers=self, settings=self._shard_settings, payloads=MemoryPayloads(),
            run_id="sim",
        )  # fmt: skip
        made.board = self
        assert made._keeper is not None
        assert isinstance(made._keeper.store, SimStore)
        made._keeper.store.core = made.core
        self.world.lives.setdefault(index, []).append(made.core)
        return made

    def shard(self, index: int) -> Any:
        return SimLink(self.world, lambda: self.shards[index], f"shard {index}", lambda: self.gone)

    def worker(self, worker: str) -> Any:
        return SimLink(self.world, lambda: self.workers.get(worker), f"worker {worker}", lambda: True)

    def router(self) -> Any:
        return SimLink(self.world, lambda: self.the_router, "router", lambda: self.gone)

    def alive(self) -> list[SimShard]:
        return [shard for shard in self.shards if isinstance(shard, SimShard)]

    async def start(
        self, worker: str, *, num_cpus: float, num_gpus: float, resources: dict[str, float]
    ) -> Any:
        await self.world.delay()
        if self.world.rng.random() < self.world.faults.no_room:
            raise PoolSaturatedError("no room")
        return await super().start(worker, num_cpus=num_cpus, num_gpus=num_gpus, resources=resources)

    async def stop(self, worker: str) -> None:
        made = self.workers.get(worker)
        await super().stop(worker)
        if made is not None:
            end_payloads(made)
            self.world.die(made)

    def kill_worker(self, worker: str | None = None) -> None:
        """A process is gone, whatever it was at."""
        if not self.workers:
            return
        worker = worker or self.world.rng.choice(list(self.workers))
        made = self.workers.pop(worker)
        self._attached.pop(worker).cancel()
        made.close()
        end_payloads(made)
        self.world.die(made)
        self.world.trace.note(f"worker {worker} dies")

    def kill_router(self) -> None:
        """The router dies at once, and what it was about to do is not done."""
        old, self.the_router = self.the_router, None
        if old is not None:
            for task in list(old._tasks):
                task.cancel()
            self.world.die(old)
            self.world.trace.note("the router dies")

    async def restart_router(self) -> None:
        """A new router begins with nothing."""
        self.kill_router()
        await asyncio.sleep(self.world.rng.random() * 2)
        self.the_router = self._make_router()
        self.the_router.start(first=False)

    async def kill_shard(self, index: int) -> None:
        """A shard dies with everything that its journal does not have."""
        old, self.shards[index] = self.shards[index], None
        if old is None:
            return
        self.world.die(old)
        is_zombie = self.world.rng.random() < self.world.faults.zombie
        self.world.trace.note("dies" if not is_zombie else "is cut off and goes on", index)
        if is_zombie:
            self.zombies.append(old)
            self.world.send(self._end(old))
        else:
            end_payloads(old)
            await old.close()

    async def _end(self, zombie: Shard) -> None:
        await asyncio.sleep(self.world.rng.random() * 6)
        end_payloads(zombie)
        await zombie.close()

    def lose_payloads(self, index: int) -> None:
        """The nodes on which a shard's payloads are die; the shard itself is elsewhere."""
        shard = self.shards[index]
        if shard is not None:
            end_payloads(shard)
            shard._payloads = MemoryPayloads()
            self.world.trace.note("its payloads are lost", index)

    async def restart_shard(self, index: int | None = None) -> None:
        """A new shard rebuilds what the old one had."""
        index = self.world.rng.randrange(self.num_shards) if index is None else index
        await self.kill_shard(index)
        await asyncio.sleep(self.world.rng.random())
        if self.world.rng.random() < 0.3:
            self.world.jump(index)  # it comes back on another machine
        self.shards[index] = new = self._make_shard(index)
        new.start()

    async def kill_everything(self) -> None:
        """The lights go out: nothing is left but disks, and the zombies that somebody forgot."""
        self.world.trace.note("everything dies")
        self.gone = True
        self.kill_router()
        for worker in list(self.workers):
            self.kill_worker(worker)
        for index in range(self.num_shards):
            await self.kill_shard(index)


def end_payloads(process: Shard | Worker | Board) -> None:
    """Lose what a process holds, as its death does."""
    if isinstance(process, Shard):
        store = process._payloads
    else:
        claiming = process._claiming if isinstance(process, Worker) else process.claiming
        store = None if claiming is None else claiming._store
    if isinstance(store, MemoryPayloads):
        store.die()


class SimFlock(VirtualFlock):
    """A Flock on a simulated cluster."""

    def __init__(self, world: World, shards: int) -> None:
        super().__init__(shards=shards, max_agent_iterations=50, registry=type_registry)
        self.world = world
        self.board: Board | None = None

    @property
    def sim(self) -> SimBoard:
        assert isinstance(self.local, SimBoard)
        return self.local

    async def _open(self) -> Opened:
        settings = self._settings
        local = self.local = SimBoard(
            self.world,
            settings.shards or 1,
            registry=self._registry,
            max_payload_bytes=settings.max_payload_bytes,
        )
        local.begin()
        links = BoardLinks([local.shard(i) for i in range(local.num_shards)], local.router(), local.worker)
        self.board = Board(
            links,
            owner=uuid.UUID(int=self.world.rng.getrandbits(128)).hex,
            registry=self._registry,
            codec=local.codec,
            clock=VirtualClock(),
            monotonic=lambda: asyncio.get_running_loop().time(),
            max_payload_bytes=settings.max_payload_bytes,
            publish_timeout_s=600.0,
            payloads=local.payloads_of(),
            inline_payload_bytes=self.world.inline_payload_bytes,
        )
        self.board.edge.offload = inline

        async def close(end: bool) -> None:
            await local.close()

        return Opened(self.board, close, True)

    async def crash(self) -> SimFlock:
        """Everything dies, the driver too; returns what the same script has on the same disks a little later."""
        sim, board = self.sim, self.board
        await sim.kill_everything()
        if board is not None and board._attending is not None:
            board._attending.cancel()
            end_payloads(board)
        await asyncio.sleep(self.world.rng.random() * 3)
        again = SimFlock(self.world, sim.num_shards)
        again._builders = dict(self._builders)
        again.principals = self.principals
        await persist(again.start)
        return again


async def persist(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat a call until the network lets it through."""
    while True:
        try:
            return await call()
        except (PeerGoneError, StoreUnavailableError, StaleEpochError):
            await asyncio.sleep(0.2)


def run_seeded(world: World, main: Callable[[World], Coroutine[Any, Any, T]]) -> T:
    """Run a scenario in a world of its own."""
    loop_rng, id_rng = random.Random(world.seed + 1), random.Random(world.seed + 2)

    async def guarded() -> T:
        asyncio.get_running_loop().set_exception_handler(world.on_error)
        return await main(world)

    # `uuid4` draws from `os.urandom`: ids decide slots, so they come from the seed too.
    with mock.patch("os.urandom", id_rng.randbytes):
        loop = SeededLoop(loop_rng)
        asyncio.set_event_loop(loop)
        try:
            return loop.run_until_complete(guarded())
        finally:
            try:
                loop.run_until_complete(_end_all())
            finally:
                asyncio.set_event_loop(None)
                loop.close()


async def _end_all() -> None:
    """Cancel everything; what does not end, in a cluster that is broken on purpose, is left behind."""
    for _ in range(5):  # what is cancelled may begin something to clean up
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=60)


def fingerprint(world: World) -> str:
    """Name everything that all shards decided in a run."""
    digest = hashlib.blake2b(digest_size=16)
    for disk in world.disks.values():
        for frame in disk.history:
            digest.update(frame)
    return digest.hexdigest()
