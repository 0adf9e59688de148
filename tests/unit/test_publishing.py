"""Publishing: what `publish` and `publish_many` return and keep."""

from __future__ import annotations

import asyncio

from pydantic import BaseModel

from flock_ray import Artifact, flock_type
from flock_ray.testing import VirtualFlock, run_virtual


@flock_type(name="publishing.Item")
class Item(BaseModel):
    n: int


def test_a_published_artifact_comes_back_with_its_ids_and_can_be_found() -> None:
    async def main() -> None:
        async with VirtualFlock(shards=3) as flock:
            made = await flock.publish(Item(n=1), tags={"t"}, partition_key="p")
            found = await flock.store.get(made.id)
            assert found is not None
            assert (found.payload, found.tags, found.partition_key) == ({"n": 1}, {"t"}, "p")
            assert found.correlation_id == made.correlation_id is not None
            assert found.created_at == made.created_at
            assert flock.metrics["artifacts_published"] == 1

    run_virtual(main())


def test_publish_many_is_one_workflow_in_order() -> None:
    async def main() -> None:
        async with VirtualFlock(shards=3) as flock:
            made = await flock.publish_many(Item(n=n) for n in range(1200))
            assert len({artifact.correlation_id for artifact in made}) == 1
            kept = await flock.store.list(correlation_id=made[0].correlation_id)
            assert [artifact.payload["n"] for artifact in kept] == list(range(1200))
            assert await flock.publish_many([]) == []

    run_virtual(main())


def test_an_idempotency_key_makes_a_retry_return_the_first_artifact_on_any_number_of_shards() -> None:
    async def main() -> None:
        ran: list[int] = []
        async with VirtualFlock(shards=3) as flock:
            flock.agent("a").consumes(Item).runs(lambda item: ran.append(item.n))
            first, second = await asyncio.gather(
                flock.publish(Item(n=1), idempotency_key="k"), flock.publish(Item(n=2), idempotency_key="k")
            )
            other = await flock.publish(Item(n=3), idempotency_key="another")
            await flock.run_until_idle()
            assert (first.id, first.payload) == (second.id, second.payload)
            assert other.id != first.id
            assert sorted(ran) == [first.payload["n"], 3]

    run_virtual(main())


def test_one_key_for_a_list_keeps_every_item_and_a_retry_adds_only_what_is_missing() -> None:
    async def main() -> None:
        async with VirtualFlock(shards=3) as flock:
            first = await flock.publish_many([Item(n=1), Item(n=2)], idempotency_key="k")
            again = await flock.publish_many([Item(n=1), Item(n=2), Item(n=3)], idempotency_key="k")
            assert [a.id for a in again[:2]] == [a.id for a in first]
            assert sorted(item.n for item in await flock.store.get_by_type(Item)) == [1, 2, 3]

    run_virtual(main())


def test_an_artifact_keeps_what_it_says_about_itself() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            parent = await flock.publish(Item(n=0))
            given = Artifact(
                type="publishing.Item", payload={"n": 1}, correlation_id="w", tags={"t"}, produced_by="importer",
                partition_key="p", parents=[parent.id],
            )  # fmt: skip
            made = await flock.publish(given, correlation_id="ignored")
            assert (made.id, made.correlation_id, made.tags) == (given.id, "w", {"t"})
            assert (made.produced_by, made.partition_key, made.parents) == ("importer", "p", (parent.id,))

    run_virtual(main())
