"""Batches, and batches of joins."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from flock_ray import BatchSpec, JoinSpec
from flock_ray.testing import VirtualFlock, run_virtual
from tests.unit.semantics.shop import Note, Order, Payment, Seen


def sizes(seen: Seen) -> list[int]:
    return [len(batch) for batch in seen]


def test_a_batch_runs_when_it_is_full() -> None:
    async def main() -> tuple[list[int], int, str]:
        seen = Seen()
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Order, batch=BatchSpec(size=3)).runs(seen.one)
            await flock.publish_many([Order(n=n) for n in range(8)], correlation_id="w")
            await flock.run_until_idle()
            status = await flock.workflow_status("w")
            full = sizes(seen)
            flushed = await flock.flush_batches()
            await flock.run_until_idle()
            assert sizes(seen) == [3, 3, 2]
            assert [order.n for batch in seen for order in batch] == list(range(8))
        return full, flushed, status.state

    assert run_virtual(main()) == ([3, 3], 1, "waiting")


def test_w5_a_partial_batch_runs_at_its_timeout_though_nobody_waits_for_it() -> None:
    async def main() -> tuple[list[int], list[int]]:
        seen = Seen()
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Order, batch={"size": 10, "timeout": timedelta(hours=2)}).runs(seen.one)
            await flock.publish(Order(n=1))
            await asyncio.sleep(3600)
            await flock.publish(Order(n=2))
            await flock.run_until_idle()
            await asyncio.sleep(3599)
            before = sizes(seen)
            await asyncio.sleep(2)
        return before, sizes(seen)

    assert run_virtual(main()) == ([], [2])


def test_w5_partial_batches_run_at_shutdown() -> None:
    async def main() -> list[int]:
        seen = Seen()
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Order, batch=BatchSpec(size=10)).runs(seen.one)
            await flock.publish_many([Order(n=1), Order(n=2)])
        return sizes(seen)

    assert run_virtual(main()) == [2]


def test_w11_the_dict_form_of_a_batch_works_with_seconds() -> None:
    async def main() -> list[int]:
        seen = Seen()
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Order, batch={"timeout": 1.5}).runs(seen.one)
            await flock.publish_many([Order(n=1), Order(n=2)])
            await flock.run_until_idle(include_timers=True)
        return sizes(seen)

    assert run_virtual(main()) == [2]


def test_w16_a_batch_across_workflows_starts_a_new_one_that_names_all_its_sources() -> None:
    async def main() -> None:
        async with VirtualFlock(shards=3) as flock:
            flock.agent("a").consumes(Order, batch=BatchSpec(size=3)).publishes(Note).runs(
                lambda orders: Note(text=str(sorted(o.n for o in orders)))
            )
            orders = [await flock.publish(Order(n=n), correlation_id=f"w{n}") for n in range(3)]
            await flock.run_until_idle()
            (note,) = await flock.store.list_by_type("market.Note")
            assert note.payload == {"text": "[0, 1, 2]"}
            assert note.correlation_id not in {"w0", "w1", "w2"}
            assert set(note.parents) == {order.id for order in orders}
            # The sources are over, and the new workflow is one of its own.
            states = [(await flock.workflow_status(f"w{n}")).state for n in range(3)]
            assert states == ["completed"] * 3
            assert (await flock.workflow_status(note.correlation_id or "")).artifact_count == 1

    run_virtual(main())


def test_a_batch_of_one_workflow_stays_in_it() -> None:
    async def main() -> set[str | None]:
        async with VirtualFlock(shards=3) as flock:
            flock.agent("a").consumes(Order, batch=BatchSpec(size=2)).publishes(Note).runs(
                lambda b: Note(text="x")
            )
            await flock.publish_many([Order(n=1), Order(n=2)], correlation_id="w")
            await flock.run_until_idle()
            return {a.correlation_id for a in await flock.store.list_by_type("market.Note")}

    assert run_virtual(main()) == {"w"}


def test_a_batch_per_workflow_never_mixes() -> None:
    async def main() -> list[list[int]]:
        seen = Seen()
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Order, batch=BatchSpec(size=2), scope="workflow").runs(
                lambda b: seen.append([o.n for o in b])
            )
            for n in (1, 2, 11, 12):
                await flock.publish(Order(n=n), correlation_id=f"w{n % 2}")
            await flock.run_until_idle()
        return sorted(seen)

    assert run_virtual(main()) == [[1, 11], [2, 12]]


def test_a_batch_of_joins_counts_groups_and_passes_tuples() -> None:
    async def main() -> Seen:
        seen = Seen()
        async with VirtualFlock(shards=2) as flock:
            flock.agent("a").consumes(
                Order, Payment, join=JoinSpec(by=lambda m: m.n), batch=BatchSpec(size=2)
            ).runs(lambda rows: seen.append([(o.n, p.n) for o, p in rows]))
            for n in range(3):
                await flock.publish(Payment(n=n))
            for n in range(3):
                await flock.publish(Order(n=n))
            await flock.run_until_idle()
            assert seen == [[(0, 0), (1, 1)]]
            assert await flock.flush_batches() == 1
            await flock.run_until_idle()
        return seen

    assert run_virtual(main()) == [[(0, 0), (1, 1)], [(2, 2)]]


def test_a_cancelled_workflow_leaves_a_batch_that_others_still_fill() -> None:
    async def main() -> list[list[int]]:
        seen = Seen()
        async with VirtualFlock(shards=2) as flock:
            flock.agent("a").consumes(Order, batch=BatchSpec(size=2)).runs(
                lambda b: seen.append([o.n for o in b])
            )
            await flock.publish(Order(n=1), correlation_id="gone")
            await flock.run_until_idle()
            await flock.cancel("gone")
            await flock.run_until_idle()
            status = await flock.workflow_status("gone")
            assert (status.state, status.waiting, status.open) == ("cancelled", 0, 0)
            for n in (2, 3):
                await flock.publish(Order(n=n))
            await flock.run_until_idle()
        return list(seen)

    assert run_virtual(main()) == [[2, 3]]
