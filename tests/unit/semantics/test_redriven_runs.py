"""A run that is redriven belongs to its workflow, also when that has left memory and limits are kept elsewhere."""

from __future__ import annotations

from datetime import timedelta

from pydantic import BaseModel

from flock_ray import flock_type
from flock_ray.core.retries import FixedDelay
from flock_ray.dead_letters import DeadLetterQueue
from flock_ray.testing import VirtualFlock, run_virtual
from tests.unit.semantics.kept import Kept


@flock_type(name="redriven.Task")
class Task(BaseModel):
    n: int


@flock_type(name="redriven.Filler")
class Filler(BaseModel):
    n: int


@flock_type(name="redriven.Done")
class Done(BaseModel):
    n: int


def test_what_a_redriven_run_leaves_is_added_to_a_workflow_that_had_left_memory() -> None:
    async def fail(task: Task) -> Done:
        raise ConnectionError("nobody there")

    async def main() -> None:
        # Given the dead letter of a workflow that has left memory
        async with VirtualFlock(persistence=Kept(), shards=1, max_artifacts=1000) as flock:
            flock.agent("work").consumes(Task).publishes(Done).concurrency(1).retry(
                FixedDelay(timedelta(seconds=1)), max_attempts=2, dead_letter=DeadLetterQueue("failed")
            ).runs(fail)
            await flock.publish(Task(n=1), correlation_id="w")
            await flock.run_until_idle(include_timers=True)
            [letter] = await flock.dead_letters.list()
            await flock.publish_many([Filler(n=n) for n in range(1100)], correlation_id="other")

            # When it is redriven and fails again, while the board is full
            assert await flock.dead_letters.redrive(letter.id)
            await flock.publish_many([Filler(n=n) for n in range(1100)], correlation_id="more")
            await flock.run_until_idle(include_timers=True)

            # Then the workflow has both letters, one of them open
            status = await flock.workflow_status("w")
            expected = {"redriven.Task": 1, "DeadLetter": 2, "DeadLetterAction": 1}
            assert (status.counts, status.error_count, status.open) == (expected, 1, 0)

    run_virtual(main())


def test_a_workflow_whose_letters_were_redriven_well_has_completed() -> None:
    """It once stayed `failed` for ever, whatever became of its letters."""

    async def main() -> list[tuple[str, int]]:
        broken = {1, 2, 3}
        seen: list[tuple[str, int]] = []

        async def work(task: Task) -> Done:
            if task.n in broken:
                raise ConnectionError("nobody there")
            return Done(n=task.n)

        # Given a workflow with three dead letters, whose agent's runs are not in the workflow's slot
        async with VirtualFlock(persistence=Kept(), shards=3, max_artifacts=1000) as flock:
            flock.agent("work").consumes(Task).publishes(Done).concurrency(5).retry(
                FixedDelay(timedelta(seconds=1)), max_attempts=1, dead_letter=DeadLetterQueue("failed")
            ).runs(work)
            await flock.publish_many([Task(n=n) for n in range(5)], correlation_id="w")

            async def look() -> None:
                await flock.run_until_idle(include_timers=True)
                status = await flock.workflow_status("w")
                seen.append((status.state, status.error_count))

            await look()
            # When two are redriven well, and one fails once more and is redriven then, after the workflow left memory
            broken -= {1, 2}
            await flock.publish_many([Filler(n=n) for n in range(1100)], correlation_id="other")
            assert (await flock.dead_letters.redrive_all()).redriven == 3
            await look()
            broken.clear()
            assert (await flock.dead_letters.redrive_all()).redriven == 1
            await look()
        return seen

    assert run_virtual(main()) == [("failed", 3), ("failed", 1), ("completed", 0)]


def test_a_workflow_whose_letter_was_discarded_has_failed() -> None:
    async def fail(task: Task) -> Done:
        raise ConnectionError("nobody there")

    async def main() -> None:
        async with VirtualFlock(shards=1) as flock:
            flock.agent("work").consumes(Task).publishes(Done).retry(
                FixedDelay(timedelta(seconds=1)), max_attempts=1, dead_letter=DeadLetterQueue("failed")
            ).runs(fail)
            await flock.publish(Task(n=1), correlation_id="w")
            await flock.run_until_idle(include_timers=True)
            [letter] = await flock.dead_letters.list()
            assert await flock.dead_letters.discard(letter.id)
            status = await flock.workflow_status("w")
            assert (status.state, status.error_count) == ("failed", 1)

    run_virtual(main())
