from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from flock_ray.adapters.redis import RedisPersistence
from flock_ray.adapters.redis_store import RedisStore
from flock_ray.core.rows import ArtifactQuery, StoreBatch
from flock_ray.errors import ConfigurationError, StaleEpochError, StoreCorruptError, StoreUnavailableError
from tests.redis_server import RedisServer, free_port, redis_sentinels, redis_server
from tests.unit.adapters.store_rows import activation, artifact, batch, workflow

EVERYTHING = ArtifactQuery()
PER_BATCH = 20


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


def numbered(lsn: int) -> StoreBatch:
    """Make a batch of which nothing may be missing or there twice."""
    names = [(lsn, n) for n in range(PER_BATCH)]
    return batch(
        lsn,
        [artifact(name, workflow=f"wf-{lsn}") for name in names],
        first_seq=PER_BATCH * (lsn - 1) + 1,
        activations=[activation(name, inputs=[name], workflow=f"wf-{lsn}") for name in names],
        workflows=[workflow(f"wf-{lsn}")],
    )


@contextlib.asynccontextmanager
async def opened(persistence: RedisPersistence, *, acquire: bool = True) -> AsyncIterator[RedisStore]:
    await persistence.prepare("board", 1)
    store = persistence.store("board", 0, range(256))
    try:
        if acquire:
            await store.acquire()
        yield store
    finally:
        await store.close()


async def append_surely(store: RedisStore, work: StoreBatch) -> int:
    """Append as a shard does: again while the store is unavailable; returns how often it was."""
    failures = 0
    async with asyncio.timeout(30):
        while True:
            try:
                await store.append(work)
                return failures
            except StoreUnavailableError:
                failures += 1
                await asyncio.sleep(0.02)


async def check(store: RedisStore, last_lsn: int) -> None:
    """See that every batch is there once, with all that is in it."""
    loaded = await store.load()
    assert list(range(1, last_lsn + 1)) == [lsn for lsn, _ in loaded.frames]
    assert (last_lsn, PER_BATCH * last_lsn) == (loaded.last_lsn, loaded.last_seq)
    found = await store.read(EVERYTHING, 0, 100_000)
    expected = [entry for lsn in range(1, last_lsn + 1) for entry in numbered(lsn).artifacts]
    assert expected == found
    assert len(expected) == await store.count(EVERYTHING) == (await store.summarize(EVERYTHING)).total
    for lsn in range(1, last_lsn + 1):
        assert numbered(lsn).activations == await store.activations(f"wf-{lsn}", 1000)


@pytest.mark.parametrize("fsync", ["always", "everysec"])
async def test_acknowledged_batches_survive_kill_9_and_none_is_there_twice(
    tmp_path: Path, fsync: str
) -> None:
    with redis_server(tmp_path, appendfsync=fsync) as server:
        async with opened(RedisPersistence(server.url)) as store:
            failures, lsn = 0, 0
            for _ in range(3):
                appending = asyncio.create_task(append_many(store, lsn + 1, lsn + 60))
                await until(reached(server, lsn + 15))
                server.kill()
                server.start(wait=False)
                failures += await appending
                lsn += 60
            assert failures > 0
            await check(store, lsn)


async def append_many(store: RedisStore, first: int, last: int) -> int:
    return sum([await append_surely(store, numbered(lsn)) for lsn in range(first, last + 1)])


def reached(server: RedisServer, lsn: int) -> Callable[[], bool]:
    return lambda: seen(server) >= lsn


