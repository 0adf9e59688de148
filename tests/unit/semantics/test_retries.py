"""Retries and idle limits on a whole board, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel

from flock_ray import (
    Context,
    ExponentialBackoff,
    FixedDelay,
    LiteLLMEngine,
    RetryBudget,
    WorkflowError,
    flock_type,
)
from flock_ray.errors import ConfigurationError
from flock_ray.testing import MemoryPersistence, ScriptedModel, VirtualFlock, run_virtual

MINUTE = timedelta(minutes=1)


@flock_type(name="retries.Call")
class Call(BaseModel):
    n: int = 0
    """Attempts that fail."""


@flock_type(name="retries.Answer")
class Answer(BaseModel):
    attempt: int


class Flaky:
    """Fails as often as its input says, and remembers when it was asked."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, ctx: Context, call: Call) -> Answer:
        self.times.append(asyncio.get_running_loop().time())
        if ctx.attempt <= call.n:
            raise TimeoutError(f"attempt {ctx.attempt}")
        return Answer(attempt=ctx.attempt)


def declare(flock: VirtualFlock, function: Callable[..., Any], **retry: Any) -> None:
    agent = flock.agent("caller").consumes(Call).publishes(Answer).runs(function)
    if retry:
        agent.retry(**retry)


async def events(flock: VirtualFlock, kind: str) -> list[Any]:
    found: list[Any] = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            async for event in flock.events(kind):
                found.append(event)
    return found


def test_a_run_that_fails_twice_is_made_three_times() -> None:
    flaky = Flaky()

    async def scenario() -> None:
        async with VirtualFlock() as flock:
            declare(flock, flaky, strategy=FixedDelay(MINUTE, 5))
            await flock.publish(Call(n=2))
            await flock.run_until_idle(include_timers=True)

            assert await flock.store.get_by_type(Answer) == [Answer(attempt=3)]
            assert await flock.store.count(WorkflowError) == 0
            retried = await events(flock, "activation.retried")
            assert ["attempt 1 failed: TimeoutError: attempt 1; again in 60 s"] == [
                event.detail for event in retried[:1]
            ]

    run_virtual(scenario())

    assert [0, 60, 120] == pytest.approx(flaky.times, abs=0.1)


def test_a_run_that_keeps_failing_ends_in_one_workflow_error() -> None:
    flaky = Flaky()

    async def scenario() -> None:
        async with VirtualFlock() as flock:
            declare(flock, flaky, max_attempts=4)
            await flock.publish(Call(n=99))
            await flock.run_until_idle(include_timers=True)

            [error] = await flock.store.get_by_type(WorkflowError)
            assert error.error_message == "attempt 4"

    run_virtual(scenario())

    assert len(flaky.times) == 4


def test_without_retries_a_failure_is_final() -> None:
    flaky = Flaky()

    async def scenario() -> None:
        async with VirtualFlock() as flock:
            declare(flock, flaky)
            await flock.publish(Call(n=1))
            await flock.run_until_idle(include_timers=True)
            assert await flock.store.count(WorkflowError) == 1

    run_virtual(scenario())

    assert len(flaky.times) == 1


def test_the_waits_are_the_same_in_every_run_of_a_test() -> None:
    def times() -> list[float]:
        flaky = Flaky()

        async def scenario() -> None:
            async with VirtualFlock() as flock:
                declare(flock, flaky, strategy=ExponentialBackoff(MINUTE, max_attempts=6))
                await flock.publish(Call(n=5))
                await flock.run_until_idle(include_timers=True)

        run_virtual(scenario())
        return flaky.times

    first = times()
    waits = [b - a for a, b in itertools.pairwise(first)]

    assert first == times()
    assert all(0 <= wait <= 60 * 2**i + 0.1 for i, wait in enumerate(waits))
    assert len({round(wait / 2**i) for i, wait in enumerate(waits)}) > 1, "there is jitter"


@contextlib.asynccontextmanager
async def opened(kept: MemoryPersistence, flaky: Flaky) -> AsyncIterator[VirtualFlock]:
    """A flock whose process dies at the end."""
    flock = VirtualFlock(persistence=kept)
    declare(flock, flaky, strategy=FixedDelay(MINUTE, 3))
    await flock.start()
    yield flock
    assert flock.local is not None
    flock._opened.board.let_go()  # type: ignore[union-attr]  # it was opened
    await flock.local.close()


