from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from queue import SimpleQueue

import pytest

from flock_ray.actors.executor import Executor
from flock_ray.core import wire

PATIENCE_S = 10.0


def task(number: int, agent: str = "a", attempt: int = 1) -> wire.Task:
    return wire.Task(number.to_bytes(16, "big"), attempt, agent, f"{agent}/0", 7, "wf", ())


def done(made: wire.Task, detail: str = "ok") -> wire.Completion:
    return wire.Completion(made.id, made.attempt, made.slot, notes=(("by", detail),))


def number_of(made: wire.Task | wire.Completion) -> int:
    return int.from_bytes(made.id, "big")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Script:
    """A runner whose activations follow a function, and that tells what it does."""

    def __init__(self, run: Callable[[wire.Task], object] = lambda _: None, name: str = "ok") -> None:
        self.is_async = False
        self.run = run
        self.name = name
        self.started: SimpleQueue[int] = SimpleQueue()
        self.failed_on: list[threading.Thread] = []

    def run_sync(self, task: wire.Task) -> wire.Completion:
        self.started.put(number_of(task))
        self.run(task)
        return done(task, self.name)

    async def run_async(self, task: wire.Task) -> wire.Completion:
        raise AssertionError("sync")

    def failure(self, task: wire.Task, exc_type: str, message: str) -> wire.Completion:
        self.failed_on.append(threading.current_thread())
        return wire.Completion(task.id, task.attempt, task.slot, error=wire.ErrorInfo(exc_type, message))

    async def next_start(self) -> int:
        return await asyncio.to_thread(self.started.get, timeout=PATIENCE_S)


class Gates(Script):
    """Each activation waits for its gate, if it has one."""

    def __init__(self, *numbers: int, name: str = "ok") -> None:
        super().__init__(self._wait, name)
        self.gates = {number: threading.Event() for number in numbers}

    def _wait(self, task: wire.Task) -> None:
        if gate := self.gates.get(number_of(task)):
            assert gate.wait(PATIENCE_S)


class Bench:
    """An executor under test, with what it reported."""

    def __init__(self, clock: Clock, flush_s: float = 0.002, idle_s: float = 30.0) -> None:
        self.clock = clock
        self.batches: list[list[tuple[int, wire.Completion]]] = []
        self.reported_on: set[threading.Thread] = set()
        self.executor = Executor(on_done=self._on_done, monotonic=clock, flush_s=flush_s, idle_s=idle_s)
        self.release: list[Callable[[], object]] = []

    def _on_done(self, batch: list[tuple[int, wire.Completion]]) -> None:
        self.batches.append(batch)
        self.reported_on.add(threading.current_thread())

    def agent(self, runner: Script, limit: int = 1, timeout_s: float | None = None, name: str = "a") -> None:
        self.executor.set_agent(name, runner, max_concurrency=limit, timeout_s=timeout_s)
        if isinstance(runner, Gates):
            self.release += [gate.set for gate in runner.gates.values()]

    def submit(self, *numbers: int, agent: str = "a") -> None:
        self.executor.submit(3, [task(number, agent) for number in numbers])

    def later(self, seconds: float) -> None:
        self.clock.now += seconds
        self.executor.sweep()

    @property
    def completions(self) -> list[wire.Completion]:
        return [completion for batch in self.batches for _, completion in batch]

    @property
    def numbers(self) -> list[int]:
        return [number_of(completion) for completion in self.completions]

    async def reported(self, count: int) -> list[wire.Completion]:
        await until(lambda: len(self.completions) >= count)
        return self.completions

    async def drained(self) -> list[int]:
        assert await self.executor.drain(PATIENCE_S)
        return self.numbers


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 (what other threads do has no event here)
            await asyncio.sleep(0.001)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench(Clock())
    yield bench
    for release in bench.release:
        release()
    bench.executor.close()


async def test_activations_of_an_agent_start_in_the_order_of_arrival(bench: Bench) -> None:
    bench.agent(Script())

    bench.submit(*range(50))
    bench.submit(*range(50, 100))

    assert list(range(100)) == await bench.drained()


