"""The retry snippets of the roadmap, as they stand there, and what they do."""

from __future__ import annotations

import asyncio
import itertools
from datetime import timedelta

from pydantic import BaseModel

from flock_ray import Context, ExponentialBackoff, RateLimitError, WorkflowError, flock_type
from flock_ray.core.wire import DeadLetterSpec, RetrySpec
from flock_ray.dead_letters import DeadLetterQueue
from flock_ray.testing import VirtualFlock, run_virtual


@flock_type(name="roadmap.retries.Job")
class Job(BaseModel):
    error: str


@flock_type(name="roadmap.retries.Done")
class Done(BaseModel):
    attempt: int


ERRORS: dict[str, Exception] = {
    "rate limit": RateLimitError("slow down", retry_after_s=600),
    "timeout": TimeoutError("no answer"),
    "bug": ValueError("a bug"),
}


def test_exponential_backoff_with_jitter_and_selected_errors() -> None:
    started: dict[str, list[float]] = {}

    def process(ctx: Context, job: Job) -> Done:
        started.setdefault(job.error, []).append(asyncio.get_running_loop().time())
        if ctx.attempt < 3:
            raise ERRORS[job.error]
        return Done(attempt=ctx.attempt)

    async def scenario() -> None:
        async with VirtualFlock() as flock:
            # Exponential backoff with jitter
            agent = flock.agent("processor").retry(
                strategy=ExponentialBackoff(
                    initial_delay=timedelta(seconds=1),
                    max_delay=timedelta(minutes=5),
                    jitter=True,
                    max_attempts=5,
                ),
                on=[RateLimitError, TimeoutError],  # Selective retry
            )
            agent.consumes(Job).publishes(Done).runs(process)

            for error in ERRORS:
                await flock.publish(Job(error=error))
            await flock.run_until_idle(include_timers=True)

            # Two recovered at their third attempt; the one with another error failed at once.
            assert await flock.store.get_by_type(Done) == [Done(attempt=3), Done(attempt=3)]
            [failed] = await flock.store.get_by_type(WorkflowError)
            assert (failed.error_type, failed.error_message) == ("ValueError", "a bug")

    run_virtual(scenario())

    assert [3, 3, 1] == [len(started[error]) for error in ERRORS]
    waits = {error: [b - a for a, b in itertools.pairwise(times)] for error, times in started.items()}
    assert all(600 <= wait <= 661 for wait in waits["rate limit"]), "the server asked for ten minutes"
    assert all(0 <= wait <= limit for wait, limit in zip(waits["timeout"], (1.01, 2.01), strict=True))


def test_dead_letter_queue_for_poison_messages_is_declared() -> None:
    flock = VirtualFlock()

    # Dead letter queue for poison messages
    agent = flock.agent("processor").retry(
        max_attempts=3,
        dead_letter=DeadLetterQueue(
            destination="failed_artifacts",
            include_trace=True,
            alert_webhook="https://alerts.example.com",
        ),
    )

    assert agent.definition.retry.spec() == RetrySpec(3)
    assert agent.definition.dead_letter.spec() == DeadLetterSpec("failed_artifacts", include_trace=True)


def test_a_poison_message_ends_as_a_dead_letter_after_three_attempts() -> None:
    attempts: list[int] = []

    def process(ctx: Context, job: Job) -> Done:
        attempts.append(ctx.attempt)
        raise ERRORS[job.error]

    async def scenario() -> None:
        async with VirtualFlock() as flock:
            agent = flock.agent("processor").retry(
                max_attempts=3, dead_letter=DeadLetterQueue("failed_artifacts")
            )
            agent.consumes(Job).publishes(Done).runs(process)

            await flock.publish(Job(error="timeout"))
            await flock.run_until_idle(include_timers=True)

            kinds = [artifact.type for artifact in await flock.store.list()]
            assert ("DeadLetter" in kinds, "WorkflowError" in kinds) == (True, False)

    run_virtual(scenario())

    assert [1, 2, 3] == attempts
