from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from flock_ray.engines.best_of import best_of, best_of_sync
from flock_ray.errors import AgentError


def attempts(*results: Any) -> Callable[[], Any]:
    left = list(results)

    def attempt() -> Any:
        result = left.pop(0)
        if isinstance(result, BaseException):
            raise result
        return result

    return attempt


def awaited(attempt: Callable[[], Any]) -> Callable[[], Any]:
    async def call() -> Any:
        await asyncio.sleep(0)
        return attempt()

    return call


async def both(count: int, make: Callable[[], Callable[[], Any]], score: Callable[[Any], float]) -> Any:
    """Run both forms and demand the same of them."""
    sync = best_of_sync(count, make(), score)
    assert await best_of(count, awaited(make()), score) == sync
    return sync


async def test_the_highest_score_wins_and_the_first_among_equals() -> None:
    made, notes = await both(4, lambda: attempts("b", "dd", "c", "ee"), len)

    assert (made, notes) == ("dd", [])


async def test_failed_candidates_do_not_fail_the_rest() -> None:
    made, notes = await both(3, lambda: attempts(ValueError("one"), SystemExit(3), 5), lambda made: made)

    assert made == 5
    assert notes == [("best_of.failed", "ValueError: one"), ("best_of.failed", "SystemExit: 3")]


@pytest.mark.parametrize("bad", ["no number", float("nan")])
async def test_a_candidate_that_cannot_be_scored_counts_as_failed(bad: Any) -> None:
    made, notes = await both(2, lambda: attempts(bad, 1), lambda made: made)

    assert made == 1
    assert len(notes) == 1


async def test_a_score_that_raises_counts_as_failed() -> None:
    made, notes = await both(3, lambda: attempts(0, 1, 2), lambda made: 1 / made)

    assert (made, len(notes)) == (1, 1)


async def test_when_all_fail_the_first_error_is_raised() -> None:
    def make() -> Callable[[], Any]:
        return attempts(ValueError("one"), KeyError("two"))

    with pytest.raises(ValueError, match="one"):
        best_of_sync(2, make(), len)
    with pytest.raises(ValueError, match="one"):
        await best_of(2, awaited(make()), len)


async def test_candidates_run_at_the_same_time() -> None:
    running = asyncio.Event()
    started = 0

    async def attempt() -> int:
        nonlocal started
        started += 1
        if started == 3:
            running.set()
        await running.wait()
        return started

    assert await asyncio.wait_for(best_of(3, attempt, lambda made: made), 5) == (3, [])


async def test_a_candidate_that_cancels_itself_is_a_failed_one() -> None:
    made, _ = await best_of(2, awaited(attempts(asyncio.CancelledError(), 1)), lambda made: made)
    assert made == 1

    with pytest.raises(AgentError, match="cancelled"):
        await best_of(1, awaited(attempts(asyncio.CancelledError())), lambda made: made)


async def test_cancelling_the_whole_ends_every_candidate() -> None:
    ended: list[int] = []

    async def attempt() -> int:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(1)
        return 1

    task = asyncio.create_task(best_of(3, attempt, lambda made: made))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [1, 1, 1]


def test_an_interrupt_is_no_failed_candidate() -> None:
    with pytest.raises(KeyboardInterrupt):
        best_of_sync(2, attempts(KeyboardInterrupt(), 1), lambda made: made)


async def test_as_soon_as_one_is_good_enough_the_rest_is_cancelled() -> None:
    cancelled = []
    numbers = iter(range(5))

    async def attempt() -> int:
        number = next(numbers)
        try:
            await asyncio.sleep(0.001 if number == 3 else 3600)
        except asyncio.CancelledError:
            cancelled.append(number)
            raise
        return number

    made, notes = await best_of(5, attempt, lambda made: made, good_enough=3)

    assert made == 3
    assert cancelled == [0, 1, 2, 4]
    assert notes == [("best_of.stopped", "one of 5 was good enough")]


async def test_none_good_enough_means_the_best_of_all() -> None:
    results = attempts(ValueError("one"), 2, 5, 1)

    made, notes = await best_of(4, awaited(results), lambda made: made, good_enough=9)

    assert made == 5
    assert notes == [("best_of.failed", "ValueError: one")]


def test_sync_candidates_are_made_until_one_is_good_enough() -> None:
    made, notes = best_of_sync(4, attempts(1, 7), lambda made: made, good_enough=7)

    assert (made, notes) == (7, [])


async def test_a_cancelled_run_leaves_no_candidate_behind() -> None:
    ended = []

    async def attempt() -> int:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(1)
        return 1

    run = asyncio.ensure_future(best_of(3, attempt, lambda made: made, good_enough=1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    run.cancel()

    with pytest.raises(asyncio.CancelledError):
        await run
    await asyncio.sleep(0)
    assert ended == [1, 1, 1]
