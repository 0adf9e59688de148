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

            # Then the workflow has both letters
            status = await flock.workflow_status("w")
            expected = {"redriven.Task": 1, "DeadLetter": 2, "DeadLetterAction": 1}
            assert (status.counts, status.error_count, status.open) == (expected, 2, 0)

    run_virtual(main())
