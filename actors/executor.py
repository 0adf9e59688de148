"""Runs the activations of several agents inside one worker process.

User code never runs on the control loop, the actor's own: sync functions run in threads, async ones on a
second loop. All methods of `Executor` are called on the control loop and none blocks it.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial

from flock_ray.actors.threads import SLOW_S, Ended, Outbox, Run, Runner, Setup, Starter, ThreadLane, Worker
from flock_ray.actors.userloop import Activity, LoopLane, UserLoop
from flock_ray.core import wire

__all__ = ["AgentLoad", "Executor", "Load", "Runner"]

SWEEP_S = 0.05
"""Seconds between looks for timeouts: how late one may be seen."""


@dataclass(frozen=True, slots=True)
class AgentLoad:
    """How busy one agent is on this worker."""

    queued: int
    """Activations that have not started."""
    running: int
    """Activations in user code, without the stuck ones."""
    oldest_running_s: float
    """Age of the oldest running activation in seconds; 0 when nothing runs."""
    stuck_threads: int
    """Sync activations past their timeout: reported, but nothing can stop their thread."""
    stuck_tasks: int
    """Async activations that did not end within a second of being cancelled."""
    mean_run_s: float
    """Moving mean of run times in seconds; 0 before the first run."""


@dataclass(frozen=True, slots=True)
class Load:
    """How busy a worker is."""

    agents: dict[str, AgentLoad]
    """By name; also agents that were removed, while they finish."""
    user_loop_blocked_s: float
    """For how long the user loop has not answered; up to 0.1 s is a busy loop, more is a blocked one."""

    @property
    def queued(self) -> int:
        """Activations of all agents that have not started."""
        return sum(agent.queued for agent in self.agents.values())

    @property
    def running(self) -> int:
        """Activations of all agents in user code, without the stuck ones."""
        return sum(agent.running for agent in self.agents.values())

    @property
    def oldest_running_s(self) -> float:
        """Age of the oldest running activation in seconds; 0 when nothing runs."""
        return max((agent.oldest_running_s for agent in self.agents.values()), default=0.0)

    @property
    def stuck_threads(self) -> int:
        """Threads of all agents that are lost to activations past their timeout."""
        return sum(agent.stuck_threads for agent in self.agents.values())


class Executor:
    """Queues, runs, times out and cancels activations, and reports what they did.

    Args:
        on_done: Called on the control loop with (shard, completion) pairs, in batches. An activation is
            reported once, unless it was cancelled.
        monotonic: A clock in seconds that never goes back.
        flush_s: Longest wait in seconds of a completion for others to share its batch.
        idle_s: Seconds without work after which a thread ends.
        switch_interval_s: How long a thread that computes keeps the GIL once another wants it; set for the
            whole process, None leaves it. With four agents computing on two cores, Python's 5 ms made a
            10 ms heartbeat of the control loop late by 17-31 ms (median), 1 ms by 5-9 ms, at no lower
            throughput.
    """

    def __init__(
        self,
        *,
        on_done: Callable[[list[tuple[int, wire.Completion]]], None],
        monotonic: Callable[[], float] = time.monotonic,
        flush_s: float = 0.002,
        idle_s: float = 30.0,
        switch_interval_s: float | None = 0.001,
    ) -> None:
        if switch_interval_s is not None:
            sys.setswitchinterval(switch_interval_s)
        self._on_done = on_done
        self._monotonic = monotonic
        self._idle_s = idle_s
        self._outbox = Outbox(self._deliver, flush_s)
        self._starter = Starter()
        self._user_loop: UserLoop | None = None
        self._open: dict[tuple[bytes, int], Run] = {}
        """What will still be reported, by (activation id, attempt)."""
        self._lanes: dict[str, ThreadLane | LoopLane] = {}
        self._closing_lanes: list[ThreadLane | LoopLane] = []
        """Replaced or removed; kept for their timeouts until their last run ended."""
        self._stuck: dict[Run, Worker | Activity] = {}
        self._waiters: list[asyncio.Future[None]] = []
        self._sweeper: asyncio.TimerHandle | None = None
        self._grower: asyncio.TimerHandle | None = None
        self._closed = False

    def set_agent(
        self,
        name: str,
        runner: Runner,
        *,
        max_concurrency: int,
        timeout_s: float | None,
        idle_timeout_s: float | None = None,
    ) -> None:
        """Add an agent, or replace its runner and limits.

        What runs finishes with the runner and timeout that it started with; what is queued gets the new ones.
        When an agent changes between sync and async, its old runs do not count for the new limit.

        Args:
            name: The agent.
            runner: Runs its activations.
            max_concurrency: Most of its activations at once, from 1.
            timeout_s: Seconds that an activation may run, not counting its wait; None is no limit.
            idle_timeout_s: Seconds that it may run without a sign of life (`heartbeat`); None is no limit.

        Raises:
            ValueError: If a limit is not positive.
        """
        if max_concurrency < 1 or any(
            limit is not None and limit <= 0 for limit in (timeout_s, idle_timeout_s)
        ):
            raise ValueError(f"{name}: max_concurrency and timeouts must be positive")
        setup = Setup(runner, timeout_s, idle_timeout_s)
        old = self._lanes.get(name)
        if old is not None and isinstance(old, LoopLane) == runner.is_async:
            old.setup = setup
            old.removed = False
            old.resize(max_concurrency)
            return
        lane = self._lanes[name] = self._new_lane(name, setup, max_concurrency)
        if old is not None:
            # Runs are popped from one and the same queue until the old consumers know.
            lane.queue = old.queue
            self._close_lane(old)
            if lane.queue:
                lane.wake()

    def remove_agent(self, name: str) -> None:
        """Take no more activations of an agent; those already submitted still run and are reported."""
        if (lane := self._lanes.get(name)) is not None:
            lane.removed = True
            self._forget_finished()

    def submit(self, shard: int, tasks: list[wire.Task]) -> None:
        """Queue tasks, in order of arrival per agent.

        One that is queued or running with the same attempt already is ignored. One of an agent that is not
        here is reported with `wire.NOT_RUN`: the shard hands it to another worker.

        Args:
            shard: Who gets the completions.
            tasks: What to run.

        Raises:
            RuntimeError: If the executor is closed.
        """
        if self._closed:
            raise RuntimeError("the executor of this worker is closed")
        if self._outbox.loop is None:
            self._outbox.loop = asyncio.get_running_loop()
        touched: set[ThreadLane | LoopLane] = set()
        for task in tasks:
            key = (task.id, task.attempt)
            if key in self._open:
                continue
            run = self._open[key] = Run(key, shard, task)
            lane = self._lanes.get(task.agent)
            if lane is None or lane.removed:
                self._refuse(run)
                continue
            lane.queue.append(run)
            touched.add(lane)
        for lane in touched:
            lane.wake()
        self._arm_sweeper()
        self._arm_grower()

    def cancel(self, ids: Collection[bytes]) -> None:
        """Give up activations, all attempts of each: nothing more is reported of them.

        Queued ones never start, async ones are cancelled, sync ones run on and their result is ignored.
        """
        wanted = set(ids)
        dropped = [run for key, run in self._open.items() if key[0] in wanted]
        if not dropped:
            return
        now = self._monotonic()
        for run in dropped:
            run.dropped = True
            run.asked_to_end = now
            del self._open[run.key]
        agents = {run.task.agent for run in dropped}
        for lane in self._all_lanes():
            if lane.name in agents:
                _unqueue_dropped(lane)
                if isinstance(lane, LoopLane):
                    lane.end(dropped)
        self._settle()

    def heartbeat(self, task: wire.Task) -> bool:
        """Take a sign of life of a run, from any thread; False: it was given up, nobody waits for its result."""
        run = self._open.get((task.id, task.attempt))
        if run is None or run.expired:
            return False
        run.active = self._monotonic()
        return True

    def give_back(self) -> list[tuple[int, wire.Task]]:
        """Give up everything async, for a user loop that is blocked; returns it with its shard."""
        agents = {lane.name for lane in self._all_lanes() if isinstance(lane, LoopLane)}
        given = [(run.shard, run.task) for run in self._open.values() if run.task.agent in agents]
        self.cancel([task.id for _, task in given])
        return given

    def open_ids(self) -> set[bytes]:
        """Return the ids of the activations that will still be reported."""
        return {activation for activation, _ in self._open}

    def load(self) -> Load:
        """Measure how busy this worker is; costs time in proportion to what runs, not to what is queued."""
        self._forget_finished()
        now = self._monotonic()
        blocked_s = 0.0
        if self._user_loop is not None:
            blocked_s = self._user_loop.blocked_s(now)
            self._user_loop.probe(now)
        agents = {name: self._agent_load(name, now) for name in {lane.name for lane in self._all_lanes()}}
        return Load(agents, blocked_s)

    def sweep(self) -> None:
        """Look for timeouts, for agents that need more threads and for a blocked user loop.

        Runs by itself every `SWEEP_S` while anything is queued or runs.
        """
        now = self._monotonic()
        late: dict[Run, Worker | Activity] = {}
        for lane in self._all_lanes():
            late.update(lane.expire(now))
            if isinstance(lane, ThreadLane):
                lane.grow(now)
        self._stuck.update(late)
        if unreported := [run for run in late if self._open.get(run.key) is run]:
            # A failure is matched against subscriptions, by their predicates: user code.
            self._starter.start(partial(self._report_timeouts, unreported), "flock-timeouts")
        if self._user_loop is not None:
            self._user_loop.probe(now)
        self._settle()

    async def drain(self, timeout_s: float) -> bool:
        """Wait until everything queued and running is finished and reported.

        Nothing is refused meanwhile. Stuck activations are not waited for, cancelled sync ones are.

        Args:
            timeout_s: Seconds to wait at most.

        Returns:
            Whether the executor is empty.
        """
        if self._busy() and not self._closed:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await asyncio.wait([waiter], timeout=timeout_s)
            if waiter in self._waiters:
                self._waiters.remove(waiter)
        return not self._busy()

    def close(self) -> None:
        """End all threads that can be ended; nothing more is reported. Does not wait; idempotent."""
        if self._closed:
            return
        self._closed = True
        for timer in (self._sweeper, self._grower):
            if timer is not None:
                timer.cancel()
        for lane in self._all_lanes():
            lane.resize(0)
        if self._user_loop is not None:
            self._user_loop.close()
        self._starter.close()
        self._release_waiters()

    def _new_lane(self, name: str, setup: Setup, limit: int) -> ThreadLane | LoopLane:
        if setup.runner.is_async:
            if self._user_loop is None:
                self._user_loop = UserLoop(self._outbox, self._starter, self._monotonic)
            return LoopLane(name, setup, limit, user_loop=self._user_loop)
        return ThreadLane(
            name,
            setup,
            limit,
            outbox=self._outbox,
            starter=self._starter,
            monotonic=self._monotonic,
            idle_s=self._idle_s,
        )

    def _close_lane(self, lane: ThreadLane | LoopLane) -> None:
        lane.resize(0)
        self._closing_lanes.append(lane)

    def _all_lanes(self) -> Iterator[ThreadLane | LoopLane]:
        yield from self._lanes.values()
        yield from self._closing_lanes

    def _refuse(self, run: Run) -> None:
        name = run.task.agent
        error = wire.ErrorInfo(wire.NOT_RUN, f"agent {name!r} is not on this worker", retryable=True)
        completion = wire.Completion(run.task.id, run.task.attempt, run.task.slot, error=error)
        self._outbox.put(run, completion, more=False)

    def _report_timeouts(self, runs: list[Run]) -> None:
        for run in runs:
            self._outbox.put(run, run.timed_out(), more=False)

    def _deliver(self, batch: list[Ended]) -> None:
        """Report what ended, from the outbox; a result that is not awaited any more ends here."""
        is_open, done = self._open, list[tuple[int, wire.Completion]]()
        for run, completion in batch:
            if completion is None:
                self._stuck.pop(run, None)
            elif is_open.get(run.key) is run:
                del is_open[run.key]
                done.append((run.shard, completion))
        try:
            if done and not self._closed:
                self._on_done(done)
        finally:
            self._settle()

    def _settle(self) -> None:
        """Forget lanes that are done, and tell `drain` when all is."""
        self._forget_finished()
        if self._waiters and not self._busy():
            self._release_waiters()

    def _forget_finished(self) -> None:
        for lane in [lane for lane in self._lanes.values() if lane.removed]:
            if not lane.queue and not lane.running:
                del self._lanes[lane.name]
                self._close_lane(lane)
        if self._closing_lanes:
            self._closing_lanes = [lane for lane in self._closing_lanes if not lane.finished]

    def _release_waiters(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    def _busy(self) -> bool:
        return bool(self._open) or any(lane.running for lane in self._all_lanes())

    def _agent_load(self, name: str, now: float) -> AgentLoad:
        lanes = [lane for lane in self._all_lanes() if lane.name == name]
        running = [run for lane in lanes for run in list(lane.running)]
        stuck = [holder for run, holder in self._stuck.items() if run.task.agent == name]
        in_threads = sum(isinstance(holder, Worker) for holder in stuck)
        return AgentLoad(
            queued=len(lanes[0].queue),
            running=len(running),
            oldest_running_s=max((now - run.started for run in running if run.setup), default=0.0),
            stuck_threads=in_threads,
            stuck_tasks=len(stuck) - in_threads,
            mean_run_s=lanes[0].mean_s,
        )

    def _arm_sweeper(self) -> None:
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self._on_sweeper)

    def _on_sweeper(self) -> None:
        self._sweeper = None
        self.sweep()
        if self._busy() or self._closing_lanes:
            self._arm_sweeper()

    def _arm_grower(self) -> None:
        """Look again soon at lanes where all threads may be in long runs."""
        if self._grower is None and any(
            isinstance(lane, ThreadLane) and lane.may_grow() for lane in self._lanes.values()
        ):
            self._grower = asyncio.get_running_loop().call_later(SLOW_S, self._on_grower)

    def _on_grower(self) -> None:
        self._grower = None
        now = self._monotonic()
        for lane in self._lanes.values():
            if isinstance(lane, ThreadLane):
                lane.grow(now)
        self._arm_grower()


def _unqueue_dropped(lane: ThreadLane | LoopLane) -> None:
    """Take dropped runs out of a queue that others pop from meanwhile; the order stays."""
    kept: list[Run] = []
    while lane.queue:
        try:
            run = lane.queue.popleft()
        except IndexError:
            break
        if not run.dropped:
            kept.append(run)
    if kept:
        lane.queue.extendleft(reversed(kept))
        lane.wake()
