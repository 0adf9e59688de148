"""Activations in flight on one worker, and the threads that run the sync ones.

No lock is taken on the control loop: what several threads touch is touched by single operations that
CPython makes atomic (append and popleft of a deque, insertion, pop and copy of a dict). Two rules make
that enough:

* Only the control loop appends to a lane's queue; whoever pops a run off it runs it.
* A run is in `Lane.running` while user code has it. Whoever pops it from there decides what became of
  it: its consumer when it ends, the control loop when it is too late.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Generic, Protocol, TypeVar

import msgspec

from flock_ray.core import wire
from flock_ray.errors import safe_error_text

SLOW_S = 0.005
"""Seconds; while activations take longer, a queue is worth more than one thread."""

_MEAN_WEIGHT = 0.1

Holder = TypeVar("Holder")


class Runner(Protocol):
    """What runs the activations of one agent; called from any thread but the control loop's."""

    @property
    def is_async(self) -> bool:
        """Whether to use `run_async`; never changes."""
        ...

    def run_sync(self, task: wire.Task) -> wire.Completion:
        """Run an activation; a failure of user code is a completion, not an exception."""
        ...

    async def run_async(self, task: wire.Task) -> wire.Completion:
        """Like `run_sync`, on the user loop; may be cancelled."""
        ...

    def failure(self, task: wire.Task, exc_type: str, message: str) -> wire.Completion:
        """Make the completion of an activation that the executor gave up."""
        ...


@dataclass(frozen=True, slots=True)
class Setup:
    """How an agent's activations run; one that has started keeps the setup it started with."""

    runner: Runner
    timeout_s: float | None
    idle_s: float | None = None
    """How long a run may show no sign of life, in seconds; None: for ever."""


class Run:
    """One attempt of one activation on this worker."""

    __slots__ = (
        "active", "asked_to_end", "dropped", "expired", "key", "over_limit", "run_us", "setup", "shard", "started",
        "task",
    )  # fmt: skip

    def __init__(self, key: tuple[bytes, int], shard: int, task: wire.Task) -> None:
        self.key = key
        self.shard = shard
        self.task = task
        self.started = 0.0
        self.active = 0.0
        """When it showed a sign of life last; before `started` when it has not shown any."""
        self.setup: Setup | None = None
        """None until it starts; set after `started`."""
        self.over_limit = ""
        """Which limit it has exceeded, in words."""
        self.run_us = 0
        """How long it had run then, in microseconds."""
        self.dropped = False
        """Cancelled by its shard: nothing will be reported."""
        self.expired = False
        """Async only: past its timeout, so that it ends as one, whatever it still returns."""
        self.asked_to_end: float | None = None
        """Async only: when its task was cancelled; None when it was not."""

    @property
    def given_up(self) -> bool:
        """Whether what it still does makes no difference."""
        return self.dropped or self.expired

    def is_over(self, now: float) -> bool:
        """Say whether it has exceeded a limit, and remember which."""
        setup = self.setup
        if setup is None:
            return False
        if setup.timeout_s is not None and now - self.started >= setup.timeout_s:
            self.over_limit = (
                f"did not finish within {setup.timeout_s:g} s; raise .timeout(...) or make it faster"
            )
        elif setup.idle_s is not None and now - max(self.started, self.active) >= setup.idle_s:
            self.over_limit = (
                f"showed no sign of life for {setup.idle_s:g} s: no token, answer of a model or ctx.heartbeat(); "
                "call that in long work, or raise .timeout(idle=...)"
            )
        else:
            return False
        self.run_us = int((now - self.started) * 1_000_000)
        return True

    def left_s(self, now: float) -> float:
        """Return after how many seconds it exceeds a limit, at the earliest; it has started, and has one."""
        setup = self.setup
        timeout_s = setup.timeout_s if setup is not None else None
        idle_s = setup.idle_s if setup is not None else None
        ends = [] if timeout_s is None else [self.started + timeout_s]
        ends += [] if idle_s is None else [max(self.started, self.active) + idle_s]
        return max(0.0, min(ends) - now)

    def failed(self, exc_type: str, message: str) -> wire.Completion:
        """Make the failure of a run that has started, even if its runner cannot."""
        task = self.task
        if self.setup is not None:
            try:
                return self.setup.runner.failure(task, exc_type, message)
            except BaseException as error:
                message = f"{message} (and reporting this raised {': '.join(safe_error_text(error))})"
        return wire.Completion(task.id, task.attempt, task.slot, error=wire.ErrorInfo(exc_type, message))

    def raised(self, error: BaseException) -> wire.Completion:
        """Make the failure of a run whose runner raised."""
        return self.failed(*safe_error_text(error))

    def timed_out(self) -> wire.Completion:
        """Make the failure of a run that is past one of its limits."""
        completion = self.failed("AgentTimeoutError", f"{self.task.agent} {self.over_limit}")
        return msgspec.structs.replace(completion, run_us=self.run_us)