async def test_completions_are_reported_on_the_control_loop_with_their_shard(bench: Bench) -> None:
    bench.agent(Script())

    bench.executor.submit(3, [task(1)])
    bench.executor.submit(4, [task(2)])
    await bench.drained()

    assert [(3, done(task(1))), (4, done(task(2)))] == [pair for batch in bench.batches for pair in batch]
    assert {threading.current_thread()} == bench.reported_on


async def test_an_agent_gets_more_threads_while_others_are_busy_but_not_over_its_limit(bench: Bench) -> None:
    runner = Gates(*range(5))
    bench.agent(runner, limit=2)

    bench.submit(*range(5))
    assert await runner.next_start() == 0
    before = bench.executor.load()
    bench.later(0.01)
    assert await runner.next_start() == 1
    bench.later(0.01)
    load = bench.executor.load()
    for release in bench.release:
        release()

    assert (1, 4) == (before.running, before.queued)
    assert (2, 3) == (load.running, load.queued)
    assert [0, 1, 2, 3, 4] == sorted(await bench.drained())


async def test_an_agent_known_as_slow_gets_its_threads_at_once(bench: Bench) -> None:
    runner = Gates(1, 2, 3)
    bench.agent(runner, limit=3)
    runner.run = lambda _: setattr(bench.clock, "now", bench.clock.now + 1)
    bench.submit(0)
    await bench.drained()
    runner.run = runner._wait

    bench.submit(1, 2, 3)

    assert [0, 1, 2, 3] == sorted([await runner.next_start() for _ in range(4)])
    assert bench.executor.load().agents["a"].mean_run_s == 1


async def test_agents_do_not_wait_for_each_other(bench: Bench) -> None:
    meeting = threading.Barrier(2)
    for name in ("a", "b"):
        bench.agent(Script(lambda _: meeting.wait(PATIENCE_S)), name=name)

    bench.executor.submit(0, [task(1, "a"), task(2, "b")])

    assert [1, 2] == sorted(await bench.drained())
    assert all(completion.error is None for completion in bench.completions)


async def test_short_activations_share_one_batch() -> None:
    bench = Bench(Clock(), flush_s=PATIENCE_S)
    control = asyncio.get_running_loop()

    def run(_: wire.Task) -> None:
        turned = threading.Event()
        control.call_soon_threadsafe(turned.set)
        assert turned.wait(PATIENCE_S)

    bench.agent(Script(run))
    bench.submit(*range(50))
    await bench.drained()
    bench.executor.close()

    assert [50] == [len(batch) for batch in bench.batches]


async def test_a_long_activation_does_not_hold_back_the_completions_before_it(bench: Bench) -> None:
    runner = Gates(2)
    bench.agent(runner)

    bench.submit(1, 2)
    assert [1, 2] == [await runner.next_start(), await runner.next_start()]
    await bench.reported(1)

    assert [1] == bench.numbers
    assert bench.executor.load().running == 1


async def test_the_same_attempt_is_run_once_and_another_attempt_is_another_run(bench: Bench) -> None:
    runner = Gates(1)
    bench.agent(runner)
    bench.submit(1, 2)
    await runner.next_start()

    bench.submit(1, 2)
    bench.executor.submit(3, [task(1, attempt=2)])
    runner.gates[1].set()
    await bench.drained()

    assert runner.started.qsize() == 2
    assert [(1, 1), (2, 1), (1, 2)] == [(number_of(each), each.attempt) for each in bench.completions]


async def test_an_attempt_that_was_reported_may_come_again(bench: Bench) -> None:
    bench.agent(Script())
    bench.submit(1)
    await bench.drained()

    bench.submit(1)

    assert [1, 1] == await bench.drained()


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt("bad"), SystemExit("bad")])
async def test_a_runner_that_raises_is_a_failure_of_that_activation_only(
    bench: Bench, error: BaseException
) -> None:
    def run(made: wire.Task) -> None:
        if number_of(made) == 1:
            raise error

    bench.agent(Script(run))
    bench.submit(1, 2)
    await bench.drained()

    assert [wire.ErrorInfo(type(error).__name__, "bad"), None] == [each.error for each in bench.completions]


