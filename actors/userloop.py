"""The second event loop of a worker: all async user code runs here, never on the actor's own loop."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import Context
from functools import partial

from flock_ray.actors.threads import Lane, Outbox, Run, Setup, Starter
from flock_ray.core import wire

CANCEL_GRACE_S = 1.0
"""Seconds that a cancelled task has for its cleanup before it is abandoned."""

_log = logging.getLogger(__name__)

Activity = asyncio.Task[None]


class LoopLane(Lane[Activity]):
    """An agent whose function is async: one task per activation on the user loop."""

    def __init__(self, name: str, setup: Setup, limit: int, *, user_loop: UserLoop) -> None:
        super().__init__(name, setup, limit)
        self.fenced = False
        """Set on the user loop once it saw that the lane is closed."""
        self._user_loop = user_loop

    @property
    def finished(self) -> bool:
        """Whether a closed lane has nothing left that could start or end a run."""
        return self.fenced and not self.running

    def wake(self) -> None:
        """Have the queue looked at, after something was added to it."""
        self._user_loop.poke(self)

    def resize(self, limit: int) -> None:
        """Change how many activations may run at once."""
        self.limit = limit
        self.wake()

    def expire(self, now: float) -> dict[Run, Activity]:
        """Cancel the runs past their timeout, and give up those that did not end when asked."""
        late: dict[Run, Activity] = {}
        asked: list[Run] = []
        for run, activity in self.running.copy().items():
            if run.setup is None:
                continue
            if run.asked_to_end is None:
                if run.is_over(now):
                    run.expired = True
                    run.asked_to_end = now
                    asked.append(run)
            elif now - run.asked_to_end >= CANCEL_GRACE_S and self.running.pop(run, None) is not None:
                late[run] = activity
        if asked:
            self.end(asked)
        if late:
            self.wake()
        return late

    def end(self, runs: list[Run]) -> None:
        """Cancel the tasks of runs; those that have not begun see `dropped` when they do."""
        self._user_loop.call(partial(self._end, runs))

    def _end(self, runs: Iterable[Run]) -> None:
        for run in runs:
            # A task that is cancelled before its first step would never run its own bookkeeping.
            activity = self.running.get(run)
            if activity is not None and run.setup is not None:
                activity.cancel()


class UserLoop:
    """An event loop in a thread of its own.

    User code that blocks it stops all async agents of the worker: nothing here can end that, but
    `blocked_s` tells.
    """

    def __init__(self, outbox: Outbox, starter: Starter, monotonic: Callable[[], float]) -> None:
        self._outbox = outbox
        self._monotonic = monotonic
        self._poked: deque[LoopLane] = deque()
        self._posted = False
        self._stamp: float | None = None
        self._loop = asyncio.new_event_loop()
        starter.start(self._serve, "flock-user-loop")

    def poke(self, lane: LoopLane) -> None:
        """Have a lane start what it may."""
        self._poked.append(lane)
        if not self._posted:
            self._posted = True
            self.call(self._pump_poked)

    def call(self, callback: Callable[[], object]) -> None:
        """Call something on the user loop, unless that is closed."""
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            return

    def probe(self, now: float) -> None:
        """Send a stamp through the loop, unless one is under way."""
        if self._stamp is None:
            self._stamp = now
            self.call(self._answer)

    def blocked_s(self, now: float) -> float:
        """Return for how long the last stamp has had no answer, in seconds; 0 when it was answered."""
        stamp = self._stamp
        return 0.0 if stamp is None else now - stamp

    def close(self) -> None:
        """Cancel everything and end; does not wait."""
        self.call(self._shut_down)

    def _answer(self) -> None:
        self._stamp = None

    def _pump_poked(self) -> None:
        self._posted = False  # before looking: a lane poked from now on is posted again
        while self._poked:
            self._pump(self._poked.popleft())

    def _pump(self, lane: LoopLane) -> None:
        """Start what the lane's limit lets start."""
        queue, running = lane.queue, lane.running
        while queue and len(running) < lane.limit:
            try:
                run = queue.popleft()
            except IndexError:  # the control loop took it back
                break
            # An empty context: it must not inherit the variables of the activation that ended before it.
            drive = self._drive(lane, run)
            running[run] = self._loop.create_task(drive, name=lane.name, context=Context())
        lane.fenced = lane.limit == 0

    async def _drive(self, lane: LoopLane, run: Run) -> None:
        setup = lane.setup
        run.started = self._monotonic()
        run.setup = setup
        completion: wire.Completion | None = None
        if not run.dropped:
            try:
                completion = await setup.runner.run_async(run.task)
            except BaseException as error:
                completion = None if run.given_up else run.raised(error)
            lane.record(self._monotonic() - run.started)
        if run.expired:
            completion = run.timed_out()
        if lane.running.pop(run, None) is None:
            completion = None  # it was given up
        if lane.queue:
            self._pump(lane)
        self._outbox.put(run, completion, more=bool(lane.running))

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        while not self._loop.is_closed():
            try:
                self._loop.run_forever()
                break
            except BaseException:
                # asyncio lets SystemExit and KeyboardInterrupt of any task out; the others go on.
                _log.exception("user code tried to end the loop of all async agents of this worker")
        self._loop.close()

    def _shut_down(self) -> None:
        ending = self._loop.create_task(self._end_tasks())
        ending.add_done_callback(lambda _: self._loop.stop())

    async def _end_tasks(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CANCEL_GRACE_S)
        await self._loop.shutdown_asyncgens()
