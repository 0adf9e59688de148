from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from flock_ray.adapters.redis import RedisPersistence
from flock_ray.adapters.redis_store import RedisStore
from flock_ray.core.audit import AuditHead
from flock_ray.ports import Persistence
from tests.redis_server import RedisServer, redis_server
from tests.store_contract_audit import AuditContract
from tests.unit.adapters.store_rows import artifact, batch, key, workflow

LOG, HEAD = "flock:{board:0}:audit", "flock:{board:0}:head"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(running: RedisServer) -> RedisServer:
    with running.client() as client:
        client.flushall()
    return running


@pytest.fixture
def audited(server: RedisServer) -> RedisPersistence:
    return RedisPersistence(server.url, enable_audit_log=True)


class TestRedisAudit(AuditContract):
    @pytest.fixture
    def audited(self, server: RedisServer) -> RedisPersistence:
        return RedisPersistence(server.url, enable_audit_log=True)

    @pytest.fixture
    def persistence(self, server: RedisServer) -> Persistence:
        return RedisPersistence(server.url)


@pytest.fixture
async def store(audited: RedisPersistence) -> AsyncIterator[RedisStore]:
    await audited.prepare("board", 1)
    store = audited.store("board", 0, range(256))
    await store.acquire()
    yield store
    await store.close()


@pytest.fixture
async def six(store: RedisStore) -> None:
    """A chain of six entries."""
    for lsn in range(1, 7):
        await store.append(batch(lsn, [artifact(lsn)], first_seq=lsn))


async def found(audited: RedisPersistence, noted: Any = None) -> list[int]:
    report = await audited.verify_audit("board", noted=noted)
    assert report.sound == (report.problems == [])
    return [problem.number for _, problem in report.problems]


def rewrite(client: Any, entries: list[tuple[str, dict[bytes, bytes]]]) -> None:
    """Write the stream anew: nothing else brings an entry into its middle."""
    client.delete(LOG)
    for name, fields in entries:
        client.xadd(LOG, fields, name)


def entries_of(client: Any) -> list[tuple[str, dict[bytes, bytes]]]:
    return [(name.decode(), fields) for name, fields in client.xrange(LOG)]


DAMAGES: dict[str, tuple[Any, list[int]]] = {
    "one is gone": (lambda c, e: c.xdel(LOG, "1-0"), [1]),
    "two are gone": (lambda c, e: c.xdel(LOG, "3-0", "4-0"), [3]),
    "the newest are gone": (lambda c, e: c.xdel(LOG, "5-0", "6-0"), [5]),
    "all are gone": (lambda c, e: c.delete(LOG), [1]),
    "one was added": (lambda c, e: c.xadd(LOG, e[0][1], "7-0"), [7]),
    "one says something else": (
        lambda c, e: rewrite(c, [*e[:2], (e[2][0], {**e[2][1], b"f": e[0][1][b"f"]}), *e[3:]]),
        [3],
    ),
    "one can't be read": (lambda c, e: rewrite(c, [*e[:2], (e[2][0], {b"x": b"y"}), *e[3:]]), [3, 4]),
    "two changed places": (
        lambda c, e: rewrite(c, [*e[:3], ("4-0", e[4][1]), ("5-0", e[3][1]), e[5]]),
        [4, 5, 6],
    ),
    "one is there twice": (lambda c, e: rewrite(c, [*e[:3], ("3-1", e[2][1]), *e[3:]]), [3]),
    "the end is gone": (lambda c, e: c.hdel(HEAD, "an", "ah"), [6]),
}


@pytest.mark.parametrize("name", DAMAGES)
async def test_damage_is_found(audited: RedisPersistence, six: None, server: RedisServer, name: str) -> None:
    assert [] == await found(audited)
    damage, places = DAMAGES[name]

    with server.client() as client:
        damage(client, entries_of(client))

    assert places == await found(audited)


async def test_a_log_that_was_cut_with_its_end_is_found_by_a_note(
    audited: RedisPersistence, six: None, server: RedisServer
) -> None:
    noted = (await audited.verify_audit("board")).heads
    with server.client() as client:
        client.xdel(LOG, "5-0", "6-0")
        client.hset(HEAD, mapping={"an": 4, "ah": entries_of(client)[-1][1][b"h"]})

    assert ([], [6]) == (await found(audited), await found(audited, noted))


async def test_the_log_goes_on_after_answers_that_were_lost(
    audited: RedisPersistence, store: RedisStore
) -> None:
    # Given writes that Redis has done although their answers never came
    trail = store._trail
    assert trail is not None
    await store.append(batch(1, [artifact("a")], workflows=[workflow(), workflow("other", slot=1)]))
    for write in (
        lambda: store.append(batch(2, [artifact("b")], first_seq=2)),
        lambda: store.erase([key("a"), key("b")]),
        lambda: store.remove_workflows([(0, "wf-1"), (1, "other")]),
    ):
        before = trail.head
        await write()
        trail.head = before
        # When they are done again, or the next ones come
        await write()
    await store.append(batch(3, [artifact("c")], first_seq=3))

    # Then the chain is whole: an erasure that was asked for twice is there twice
    assert [] == await found(audited)
    assert trail.head == (await audited.verify_audit("board")).heads[0]
    assert 1 + 1 + 4 + 2 + 1 == trail.head.count


async def test_workflows_that_change_while_they_are_removed_are_looked_at_again(
    audited: RedisPersistence, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given three settled workflows, one of which gets something new between the look and the removal
    rows = [workflow(f"w{n}", slot=n) for n in range(3)]
    await store.append(batch(1, [artifact(n, workflow=f"w{n}", slot=n) for n in range(3)], workflows=rows))
    look, calls = store._belongings, iter(range(100))

    async def late(place: Any, members: Any) -> Any:
        belongings = await look(place, members)
        if next(calls) == 2:
            again = [workflow("w1", slot=1, open=1)]
            await store.append(
                batch(2, [artifact("new", workflow="w1", slot=1)], first_seq=9, workflows=again)
            )
        return belongings

    monkeypatch.setattr(store, "_belongings", late)

    # When all three are to go
    assert 2 == await store.remove_workflows([(n, f"w{n}") for n in range(3)])

    # Then it stays, and the log tells of the two that went
    assert ["w1"] == [row.id for row in await store.workflows(["w0", "w1", "w2"])]
    assert [] == await found(audited)
    assert AuditHead(4 + 2, b"").count == (await audited.verify_audit("board")).entries
