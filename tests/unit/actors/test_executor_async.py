from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextvars import ContextVar

import pytest

from flock_ray.actors.executor import Executor
from flock_ray.core import wire

PATIENCE_S = 10.0


def task(number: int) -> wire.Task:
    return wire.Task(number.to_bytes(16, "big"), 1, "a", "a/0", 7, "wf", ())


def number_of(made: wire.Task | wire.Completion) -> int:
    return int.from_bytes(made.id, "big")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 (what other threads do has no event here)
            await asyncio.sleep(0.001)


class Script:
    """A runner whose activations follow a coroutine function; by default they wait for their gate."""

    def __init__(self, *gated: int, run: Callable[[wire.Task], Awaitable[object]] | None = None) -> None:
        self.is_async = True
        self.gates: dict[int, Future[None]] = {number: Future() for number in gated}
        self.run = run or self.wait
        self.started: list[int] = []
        self.active = self.peak = 0
        self.hold = threading.Event()
        self.failures: list[str] = []
        self.cancelled: list[int] = []

    async def wait(self, task: wire.Task) -> None:
        if gate := self.gates.get(number_of(task)):
            await asyncio.shield(asyncio.wrap_future(gate))

    def run_sync(self, task: wire.Task) -> wire.Completion:
        assert self.hold.wait(PATIENCE_S)
        return wire.Completion(task.id, task.attempt, task.slot, notes=(("by", "sync"),))

    async def run_async(self, task: wire.Task) -> wire.Completion:
        self.started.append(number_of(task))
        self.active += 1
        self.peak = max(self.peak, self.active)
        try:
            await self.run(task)
        except asyncio.CancelledError:
            self.cancelled.append(number_of(task))
            raise
        finally:
            self.active -= 1
        return wire.Completion(task.id, task.attempt, task.slot)

    def failure(self, task: wire.Task, exc_type: str, message: str) -> wire.Completion:
        self.failures.append(exc_type)
        return wire.Completion(task.id, task.attempt, task.slot, error=wire.ErrorInfo(exc_type, message))


class Bench:
    """An executor under test with one agent, and what it reported."""

    def __init__(self) -> None:
        self.now = 0.0
        self.batches: list[list[tuple[int, wire.Completion]]] = []
        self.executor = Executor(on_done=self.batches.append, monotonic=lambda: self.now)
        self.runner = Script()

    def agent(self, runner: Script, limit: int = 1, timeout_s: float | None = None) -> None:
        self.runner = runner
        self.executor.set_agent("a", runner, max_concurrency=limit, timeout_s=timeout_s)

    def submit(self, *numbers: int) -> None:
        self.executor.submit(3, [task(number) for number in numbers])

    async def start(self, *numbers: int) -> None:
        """Submit, and wait until all of them run."""
        self.submit(*numbers)
        await until(lambda: set(numbers) <= set(self.runner.started))

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.executor.sweep()

    @property
    def completions(self) -> list[wire.Completion]:
        return [completion for batch in self.batches for _, completion in batch]

    @property
    def errors(self) -> dict[int, str | None]:
        return {number_of(each): each.error.type if each.error else None for each in self.completions}

    async def drained(self) -> list[int]:
        assert await self.executor.drain(PATIENCE_S)
        return [number_of(completion) for completion in self.completions]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    for gate in bench.runner.gates.values():
        if not gate.done():
            gate.set_result(None)
    bench.executor.close()


async def test_async_activations_run_on_one_loop_that_is_not_the_control_loop(bench: Bench) -> None:
    threads: set[threading.Thread] = set()

    async def run(_: wire.Task) -> None:
        threads.add(threading.current_thread())

    bench.agent(Script(run=run), limit=4)
    bench.submit(*range(100))

    assert list(range(100)) == await bench.drained()
    assert len(threads) == 1
    assert threading.current_thread() not in threads


async def test_only_so_many_run_at_once_and_the_next_starts_when_one_ends(bench: Bench) -> None:
    runner = Script(*range(5))
    bench.agent(runner, limit=2)
    await bench.start(0, 1)
    bench.submit(2, 3, 4)

    load = bench.executor.load()
    runner.gates[1].set_result(None)
    await until(lambda: 2 in runner.started)
    for number in (0, 2, 3, 4):
        runner.gates[number].set_result(None)
    await bench.drained()

    assert (2, 3) == (load.running, load.queued)
    assert runner.peak == 2
    assert [0, 1, 2, 3, 4] == runner.started


