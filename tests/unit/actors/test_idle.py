"""Runs that show no sign of life, and heartbeats of runs that were given up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future

import pytest

from flock_ray.actors.executor import Executor
from flock_ray.core import wire

PATIENCE_S = 10.0
TASK = wire.Task(b"t" * 16, 1, "a", "a/0", 7, "wf", ())
SECOND = wire.Task(b"t" * 16, 2, "a", "a/0", 7, "wf", (), failures=1)


class Runner:
    """Runs that end when they are let go."""

    def __init__(self, is_async: bool) -> None:
        self.is_async = is_async
        self.begun = {1: threading.Event(), 2: threading.Event()}
        self.gates: dict[int, Future[None]] = {1: Future(), 2: Future()}

    def run_sync(self, task: wire.Task) -> wire.Completion:
        self.begun[task.attempt].set()
        self.gates[task.attempt].result(PATIENCE_S)
        return wire.Completion(task.id, task.attempt, task.slot)

    async def run_async(self, task: wire.Task) -> wire.Completion:
        self.begun[task.attempt].set()
        await asyncio.wrap_future(self.gates[task.attempt])
        return wire.Completion(task.id, task.attempt, task.slot)

    def failure(self, task: wire.Task, exc_type: str, message: str) -> wire.Completion:
        return wire.Completion(task.id, task.attempt, task.slot, error=wire.ErrorInfo(exc_type, message))

    async def has_begun(self, attempt: int = 1) -> None:
        assert await asyncio.to_thread(self.begun[attempt].wait, PATIENCE_S)


class Bench:
    def __init__(self, is_async: bool) -> None:
        self.now = 100.0
        self.completions: list[wire.Completion] = []
        self.executor = Executor(on_done=self._on_done, monotonic=lambda: self.now)
        self.runner = Runner(is_async)

    def _on_done(self, batch: list[tuple[int, wire.Completion]]) -> None:
        self.completions += [completion for _, completion in batch]

    def agent(self, *, timeout_s: float | None = None, idle_s: float | None = None) -> None:
        self.executor.set_agent(
            "a", self.runner, max_concurrency=2, timeout_s=timeout_s, idle_timeout_s=idle_s
        )

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.executor.sweep()

    async def failure(self) -> wire.Completion:
        async with asyncio.timeout(PATIENCE_S):
            while not self.completions:  # noqa: ASYNC110 (what other threads do has no event here)
                await asyncio.sleep(0.001)
        return self.completions[0]


@pytest.fixture(params=[False, True], ids=["thread", "loop"])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    bench = Bench(request.param)
    yield bench
    for gate in bench.runner.gates.values():
        if not gate.done():
            gate.set_result(None)
    bench.executor.close()


async def test_a_run_without_a_sign_of_life_is_ended(bench: Bench) -> None:
    bench.agent(timeout_s=100, idle_s=5)
    bench.executor.submit(0, [TASK])
    await bench.runner.has_begun()

    bench.later(4.9)
    assert bench.completions == []
    bench.later(0.2)
    ended = await bench.failure()

    assert ended.error is not None
    assert ended.error.type == "AgentTimeoutError"
    assert "a showed no sign of life for 5 s" in ended.error.message
    assert "raise .timeout(idle=...)" in ended.error.message
    assert ended.run_us == pytest.approx(5_100_000, abs=10)


async def test_a_heartbeat_keeps_a_run_alive_up_to_its_whole_limit(bench: Bench) -> None:
    bench.agent(timeout_s=12, idle_s=5)
    bench.executor.submit(0, [TASK])
    await bench.runner.has_begun()

    for _ in range(2):
        bench.later(4.9)
        assert bench.executor.heartbeat(TASK)
    bench.later(2.1)
    assert bench.completions == []
    bench.executor.heartbeat(TASK)
    bench.later(0.2)
    ended = await bench.failure()

    assert ended.error is not None
    assert "did not finish within 12 s" in ended.error.message


async def test_waiting_in_the_queue_is_not_idleness(bench: Bench) -> None:
    bench.executor.set_agent("a", bench.runner, max_concurrency=1, timeout_s=None, idle_timeout_s=5)
    bench.executor.submit(0, [TASK, SECOND])
    await bench.runner.has_begun()
    for _ in range(3):
        bench.later(4)
        bench.executor.heartbeat(TASK)

    bench.runner.gates[1].set_result(None)
    await bench.runner.has_begun(2)
    bench.later(4)
    bench.runner.gates[2].set_result(None)
    assert await bench.executor.drain(PATIENCE_S)

    assert [None, None] == [completion.error for completion in bench.completions]


async def test_a_run_that_was_given_up_hears_of_it_at_its_next_heartbeat(bench: Bench) -> None:
    bench.agent()
    bench.executor.submit(0, [TASK])
    await bench.runner.has_begun()
    assert bench.executor.heartbeat(TASK)

    bench.executor.cancel([TASK.id])

    assert not bench.executor.heartbeat(TASK)


async def test_the_late_result_of_an_attempt_that_took_too_long_is_ignored(bench: Bench) -> None:
    # Given an attempt that was given up, and the one after it on the same worker
    bench.agent(timeout_s=5)
    bench.executor.submit(0, [TASK])
    await bench.runner.has_begun()
    bench.later(6)
    await bench.failure()
    bench.executor.submit(0, [SECOND])
    await bench.runner.has_begun(2)

    # When the first one ends after all, and then the second
    if not bench.runner.gates[1].done():
        bench.runner.gates[1].set_result(None)
    assert not bench.executor.heartbeat(TASK)
    bench.runner.gates[2].set_result(None)
    assert await bench.executor.drain(PATIENCE_S)

    # Then each was reported once
    assert [(1, False), (2, True)] == [(c.attempt, c.error is None) for c in bench.completions]


async def test_a_run_that_ignores_its_cancellation_hears_that_nobody_waits_for_it() -> None:
    bench, stubborn = Bench(is_async=True), threading.Event()

    async def run_async(task: wire.Task) -> wire.Completion:
        bench.runner.begun[1].set()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.Event().wait()
        stubborn.set()
        await asyncio.wrap_future(bench.runner.gates[1])
        return wire.Completion(task.id, task.attempt, task.slot)

    bench.runner.run_async = run_async  # type: ignore[method-assign]  # of this one
    bench.agent(timeout_s=5)
    bench.executor.submit(0, [TASK])
    await bench.runner.has_begun()
    bench.later(6)
    assert await asyncio.to_thread(stubborn.wait, PATIENCE_S)

    assert not bench.executor.heartbeat(TASK)
    assert bench.completions == []

    bench.runner.gates[1].set_result(None)
    assert await bench.executor.drain(PATIENCE_S)
    bench.executor.close()


def test_limits_have_to_be_positive() -> None:
    executor = Executor(on_done=lambda _: None)
    with pytest.raises(ValueError, match="must be positive"):
        executor.set_agent("a", Runner(False), max_concurrency=1, timeout_s=None, idle_timeout_s=0)
    executor.close()
