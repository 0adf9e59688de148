"""AND gates and joins."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from flock_ray import JoinSpec
from flock_ray.core.ids import slot_of
from flock_ray.testing import VirtualFlock, run_virtual
from tests.unit.semantics.shop import Note, Order, Parcel, Payment, Seen

NEIGHBOUR = next(f"v{number}" for number in range(10_000) if slot_of(f"v{number}") == slot_of("w1"))
"""A workflow in the same slot as `w1`: what keeps them apart is the gate, not the place."""


async def expiries(flock: VirtualFlock) -> list[tuple[str, int, str]]:
    """Return agent, number of inputs and detail of every group that has expired."""
    found: list[tuple[str, int, str]] = []

    async def collect() -> None:
        async for event in flock.events("gate.expired"):
            found.append((event.agent, len(event.artifact_ids), event.detail))

    reader = asyncio.ensure_future(collect())
    await asyncio.sleep(0.001)
    reader.cancel()
    return found


def test_several_types_wait_for_each_other_and_arrive_in_declared_order() -> None:
    async def main() -> Seen:
        seen = Seen()
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Order, Payment, Parcel).runs(seen.one)
            await flock.publish_many([Parcel(n=3), Payment(n=2)])
            with flock.workflow("w"):
                for model in (Parcel(n=3), Payment(n=2), Order(n=1)):
                    await flock.publish(model)
            await flock.run_until_idle()
        return seen

    assert run_virtual(main()) == [(Order(n=1), Payment(n=2), Parcel(n=3))]


def test_counts_collect_that_many_and_the_surplus_stays_for_the_next_round() -> None:
    async def main() -> tuple[Seen, str, tuple[str, ...]]:
        seen = Seen()
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Order, Order, Payment).runs(
                lambda o, p: seen.one([x.n for x in o], p.n)
            )
            with flock.workflow("w"):
                await flock.publish_many([Order(n=n) for n in range(1, 6)])
                await flock.publish_many([Payment(n=1), Payment(n=2)])
            status = await flock.wait("w")
        return seen, status.state, status.waiting_for

    seen, state, waiting_for = run_virtual(main())
    assert seen == [([1, 2], 1), ([3, 4], 2)]
    assert state == "waiting"
    assert (
        len(waiting_for) == 1
        and "1 x market.Order" in waiting_for[0]
        and "1 x market.Payment" in waiting_for[0]
    )


def test_w1_and_gates_never_mix_workflows_unless_asked_and_lose_nothing() -> None:
    async def main(scope: str | None) -> list[tuple[int, int]]:
        seen = Seen()
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Order, Payment, scope=scope).runs(lambda o, p: seen.one(o.n, p.n))  # type: ignore[arg-type]  # a literal
            await flock.publish(Order(n=1), correlation_id="w1")
            await flock.publish(Payment(n=2), correlation_id=NEIGHBOUR)
            await flock.publish(Order(n=2), correlation_id=NEIGHBOUR)
            await flock.publish(Payment(n=1), correlation_id="w1")
            await flock.run_until_idle()
        return list(seen)

    assert sorted(run_virtual(main(None))) == [(1, 1), (2, 2)]
    assert run_virtual(main("board")) == [(1, 2), (2, 1)]


def test_one_workflow_meets_in_its_gate_whatever_the_partition_keys() -> None:
    async def main() -> Seen:
        seen = Seen()
        async with VirtualFlock(shards=3) as flock:
            flock.agent("a").consumes(Order, Payment).runs(lambda o, p: seen.one(o.n, p.n))
            await flock.publish(Order(n=1), correlation_id="w", partition_key="left")
            await flock.publish(Payment(n=1), correlation_id="w", partition_key="right")
            status = await flock.wait("w")
            assert (status.state, status.open, status.waiting) == ("completed", 0, 0)
        return seen

    assert run_virtual(main()) == [(1, 1)]


def test_a_join_pairs_by_key_across_workflows_and_shards_in_declared_order() -> None:
    async def main(shards: int) -> list[tuple[int, int]]:
        seen = Seen()
        async with VirtualFlock(shards=shards) as flock:
            join = JoinSpec(by=lambda m: m.n, within=timedelta(minutes=5))
            flock.agent("a").consumes(Order, Payment, join=join).runs(lambda o, p: seen.one(o.n, p.n))
            for n in range(20):
                await flock.publish(Order(n=n))
            for n in reversed(range(20)):
                await flock.publish(Payment(n=n))
            await flock.run_until_idle()
        return sorted(seen)

    for shards in (1, 3):
        assert run_virtual(main(shards)) == [(n, n) for n in range(20)]


def test_a_join_group_past_its_time_expires_as_an_event_that_names_its_inputs() -> None:
    async def main() -> tuple[Seen, list[tuple[str, int, str]], str]:
        seen = Seen()
        async with VirtualFlock() as flock:
            join = {"by": lambda m: m.n, "within": timedelta(seconds=30)}
            flock.agent("pair").consumes(Order, Payment, join=join).runs(lambda o, p: seen.one(o.n, p.n))
            await flock.publish(Order(n=1), correlation_id="late")
            await asyncio.sleep(29)
            await flock.publish(Order(n=2))
            await asyncio.sleep(2)
            await flock.publish_many([Payment(n=1), Payment(n=2)])
            await flock.run_until_idle()
            found = await expiries(flock)
            return seen, found, (await flock.workflow_status("late")).state

    seen, found, state = run_virtual(main())
    assert seen == [(2, 2)]
    assert [(agent, inputs) for agent, inputs, _ in found] == [("pair", 1)]
    assert "1 x market.Payment" in found[0][2]
    assert state == "completed"


def test_a_join_by_count_spans_that_many_arrivals_of_its_subscription() -> None:
    async def main() -> tuple[Seen, list[tuple[str, int, str]]]:
        seen = Seen()
        async with VirtualFlock() as flock:
            flock.agent("pair").consumes(Order, Payment, join={"by": lambda m: m.n, "within": 3}).runs(
                lambda o, p: seen.one(o.n, p.n)
            )
            # Order 1 waits for up to three further arrivals; its payment is the fourth.
            for model in (Order(n=1), Order(n=2), Payment(n=2), Order(n=3), Payment(n=1), Payment(n=3)):
                await flock.publish(model)
            await flock.run_until_idle()
            return seen, await expiries(flock)

    seen, found = run_virtual(main())
    assert seen == [(2, 2), (3, 3)]
    assert [(agent, inputs) for agent, inputs, _ in found] == [("pair", 1)]


def test_a_join_key_that_raises_refuses_the_artifact_visibly() -> None:
    async def main() -> tuple[Seen, list[str]]:
        seen = Seen()
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Order, Note, join=JoinSpec(by=lambda m: m.n)).runs(seen.one)
            await flock.publish(Note(text="no number"))
            await flock.run_until_idle()
            async for event in flock.events("match.refused"):
                return seen, [event.detail]
        raise AssertionError

    seen, refused = run_virtual(main())
    assert seen == []
    assert "join key" in refused[0] and "AttributeError" in refused[0]


def test_a_join_within_workflows_keeps_equal_keys_of_different_workflows_apart() -> None:
    async def main() -> Seen:
        seen = Seen()
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Order, Payment, join=JoinSpec(by=lambda m: m.n), scope="workflow").runs(
                seen.one
            )
            await flock.publish(Order(n=1), correlation_id="w1")
            await flock.publish(Payment(n=1), correlation_id=NEIGHBOUR)
            await flock.run_until_idle()
        return seen

    assert run_virtual(main()) == []