async def test_a_thousand_wait_at_the_same_time(bench: Bench) -> None:
    meeting: Future[None] = Future()
    runner = Script(999)

    async def run(made: wire.Task) -> None:
        if len(runner.started) == 1000:
            meeting.set_result(None)
        await asyncio.wrap_future(meeting)

    runner.run = run
    bench.agent(runner, limit=1000)
    bench.submit(*range(1000))

    assert list(range(1000)) == sorted(await bench.drained())
    assert len(bench.batches) < 100


async def test_short_activations_share_batches() -> None:
    batches: list[list[tuple[int, wire.Completion]]] = []
    executor = Executor(on_done=batches.append, flush_s=PATIENCE_S)
    control = asyncio.get_running_loop()

    async def run(_: wire.Task) -> None:
        turned = threading.Event()
        control.call_soon_threadsafe(turned.set)
        assert turned.wait(PATIENCE_S)

    executor.set_agent("a", Script(run=run), max_concurrency=2, timeout_s=None)
    executor.submit(3, [task(number) for number in range(50)])
    assert await executor.drain(PATIENCE_S)
    executor.close()

    assert [50] == [len(batch) for batch in batches]


async def test_a_higher_limit_starts_what_waits(bench: Bench) -> None:
    runner = Script(1, 2)
    bench.agent(runner, limit=1)
    await bench.start(1)
    bench.submit(2)

    bench.agent(runner, limit=2)

    await until(lambda: [1, 2] == runner.started)


async def test_an_async_timeout_cancels_and_reports(bench: Bench) -> None:
    runner = Script(1)
    bench.agent(runner, timeout_s=5)
    await bench.start(1)

    bench.later(4.9)
    assert bench.executor.load().oldest_running_s == pytest.approx(4.9)
    bench.later(0.2)
    await bench.drained()

    assert [1] == runner.cancelled
    assert ["AgentTimeoutError"] == runner.failures
    assert {1: "AgentTimeoutError"} == bench.errors


async def test_a_result_made_after_the_timeout_is_still_a_timeout(bench: Bench) -> None:
    async def run(_: wire.Task) -> None:
        with pytest.raises(asyncio.CancelledError):
            await asyncio.Event().wait()

    bench.agent(Script(run=run), timeout_s=5)
    await bench.start(1)

    bench.later(6)
    await bench.drained()

    assert {1: "AgentTimeoutError"} == bench.errors


async def test_a_task_that_ignores_its_cancellation_is_abandoned_after_a_second(bench: Bench) -> None:
    runner = Script(1)

    async def run(made: wire.Task) -> None:
        try:
            await runner.wait(made)
        except asyncio.CancelledError:
            runner.cancelled.append(number_of(made))
            await runner.wait(made)

    runner.run = run
    bench.agent(runner, timeout_s=5)
    await bench.start(1)
    bench.submit(2)
    bench.later(6)
    await until(lambda: [1] == runner.cancelled)

    bench.later(0.9)
    assert bench.executor.load().agents["a"].stuck_tasks == 0
    bench.later(0.2)
    await bench.drained()
    stuck = bench.executor.load().agents["a"].stuck_tasks
    runner.gates[1].set_result(None)
    await until(lambda: bench.executor.load().agents["a"].stuck_tasks == 0)

    assert stuck == 1
    assert {1: "AgentTimeoutError", 2: None} == bench.errors
    assert len(bench.completions) == 2


async def test_cancel_ends_running_tasks_and_drops_queued_ones_without_a_report(bench: Bench) -> None:
    runner = Script(1, 2)
    bench.agent(runner, limit=2)
    await bench.start(1, 2)
    bench.submit(3, 4)

    bench.executor.cancel([task(1).id, task(3).id])
    runner.gates[2].set_result(None)

    assert [2, 4] == sorted(await bench.drained())
    assert [1] == runner.cancelled
    assert [1, 2, 4] == runner.started


async def test_a_task_cancelled_before_its_first_step_frees_its_place(bench: Bench) -> None:
    runner = Script()
    holding, released = threading.Event(), threading.Event()

    async def run(made: wire.Task) -> None:
        if number_of(made) == 1:
            holding.set()
            released.wait(PATIENCE_S)

    runner.run = run
    bench.agent(runner, limit=2)
    bench.submit(1, 2)  # the task of 2 exists, but the loop is in 1
    assert await asyncio.to_thread(holding.wait, PATIENCE_S)

    bench.executor.cancel([task(2).id])
    bench.submit(3)
    released.set()

    assert [1, 3] == await bench.drained()
    assert [1, 3] == runner.started


