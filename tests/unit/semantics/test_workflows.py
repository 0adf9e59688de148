"""Workflows: correlation, lineage, what propagates, status, cancelling, the loop guard, direct runs."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from flock_ray import BatchSpec, WorkflowError
from flock_ray.errors import AgentError, ConfigurationError, WaitTimeoutError
from flock_ray.testing import VirtualFlock, run_virtual
from tests.unit.semantics.shop import Note, Order, Parcel, Payment, Seen


async def slow(order: Order) -> Parcel:
    await asyncio.sleep(100)
    return Parcel(n=order.n)


def fail(model: Order) -> None:
    raise RuntimeError("broken")


def test_outputs_name_their_inputs_and_inherit_workflow_tags_and_partition_key() -> None:
    async def main() -> None:
        async with VirtualFlock(shards=3) as flock:
            flock.agent("pack").consumes(Order).publishes(Parcel).runs(lambda o: Parcel(n=o.n))
            flock.agent("tell").consumes(Parcel, Order).publishes(Note).runs(lambda p, o: Note(text="both"))
            order = await flock.publish(Order(n=1), correlation_id="w", tags={"b", "a"}, partition_key="k")
            assert (await flock.wait("w")).state == "completed"
            (parcel,) = await flock.store.list_by_type("market.Parcel")
            (note,) = await flock.store.list_by_type("market.Note")
            assert parcel.parents == (order.id,)
            assert set(note.parents) == {order.id, parcel.id}
            assert parcel.activation_id is not None and parcel.activation_id != note.activation_id
            for made, producer in ((parcel, "pack"), (note, "tell")):
                assert (made.correlation_id, made.tags, made.partition_key) == ("w", {"a", "b"}, "k")
                assert made.produced_by == producer
            assert order.produced_by == "external"

    run_virtual(main())


def test_with_workflow_sets_the_correlation_inside_and_a_call_may_override_it() -> None:
    async def main() -> list[str | None]:
        async with VirtualFlock() as flock:
            with flock.workflow("order-42") as name:
                inside = await flock.publish(Order(n=1))
                many = await flock.publish_many([Order(n=2), Order(n=3)])
                other = await flock.publish(Order(n=4), correlation_id="x")
            assert name == "order-42"
            outside = await flock.publish(Order(n=5))
            assert outside.correlation_id not in {None, "order-42", "x"}
            return [a.correlation_id for a in (inside, *many, other)]

    assert run_virtual(main()) == ["order-42", "order-42", "order-42", "x"]


def test_w4_a_running_workflow_is_active_and_counts_are_exact() -> None:
    async def main() -> None:
        async with VirtualFlock(shards=2) as flock:
            flock.agent("slow").consumes(Order).publishes(Parcel).runs(slow)
            await flock.publish_many([Order(n=n) for n in range(3)], correlation_id="w")
            await asyncio.sleep(50)
            status = await flock.workflow_status("w")
            assert (status.state, status.artifact_count, status.open) == ("active", 3, 3)
            assert (await flock.get_correlation_status("w"))["has_pending_work"] is True
            done = await flock.wait("w")
            assert (done.state, done.artifact_count, done.error_count) == ("completed", 6, 0)
            assert done.counts == {"market.Order": 3, "market.Parcel": 3}
            assert done.started_at is not None and done.last_activity_at is not None
            assert timedelta(seconds=99) < done.last_activity_at - done.started_at < timedelta(seconds=102)

    run_virtual(main())


def test_w4_an_error_makes_a_workflow_failed_once_nothing_runs_any_more() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            flock.agent("bad").consumes(Order).runs(fail)
            flock.agent("slow").consumes(Order).publishes(Parcel).runs(slow)
            await flock.publish(Order(n=1), correlation_id="w")
            await asyncio.sleep(50)
            status = await flock.workflow_status("w")
            assert (status.state, status.error_count) == ("active", 1)
            done = await flock.wait("w")
            assert (done.state, done.error_count, done.artifact_count) == ("failed", 1, 3)

    run_virtual(main())


def test_w4_waiting_and_unknown_workflows_say_so() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            flock.agent("pair").consumes(Order, Payment).runs(lambda o, p: None)
            await flock.publish(Order(n=1), correlation_id="w")
            status = await flock.wait("w")
            assert (status.state, status.waiting) == ("waiting", 1)
            assert "1 x market.Payment" in status.waiting_for[0]
            assert (await flock.workflow_status("nobody")).state == "not_found"

    run_virtual(main())


def test_a_cancelled_workflow_stops_and_takes_nothing_more() -> None:
    async def main() -> None:
        seen = Seen()
        async with VirtualFlock() as flock:
            flock.agent("slow").consumes(Order).publishes(Parcel).runs(slow)
            flock.agent("later").consumes(Payment).runs(seen.one)
            await flock.publish_many([Order(n=1), Order(n=2)], correlation_id="w")
            await flock.publish(Payment(n=1), correlation_id="w", delay=timedelta(days=1))
            await flock.publish(Order(n=3), correlation_id="other")
            await asyncio.sleep(1)
            assert await flock.cancel("w") == 2
            status = await flock.workflow_status("w")
            assert (status.state, status.open, status.delayed) == ("cancelled", 0, 0)
            await flock.publish(Order(n=4), correlation_id="w")
            await flock.run_until_idle(include_timers=True)
            assert [p.n for p in await flock.store.get_by_type(Parcel)] == [3]
            assert (await flock.workflow_status("w")).state == "cancelled"
            assert await flock.cancel("w") == 0
        assert seen == []

    run_virtual(main())


def test_w9_the_loop_guard_stops_one_workflow_with_an_event_and_an_error_and_no_other() -> None:
    async def main() -> None:
        async with VirtualFlock(max_agent_iterations=10) as flock:
            flock.agent("ping").consumes(Order).publishes(Parcel).runs(lambda o: Parcel(n=o.n))
            flock.agent("pong").consumes(Parcel, where=lambda p: p.n > 0).publishes(Order).runs(
                lambda p: Order(n=p.n)
            )
            await flock.publish(Order(n=1), correlation_id="loop")
            await flock.run_until_idle()
            status = await flock.workflow_status("loop")
            assert (status.state, status.error_count) == ("failed", 1)
            (error,) = await flock.store.get_by_type(WorkflowError, correlation_id="loop")
            assert error.error_type == "LoopGuardError"
            assert "max_agent_iterations" in error.error_message
            assert status.counts["market.Parcel"] == 10
            async for event in flock.events("loop.stopped"):
                assert (event.agent, event.correlation_id) == ("ping", "loop")
                break
            await flock.publish(Order(n=0), correlation_id="fine")
            assert (await flock.wait("fine")).state == "completed"

    run_virtual(main())


def test_w9_thousands_of_inputs_in_one_workflow_are_no_loop() -> None:
    async def main() -> tuple[int, int]:
        async with VirtualFlock(max_agent_iterations=10) as flock:
            flock.agent("pack").consumes(Order).publishes(Parcel).runs(lambda o: Parcel(n=o.n))
            await flock.publish_many([Order(n=n) for n in range(1000)], correlation_id="w")
            status = await flock.wait("w")
            return status.counts["market.Parcel"], status.error_count

    assert run_virtual(main()) == (1000, 0)


def test_w9_a_loop_through_a_gate_is_stopped_too() -> None:
    async def main() -> tuple[str, str]:
        async with VirtualFlock(max_agent_iterations=5) as flock:
            (
                flock.agent("grow").consumes(Order, Parcel).publishes(Order, Parcel)
                .prevent_self_trigger(False).runs(lambda o, p: (o, p))
            )  # fmt: skip
            await flock.publish_many([Order(n=1), Parcel(n=1)], correlation_id="w")
            status = await flock.wait("w")
            (error,) = await flock.store.get_by_type(WorkflowError)
            assert status.counts["market.Order"] == 6
            return status.state, error.error_type

    assert run_virtual(main()) == ("failed", "LoopGuardError")


def test_w3_direct_runs_happen_exactly_once() -> None:
    async def main() -> None:
        seen = Seen()
        async with VirtualFlock() as flock:

            def pack(order: Order) -> Parcel:
                seen.append(order.n)
                return Parcel(n=order.n)

            picky = flock.agent("pack").consumes(Order, where=lambda o: o.n > 10).publishes(Parcel).runs(pack)
            label = flock.agent("label").consumes(Parcel).publishes(Note).runs(lambda p: Note(text=str(p.n)))
            made = await flock.arun(picky, Order(n=1), Order(n=2))
            assert (sorted(seen), sorted(a.payload["n"] for a in made)) == ([1, 2], [1, 2])
            seen.clear()
            (out,) = await flock.invoke(picky, Order(n=3))
            await flock.run_until_idle()
            assert (seen, out.payload, out.produced_by) == ([3], {"n": 3}, "pack")
            assert "3" in [note.text for note in await flock.store.get_by_type(Note)]
            seen.clear()
            (quiet,) = await flock.invoke("pack", Order(n=4), publish_outputs=False)
            assert await flock.store.get(quiet.id) is None
            seen.clear()
            (note,) = await picky.run(Order(n=5)).then(label).execute()
            assert (seen, note.payload) == ([5], {"text": "5"})

    run_virtual(main())


def test_a_pipeline_refuses_a_later_agent_that_artifacts_never_reach() -> None:
    async def main() -> int:
        async with VirtualFlock() as flock:
            pack = flock.agent("pack").consumes(Order).publishes(Parcel).runs(lambda o: Parcel(n=o.n))
            label = (
                flock.agent("label")
                .consumes(Parcel, mode="direct")
                .publishes(Note)
                .runs(lambda p: Note(text="x"))
            )
            with pytest.raises(ConfigurationError, match=r"'label'.*direct"):
                await pack.run(Order(n=1)).then(label).execute()
            return await flock.store.count(Parcel)

    assert run_virtual(main()) == 0


def test_invoke_raises_what_the_agent_raised_and_respects_its_timeout() -> None:
    async def main() -> int:
        async with VirtualFlock() as flock:
            bad = flock.agent("bad").consumes(Order).runs(fail)
            lazy = flock.agent("slow").consumes(Order).publishes(Parcel).runs(slow)
            with pytest.raises(AgentError, match="RuntimeError: broken"):
                await flock.invoke(bad, Order(n=1))
            with pytest.raises(WaitTimeoutError, match="slow"):
                await flock.invoke(lazy, Order(n=1), timeout=5)
            return await flock.store.count(WorkflowError)

    assert run_virtual(main()) == 0


def test_a_failing_run_publishes_an_error_with_lineage_and_the_workflow_goes_on() -> None:
    async def main() -> None:
        handled: list[WorkflowError] = []
        async with VirtualFlock() as flock:
            flock.agent("bad").consumes(Order).runs(fail)
            flock.agent("medic").consumes(WorkflowError).runs(handled.append)
            order = await flock.publish(Order(n=1), correlation_id="w", tags={"t"})
            await flock.wait("w")
            (error,) = await flock.store.list_by_type("WorkflowError")
            assert (error.parents, error.correlation_id, error.tags) == ((order.id,), "w", {"t"})
            assert error.produced_by == "orchestrator#bad"
        assert [(e.failed_agent, e.error_type, e.error_message) for e in handled] == [
            ("bad", "RuntimeError", "broken")
        ]

    run_virtual(main())


def test_an_agent_that_hears_of_a_stopped_loop_gets_the_error() -> None:
    async def main() -> list[str]:
        handled: list[str] = []
        async with VirtualFlock(max_agent_iterations=3) as flock:
            flock.agent("loop").consumes(Order).publishes(Order).prevent_self_trigger(False).runs(lambda o: o)
            flock.agent("medic").consumes(WorkflowError).runs(lambda e: handled.append(e.error_type))
            flock.agent("broken").consumes(WorkflowError, where=lambda e: e.nothing).runs(lambda e: None)
            await flock.publish(Order(n=1))
            await flock.run_until_idle()
            async for event in flock.events("match.refused"):
                handled.append(event.agent)
                break
        return handled

    assert run_virtual(main()) == ["LoopGuardError", "broken"]


def test_a_delayed_artifact_is_there_at_once_and_delivered_later() -> None:
    async def main() -> tuple[int, list[int], list[int]]:
        seen = Seen()
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Order).runs(lambda o: seen.append(o.n))
            await flock.publish(Order(n=1), delay=timedelta(days=3))
            stored = await flock.store.count(Order)
            await asyncio.sleep(3 * 86400 - 1)
            before = list(seen)
            await flock.run_until_idle(include_timers=True)
            return stored, before, list(seen)

    assert run_virtual(main()) == (1, [], [1])


def test_waiting_for_timers_ends_when_a_delayed_input_stays_in_a_gate() -> None:
    async def main() -> str:
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Order, Payment).runs(lambda o, p: None)
            await flock.publish(Order(n=1), correlation_id="w", delay=timedelta(hours=1))
            await flock.run_until_idle(include_timers=True, timeout=7200)
            return (await flock.workflow_status("w")).state

    assert run_virtual(main()) == "waiting"


def test_without_timeout_it_ends_as_well() -> None:
    async def main() -> bool:
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Order, Payment).runs(lambda o, p: None)
            await flock.publish(Order(n=1), delay=timedelta(hours=1))
            started = asyncio.get_running_loop().time()
            await flock.run_until_idle(include_timers=True)
            return asyncio.get_running_loop().time() - started < 3700

    assert run_virtual(main())


def test_a_loop_through_a_gate_away_from_its_workflow_is_stopped_too() -> None:
    async def main() -> tuple[int, list[str], str]:
        async with VirtualFlock(shards=3, max_agent_iterations=5) as flock:
            ping = flock.agent("ping").consumes(Order, batch=BatchSpec(size=1))
            ping.publishes(Parcel).runs(lambda orders: Parcel(n=orders[0].n))
            pong = flock.agent("pong").consumes(Parcel, batch=BatchSpec(size=1))
            pong.publishes(Order).runs(lambda parcels: Order(n=parcels[0].n))
            order = await flock.publish(Order(n=1))
            await flock.run_until_idle()
            errors = await flock.store.get_by_type(WorkflowError)
            return (
                await flock.store.count(Parcel),
                [e.error_type for e in errors],
                (await flock.wait(order)).state,
            )

    parcels, errors, state = run_virtual(main())
    assert parcels <= 6
    assert errors == ["LoopGuardError"]
    assert state == "failed"