async def test_a_failure_is_reported_even_if_the_runner_cannot_make_it(bench: Bench) -> None:
    class Mute(Script):
        def failure(self, task: wire.Task, exc_type: str, message: str) -> wire.Completion:
            raise KeyError(exc_type)

    bench.agent(Mute(lambda _: 1 / 0))
    bench.submit(1)
    await bench.drained()

    (completion,) = bench.completions
    assert (task(1).id, 1, 7) == (completion.id, completion.attempt, completion.slot)
    assert completion.error is not None
    assert completion.error.type == "ZeroDivisionError"
    assert "KeyError" in completion.error.message


async def test_a_sync_timeout_is_reported_and_the_agent_gets_another_thread(bench: Bench) -> None:
    runner = Gates(1)
    bench.agent(runner, timeout_s=5)
    bench.submit(1, 2)
    await runner.next_start()

    bench.later(4.9)
    early = bench.executor.load()
    bench.later(0.2)
    timed_out, after = sorted(await bench.reported(2), key=number_of)
    stuck = bench.executor.load()
    runner.gates[1].set()
    await until(lambda: bench.executor.load().stuck_threads == 0)

    assert (1, 0) == (early.running, early.stuck_threads)
    assert timed_out.error is not None
    assert timed_out.error.type == "AgentTimeoutError"
    assert "a did not finish within 5 s; raise .timeout(...)" in timed_out.error.message
    assert done(task(2)) == after
    assert (0, 1) == (stuck.running, stuck.stuck_threads)
    assert [1, 2] == sorted(await bench.drained())


async def test_the_failure_of_a_timeout_is_not_made_on_the_control_loop(bench: Bench) -> None:
    # It is matched against subscriptions, whose predicates are user code.
    runner = Gates(1)
    bench.agent(runner, timeout_s=5)
    bench.submit(1)
    await runner.next_start()

    bench.later(6)
    await bench.reported(1)

    assert threading.current_thread() not in runner.failed_on


async def test_a_timeout_counts_from_the_start_of_the_run(bench: Bench) -> None:
    runner = Gates(1, 2)
    bench.agent(runner, timeout_s=10)
    bench.submit(1, 2)
    await runner.next_start()
    bench.later(6)
    runner.gates[1].set()
    await runner.next_start()

    await until(lambda: bench.executor.load().running == 1)
    bench.later(6)

    assert bench.executor.load().oldest_running_s == 6
    assert bench.executor.load().stuck_threads == 0


async def test_cancelled_activations_are_not_reported_and_the_others_keep_their_order(bench: Bench) -> None:
    runner = Gates(1)
    bench.agent(runner)
    bench.submit(*range(1, 7))
    await runner.next_start()

    bench.executor.cancel([task(number).id for number in (1, 3, 5, 99)])
    queued = bench.executor.load().queued
    still_open = bench.executor.open_ids()
    runner.gates[1].set()

    assert queued == 3
    assert {task(number).id for number in (2, 4, 6)} == still_open
    assert [2, 4, 6] == await bench.drained()
    assert [2, 4, 6] == [runner.started.get(timeout=1) for _ in range(runner.started.qsize())]


async def test_a_cancelled_attempt_may_come_again_while_its_first_run_goes_on(bench: Bench) -> None:
    first, second = Gates(1, name="first"), Script(name="second")
    bench.agent(first)
    bench.submit(1)
    await first.next_start()

    bench.executor.cancel({task(1).id})
    bench.agent(second)
    bench.submit(1)
    first.gates[1].set()
    await bench.drained()

    assert [done(task(1), "second")] == bench.completions


