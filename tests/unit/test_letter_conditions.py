"""What a dead letter keeps of the conditions that its inputs had matched."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from flock_ray import flock_type
from flock_ray.testing import VirtualFlock, run_virtual


@flock_type(name="letters.Offer")
class Offer(BaseModel):
    amount: int


@flock_type(name="letters.Deal")
class Deal(BaseModel):
    amount: int


@pytest.mark.parametrize("is_async", [False, True])
def test_a_letter_keeps_what_predicates_said_when_the_run_failed(is_async: bool) -> None:
    """They were once evaluated when somebody looked, with the agent of that time."""
    limit = [100]

    async def test(flock: VirtualFlock) -> None:
        def cheap(one: Offer) -> bool:
            return one.amount < limit[0]

        async def slowly(one: Offer) -> Deal:
            raise ConnectionError("no")

        def quickly(one: Offer) -> Deal:
            raise ConnectionError("no")

        flock.agent("processor").consumes(Offer, where=cheap, tags={"eu"}).publishes(Deal).concurrency(
            1, key=lambda one: "k"
        ).retry(max_attempts=2, dead_letter="q").runs(slowly if is_async else quickly)
        sent = await flock.publish(Offer(amount=7), tags={"eu", "vip"})
        await flock.run_until_idle(include_timers=True)
        limit[0] = 0

        details = await flock.dead_letters.get(((await flock.dead_letters.list()).letters[0]).id)
        assert details.conditions_at == "failure"
        said = {check.condition: (check.passed, check.value) for check in details.conditions[sent.id]}
        assert said == {
            "not own output": (True, "external"),
            "tags": (True, "eu, vip"),
            "where[0]": (True, "True"),
            "limit key": (True, "'k'"),
        }

    async def main() -> None:
        async with VirtualFlock() as flock:
            await test(flock)

    run_virtual(main())
