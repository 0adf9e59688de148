"""`best_of(n, score)`: make several candidates and keep the one with the highest score."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from flock_ray.engines.outputs import Note
from flock_ray.errors import AgentError, safe_error_text

__all__ = ["PROPAGATED", "best_of", "best_of_sync"]

T = TypeVar("T")

PROPAGATED = (KeyboardInterrupt, GeneratorExit, asyncio.CancelledError)
"""Not failures of a run: somebody stops the process, the generator or the task."""


def best_of_sync(
    count: int, attempt: Callable[[], T], score: Callable[[T], float], good_enough: float | None = None
) -> tuple[T, list[Note]]:
    """Make candidates one after the other and return the best, with a note per failed one.

    Args:
        count: How many candidates.
        attempt: Makes one.
        score: Rates one; the highest wins, and the first among equals. A candidate whose rating
            raises, or is not a number, counts as failed.
        good_enough: From this score on a candidate is taken, and no more are made; None: all are made.

    Raises:
        BaseException: The first candidate's error, when all failed.
    """
    candidates: list[tuple[float, T] | BaseException] = []
    for _ in range(count):
        try:
            made = attempt()
            rated = (_number(score(made)), made)
        except PROPAGATED:
            raise
        except BaseException as error:
            candidates.append(error)
            continue
        candidates.append(rated)
        if _is_enough(rated, good_enough):
            break
    return _best(candidates)


async def best_of(
    count: int,
    attempt: Callable[[], Awaitable[T]],
    score: Callable[[T], float],
    good_enough: float | None = None,
) -> tuple[T, list[Note]]:
    """Make candidates at the same time; otherwise like `best_of_sync`.

    Once one is good enough, the rest is cancelled.
    """

    async def candidate() -> tuple[float, T] | BaseException:
        # Errors come back as values: a SystemExit that leaves a task stops the event loop.
        try:
            made = await attempt()
            return _number(score(made)), made
        except PROPAGATED:
            raise
        except BaseException as error:
            return error

    tasks = [asyncio.ensure_future(candidate()) for _ in range(count)]
    stopped = False
    try:
        if good_enough is not None:
            for finished in asyncio.as_completed(tasks):
                if stopped := _is_enough(await _settled(finished), good_enough):
                    break
    finally:
        # Also when the run itself is cancelled: no candidate outlives it.
        for task in tasks if stopped or good_enough is not None else ():
            task.cancel()
    made = await asyncio.gather(*tasks, return_exceptions=True)
    if not stopped:
        return _best(made)
    best, notes = _best([one for one in made if not isinstance(one, asyncio.CancelledError)])
    return best, [*notes, ("best_of.stopped", f"one of {count} was good enough")]


async def _settled(finished: Awaitable[T]) -> T | BaseException:
    """Wait for a candidate; one that cancelled itself is a failed one."""
    try:
        return await finished
    except asyncio.CancelledError as error:
        current = asyncio.current_task()
        if current is not None and current.cancelling():
            raise
        return error


def _is_enough(candidate: object, good_enough: float | None) -> bool:
    return good_enough is not None and isinstance(candidate, tuple) and candidate[0] >= good_enough


def _best(candidates: Sequence[tuple[float, T] | BaseException]) -> tuple[T, list[Note]]:
    errors = [candidate for candidate in candidates if isinstance(candidate, BaseException)]
    made = [candidate for candidate in candidates if not isinstance(candidate, BaseException)]
    if not made:
        first = errors[0]
        if isinstance(first, asyncio.CancelledError):
            # Raised as it is, it would look as if the whole run had been cancelled.
            raise AgentError("All candidates of best_of were cancelled from inside. Run it again.") from first
        raise first
    notes = [("best_of.failed", ": ".join(safe_error_text(error))) for error in errors]
    return max(made, key=lambda candidate: candidate[0])[1], notes


def _number(score: float) -> float:
    number = float(score)
    if number != number:
        raise ValueError("the score of a candidate is not a number (NaN)")
    return number
