"""Pause, resume, halt and cancel: nothing of it is lost, and nothing that is paused runs."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from flock_ray import BatchSpec
from flock_ray.core import pausing
from flock_ray.core.recovery import snapshot_shard, snapshot_slot
from flock_ray.core.rows import SHARD, Snapshot
from flock_ray.errors import (
    BackpressureError,
    CapacityError,
    ConfigurationError,
    StoreUnavailableError,
    UnknownTypeError,
)
from flock_ray.testing import MemoryPersistence, VirtualFlock, run_virtual
from tests.unit.semantics.shop import Note, Order, Parcel, Payment, Seen


class Kitchen:
    """Async agents that count what they began, finished and had to give up."""

    def __init__(self, seconds: float = 10.0) -> None:
        self.seconds = seconds
        self.began: list[int] = []
        self.ended: list[int] = []
        self.cancelled: list[int] = []

    async def cook(self, order: Order) -> Parcel:
        self.began.append(order.n)
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled.append(order.n)
            raise
        self.ended.append(order.n)
        return Parcel(n=order.n)


async def kinds_of(flock: VirtualFlock, *kinds: str) -> list[tuple[str, str]]:
    """Return (kind, detail) of the events so far."""
    found: list[tuple[str, str]] = []

    async def collect() -> None:
        async for event in flock.events(*kinds):
            found.append((event.kind, event.detail))

    reader = asyncio.ensure_future(collect())
    await asyncio.sleep(0.001)
    reader.cancel()
    return found


def test_a_paused_agent_gets_nothing_others_go_on_and_what_waited_runs_after_resume() -> None:
    async def main() -> None:
        async with VirtualFlock(shards=3) as flock:
            seen = Seen()
            flock.agent("slow").consumes(Order).runs(seen.by("slow"))
            flock.agent("other").consumes(Order).runs(seen.by("other"))
            # Given that one of two agents is paused, by its builder
            await flock.pause(agent=flock.get_agent("slow"), by="mia", reason="broken prompt")
            await flock.pause(agent="slow")  # safe to repeat
            # When orders come, in many workflows
            for n in range(20):
                await flock.publish(Order(n=n), correlation_id=f"w{n}")
            await asyncio.sleep(3600)
            # Then only the other one runs
            assert sorted(seen) == sorted(("other", n) for n in range(20))
            [view] = await flock.paused()
            assert (view.kind, view.name, view.by, view.reason) == ("agent", "slow", "mia", "broken prompt")
            assert view.everywhere
            # And it says why
            order = (await flock.store.list_by_type("market.Order"))[0]
            [why] = [a for a in (await flock.why(order)).answers if a.subscription.startswith("slow/")]
            assert (why.state, why.detail) == ("waiting", "agent 'slow' is paused by mia: broken prompt")
            assert any("by mia: broken prompt" in note for note in (await flock.why("slow")).notes)
            # When it is resumed, all of it runs, once
            await flock.resume(agent="slow")
            await flock.run_until_idle(timeout=10)
            assert sorted(n for name, n in seen if name == "slow") == list(range(20))
            assert await flock.paused() == []
            events = await kinds_of(flock, "board")
            assert events == [
                ("board.paused", "agent slow by mia: broken prompt"),
                ("board.resumed", "agent slow"),
            ]

    run_virtual(main())


def test_what_runs_when_its_agent_is_paused_ends() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            kitchen = Kitchen()
            flock.agent("cook").consumes(Order).publishes(Parcel).runs(kitchen.cook).max_concurrency(1)
            await flock.publish_many([Order(n=1), Order(n=2)], correlation_id="w")
            await asyncio.sleep(5)
            await flock.pause(agent="cook")
            await asyncio.sleep(100)
            assert (kitchen.ended, kitchen.began, kitchen.cancelled) == ([1], [1], [])
            await flock.resume(agent="cook")
            await flock.wait("w", timeout=20)
            assert kitchen.ended == [1, 2]

    run_virtual(main())


@pytest.mark.parametrize("limited", [False, True])
def test_a_paused_workflow_waits_and_others_of_the_same_agent_pass_it(limited: bool) -> None:
    async def main() -> None:
        async with VirtualFlock(shards=2) as flock:
            seen = Seen()
            agent = flock.agent("one").consumes(Order).runs(seen.by("one"))
            if limited:
                agent.concurrency(1)
            await flock.pause(workflow="a")
            for n in range(6):
                await flock.publish(Order(n=n), correlation_id="ab"[n % 2])
            await asyncio.sleep(60)
            assert sorted(n for _, n in seen) == [1, 3, 5]
            assert (await flock.workflow_status("a")).open == 3
            await flock.resume(workflow="a")
            await flock.wait("a", timeout=10)
            # In the order in which they came
            assert [n for _, n in seen][3:] == [0, 2, 4]

    run_virtual(main())


def test_a_paused_type_holds_back_every_run_with_such_an_input() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            seen = Seen()
            flock.agent("pair").consumes(Order, Payment).runs(seen.one)
            flock.agent("orders").consumes(Order).runs(seen.by("orders"))
            await flock.pause(type=Payment)
            await flock.publish_many([Order(n=1), Payment(n=1)], correlation_id="w")
            await asyncio.sleep(60)
            assert seen == [("orders", 1)]
            assert [(v.kind, v.name) for v in await flock.paused()] == [("type", "market.Payment")]
            await flock.resume(type="market.Payment")
            await flock.wait("w", timeout=5)
            assert len(seen) == 2

    run_virtual(main())


def test_what_two_pauses_hold_runs_when_both_are_lifted() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            seen = Seen()
            flock.agent("one").consumes(Order).runs(seen.by("one"))
            await flock.pause(workflow="w")
            await flock.pause(type=Order)
            await flock.pause(agent="one")
            await flock.publish(Order(n=1), correlation_id="w")
            for resume in ({"agent": "one"}, {"workflow": "w"}):
                await flock.resume(**resume)  # type: ignore[arg-type]  # one of several
                await asyncio.sleep(10)
                assert not seen
            await flock.resume(type=Order)
            await flock.wait("w", timeout=5)
            assert seen == [("one", 1)]

    run_virtual(main())


def test_a_halted_board_stops_what_runs_and_runs_it_again_without_counting_it_as_a_failure() -> None:
    async def main() -> None:
        async with VirtualFlock(shards=2) as flock:
            kitchen = Kitchen()
            flock.agent("cook").consumes(Order).publishes(Parcel).runs(kitchen.cook).max_concurrency(2)
            for n in range(4):
                await flock.publish(Order(n=n), correlation_id=f"w{n}")
            await asyncio.sleep(5)
            began = list(kitchen.began)
            assert len(began) == 2
            before = asyncio.get_running_loop().time()
            # When somebody pulls the plug
            await flock.halt(by="ops", reason="costs")
            await asyncio.sleep(1)
            # Then what ran is cancelled within a second, and nothing else begins
            assert sorted(kitchen.cancelled) == sorted(began)
            assert asyncio.get_running_loop().time() - before < 1.5
            await flock.publish(Order(n=4), correlation_id="w4")
            await asyncio.sleep(1000)
            assert kitchen.began == began
            assert (await flock.paused())[0].kind == "board"
            # When it goes on, everything runs to its end, once
            await flock.resume()
            await flock.run_until_idle(timeout=100)
            assert sorted(kitchen.ended) == [0, 1, 2, 3, 4]
            assert len(await flock.store.get_by_type(Parcel)) == 5
            assert await kinds_of(flock, "activation.worker_lost", "activation.failed") == []

    run_virtual(main())


def test_halting_and_resuming_at_once_runs_everything_once_more() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            kitchen = Kitchen(seconds=1)
            flock.agent("cook").consumes(Order).publishes(Parcel).runs(kitchen.cook).max_concurrency(10)
            await flock.publish_many([Order(n=n) for n in range(10)], correlation_id="w")
            for _ in range(5):
                await asyncio.sleep(0.01)
                await asyncio.gather(flock.halt(), flock.resume())
                await flock.resume()
            await flock.wait("w", timeout=30)
            assert sorted(kitchen.ended) == list(range(10))

    run_virtual(main())


def test_a_halted_board_refuses_invoke_and_a_paused_agent_does_so_too() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            agent = flock.agent("one").consumes(Order).publishes(Parcel).runs(lambda o: Parcel(n=o.n))
            await flock.halt(by="ops")
            with pytest.raises(BackpressureError, match="halted by ops"):
                await flock.invoke(agent, Order(n=1))
            await flock.resume()
            await flock.pause(agent=agent)
            with pytest.raises(BackpressureError, match="'one' is paused"):
                await flock.invoke(agent, Order(n=1))
            await flock.resume(agent=agent)
            assert len(await flock.invoke(agent, Order(n=1))) == 1

    run_virtual(main())


def test_a_halted_board_takes_artifacts_until_it_is_full() -> None:
    async def main() -> None:
        async with VirtualFlock(max_open=5, publish_timeout=timedelta(seconds=1)) as flock:
            seen = Seen()
            flock.agent("one").consumes(Order).runs(seen.by("one"))
            await flock.halt()
            for n in range(5):
                await flock.publish(Order(n=n))
            with pytest.raises(BackpressureError):
                await flock.publish(Order(n=5))
            await flock.resume()
            await flock.run_until_idle(timeout=5)
            assert len(seen) == 5

    run_virtual(main())


@pytest.mark.parametrize("snapshots", [False, True])
def test_pauses_are_durable(snapshots: bool) -> None:
    def declare(flock: VirtualFlock, seen: Seen) -> None:
        flock.agent("one").consumes(Order).runs(seen.by("one"))
        flock.agent("two").consumes(Order).runs(seen.by("two"))

    async def main() -> None:
        kept = MemoryPersistence()
        seen = Seen()
        async with VirtualFlock(persistence=kept, shards=2) as flock:
            declare(flock, seen)
            await flock.pause(agent="one", by="mia")
            await flock.pause(workflow="w")
            await flock.pause(type=Payment)
            await flock.resume(type=Payment)
            await flock.halt(reason="fire")
            await flock.publish(Order(n=1), correlation_id="w")
            await flock.publish(Order(n=2), correlation_id="x")
            if snapshots:  # the journal is gone: only they can know
                assert flock.local is not None
                for index, shard in enumerate(flock.local.shards):
                    assert shard is not None
                    disk = kept.boards["default"][index]
                    disk.snapshots[SHARD] = Snapshot(SHARD, disk.last_lsn, snapshot_shard(shard.core))
                    for slot in shard.core.slots:
                        disk.snapshots[slot] = Snapshot(slot, disk.last_lsn, snapshot_slot(shard.core, slot))
                    disk.frames.clear()
        async with VirtualFlock(persistence=kept) as flock:
            declare(flock, seen)
            found = {(v.kind, v.name): (v.by, v.reason, v.everywhere) for v in await flock.paused()}
            assert found == {
                ("agent", "one"): ("mia", "", True),
                ("workflow", "w"): ("", "", True),
                ("board", ""): ("", "fire", True),
            }
            await asyncio.sleep(100)
            assert not seen
            await flock.resume()
            await asyncio.sleep(100)
            assert seen == [("two", 2)]
            await flock.resume(workflow="w")
            await flock.resume(agent="one")
            await flock.run_until_idle(timeout=5)
            assert sorted(seen) == [("one", 1), ("one", 2), ("two", 1), ("two", 2)]

    run_virtual(main())


def test_pausing_waits_for_a_shard_that_is_away_and_says_when_it_stays_away() -> None:
    async def main() -> None:
        async with VirtualFlock(shards=2) as flock:
            flock.agent("one").consumes(Order).runs(Seen().one)
            await flock.start()
            assert flock.local is not None
            away, flock.local.shards[1] = flock.local.shards[1], None
            with pytest.raises(StoreUnavailableError, match="1 of 2 shards did not answer within 3 s"):
                await flock.pause(agent="one", timeout=3)
            flock.local.shards[1] = away
            assert [view.everywhere for view in await flock.paused()] == [False]
            flock.local.shards[1] = None
            again = asyncio.ensure_future(flock.pause(agent="one"))
            await asyncio.sleep(5)
            assert not again.done()
            flock.local.shards[1] = away
            await again
            assert [view.everywhere for view in await flock.paused()] == [True]

    run_virtual(main())


def test_bad_input() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            flock.agent("one").consumes(Order).runs(Seen().one)
            wrongs: list[dict[str, Any]] = [
                {},
                {"agent": "one", "workflow": "w"},
                {"agent": "one", "type": Order},
            ]
            for wrong in wrongs:
                with pytest.raises(ConfigurationError, match="Name one thing"):
                    await flock.pause(**wrong)
            with pytest.raises(
                ConfigurationError, match="no agent 'uno' on this board to pause; there are: one"
            ):
                await flock.pause(agent="uno")
            with pytest.raises(UnknownTypeError):
                await flock.pause(type="market.Odrer")
            with pytest.raises(ConfigurationError, match="by="):
                await flock.halt(by="x" * 1001)
            with pytest.raises(ConfigurationError, match="timeout"):
                await flock.halt(timeout=0)
            await flock.resume(workflow="never paused")
            await flock.resume()
            assert await flock.paused() == []

    run_virtual(main())


def test_there_is_a_limit_to_what_can_be_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            flock.agent("one").consumes(Order).runs(Seen().one)
            monkeypatch.setattr(pausing, "MAX_PAUSES", 3)
            for n in range(3):
                await flock.pause(workflow=f"w{n}")
            with pytest.raises(CapacityError, match="10,000 things are paused"):
                await flock.pause(agent="one")
            await flock.resume(workflow="w0")
            await flock.pause(agent="one")

    run_virtual(main())


def test_cancel_withdraws_what_runs_is_ready_waits_in_gates_for_a_time_for_limits_and_for_a_retry() -> None:
    async def main() -> None:
        async with VirtualFlock(shards=3) as flock:
            kitchen = Kitchen(seconds=1000)
            seen = Seen()
            failed: list[int] = []

            def fail(payment: Payment) -> None:
                failed.append(payment.n)
                raise ConnectionError("away")

            flock.agent("cook").consumes(Order).publishes(Parcel).runs(kitchen.cook).max_concurrency(1)
            flock.agent("pair").consumes(Order, Note).runs(seen.one)
            flock.agent("keyed").consumes(
                Order, batch=BatchSpec(size=5), scope="board"
            ).runs(seen.one)  # fmt: skip
            flock.agent("later").consumes(Parcel).runs(seen.one)
            limited = flock.agent("limited").consumes(Order).publishes(Parcel).runs(kitchen.cook)
            limited.concurrency(1).max_concurrency(5)
            flaky = flock.agent("flaky").consumes(Payment).runs(fail)
            flaky.retry(max_attempts=5, on=[ConnectionError])
            await flock.publish_many([Order(n=n) for n in range(3)], correlation_id="w")
            await flock.publish(Payment(n=1), correlation_id="w")
            await flock.publish(Parcel(n=9), correlation_id="w", delay=timedelta(hours=1))
            await asyncio.sleep(0.2)
            began = list(kitchen.began)
            assert failed and len(began) == 2  # one of each agent
            assert await flock.cancel("w") >= 6
            await asyncio.sleep(0.5)
            assert sorted(kitchen.cancelled) == sorted(began)
            status = await flock.workflow_status("w")
            assert (status.state, status.open, status.waiting, status.delayed) == ("cancelled", 0, 0, 0)
            tries = len(failed)
            await flock.publish(Note(text="the other half"), correlation_id="w")
            await asyncio.sleep(100_000)
            assert (kitchen.began, seen, len(failed)) == (began, [], tries)
            # And the limits have room for others
            await flock.publish(Order(n=7), correlation_id="x")
            await asyncio.sleep(1)
            assert kitchen.began.count(7) == 2
            assert await flock.cancel("w") == 0

    run_virtual(main())


def test_cancelling_while_inputs_travel_between_shards_leaves_nothing_behind() -> None:
    async def main() -> None:
        async with VirtualFlock(shards=4) as flock:
            kitchen = Kitchen(seconds=1000)
            limited = flock.agent("limited").consumes(Order).publishes(Parcel).runs(kitchen.cook)
            limited.concurrency(100).max_concurrency(100)
            flock.agent("batch").consumes(Order, batch=BatchSpec(size=1000), scope="board").runs(Seen().one)
            await flock.start()
            assert flock.local is not None
            # Given shards that take a while to hear from each other
            for shard in flock.local.shards:
                shard.forward = partial(late, shard.forward)  # type: ignore[union-attr,method-assign]
            # When a workflow is cancelled while its inputs are on their way to the slots of a limit and of a gate
            await flock.publish_many([Order(n=n) for n in range(30)], correlation_id="w")
            assert await flock.cancel("w") == 30
            # Then they are caught there, and the workflow hears of it
            await asyncio.sleep(0.5)
            status = await flock.workflow_status("w")
            assert (status.open, status.waiting) == (0, 0)
            stats: list[dict[str, Any]] = await (await flock._ready_board()).each("stats")
            assert [sum(one[what] for one in stats) for what in ("open", "gates", "outbox")] == [0, 0, 0]
            assert kitchen.ended == [] and sorted(kitchen.cancelled) == sorted(kitchen.began)

    run_virtual(main())


async def late(forward: Any, blob: bytes) -> bytes:
    await asyncio.sleep(0.3)
    answer: bytes = await forward(blob)
    return answer


@pytest.mark.parametrize("halt", [False, True])
def test_an_agent_with_limits_goes_on_after_a_pause(halt: bool) -> None:
    async def main() -> None:
        async with VirtualFlock(shards=2) as flock:
            kitchen = Kitchen()
            agent = flock.agent("cook").consumes(Order).publishes(Parcel).runs(kitchen.cook)
            agent.concurrency(1).max_concurrency(3)
            await flock.publish(Order(n=0), correlation_id="w")
            await asyncio.sleep(1)
            await (flock.halt() if halt else flock.pause(agent=agent))
            await flock.publish_many([Order(n=n) for n in (1, 2)], correlation_id="w")
            await asyncio.sleep(100)
            assert kitchen.began == [0]
            # Nothing is let through that could not begin: of a rate, it would use up the share
            assert flock.local is not None
            lanes = [lane for shard in flock.local.shards if shard for slot in shard.core.slots.values()
                     for lane in slot.lanes.values()]  # fmt: skip
            assert sum(lane.running for lane in lanes) == (1 if halt else 0)
            await (flock.resume() if halt else flock.resume(agent=agent))
            await flock.wait("w", timeout=31)
            assert sorted(kitchen.ended) == [0, 1, 2]

    run_virtual(main())
