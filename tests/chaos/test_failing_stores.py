from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

from flock_ray import Flock
from flock_ray.adapters.redis import RedisPersistence
from flock_ray.adapters.sqlite import SQLitePersistence
from flock_ray.errors import StoreUnavailableError
from flock_ray.ports import Persistence
from flock_ray.verifying import verify_board
from tests.chaos.backends import running
from tests.chaos.orders import Order, check_orders, declare, publish_orders
from tests.redis_server import RedisServer, redis_cluster, redis_sentinels
from tests.servers import PostgresServer

pytestmark = pytest.mark.timeout(300)

NewFlock = Callable[..., Flock]


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    for _ in range(600):
        if await asyncio.to_thread(condition):
            return
        await asyncio.sleep(0.1)
    raise AssertionError("it did not become so within a minute")


async def finish(flock: Flock, numbers: range, history: Path) -> None:
    """Let a board come to its end and check everything that it promises."""
    await flock.run_until_idle(timeout=120)
    await flock.flush_batches()
    await flock.run_until_idle(timeout=60)
    await check_orders(flock, numbers)
    assert flock.persistence is not None
    verdict = await verify_board(flock.persistence, str(flock._settings.namespace), history=history)
    assert verdict.violations == []
    assert verdict.acknowledged >= 2 * len(numbers)


def is_master(server: RedisServer) -> bool:
    with server.client() as client:
        return bool(client.info("replication")["role"] == "master")


async def test_a_board_goes_on_after_its_redis_fails_over(new_flock: NewFlock, tmp_path: Path) -> None:
    with redis_sentinels(tmp_path / "redis") as ((master, replica), sentinels):
        # Given a board whose every batch is on a replica before it is acknowledged
        hosts = ",".join(server.address for server in sentinels)
        persistence = RedisPersistence(f"redis+sentinel://{hosts}/board", timeout=3, wait_replicas=1)
        history = tmp_path / "acks.jsonl"
        name = f"failover-{uuid.uuid4().hex}"
        flock = new_flock(persistence=persistence, namespace=name, shards=2, history=str(history))
        declare(flock)
        await flock.start()
        numbers = range(300)

        async def fail_over() -> None:
            await asyncio.sleep(0.5)
            await asyncio.to_thread(master.kill)
            await until(lambda: is_master(replica))
            await asyncio.to_thread(master.start)  # it comes back as the replica of the new master

        # When the master dies for good and its replica takes over
        async with asyncio.timeout(150):
            await asyncio.gather(fail_over(), publish_orders(flock, numbers))

        # Then nothing of what was acknowledged is missing; on a busy machine it may have failed over again meanwhile
        await finish(flock, numbers, history)


async def test_a_board_goes_on_after_nodes_of_its_redis_cluster_have_died(
    new_flock: NewFlock, tmp_path: Path
) -> None:
    with redis_cluster(tmp_path / "redis") as nodes:
        history = tmp_path / "acks.jsonl"
        persistence = RedisPersistence(f"redis+cluster://{nodes[0].address}", timeout=3)
        name = f"cluster-{uuid.uuid4().hex}"
        flock = new_flock(persistence=persistence, namespace=name, shards=2, history=str(history))
        declare(flock)
        await flock.start()
        numbers = range(200)

        async def kill_nodes() -> None:
            for node in nodes:
                await asyncio.sleep(0.5)
                await asyncio.to_thread(node.kill)
                await asyncio.sleep(0.5)
                await asyncio.to_thread(node.start)

        # When each node of the cluster is killed and comes back, one after the other
        async with asyncio.timeout(150):
            await asyncio.gather(kill_nodes(), publish_orders(flock, numbers))

        # Then nothing is missing and nothing is there twice
        await finish(flock, numbers, history)


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """Mount a file system of 48 MiB; where nobody may mount, the test is skipped loudly."""
    folder = Path(tempfile.mkdtemp(prefix="flock-disk-"))
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m,mode=0755", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        folder.rmdir()
        pytest.skip(f"no small disk: mount says {done.stderr.strip()}")
    try:
        folder.chmod(0o755)  # PostgreSQL runs as a user of its own
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


@pytest.fixture(params=["sqlite", "postgres"])
async def on_small_disk(
    request: pytest.FixtureRequest, small_disk: Path, tmp_path: Path
) -> AsyncIterator[Persistence]:
    """A place for boards whose rows are on the small disk."""
    if request.param == "sqlite":
        yield SQLitePersistence(small_disk / "boards")
        return
    with running("postgres", tmp_path) as backend:
        assert isinstance(backend.server, PostgresServer)
        space = small_disk / "space"
        space.mkdir()
        if os.getuid() == 0:
            shutil.chown(space, "postgres")
        connection = await asyncpg.connect(backend.server.url())
        await connection.execute(f"CREATE TABLESPACE small LOCATION '{space}'")
        await connection.execute("ALTER ROLE postgres SET default_tablespace = 'small'")
        await connection.close()
        yield backend.persistence()


async def test_a_board_whose_disk_is_full_refuses_and_goes_on_when_there_is_room(
    new_flock: NewFlock, on_small_disk: Persistence, small_disk: Path, tmp_path: Path
) -> None:
    # Given a board on a disk that something else fills up
    history = tmp_path / "acks.jsonl"
    name = f"full-{uuid.uuid4().hex}"
    flock = new_flock(
        persistence=on_small_disk, namespace=name, history=str(history), publish_timeout=timedelta(seconds=2)
    )
    declare(flock)
    await publish_orders(flock, range(20))
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb") as file:
        while True:
            file.write(os.urandom(4096))
            file.flush()

    # When more is published
    async def publish_until_refused() -> None:
        for n in range(20, 1000):
            await flock.publish(Order(n=n), correlation_id=f"order-{n}", idempotency_key=f"order-{n}")

    # Then publishers are told that it can't be stored now
    with pytest.raises(StoreUnavailableError) as refused:
        async with asyncio.timeout(120):
            await publish_until_refused()
    assert refused.value.retryable

    # And with room on the disk again, the same publishes are accepted and everything goes on
    ballast.unlink()
    async with asyncio.timeout(120):
        while True:
            try:
                await publish_orders(flock, range(200))
                break
            except StoreUnavailableError:
                await asyncio.sleep(0.2)
    await flock.run_until_idle(timeout=60)
    published = max(artifact.n for artifact in await flock.store.get_by_type(Order)) + 1
    assert published <= 200
    await finish(flock, range(200), history)