def seen(server: RedisServer) -> int:
    with server.client() as client:
        return int(client.hget("flock:{board:0}:head", "l") or 0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # another process makes it true
            await asyncio.sleep(0)


async def test_server_that_is_down_is_unavailable_and_used_again_when_it_is_back(server: RedisServer) -> None:
    async with opened(RedisPersistence(server.url)) as store:
        await store.append(numbered(1))
        server.stop()

        for call in (store.append(numbered(2)), store.load(), store.read(EVERYTHING, 0, 10), store.acquire()):
            with pytest.raises(StoreUnavailableError):
                await call

        server.start()
        await store.append(numbered(2))
        await check(store, 2)


async def test_call_to_a_stopped_server_ends_in_time_and_its_batch_is_there_once(server: RedisServer) -> None:
    async with opened(RedisPersistence(server.url, timeout=0.3)) as store:
        server.pause()
        async with asyncio.timeout(5):
            for _ in range(3):
                with pytest.raises(StoreUnavailableError, match="in time"):
                    await store.append(numbered(1))
            with pytest.raises(StoreUnavailableError):
                await store.read(EVERYTHING, 0, 10)
        server.resume()

        await append_surely(store, numbered(1))
        await append_surely(store, numbered(2))
        await check(store, 2)


@pytest.mark.parametrize("append_first", [True, False])
async def test_append_under_way_during_an_acquire_is_found_by_the_new_writer_or_refused(
    server: RedisServer, append_first: bool
) -> None:
    """The old writer's append and the new writer's acquire are both at the server before it runs either."""
    persistence = RedisPersistence(server.url)
    async with opened(persistence) as old, opened(persistence, acquire=False) as new:
        await new.count(EVERYTHING)  # connects
        server.pause()

        async def append() -> bool:
            try:
                await old.append(numbered(1))
            except StaleEpochError:
                return False
            return True

        if append_first:
            appending = asyncio.create_task(append())
            await asyncio.sleep(0.05)
            acquiring = asyncio.create_task(new.acquire())
        else:
            acquiring = asyncio.create_task(new.acquire())
            await asyncio.sleep(0.05)
            appending = asyncio.create_task(append())
        await asyncio.sleep(0.05)
        server.resume()
        await acquiring

        await check(new, int(await appending))

        with pytest.raises(StaleEpochError):
            await old.append(numbered(1))


async def test_cancelled_call_leaves_no_reply_to_the_next_one(server: RedisServer) -> None:
    async with opened(RedisPersistence(server.url)) as store:
        await store.append(numbered(1))
        for _ in range(20):
            call = asyncio.create_task(store.read(EVERYTHING, 0, 5))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)

            assert PER_BATCH == await store.count(EVERYTHING)


async def test_closed_store_has_no_connection_and_refuses_calls(server: RedisServer) -> None:
    async with opened(RedisPersistence(server.url)) as store:
        await asyncio.gather(store.append(numbered(1)), *(store.count(EVERYTHING) for _ in range(50)))
        with server.client() as client:
            assert len(client.client_list()) <= 11  # eight readers, one writer, this client, and one to spare

        await store.close()
        await store.close()

        with pytest.raises(StoreUnavailableError, match="closed"):
            await store.count(EVERYTHING)
    with server.client() as client:
        own = int(client.client_id())
        await until(lambda: [own] == [int(row["id"]) for row in client.client_list()])


async def test_close_during_calls_ends_them(server: RedisServer) -> None:
    async with opened(RedisPersistence(server.url)) as store:
        server.pause()
        calls = [asyncio.create_task(store.count(EVERYTHING)) for _ in range(5)]
        await asyncio.sleep(0.05)
        await store.close()
        async with asyncio.timeout(3):
            results = await asyncio.gather(*calls, return_exceptions=True)
        server.resume()

    assert all(isinstance(result, StoreUnavailableError) for result in results)


async def test_restart_without_data_is_not_taken_for_a_new_board(tmp_path: Path) -> None:
    with redis_server(tmp_path, appendonly="no") as server:
        async with opened(RedisPersistence(server.url)) as store:
            await store.append(numbered(1))
            server.kill()
            server.start()

            with pytest.raises(StoreCorruptError, match="emptied"):
                await store.append(numbered(2))
            with pytest.raises(StoreCorruptError):
                await store.acquire()


async def test_server_that_forgot_the_scripts_is_sent_them_again(server: RedisServer) -> None:
    async with opened(RedisPersistence(server.url)) as store:
        await store.append(numbered(1))
        with server.client() as client:
            client.script_flush()

        await store.append(numbered(2))

        await check(store, 2)


