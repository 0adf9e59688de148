"""Large payloads on a real Ray: who holds them, who may die, and what it costs the shards."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
import ray._private.internal_api
from pydantic import BaseModel
from ray.exceptions import RayActorError, RayTaskError

from flock_ray import BatchSpec, Flock, flock_type
from flock_ray.actors.handles import actor_name
from flock_ray.actors.payloads import RayPayloads
from flock_ray.adapters.sqlite import SQLitePersistence
from flock_ray.core.system_types import WorkflowError
from flock_ray.ports import PeerGoneError
from tests.payload_contract import PayloadContract, Process

NewFlock = Callable[..., Flock]
MB = 1_000_000


def store_bytes() -> int:
    """Bytes in the object stores of all nodes, on disk included."""
    total = 0
    api: Any = ray
    for node in api.nodes():
        if node["Alive"]:
            stats = api._private.internal_api.node_stats(
                node["NodeManagerAddress"], node["NodeManagerPort"]
            ).store_stats
            total += stats.object_store_bytes_used + stats.spilled_bytes_total - stats.restored_bytes_total
    return int(total)


class Router:
    """All that carriers need of a board."""

    async def attend(self, known: str) -> str:
        if known:
            await asyncio.sleep(3600)
        return "router"


class Owner:
    def __init__(self, namespace: str) -> None:
        self.store = RayPayloads(namespace)
        self.handles: list[Any] = []

    async def offer(self, payloads: Sequence[bytes]) -> Any:
        return await self.store.offer(payloads)

    async def adopt(self, offer: Any, claims: Sequence[bytes]) -> Any:
        self.handles = await self.store.adopt(offer, claims)
        return self.handles

    async def keep(self, payloads: Sequence[bytes]) -> Any:
        self.handles = await self.store.keep(payloads)
        return self.handles

    async def drop(self) -> None:
        self.handles = []

    async def pid(self) -> int:
        return os.getpid()


class RayProcess:
    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.actor: Any = ray.remote(Owner).options(num_cpus=0, max_concurrency=100).remote(namespace)
        self.handles: list[Any] = []

    async def offer(self, payloads: Sequence[bytes]) -> Any:
        return await self.actor.offer.remote(payloads)

    async def adopt(self, offer: Any, claims: Sequence[bytes]) -> None:
        try:
            self.handles = await self.actor.adopt.remote(offer, claims)
        except RayTaskError as error:
            raise error.cause from None

    async def keep(self, payloads: Sequence[bytes]) -> None:
        self.handles = await self.actor.keep.remote(payloads)

    async def open(self) -> list[bytes | None]:
        return await RayPayloads(self.namespace).open(self.handles, 30.0)

    async def drop(self) -> None:
        self.handles = []
        await self.actor.drop.remote()

    async def kill(self) -> None:
        pid = await self.actor.pid.remote()
        os.kill(pid, signal.SIGKILL)
        for _ in range(200):
            try:
                await self.actor.pid.remote()
            except RayActorError:
                return
            await asyncio.sleep(0.05)


class TestRayPayloads(PayloadContract):
    settle_s = 1.0

    @pytest.fixture
    async def start(self, ray_cluster: str) -> AsyncIterator[Callable[[], Awaitable[Process]]]:
        namespace = f"payloads-{secrets.token_hex(4)}"
        router: Any = ray.remote(Router)
        name = actor_name(namespace, "router", 0)
        alive = router.options(name=name, namespace=namespace, num_cpus=0, max_concurrency=100).remote()
        made: list[RayProcess] = []

        async def start() -> Process:
            made.append(RayProcess(namespace))
            return made[-1]

        yield start
        for process in made:
            ray.kill(process.actor)
        carrier = _carrier_of(namespace)
        ray.kill(alive)
        await _gone(carrier)

    @pytest.fixture
    def used_bytes(self, ray_cluster: str) -> Callable[[], int]:
        return store_bytes


def _carrier_of(namespace: str) -> Any:
    node = ray.get_runtime_context().get_node_id()
    try:
        return ray.get_actor(actor_name(namespace, "carrier", node), namespace)
    except ValueError:
        return None


async def _gone(carrier: Any) -> None:
    """Carriers end by themselves when their board is gone."""
    for _ in range(600):
        try:
            if carrier is None:
                return
            await carrier.take.remote([], [], [])
        except RayActorError:
            return
        await asyncio.sleep(0.1)
    raise AssertionError("the carrier is still there")


@flock_type(name="claims.Order")
class Order(BaseModel):
    n: int
    size: int


@flock_type(name="claims.Blob")
class Blob(BaseModel):
    n: int
    data: str
    pid: int = 0


@flock_type(name="claims.Report")
class Report(BaseModel):
    sizes: list[int]


def blob(order: Order) -> Blob:
    return Blob(n=order.n, data="x" * order.size, pid=os.getpid())


async def wait_for(holds: Callable[[], Awaitable[bool]], what: str) -> None:
    for _ in range(600):
        if await holds():
            return
        await asyncio.sleep(0.1)
    raise AssertionError(what)


async def test_a_worker_that_is_killed_leaves_what_it_published(new_flock: NewFlock) -> None:
    # Given a payload of 1 MB that a worker has published, and that waits in a gate
    flock = new_flock()
    flock.agent("make").consumes(Order).publishes(Blob).runs(blob)
    flock.agent("read").consumes(Blob, batch=BatchSpec(size=3)).publishes(Report).runs(
        lambda blobs: Report(sizes=[len(b.data) for b in blobs])
    )
    await flock.publish_many([Order(n=1, size=MB), Order(n=2, size=150_000)])
    await flock.run_until_idle(timeout=60)
    made = await flock.store.get_by_type(Blob)
    # When the worker is killed, and the carrier too
    for pid in {b.pid for b in made}:
        os.kill(pid, signal.SIGKILL)
    board = flock._opened.board  # type: ignore[union-attr]  # it is open
    namespace = board.claiming._store._namespace  # type: ignore[union-attr]
    ray.kill(_carrier_of(namespace))
    # Then another one still reads them, and new ones are taken
    await flock.publish(Order(n=3, size=200_000))

    async def reported() -> bool:
        return bool(await flock.store.get_by_type(Report))

    await wait_for(reported, "no report")
    [report] = await flock.store.get_by_type(Report)
    assert sorted(report.sizes) == [150_000, 200_000, MB]


async def test_many_runs_read_the_same_payloads_at_once(new_flock: NewFlock) -> None:
    # Regression: Ray never gave objects whose references were dropped and borrowed again at the same moment
    flock = new_flock(max_workers=2)
    for number in range(4):
        flock.agent(f"read-{number}").consumes(Blob).publishes(Report).runs(
            lambda b: Report(sizes=[len(b.data)])
        ).max_concurrency(8)
    for start in range(0, 300, 30):
        await flock.publish_many([Blob(n=n, data="x" * 110_000) for n in range(start, start + 30)])
    await flock.run_until_idle(timeout=100)
    assert await flock.store.count(Report) == 1200
    assert await flock.store.count(WorkflowError) == 0


async def test_payloads_never_reach_the_shard_and_are_freed(new_flock: NewFlock) -> None:
    # Given a shard whose memory is known
    flock = new_flock(max_artifacts=1000)
    flock.agent("read").consumes(Blob).publishes(Report).runs(lambda b: Report(sizes=[len(b.data)]))
    await flock.publish(Blob(n=0, data="x" * 200_000))
    await flock.run_until_idle(timeout=60)
    shard = await _pid_of_shard(flock)
    stored, before = store_bytes(), _rss(shard)
    # When 100 MB pass through its board
    for start in range(0, 100, 20):
        await flock.publish_many([Blob(n=n, data="x" * MB) for n in range(start, start + 20)])
    await flock.run_until_idle(timeout=120)
    # Then it has not grown by a fraction of that
    assert await flock.store.count(Report) == 101
    assert _rss(shard) - before < 30 * MB
    assert store_bytes() - stored >= 99 * MB  # what others left there may have been freed meanwhile
    # And when the workflows leave memory, so do the payloads
    for _ in range(3):
        await flock.publish_many([Order(n=n, size=0) for n in range(500)])
    await flock.run_until_idle(timeout=60)

    async def freed() -> bool:
        return store_bytes() - stored < 10 * MB

    await wait_for(freed, "the object store has not shrunk")


async def _pid_of_shard(flock: Flock) -> int:
    link = flock._opened.board.shard(0)  # type: ignore[union-attr]
    return int(await link.start_up())


def _rss(pid: int) -> int:
    fields = Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()
    return int(fields[0]) * 1024


async def test_a_durable_board_reads_large_payloads_back_after_its_shard_was_killed(
    new_flock: NewFlock, tmp_path: Path
) -> None:
    # Given a kept board in which large payloads wait
    flock = new_flock(persistence=SQLitePersistence(tmp_path / "board"), namespace="claims-kept")
    flock.agent("read").consumes(Blob, batch=BatchSpec(size=3)).publishes(Report).runs(
        lambda blobs: Report(sizes=[len(b.data) for b in blobs])
    )
    await flock.publish_many([Blob(n=n, data="x" * MB) for n in range(2)])
    # When the shard, which owns the objects, is killed
    os.kill(await _pid_of_shard(flock), signal.SIGKILL)

    async def back() -> bool:
        try:
            await _pid_of_shard(flock)
        except PeerGoneError:
            return False
        return True

    await wait_for(back, "the shard does not come back")
    # Then what waits is read from the store
    await flock.publish(Blob(n=2, data="x" * MB))

    async def reported() -> bool:
        return bool(await flock.store.get_by_type(Report))

    await wait_for(reported, "no report")
    [report] = await flock.store.get_by_type(Report)
    assert report.sizes == [MB] * 3
