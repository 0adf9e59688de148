"""`run_until(Until...)`, `run_until_idle` and `wait` on a living board."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from pydantic import BaseModel

from flock_ray import Until, flock_type
from flock_ray.errors import ConfigurationError, WaitTimeoutError
from flock_ray.flock import Flock
from flock_ray.testing import VirtualFlock, run_virtual
from tests.unit.semantics.shop import Note, Order, Parcel


@flock_type(name="conditions.Step")
class Step(BaseModel):
    n: int


def countdown(flock: VirtualFlock) -> None:
    """Declare an agent that publishes a smaller step every ten seconds."""

    async def step(current: Step) -> Step | None:
        await asyncio.sleep(10)
        return Step(n=current.n - 1) if current.n else None

    flock.agent("down").consumes(Step).publishes(Step).runs(step).prevent_self_trigger(False)


def now() -> float:
    return asyncio.get_running_loop().time()


def test_a_count_ends_the_wait_as_soon_as_it_is_reached() -> None:
    async def main() -> tuple[bool, float]:
        async with VirtualFlock(shards=2) as flock:
            countdown(flock)
            await flock.publish(Step(n=50), tags={"t"}, correlation_id="w")
            some = Until.artifact_count(Step, correlation_id="w", tags={"t"}, produced_by="down").at_least(3)
            return await flock.run_until(some), now()

    held, at = run_virtual(main())
    assert held and 30 <= at < 31


def test_a_field_of_any_artifact_ends_the_wait() -> None:
    async def main() -> tuple[bool, float]:
        async with VirtualFlock(shards=2) as flock:
            countdown(flock)
            await flock.publish(Step(n=50))
            return await flock.run_until(Until.any_field(Step, field="n", predicate=lambda n: n == 48)), now()

    held, at = run_virtual(main())
    assert held and 20 <= at < 21


def test_conditions_combine_and_equal_parts_agree() -> None:
    async def main() -> tuple[bool, float, bool]:
        def small(n: int) -> bool:
            return n <= 48

        async with VirtualFlock() as flock:
            countdown(flock)
            await flock.publish(Step(n=50))
            either = Until.exists(Note) | (
                Until.any_field(Step, field="n", predicate=small)
                & ~Until.none(Step)
                & Until.artifact_count(Step).at_least(5)
            )
            held, at = await flock.run_until(either), now()
            again = Until.any_field(Step, field="n", predicate=small)
            twice = (Until.exists(Note) & Until.any_field(Step, field="n", predicate=small)) | again
            return held, at, await flock.run_until(twice, timeout=1)

    held, at, again = run_virtual(main())
    assert held and 40 <= at < 41
    assert again


def test_without_a_timeout_an_idle_board_ends_the_wait_with_false() -> None:
    async def main() -> tuple[bool, float]:
        async with VirtualFlock() as flock:
            countdown(flock)
            await flock.publish(Step(n=2))
            return await flock.run_until(Until.exists(Note)), now()

    held, at = run_virtual(main())
    assert not held and 30 <= at < 31


def test_a_timeout_ends_the_wait_with_false_and_the_work_goes_on() -> None:
    async def main() -> tuple[bool, float, int]:
        async with VirtualFlock() as flock:
            countdown(flock)
            await flock.publish(Step(n=5))
            held = await flock.run_until(Until.exists(Note), timeout=timedelta(seconds=25))
            at = now()
            await flock.run_until_idle()
            return held, at, await flock.store.count(Step)

    held, at, steps = run_virtual(main())
    assert (held, steps) == (False, 6) and 25 <= at < 26


def test_idle_and_no_pending_work_differ_by_what_waits_for_a_time() -> None:
    async def main() -> tuple[bool, float, bool, float]:
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Order).publishes(Parcel).runs(lambda o: Parcel(n=o.n))
            await flock.publish(Order(n=1), delay=timedelta(seconds=500))
            idle, first = await flock.run_until(Until.idle()), now()
            quiet = await flock.run_until(Until.no_pending_work(), timeout=1000)
            return idle, first, quiet, now()

    idle, first, quiet, last = run_virtual(main())
    assert idle and first < 1
    assert quiet and 500 <= last < 502


def test_an_error_ends_the_wait_for_one() -> None:
    async def main() -> tuple[bool, bool]:
        def fail(order: Order) -> None:
            raise ValueError("no")

        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Order).runs(fail)
            await flock.publish(Order(n=1), correlation_id="w")
            return (
                await flock.run_until(Until.workflow_error("w")),
                await flock.run_until(Until.workflow_error("another")),
            )

    assert run_virtual(main()) == (True, False)


def test_an_object_of_ones_own_is_asked_whenever_something_happened() -> None:
    class Three:
        asked = 0

        async def evaluate(self, flock: Flock) -> bool:
            self.asked += 1
            return await flock.store.count(Step) >= 3

    async def main() -> tuple[bool, int]:
        condition = Three()
        async with VirtualFlock() as flock:
            countdown(flock)
            await flock.publish(Step(n=50))
            return await flock.run_until(condition | Until.exists(Note), timeout=500), condition.asked

    held, asked = run_virtual(main())
    assert held and asked < 20


def test_waits_that_take_too_long_raise_and_cancel_nothing() -> None:
    async def main() -> int:
        async with VirtualFlock() as flock:
            countdown(flock)
            await flock.publish(Step(n=3), correlation_id="w")
            with pytest.raises(WaitTimeoutError, match="still busy after 15 s"):
                await flock.run_until_idle(timeout=15)
            with pytest.raises(WaitTimeoutError, match="'w'"):
                await flock.wait("w", timeout=timedelta(seconds=5))
            with pytest.raises(ConfigurationError, match="timeout"):
                await flock.run_until_idle(timeout=-1)
            await flock.run_until_idle(timeout=1000)
            return await flock.store.count(Step)

    assert run_virtual(main()) == 4
