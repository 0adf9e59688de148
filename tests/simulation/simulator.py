"""A whole cluster in one process, seeded: the real shards, router and workers over links that fail.

Everything that is random comes from one seed: the order in which ready callbacks run, delays, lost
requests and replies, repeated requests, failing journals, crashes and the workload itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
import uuid
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from unittest import mock

import msgspec

from flock_ray.actors.pools import RouterSettings
from flock_ray.actors.shard import Shard, ShardSettings
from flock_ray.adapters.memory import MemoryDisk, MemoryStore
from flock_ray.board import Board, BoardLinks
from flock_ray.core import wire
from flock_ray.core.records import Record, decode_frame, envelopes_of
from flock_ray.core.registry import TypeRegistry, type_registry
from flock_ray.core.rows import ArtifactQuery, Loaded, Snapshot, StoreBatch, WorkflowRow
from flock_ray.core.shard import ShardCore
from flock_ray.core.wire import Envelope
from flock_ray.errors import PoolSaturatedError, StoreUnavailableError
from flock_ray.opening import Opened
from flock_ray.ports import PeerGoneError
from flock_ray.testing import VirtualClock, VirtualFlock, VirtualTimeLoop
from flock_ray.testing.local import LocalBoard, sent

T = TypeVar("T")


class NumberedTask(asyncio.Task[Any]):
    """Sets keep it by its number: their order does not depend on addresses in memory."""

    number = 0

    def __hash__(self) -> int:
        return self.number


class NumberedFuture(asyncio.Future[Any]):
    """The same for futures."""

    number = 0

    def __hash__(self) -> int:
        return self.number


class SeededLoop(VirtualTimeLoop):
    """Virtual time, and ready callbacks in an order that the seed decides."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng
        self._numbers = itertools.count(1)
        self.set_task_factory(self._make_task)

    def _make_task(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> NumberedTask:
        NumberedTask.number = next(self._numbers)
        task = NumberedTask(work, loop=loop, **options)
        task.number = NumberedTask.number
        return task

    def create_future(self) -> NumberedFuture:
        future = NumberedFuture(loop=self)
        future.number = next(self._numbers)
        return future

    def _run_once(self) -> None:
        ready = self._ready  # type: ignore[attr-defined]  # asyncio's own queue
        if len(ready) > 1 and self._rng.random() < 0.7:
            shuffled = list(ready)
            self._rng.shuffle(shuffled)
            ready.clear()
            ready.extend(shuffled)
        super()._run_once()  # type: ignore[misc]  # not in typeshed


@dataclass
class Faults:
    """How bad this cluster is; every probability is per call."""

    max_delay_s: float = 0.0
    lost_request: float = 0.0
    lost_reply: float = 0.0
    repeated: float = 0.0
    failing_append: float = 0.0
    max_append_s: float = 0.0
    no_room: float = 0.0

    @classmethod
    def draw(cls, rng: random.Random) -> Faults:
        bad = rng.choice((0.0, 0.01, 0.04))
        return cls(
            max_delay_s=rng.choice((0.0, 0.002, 0.05, 0.3)),
            lost_request=bad,
            lost_reply=bad,
            repeated=rng.choice((0.0, 0.02, 0.1)),
            failing_append=rng.choice((0.0, 0.1, 0.4)),
            max_append_s=rng.choice((0.0, 0.003, 0.1)),
            no_room=rng.choice((0.0, 0.2)),
        )


class World:
    """The seed's randomness, what is dead, and what travels."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.faults = Faults.draw(self.rng)
        self._deaths: dict[int, tuple[object, asyncio.Future[None]]] = {}
        self._travelling: set[asyncio.Task[Any]] = set()
        self.breakdowns: list[BaseException] = []
        self.disks: dict[int, SimDisk] = {}

    def calm(self) -> None:
        """No more faults."""
        self.faults = Faults()

    def death(self, thing: object) -> asyncio.Future[None]:
        entry = self._deaths.get(id(thing))
        if entry is None:
            entry = self._deaths[id(thing)] = (thing, asyncio.get_running_loop().create_future())
        return entry[1]

    def die(self, thing: object) -> None:
        future = self.death(thing)
        if not future.done():
            future.set_result(None)

    def check_forwards(self, blob: bytes) -> None:
        """What a shard tells another one must be in its journal: a crash would take it back."""
        batch = wire.decode_forward(blob)
        durable = self.disks[batch.shard].durable
        if early := [f for f in batch.forwards if f.seq > durable.get((f.source, f.target), 0)]:
            self.breakdowns.append(AssertionError(f"sent before they were durable: {early}"))

    def send(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Let something go on whatever becomes of its caller."""
        task = asyncio.ensure_future(work)
        self._travelling.add(task)
        task.add_done_callback(self._arrived)
        return task

    def _arrived(self, task: asyncio.Task[Any]) -> None:
        self._travelling.discard(task)
        if not task.cancelled():
            task.exception()  # the caller may be gone: nobody has to look at it

    def on_error(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.breakdowns.append(context.get("exception") or RuntimeError(context["message"]))

    async def delay(self) -> None:
        limit = self.faults.max_delay_s
        # Mostly short, sometimes long: that is what reorders.
        await asyncio.sleep(limit * self.rng.random() ** 4)


class SimLink:
    """Calls over a network that delays, loses and repeats, to processes that die."""

    def __init__(self, world: World, find: Callable[[], Any], name: str) -> None:
        self._world = world
        self._find = find
        self._name = name

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        if method.startswith("__"):
            raise AttributeError(method)

        async def call(*args: Any) -> Any:
            if method == "forward":
                self._world.check_forwards(args[0])
            return await asyncio.shield(self._world.send(self._travel(method, args)))

        return call

    async def _travel(self, method: str, args: tuple[Any, ...]) -> Any:
        world, faults, rng = self._world, self._world.faults, self._world.rng
        await world.delay()
        if rng.random() < faults.lost_request:
            raise PeerGoneError(f"request to {self._name}.{method} lost")
        if rng.random() < faults.repeated and method not in ("invoke", "cancel"):
            world.send(self._later(method, args))
        reply = await self._execute(method, args)
        await world.delay()
        if rng.random() < faults.lost_reply:
            raise PeerGoneError(f"reply of {self._name}.{method} lost")
        return reply

    async def _later(self, method: str, args: tuple[Any, ...]) -> None:
        await self._world.delay()
        await self._execute(method, args)

    async def _execute(self, method: str, args: tuple[Any, ...]) -> Any:
        target = self._find()
        if target is None:
            raise PeerGoneError(f"{self._name} is dead", final=True)
        work = asyncio.ensure_future(getattr(target, method)(*[sent(arg) for arg in args]))
        death = self._world.death(target)
        try:
            await asyncio.wait([work, death], return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not work.done():
                work.cancel()
        if death.done():
            if not work.cancelled() and work.done():
                work.exception()
            raise PeerGoneError(f"{self._name} died", final=True)
        return sent(work.result())


class SimStore(MemoryStore):
    """A store over a network of its own: slow, lossy, and what was sent arrives even when its sender is dead."""

    def __init__(self, world: World, disk: SimDisk) -> None:
        super().__init__(disk)
        self._world = world
        self.core: ShardCore | None = None
        """Who writes here."""

    async def _travel(self, work: Coroutine[Any, Any, T]) -> T:
        faults, rng = self._world.faults, self._world.rng
        await asyncio.sleep(faults.max_append_s * rng.random())
        if rng.random() < faults.failing_append / 2:
            work.close()
            raise StoreUnavailableError("the store is away")
        result = await work
        await asyncio.sleep(faults.max_append_s * rng.random())
        if rng.random() < faults.failing_append / 2:
            raise StoreUnavailableError("the store's answer was lost")
        return result

    async def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.shield(self._world.send(self._travel(work)))

    async def acquire(self) -> int:
        return await self._call(super().acquire())

    async def load(self) -> Loaded:
        return await self._call(super().load())

    async def append(self, batch: StoreBatch) -> None:
        assert self.core is not None
        sent = {(i, to): n for i, slot in self.core.slots.items() for to, n in slot.out_seq.items()}
        await self._call(self._append(batch, sent))

    async def _append(self, batch: StoreBatch, sent: dict[tuple[int, int], int]) -> None:
        assert isinstance(self.disk, SimDisk)
        new = batch.lsn > self.disk.last_lsn
        await super().append(batch)
        if new:
            self.disk.history.append(batch.frame)
            self.disk.durable = sent

    async def save_snapshots(self, snapshots: Sequence[Snapshot]) -> None:
        await self._call(super().save_snapshots(snapshots))

    async def truncate(self, lsn: int) -> None:
        await self._call(super().truncate(lsn))

    async def bodies(self, ids: Collection[bytes]) -> dict[bytes, bytes]:
        return await self._call(super().bodies(ids))

    async def get(self, ids: Collection[bytes]) -> list[tuple[int, Envelope]]:
        return await self._call(super().get(ids))

    async def recent_ids(self, limit: int) -> list[bytes]:
        return await self._call(super().recent_ids(limit))

    async def read(self, query: ArtifactQuery, after: int, limit: int) -> list[tuple[int, Envelope]]:
        return await self._call(super().read(query, after, limit))

    async def count(self, query: ArtifactQuery) -> int:
        return await self._call(super().count(query))

    async def workflows(self, ids: Collection[str]) -> list[WorkflowRow]:
        return await self._call(super().workflows(ids))


@dataclass
class SimDisk(MemoryDisk):
    """A disk that also keeps what was truncated."""

    history: list[bytes] = field(default_factory=list)
    durable: dict[tuple[int, int], int] = field(default_factory=dict)
    """(source, target): last forward that the records speak of."""

    def records(self) -> list[Record]:
        """Every record ever made durable, with its payloads."""
        return self.with_payloads(
            [record for frame in self.history for record in decode_frame(frame).records]
        )

    def with_payloads(self, records: list[Record]) -> list[Record]:
        bodies = {envelope.id: envelope.payload for envelope in self.artifacts.values()}
        for envelope in envelopes_of(records):
            if not envelope.payload:
                msgspec.structs.force_setattr(envelope, "payload", bodies[envelope.id])
        return records


@dataclass
class Crashes:
    """What was killed in a run."""

    workers: int = 0
    routers: int = 0
    shards: int = 0
    log: list[str] = field(default_factory=list)


class SimBoard(LocalBoard):
    """A board over links that fail, whose parts can be killed."""

    def __init__(
        self, world: World, num_shards: int, *, registry: TypeRegistry, max_payload_bytes: int
    ) -> None:
        self.world = world
        self.crashes = Crashes()
        self.zombies: list[Shard] = []
        super().__init__(
            num_shards,
            clock=VirtualClock(),
            registry=registry,
            shard_settings=ShardSettings(
                snapshot_bytes=world.rng.choice((500, 5_000, 10**9)),
                max_artifacts=world.rng.choice((20, None)),
            ),
            max_workers=2,
            max_payload_bytes=max_payload_bytes,
            store=lambda index: SimStore(world, world.disks.setdefault(index, SimDisk())),
            router_settings=RouterSettings(max_shared_workers=world.rng.choice((1, 2, 3))),
        )

    def _make_shard(self, index: int) -> Shard:
        made = super()._make_shard(index)
        assert made._keeper is not None
        assert isinstance(made._keeper.store, SimStore)
        made._keeper.store.core = made.core
        return made

    def shard(self, index: int) -> Any:
        return SimLink(self.world, lambda: self.shards[index], f"shard {index}")

    def worker(self, worker: str) -> Any:
        return SimLink(self.world, lambda: self.workers.get(worker), f"worker {worker}")

    def router(self) -> Any:
        return SimLink(self.world, lambda: self.the_router, "router")

    def alive(self) -> list[Shard]:
        return [shard for shard in self.shards if shard is not None]

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
            self.world.die(made)

    def kill_worker(self) -> None:
        """A process is gone, whatever it was at."""
        if not self.workers:
            return
        worker = self.world.rng.choice(list(self.workers))
        made = self.workers.pop(worker)
        self._attached.pop(worker).cancel()
        made.close()
        self.world.die(made)
        self.crashes.workers += 1

    async def restart_router(self) -> None:
        """The router dies at once, and later a new one begins with nothing."""
        old, self.the_router = self.the_router, None
        if old is None:
            return
        self.crashes.routers += 1
        for task in list(old._tasks):
            task.cancel()
        self.world.die(old)
        await asyncio.sleep(self.world.rng.random() * 2)
        self.the_router = self._make_router()
        self.the_router.start(first=False)

    async def restart_shard(self) -> None:
        """A shard dies with everything that its journal does not have; a new one rebuilds the rest."""
        index = self.world.rng.randrange(self.num_shards)
        old, self.shards[index] = self.shards[index], None
        if old is None:
            return
        self.crashes.shards += 1
        self.world.die(old)
        if self.world.rng.random() < 0.3:
            self.zombies.append(old)  # only cut off: it goes on, and writes whatever it can
        else:
            await old.close()
        await asyncio.sleep(self.world.rng.random())
        self.shards[index] = new = self._make_shard(index)
        new.start()


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
            self.world, settings.shards or 1, registry=self._registry, max_payload_bytes=settings.max_payload_bytes
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
        )

        async def close(end: bool) -> None:
            await local.close()

        return Opened(self.board, close, True)


async def persist(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat a call until the network lets it through."""
    while True:
        try:
            return await call()
        except (PeerGoneError, StoreUnavailableError):
            await asyncio.sleep(0.05)


def run_seeded(seed: int, main: Callable[[World], Coroutine[Any, Any, T]]) -> T:
    """Run a scenario in a world of its own."""
    world = World(seed)
    loop_rng, id_rng = random.Random(seed + 1), random.Random(seed + 2)

    async def guarded() -> T:
        asyncio.get_running_loop().set_exception_handler(world.on_error)
        return await main(world)

    # `uuid4` draws from `os.urandom`: ids decide slots, so they come from the seed too.
    with (
        mock.patch("os.urandom", id_rng.randbytes),
        asyncio.Runner(loop_factory=lambda: SeededLoop(loop_rng)) as runner,
    ):
        return runner.run(guarded())


def fingerprint(world: World) -> str:
    """Name everything that all shards decided in a run."""
    digest = hashlib.blake2b(digest_size=16)
    for disk in world.disks.values():
        for frame in disk.history:
            digest.update(frame)
    return digest.hexdigest()
