"""What has left and what must go, on boards that real servers keep, and on Ray."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flock_ray import Flock, FlockError
from flock_ray.actors import retention
from flock_ray.adapters.postgres import PostgresPersistence
from flock_ray.adapters.redis import RedisPersistence
from flock_ray.against import running_types, stored_types
from flock_ray.core.retention import RetentionPolicy
from flock_ray.ports import Persistence
from flock_ray.testing import VirtualFlock
from tests.chaos.backends import Backend, running
from tests.unit.semantics.shop import Order, Parcel, Payment

ARCHIVE = RetentionPolicy.ARCHIVE_COMPLETED
NewFlock = Callable[..., Flock]


@pytest.fixture(params=["postgres", "redis"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    with running(request.param, tmp_path / "backend") as backend:
        yield backend


def archiving(backend: Backend, folder: Path) -> Persistence:
    """Return a persistence that archives what is settled."""
    if backend.name == "postgres":
        return PostgresPersistence(backend.url, retention_policy=ARCHIVE, archive=str(folder))
    return RedisPersistence(backend.url, retention_policy=ARCHIVE, archive=str(folder))


def declare(flock: Flock) -> None:
    flock.agent("gate").consumes(Order, Payment).publishes(Parcel).runs(lambda o, p: Parcel(n=o.n + p.n))


async def test_what_is_settled_leaves_the_server_for_the_archive_and_what_waits_stays(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a board that lets settled workflows go at once
    monkeypatch.setattr(retention, "MIN_AGE_US", 0)
    monkeypatch.setattr(retention, "GATHER_US", dict.fromkeys(RetentionPolicy, 0))
    async with VirtualFlock(persistence=archiving(backend, tmp_path / "archive"), shards=2) as flock:
        declare(flock)
        for n in range(30):
            await flock.publish(Order(n=n), correlation_id=f"w{n}")

        # When half of its workflows end
        for n in range(0, 30, 2):
            await flock.publish(Payment(n=n), correlation_id=f"w{n}")

        # Then those are in the archive and nowhere else, and the others wait
        for _ in range(200):
            if await flock.store.count(Order) == 15:
                break
            await asyncio.sleep(0.1)
        assert {a.correlation_id for a in await flock.store.list()} == {f"w{n}" for n in range(1, 30, 2)}
        rows = await flock.archive.query(
            "SELECT payload->>'$.n' AS n FROM artifacts WHERE type = 'market.Parcel'"
        )
        assert sorted(int(row["n"]) for row in rows) == [2 * n for n in range(0, 30, 2)]
    # And what waits goes on when the board is opened again
    async with VirtualFlock(persistence=backend.persistence(), shards=2) as again:
        declare(again)
        await again.publish(Payment(n=1), correlation_id="w1")
        await again.run_until_idle(timeout=20)
        assert [parcel.n for parcel in await again.store.get_by_type(Parcel)] == [2]


async def test_erased_content_is_nowhere_in_a_board_on_ray_and_stays_so_when_it_comes_back(
    new_flock: NewFlock, backend: Backend
) -> None:
    # Given a board on Ray in which a workflow waits and another one has ended
    name = f"erase-{uuid.uuid4().hex}"
    flock = new_flock(persistence=backend.persistence(), namespace=name, shards=2)
    declare(flock)
    for customer in ("ann", "bob"):
        await flock.publish(Order(n=7), correlation_id=customer, tags={customer})
        await flock.publish(Payment(n=8), correlation_id=customer, tags={customer})
    await flock.publish(Order(n=9), correlation_id="ann-2", tags={"ann"})
    await flock.run_until_idle(timeout=60)

    # When everything of one customer is erased
    erased = await flock.erase(tags={"ann"}, reason="request 17")

    # Then its content is gone, its lineage is not, and the other customer's is untouched
    assert erased == 4
    payloads = {(a.correlation_id, a.type): a.payload for a in await flock.store.list()}
    assert all((payload is None) == (cid != "bob") for (cid, _), payload in payloads.items())
    assert len(payloads) == 7
    await flock.shutdown(flush_batches=False)
    back = new_flock(persistence=backend.persistence(), namespace=name)
    declare(back)
    assert {(a.correlation_id, a.type): a.payload for a in await back.store.list()} == payloads


async def test_types_of_a_running_board_and_of_one_at_rest_are_the_same(
    new_flock: NewFlock, backend: Backend
) -> None:
    name = f"types-{uuid.uuid4().hex}"
    persistence = backend.persistence()
    flock = new_flock(persistence=persistence, namespace=name)
    declare(flock)
    await flock.start()

    running_ones = await running_types(name)
    await flock.shutdown(flush_batches=False)

    assert {info.name for info in running_ones} >= {"market.Order", "market.Payment", "market.Parcel"}
    assert list(await stored_types(persistence, name)) == running_ones
    with pytest.raises(FlockError, match="No board"):
        await running_types(name)