def test_attempts_and_waits_survive_the_death_of_the_board() -> None:
    flaky, kept = Flaky(), MemoryPersistence()

    async def scenario() -> None:
        async with opened(kept, flaky) as flock:
            await flock.publish(Call(n=99))
            await asyncio.sleep(61)  # the second attempt has failed, the third is due in a minute
            assert len(flaky.times) == 2
        async with opened(kept, flaky) as flock:
            await asyncio.sleep(30)
            assert len(flaky.times) == 2, "it still waits"
            await flock.run_until_idle(include_timers=True)
            [error] = await flock.store.get_by_type(WorkflowError)
            assert error.error_message == "attempt 3"

    run_virtual(scenario())

    assert [0, 60, 120] == pytest.approx(flaky.times, abs=1)


def test_a_budget_keeps_an_outage_from_becoming_a_storm() -> None:
    flaky = Flaky()

    async def scenario() -> None:
        async with VirtualFlock() as flock:
            budget = RetryBudget(ratio=0.1, window=MINUTE, min_retries=5)
            declare(flock, flaky, strategy=FixedDelay(timedelta(0), 10), budget=budget)
            await flock.publish_many([Call(n=99) for _ in range(200)])
            await flock.run_until_idle(include_timers=True)

            assert await flock.store.count(WorkflowError) == 200

    run_virtual(scenario())

    assert 205 <= len(flaky.times) <= 220


@pytest.mark.parametrize("shards", [1, 5])
def test_a_budget_holds_for_an_agent_over_all_shards_and_through_a_restart(shards: int) -> None:
    """Each shard once counted for itself, and anew after a restart."""
    flaky = Flaky()

    async def scenario() -> int:
        kept, failed = MemoryPersistence(), 0
        budget = RetryBudget(ratio=0.1, window=timedelta(hours=1), min_retries=5)
        for _ in range(2):
            async with VirtualFlock(shards=shards, persistence=kept) as flock:
                declare(flock, flaky, strategy=FixedDelay(timedelta(0), 10), budget=budget)
                await asyncio.gather(*(flock.publish(Call(n=99)) for _ in range(100)))
                await flock.run_until_idle(include_timers=True)
                failed = await flock.store.count(WorkflowError)
        return failed

    assert run_virtual(scenario()) == 200
    assert len(flaky.times) == 200 + 20


def test_the_window_of_a_budget_may_be_long() -> None:
    flaky = Flaky()

    async def scenario() -> None:
        async with VirtualFlock() as flock:
            budget = RetryBudget(ratio=0.5, window=timedelta(hours=1), min_retries=0)
            declare(flock, flaky, strategy=FixedDelay(timedelta(0)), budget=budget)
            for _ in range(10):
                await flock.publish(Call(n=0))
                await asyncio.sleep(300)
            await flock.publish(Call(n=2))
            await flock.run_until_idle(include_timers=True)
            assert await flock.store.count(Answer) == 11

    run_virtual(scenario())


def test_a_cancelled_workflow_is_not_tried_again() -> None:
    flaky = Flaky()

    async def scenario() -> None:
        async with VirtualFlock() as flock:
            declare(flock, flaky, strategy=FixedDelay(MINUTE, 5))
            call = await flock.publish(Call(n=99), correlation_id="wf")
            await asyncio.sleep(10)
            await flock.cancel(str(call.correlation_id))
            await flock.run_until_idle(include_timers=True)

    run_virtual(scenario())

    assert len(flaky.times) == 1


def test_a_run_that_takes_too_long_is_tried_again() -> None:
    cancelled: list[int] = []

    async def slow(ctx: Context, call: Call) -> Answer:
        try:
            await asyncio.sleep(3600 if ctx.attempt == 1 else 1)
        except asyncio.CancelledError:
            cancelled.append(ctx.attempt)
            raise
        return Answer(attempt=ctx.attempt)

    async def scenario() -> None:
        async with VirtualFlock() as flock:
            declare(flock, slow, strategy=FixedDelay(MINUTE), on=[TimeoutError])
            flock.get_agent("caller").timeout(timedelta(seconds=30))
            await flock.publish(Call())
            await flock.run_until_idle(include_timers=True)
            assert await flock.store.get_by_type(Answer) == [Answer(attempt=2)]

    run_virtual(scenario())

    assert [1] == cancelled


def test_heartbeats_keep_a_long_run_alive_and_silence_ends_it() -> None:
    async def slow(ctx: Context, call: Call) -> Answer:
        for _ in range(call.n):
            await asyncio.sleep(25)
            await ctx.heartbeat()
        await asyncio.sleep(25 if call.n else 60)
        return Answer(attempt=ctx.attempt)

    async def scenario() -> None:
        async with VirtualFlock() as flock:
            declare(flock, slow)
            flock.get_agent("caller").timeout(idle=timedelta(seconds=30))
            await flock.publish(Call(n=10))
            await flock.publish(Call(n=0))
            await flock.run_until_idle(include_timers=True)
            assert await flock.store.count(Answer) == 1
            [error] = await flock.store.get_by_type(WorkflowError)
            assert error.error_type == "AgentTimeoutError"
            assert "showed no sign of life for 30 s" in error.error_message

    run_virtual(scenario())