async def test_a_blocked_user_loop_is_seen_and_everything_else_answers(bench: Bench) -> None:
    holding, released = threading.Event(), threading.Event()

    async def run(_: wire.Task) -> None:
        holding.set()
        released.wait(PATIENCE_S)

    bench.agent(Script(run=run), timeout_s=5)
    bench.submit(1, 2)
    assert await asyncio.to_thread(holding.wait, PATIENCE_S)
    bench.executor.load()

    bench.now += 3
    blocked_s = bench.executor.load().user_loop_blocked_s
    bench.later(3)
    bench.later(1)
    await until(lambda: {1: "AgentTimeoutError"} == bench.errors)
    released.set()
    await bench.drained()
    await until(lambda: bench.executor.load().user_loop_blocked_s == 0)

    assert blocked_s == 3
    assert {1: "AgentTimeoutError", 2: None} == bench.errors


async def test_an_agent_whose_coroutine_raises_reports_a_failure(bench: Bench) -> None:
    async def run(made: wire.Task) -> None:
        raise [ValueError, SystemExit, asyncio.CancelledError][number_of(made)]("bad")

    bench.agent(Script(run=run), limit=3)
    bench.submit(0, 1, 2)
    await bench.drained()

    assert {0: "ValueError", 1: "SystemExit", 2: "CancelledError"} == bench.errors


async def test_the_user_loop_outlives_a_task_of_the_user_that_exits(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def leave() -> None:
        raise SystemExit

    async def run(made: wire.Task) -> None:
        if number_of(made) == 1:
            await asyncio.create_task(leave())

    bench.agent(Script(run=run))
    with caplog.at_level(logging.CRITICAL + 1):
        bench.submit(1, 2)

        assert [1, 2] == await bench.drained()
    assert {1: "SystemExit", 2: None} == bench.errors


async def test_context_variables_do_not_pass_from_one_activation_to_the_next(bench: Bench) -> None:
    seen: list[int] = []
    variable = ContextVar("variable", default=0)

    async def run(made: wire.Task) -> None:
        seen.append(variable.get())
        variable.set(number_of(made))

    bench.agent(Script(run=run))
    bench.submit(1, 2)
    await bench.drained()

    assert [0, 0] == seen


async def test_an_agent_that_becomes_sync_takes_its_queue_along(bench: Bench) -> None:
    runner, successor = Script(1), Script()
    successor.is_async = False
    bench.agent(runner)
    await bench.start(1)
    bench.submit(2, 3)

    bench.executor.set_agent("a", successor, max_concurrency=1, timeout_s=None)
    runner.gates[1].set_result(None)
    await until(lambda: bench.errors == {1: None})
    successor.hold.set()
    await bench.drained()

    assert [(), (("by", "sync"),), (("by", "sync"),)] == [each.notes for each in bench.completions]
    assert [1] == runner.started


async def test_an_agent_that_becomes_async_takes_its_queue_along(bench: Bench) -> None:
    runner, successor = Script(), Script()
    runner.is_async = False
    bench.agent(runner)
    bench.submit(1, 2, 3)
    await until(lambda: bench.executor.load().running == 1)

    bench.agent(successor)
    await until(lambda: bench.errors == {2: None, 3: None})
    runner.hold.set()

    assert [2, 3, 1] == await bench.drained()


async def test_a_removed_agent_leaves_the_load_when_it_has_finished(bench: Bench) -> None:
    runner = Script(1)
    bench.agent(runner)
    await bench.start(1)
    bench.submit(2)

    bench.executor.remove_agent("a")
    assert (1, 1) == (bench.executor.load().running, bench.executor.load().queued)
    runner.gates[1].set_result(None)

    assert [1, 2] == await bench.drained()
    await until(lambda: bench.executor.load().agents == {})


async def test_close_cancels_tasks_and_ends_the_loop_without_a_report(bench: Bench) -> None:
    before = set(threading.enumerate())
    runner = Script(1)
    bench.agent(runner)
    await bench.start(1)
    bench.submit(2)
    own = set(threading.enumerate()) - before

    bench.executor.close()
    await until(lambda: not any(thread.is_alive() for thread in own))

    assert [1] == runner.cancelled
    assert [1] == runner.started
    assert [] == bench.completions
