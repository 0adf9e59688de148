"""Timeouts as users write them, and waits that nothing can end but time."""

from __future__ import annotations

import asyncio
import math
from datetime import timedelta

import pytest
from pydantic import BaseModel

from flock_ray import Until, flock_type
from flock_ray.errors import ConfigurationError
from flock_ray.testing import VirtualFlock, run_virtual
from flock_ray.waiting import seconds


@flock_type(name="waiting.Item")
class Item(BaseModel):
    n: int


def test_a_timeout_is_seconds_a_timedelta_or_none_for_ever() -> None:
    assert (seconds(1.5), seconds(timedelta(minutes=1)), seconds(None), seconds(0)) == (
        1.5,
        60.0,
        math.inf,
        0.0,
    )
    for bad in (-1, math.nan, timedelta(seconds=-1)):
        with pytest.raises(ConfigurationError, match="timeout"):
            seconds(bad)


def test_a_wait_that_nothing_can_change_ends_at_its_timeout_without_spinning() -> None:
    async def main() -> tuple[bool, float, bool, float]:
        async with VirtualFlock(shards=2) as flock:
            await flock.publish(Item(n=1))
            known = Until.any_field(Item, field="n", predicate=lambda n: n == 1)
            contradiction = await flock.run_until(known & ~known, timeout=50)
            first = asyncio.get_running_loop().time()
            busy = await flock.run_until(~Until.idle(), timeout=50)
            return contradiction, first, busy, asyncio.get_running_loop().time()

    contradiction, first, busy, last = run_virtual(main())
    assert not contradiction and first == pytest.approx(50, abs=1)
    assert not busy and last == pytest.approx(100, abs=1)


def test_a_condition_that_already_holds_returns_at_once_even_with_timeout_zero() -> None:
    async def main() -> tuple[bool, bool]:
        async with VirtualFlock() as flock:
            await flock.publish(Item(n=1))
            return (
                await flock.run_until(Until.exists(Item), timeout=0),
                await flock.run_until(Until.artifact_count(Item).at_least(2), timeout=0),
            )

    assert run_virtual(main()) == (True, False)


def test_several_waits_at_once_each_get_their_own_answer() -> None:
    async def main() -> list[bool]:
        async with VirtualFlock() as flock:
            waits = [
                asyncio.ensure_future(flock.run_until(Until.artifact_count(Item).at_least(n), timeout=100))
                for n in (1, 2, 3)
            ]
            await asyncio.sleep(1)
            await flock.publish_many([Item(n=1), Item(n=2)])
            return list(await asyncio.gather(*waits))

    assert run_virtual(main()) == [True, True, False]