class SlowModel(ScriptedModel):
    """Takes 25 seconds for an answer."""

    async def complete(self, request: Any, on_text: Any = None) -> Any:
        await asyncio.sleep(25)
        return await super().complete(request, on_text)


class TalkingModel(ScriptedModel):
    """Needs 75 seconds for an answer, and streams a piece every 25."""

    async def complete(self, request: Any, on_text: Any = None) -> Any:
        for _ in range(3):
            await asyncio.sleep(25)
            if on_text is not None:
                on_text("word ")
        return await super().complete(request, None)


def test_pieces_of_an_answer_are_signs_of_life_also_when_nobody_listens() -> None:
    async def scenario() -> None:
        async with VirtualFlock(language_model=TalkingModel([{"attempt": 7}])) as flock:
            flock.agent("caller").consumes(Call).publishes(Answer).timeout(idle=timedelta(seconds=30))
            await flock.publish(Call())
            await flock.run_until_idle(include_timers=True)
            assert await flock.store.get_by_type(Answer) == [Answer(attempt=7)]

    run_virtual(scenario())


@pytest.mark.parametrize("stream", [None, False])
def test_answers_of_a_model_are_signs_of_life(stream: bool | None) -> None:
    async def scenario() -> None:
        # Two answers that don't fit and one that does: 75 seconds, but never 30 without an answer.
        model = SlowModel(["no JSON", "no JSON", {"attempt": 7}])
        async with VirtualFlock(language_model=model) as flock:
            agent = flock.agent("caller").consumes(Call).publishes(Answer).timeout(idle=timedelta(seconds=30))
            agent.with_engines(LiteLLMEngine(stream=stream))
            await flock.publish(Call())
            await flock.run_until_idle(include_timers=True)
            assert await flock.store.get_by_type(Answer) == [Answer(attempt=7)]

    run_virtual(scenario())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_attempts": 0}, "give a whole number from 1"),
        ({"max_attempts": True}, "give a whole number from 1"),
        ({"strategy": 3}, "has no method delay"),
        ({"strategy": ExponentialBackoff}, "has no method delay"),
        ({"strategy": SimpleNamespace(delay=MINUTE, max_attempts=3)}, "has no method delay"),
        ({"strategy": type("Own", (), {"delay": lambda self, n, e: None})()}, "Own has no max_attempts"),
        ({"on": ["RateLimitErorr"]}, "no such exception"),
        ({"on": ["ModelAnswerError"]}, "ModelAnswerError, which is never tried again"),
        ({"budget": 0.2}, "is no RetryBudget"),
        ({"dead_letter": 5}, "neither a DeadLetterQueue nor the name of one"),
        ({"dead_letter": "not a name!"}, "agent 'caller'|queue|name"),
    ],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(options: dict[str, Any], says: str) -> None:
    agent = VirtualFlock().agent("caller")

    with pytest.raises(ConfigurationError, match=says):
        agent.retry(**options)

    assert agent.definition.retry is None


@pytest.mark.parametrize("limit", [timedelta(0), timedelta(seconds=-1), 30])
def test_limits_of_time_are_checked(limit: Any) -> None:
    agent = VirtualFlock().agent("caller").timeout(MINUTE, idle=MINUTE)

    with pytest.raises(ConfigurationError, match="timeout"):
        agent.timeout(idle=limit)

    assert (agent.definition.timeout_s, agent.definition.idle_timeout_s) == (60, 60)


def test_an_attribute_of_a_strategy_says_how_many_attempts() -> None:
    agent = VirtualFlock().agent("caller")

    assert agent.retry(FixedDelay(MINUTE, 7)).definition.retry.max_attempts == 7
    assert agent.retry(FixedDelay(MINUTE, 7), max_attempts=2).definition.retry.max_attempts == 2
    assert agent.retry().definition.retry.max_attempts == 3


def test_a_shard_that_does_not_try_again_publishes_the_error_that_its_worker_left_out() -> None:
    """The worker has an older declaration: it was certain of another attempt, and made no WorkflowError."""

    async def scenario() -> None:
        async with VirtualFlock() as flock:
            declare(flock, Flaky(), max_attempts=3)
            await flock.start()
            assert flock.local is not None
            for shard in flock.local.shards:
                assert shard is not None
                agents = shard.core.agents
                agents["caller"] = msgspec.structs.replace(agents["caller"], retry=None)
            await flock.publish(Call(n=99))
            await flock.run_until_idle(include_timers=True)

            [error] = await flock.store.get_by_type(WorkflowError)
            assert (error.failed_agent, error.error_message) == ("caller", "attempt 1")

    run_virtual(scenario())