async def test_drain_waits_for_everything_also_for_cancelled_threads(bench: Bench) -> None:
    runner = Gates(1)
    bench.agent(runner)
    bench.submit(1)
    await runner.next_start()
    bench.executor.cancel({task(1).id})

    assert not await bench.executor.drain(0.0)
    runner.gates[1].set()
    assert await bench.executor.drain(PATIENCE_S)
    assert await Bench(Clock()).executor.drain(0.0)


async def test_a_replaced_runner_finishes_what_runs_and_the_new_one_gets_what_waits(bench: Bench) -> None:
    old, new = Gates(1, name="old"), Gates(name="new")
    bench.agent(old, timeout_s=5)
    bench.submit(1, 2)
    await old.next_start()

    bench.agent(new, timeout_s=500)
    old.gates[1].set()
    await bench.drained()

    assert [done(task(1), "old"), done(task(2), "new")] == bench.completions


async def test_a_run_keeps_the_timeout_it_started_with(bench: Bench) -> None:
    runner = Gates(1)
    bench.agent(runner, timeout_s=5)
    bench.submit(1)
    await runner.next_start()

    bench.agent(Script(), timeout_s=None)
    bench.later(6)

    assert [completion.error is not None for completion in await bench.reported(1)] == [True]


async def test_a_lower_limit_holds_for_what_starts_later(bench: Bench) -> None:
    runner = Gates(1, 2)
    bench.agent(runner, limit=2)
    bench.submit(1, 2, 3)
    await runner.next_start()
    bench.later(0.01)
    await runner.next_start()

    bench.agent(runner, limit=1)
    runner.gates[1].set()
    await bench.reported(1)
    await until(lambda: _threads("flock-a") == 1)

    assert bench.executor.load().queued == 1
    runner.gates[2].set()
    assert [1, 2, 3] == sorted(await bench.drained())


async def test_a_removed_agent_finishes_what_it_has_and_takes_nothing_new(bench: Bench) -> None:
    runner = Gates(1)
    bench.agent(runner)
    bench.submit(1, 2)
    await runner.next_start()

    bench.executor.remove_agent("a")
    bench.submit(3)
    (refused,) = await bench.reported(1)
    runner.gates[1].set()
    await bench.drained()

    assert refused.error == wire.ErrorInfo(wire.NOT_RUN, "agent 'a' is not on this worker", retryable=True)
    assert [3, 1, 2] == bench.numbers
    await until(lambda: bench.executor.load().agents == {} and _threads("flock-a") == 0)


async def test_context_variables_do_not_pass_from_one_activation_to_the_next(bench: Bench) -> None:
    seen: list[int] = []
    variable = ContextVar("variable", default=0)

    def run(made: wire.Task) -> None:
        seen.append(variable.get())
        variable.set(number_of(made))

    bench.agent(Script(run))
    bench.submit(1, 2)
    await bench.drained()

    assert [0, 0] == seen


def _threads(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())


async def test_idle_threads_end_and_come_back() -> None:
    bench = Bench(Clock(), idle_s=0.001)
    bench.agent(Script(), name="idle")
    bench.submit(1, agent="idle")
    await bench.drained()

    await until(lambda: _threads("flock-idle") == 0)
    bench.submit(2, agent="idle")

    assert [1, 2] == await bench.drained()
    bench.executor.close()


async def test_a_closed_executor_reports_nothing_and_leaves_no_thread(bench: Bench) -> None:
    runner = Gates(1)
    bench.agent(runner, name="closing")
    bench.submit(1, 2, agent="closing")
    await runner.next_start()

    bench.executor.close()
    bench.executor.close()
    runner.gates[1].set()
    await until(lambda: _threads("flock-closing") == 0)

    assert [] == bench.completions
    assert runner.started.empty()
    with pytest.raises(RuntimeError, match="closed"):
        bench.submit(3)


@pytest.mark.parametrize(("limit", "timeout_s"), [(0, None), (1, 0.0)])
def test_limits_must_be_positive(limit: int, timeout_s: float | None) -> None:
    executor = Executor(on_done=print)

    with pytest.raises(ValueError, match="positive"):
        executor.set_agent("a", Script(), max_concurrency=limit, timeout_s=timeout_s)