Ended = tuple[Run, wire.Completion | None]
"""A run that left its consumer; with None it was given up before, and only its holder is free again."""


class Outbox:
    """Brings ended runs to the control loop, in batches.

    Waking the loop costs more than a short activation. A consumer with more to do only arms a timer; the
    timer runs on the control loop, so that a long run never holds back the completions of those before it.
    """

    def __init__(self, deliver: Callable[[list[Ended]], None], flush_s: float) -> None:
        self.items: deque[Ended] = deque()
        self.loop: asyncio.AbstractEventLoop | None = None
        self._deliver = deliver
        self._flush_s = flush_s
        self._armed = False
        self._posted = False

    def put(self, run: Run, completion: wire.Completion | None, *, more: bool) -> None:
        """Add a run; when `more` will end soon it may wait for up to `flush_s`."""
        # The loop clears a flag before it takes the items: who sees a flag set after appending is served.
        self.items.append((run, completion))
        if not more:
            self.flush()
        elif not self._armed:
            self._armed = True
            self.post(self._start_timer)

    def flush(self) -> None:
        """Have everything delivered as soon as the control loop turns."""
        if not self._posted:
            self._posted = True
            self.post(self._on_flush)

    def post(self, callback: Callable[[], object]) -> None:
        """Call something on the control loop, unless that is closed: then nobody is left to tell."""
        if self.loop is None:
            return
        try:
            self.loop.call_soon_threadsafe(callback)
        except RuntimeError:
            return

    def _start_timer(self) -> None:
        asyncio.get_running_loop().call_later(self._flush_s, self._on_timer)

    def _on_timer(self) -> None:
        self._armed = False
        self._take()

    def _on_flush(self) -> None:
        self._posted = False
        self._take()

    def _take(self) -> None:
        take = self.items.popleft
        if batch := [take() for _ in range(len(self.items))]:
            self._deliver(batch)


class Lane(Generic[Holder]):
    """One agent's queue, and what runs of it; a consumer is a thread or the user loop."""

    def __init__(self, name: str, setup: Setup, limit: int) -> None:
        self.name = name
        self.setup = setup
        self.limit = limit
        """Most runs at once; 0 when the lane is being closed."""
        self.queue: deque[Run] = deque()
        self.running: dict[Run, Holder] = {}
        """In order of start."""
        self.mean_s = 0.0
        """Moving mean of run times in seconds; 0 before the first."""
        self.removed = False

    def record(self, run_s: float) -> None:
        """Add a run time to the mean. Threads may race here and lose one: it is a mean."""
        mean = self.mean_s
        self.mean_s = mean + _MEAN_WEIGHT * (run_s - mean) if mean else run_s


class Starter:
    """Starts threads off the control loop.

    `Thread.start` returns once the new thread has had the GIL: a wait of tens of milliseconds while others
    compute, which the control loop must not share.
    """

    def __init__(self) -> None:
        self._requests: SimpleQueue[threading.Thread | None] = SimpleQueue()
        self._started = False

    def start(self, target: Callable[[], object], name: str) -> None:
        """Run `target` in a new daemon thread, soon."""
        if not self._started:
            self._started = True
            threading.Thread(target=self._serve, name="flock-starter", daemon=True).start()
        self._requests.put(threading.Thread(target=target, name=name, daemon=True))

    def close(self) -> None:
        """End after the requests so far."""
        self._requests.put(None)

    def _serve(self) -> None:
        while (thread := self._requests.get()) is not None:
            thread.start()


