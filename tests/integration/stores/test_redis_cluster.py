from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from redis.crc import key_slot

from flock_ray.adapters.redis import RedisPersistence
from flock_ray.core.rows import ArtifactQuery
from flock_ray.errors import ConfigurationError, StoreUnavailableError
from flock_ray.ports import Persistence
from tests.redis_server import RedisServer, redis_cluster
from tests.store_contract import PersistenceContract, StoreContract
from tests.unit.adapters.store_rows import artifact, batch

EVERYTHING = ArtifactQuery()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisServer]]:
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as nodes:
        yield nodes


@pytest.fixture
def nodes(running: list[RedisServer]) -> list[RedisServer]:
    for node in running:
        with node.client() as client:
            client.flushall()
    return running


def url_of(nodes: list[RedisServer]) -> str:
    return "redis+cluster://" + ",".join(node.address for node in nodes)


class TestRedisClusterStore(StoreContract):
    @pytest.fixture
    def persistence(self, nodes: list[RedisServer]) -> Persistence:
        return RedisPersistence(url_of(nodes))


class TestRedisClusterPersistence(PersistenceContract):
    @pytest.fixture
    def persistence(self, nodes: list[RedisServer]) -> Persistence:
        return RedisPersistence(url_of(nodes))


async def test_shards_are_spread_over_the_nodes_and_each_is_on_one(nodes: list[RedisServer]) -> None:
    persistence = RedisPersistence(url_of(nodes))
    await persistence.prepare("board", 16)
    for shard in range(16):
        store = persistence.store("board", shard, [shard])
        try:
            await store.acquire()
            await store.append(batch(1, [artifact("a", slot=shard)]))
        finally:
            await store.close()

    places: dict[bytes, set[int]] = {}
    for node in nodes:
        with node.client() as client:
            for name in client.scan_iter():
                places.setdefault(name.split(b"}")[0], set()).add(node.port)
    assert all(len(ports) == 1 for ports in places.values())
    assert {node.port for node in nodes} == set.union(*places.values())


async def test_cluster_behind_a_plain_url_is_noticed(nodes: list[RedisServer]) -> None:
    for node in nodes:
        persistence = RedisPersistence(node.url)
        assert 4 == await persistence.prepare("board", 4)
    for shard in range(4):
        store = persistence.store("board", shard, [shard])
        try:
            await store.acquire()
            await store.append(batch(1, [artifact("a", slot=shard)]))
            assert 1 == await store.count(EVERYTHING)
        finally:
            await store.close()


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
async def test_cluster_has_only_database_0(nodes: list[RedisServer], scheme: str) -> None:
    with pytest.raises(ConfigurationError, match="database"):
        await RedisPersistence(f"{scheme}://{nodes[0].address}/3").prepare("board", 1)


async def test_settings_of_every_node_that_holds_a_shard_are_read(nodes: list[RedisServer]) -> None:
    with nodes[1].client() as client:
        client.config_set("appendfsync", "no")
    try:
        persistence = RedisPersistence(url_of(nodes))
        await persistence.prepare("board", 16)
    finally:
        with nodes[1].client() as client:
            client.config_set("appendfsync", "everysec")

    assert 1 == sum("appendfsync no" in text for text in persistence.warnings())


async def test_shard_whose_slot_moves_to_another_node_is_followed(nodes: list[RedisServer]) -> None:
    persistence = RedisPersistence(url_of(nodes))
    await persistence.prepare("board", 1)
    store = persistence.store("board", 0, range(256))
    try:
        await store.acquire()
        await store.append(batch(1, [artifact("a")]))
        source, target = move_slot(nodes, key_slot(b"flock:{board:0}:head"))

        async with asyncio.timeout(20):
            for lsn in range(2, 6):
                await store.append(batch(lsn, [artifact(lsn)], first_seq=lsn))

        assert 5 == await store.count(EVERYTHING)
        assert [1, 2, 3, 4, 5] == [lsn for lsn, _ in (await store.load()).frames]
        with source.client() as old, target.client() as new:
            assert not [name for name in old.scan_iter() if b"{board:0}" in name]
            assert b"5" == new.hget("flock:{board:0}:head", "l")
    finally:
        await store.close()


async def test_shard_whose_slot_is_on_the_move_is_unavailable_until_it_is_there(
    nodes: list[RedisServer],
) -> None:
    persistence = RedisPersistence(url_of(nodes), timeout=3)
    await persistence.prepare("board", 1)
    store = persistence.store("board", 0, range(256))
    slot = key_slot(b"flock:{board:0}:head")
    try:
        await store.acquire()
        await store.append(batch(1, [artifact("a")]))
        source, target = begin_move(nodes, slot)

        # The keys that the batch would make are missing here: they may be at the other node already.
        with pytest.raises(StoreUnavailableError, match="moving"):
            await store.append(batch(2, [artifact("b", type="New")], first_seq=2))

        finish_move(nodes, slot, source, target)
        await store.append(batch(2, [artifact("b", type="New")], first_seq=2))
        assert 2 == await store.count(EVERYTHING)
    finally:
        await store.close()


def owner(nodes: list[RedisServer], slot: int) -> RedisServer:
    with nodes[0].client() as client:
        for first, last, (_, port, *_), *_ in client.execute_command("CLUSTER", "SLOTS", NEVER_DECODE=True):
            if first <= slot <= last:
                return next(node for node in nodes if node.port == port)
    raise AssertionError


def node_id(node: RedisServer) -> str:
    with node.client() as client:
        name = client.execute_command("CLUSTER", "MYID")
    return name.decode() if isinstance(name, bytes) else str(name)


def begin_move(nodes: list[RedisServer], slot: int) -> tuple[RedisServer, RedisServer]:
    source = owner(nodes, slot)
    target = next(node for node in nodes if node is not source)
    with source.client() as old, target.client() as new:
        new.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", node_id(source))
        old.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", node_id(target))
    return source, target


def finish_move(nodes: list[RedisServer], slot: int, source: RedisServer, target: RedisServer) -> None:
    with source.client() as old:
        names = old.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1000)
        if names:
            old.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *names)
    for node in (target, source, *nodes):
        with node.client() as client:
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", node_id(target))


def move_slot(nodes: list[RedisServer], slot: int) -> tuple[RedisServer, RedisServer]:
    source, target = begin_move(nodes, slot)
    finish_move(nodes, slot, source, target)
    return source, target


async def test_node_that_is_down_is_unavailable_and_used_again_when_it_is_back(
    nodes: list[RedisServer],
) -> None:
    persistence = RedisPersistence(url_of(nodes), timeout=2)
    await persistence.prepare("board", 1)
    store = persistence.store("board", 0, range(256))
    try:
        await store.acquire()
        await store.append(batch(1))
        node = owner(nodes, key_slot(b"flock:{board:0}:head"))
        node.kill()
        with pytest.raises(StoreUnavailableError):
            await store.append(batch(2))
        node.start()

        async with asyncio.timeout(20):
            while True:
                try:
                    await store.append(batch(2))
                    break
                except StoreUnavailableError:
                    await asyncio.sleep(0.05)
        assert 2 == (await store.load()).last_lsn
    finally:
        await store.close()