async def test_too_few_replicas_are_unavailable_and_the_batch_is_there_once(
    server: RedisServer, tmp_path: Path
) -> None:
    async with opened(RedisPersistence(server.url)) as store:
        await store.append(numbered(1))
    waiting = RedisPersistence(server.url, wait_replicas=1, timeout=1)
    await waiting.prepare("board", 1)
    store = waiting.store("board", 0, range(256))
    try:
        with pytest.raises(StoreUnavailableError, match="Only 0 of 1 replicas"):
            await store.acquire()

        with redis_server(
            tmp_path / "replica", replicaof=f"127.0.0.1 {server.port}", repl_diskless_sync_delay="0"
        ) as replica:
            with replica.client() as client:
                await until(lambda: client.info("replication")["master_link_status"] == "up")
            await surely_acquired(store)
            await append_surely(store, numbered(2))
            replica.pause()
            with pytest.raises(StoreUnavailableError, match="Only 0 of 1 replicas"):
                await store.append(numbered(3))
            # On another connection the batch is there already, and must not pass for replicated.
            with server.client() as client:
                client.client_kill_filter(_type="normal", skipme=True)
            with pytest.raises(StoreUnavailableError, match="Only 0 of 1 replicas"):
                await store.append(numbered(3))
            replica.resume()
            await append_surely(store, numbered(3))
            await check(store, 3)
    finally:
        await store.close()


async def surely_acquired(store: RedisStore) -> None:
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(StoreUnavailableError):
                await store.acquire()
                return


# Sentinel


def through(sentinels: list[RedisServer], **more: float) -> RedisPersistence:
    hosts = ",".join(server.address for server in sentinels)
    return RedisPersistence(f"redis+sentinel://{hosts}/board", timeout=2, **more)  # type: ignore[arg-type]


async def test_failover_of_sentinel_keeps_what_replicas_acknowledged(tmp_path: Path) -> None:
    with redis_sentinels(tmp_path) as ((master, _), sentinels):
        persistence = through(
            [RedisServer(tmp_path / "nobody", port=free_port()), *sentinels], wait_replicas=1
        )
        async with opened(persistence, acquire=False) as store:
            await surely_acquired(store)
            for lsn in range(1, 11):
                await append_surely(store, numbered(lsn))
            master.kill()

            # There is no replica to wait for any more: what is under way stays unacknowledged.
            async with opened_when_up(through(sentinels)) as heir:
                await heir.acquire()
                await check(heir, 10)
                for lsn in range(11, 16):
                    await append_surely(heir, numbered(lsn))
                await check(heir, 15)


@contextlib.asynccontextmanager
async def opened_when_up(persistence: RedisPersistence) -> AsyncIterator[RedisStore]:
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(StoreUnavailableError):
                await persistence.prepare("board", 1)
                break
            await asyncio.sleep(0.05)
    async with opened(persistence, acquire=False) as store:
        yield store


async def test_writer_goes_on_after_a_failover_of_sentinel_or_learns_of_the_loss(tmp_path: Path) -> None:
    with redis_sentinels(tmp_path) as ((master, replica), sentinels):
        async with opened(through(sentinels)) as store:
            with replica.client() as client:
                await until(lambda: client.info("replication")["master_link_status"] == "up")
            for lsn in range(1, 11):
                await append_surely(store, numbered(lsn))
            await until(lambda: seen(replica) == 10)
            master.kill()

            failures = await append_surely(store, numbered(11))

            assert failures > 0
            await check(store, 11)
            with replica.client() as client:
                assert "master" == client.info("replication")["role"]


async def test_sentinels_that_do_not_know_the_service_are_a_wrong_setting(tmp_path: Path) -> None:
    with redis_sentinels(tmp_path, sentinels=1) as (_, (sentinel,)):
        with pytest.raises(ConfigurationError, match="know no master"):
            await RedisPersistence(f"redis+sentinel://{sentinel.address}/other").prepare("board", 1)
        with pytest.raises(ConfigurationError, match="a Sentinel answers"):
            await RedisPersistence(f"redis://{sentinel.address}").prepare("board", 1)