class Worker:
    """A thread of a lane, as the control loop knows it: only its identity counts."""


class ThreadLane(Lane[Worker]):
    """An agent whose function is sync: threads that run its queue back to back.

    All methods but `_work` belong to the control loop.
    """

    def __init__(
        self,
        name: str,
        setup: Setup,
        limit: int,
        *,
        outbox: Outbox,
        starter: Starter,
        monotonic: Callable[[], float] = time.monotonic,
        idle_s: float = 30.0,
    ) -> None:
        super().__init__(name, setup, limit)
        self.workers: set[Worker] = set()
        """All threads but the stuck ones."""
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._outbox = outbox
        self._starter = starter
        self._monotonic = monotonic
        self._idle_s = idle_s

    @property
    def finished(self) -> bool:
        """Whether a closed lane has nothing left that could start or end a run."""
        return not self.workers

    def wake(self) -> None:
        """Have the queue looked at, after something was added to it."""
        if self.mean_s > SLOW_S:
            self._hire(len(self.queue))
        elif not self.running:
            self._hire(1)
        # Otherwise a thread is busy, probably not for long, and will find what was added. `grow` makes sure.

    def may_grow(self) -> bool:
        """Whether it has work waiting and room for another thread."""
        return bool(self.queue) and len(self.running) < self.limit

    def grow(self, now: float) -> None:
        """Add threads if all are in long runs, or have ended, while others wait."""
        if not self.may_grow():
            return
        busy = list(self.running)
        if not busy:
            self._hire(1)
        elif all(now - run.started > SLOW_S for run in busy):
            self._hire(len(self.queue))

    def resize(self, limit: int) -> None:
        """Change how many threads it may have; of surplus ones, those end that are idle or next to be."""
        self.limit = limit
        for _ in range(len(self.workers) - limit):
            self._wake.put(None)
        if self.queue:
            self.wake()

    def expire(self, now: float) -> dict[Run, Worker]:
        """Give up the runs that are past their timeout; their threads are no longer of this lane."""
        late: dict[Run, Worker] = {}
        for run, worker in self.running.copy().items():
            if not run.is_over(now) or self.running.pop(run, None) is None:
                continue
            self.workers.discard(worker)
            late[run] = worker
        return late

    def _hire(self, wanted: int) -> None:
        """Put up to so many more threads to work: idle ones first, then new ones."""
        idle = min(wanted, len(self.workers) - len(self.running))
        for _ in range(idle - self._wake.qsize()):
            self._wake.put(None)
        for _ in range(min(wanted - max(idle, 0), self.limit - len(self.workers))):
            worker = Worker()
            self.workers.add(worker)
            self._starter.start(partial(self._work, worker), f"flock-{self.name}")

    def _work(self, worker: Worker) -> None:
        """Be a thread of this lane until replaced, surplus or idle for long."""
        queue, monotonic = self.queue, self._monotonic
        now: float | None = monotonic()
        while now is not None and len(self.workers) <= self.limit:
            try:
                run = queue.popleft()
            except IndexError:
                try:
                    self._wake.get(timeout=self._idle_s)
                except Empty:
                    break
                now = monotonic()
                continue
            now = self._run(worker, run, now)
            del run  # nothing of the last activation is kept while this thread is idle
        # It may have taken a wake-up with it: `grow` sees that.
        self._outbox.post(partial(self.workers.discard, worker))

    def _run(self, worker: Worker, run: Run, now: float) -> float | None:
        """Run one activation; returns when it ended, None when the thread was replaced meanwhile."""
        setup = self.setup
        run.started = now
        run.setup = setup
        self.running[run] = worker
        try:
            # A context of its own: it must not see the context variables of the one before.
            completion = Context().run(setup.runner.run_sync, run.task)
        except BaseException as error:
            completion = run.raised(error)
        now = self._monotonic()
        self.record(now - run.started)
        replaced = self.running.pop(run, None) is None
        self._outbox.put(run, None if replaced else completion, more=bool(self.queue))
        return None if replaced else now
