"""Counts and durations of an agent's runs, for OpenTelemetry."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import PrivateAttr

from flock_ray.engines.component import AgentComponent

if TYPE_CHECKING:
    from flock_ray.artifact import Artifact
    from flock_ray.core.definition import AgentDefinition
    from flock_ray.engines.context import Context

__all__ = ["AgentNumbers", "MetricsComponent"]

MAX_RUNNING = 10_000
"""Runs that are followed at the same time."""

RunKey = tuple[str, int]

_ERROR_TYPE = "error" + ".type"
"""OpenTelemetry's name for it; written so that it is not taken for an event kind of ours."""


@dataclass(slots=True)
class _Started:
    at_s: float
    error: str = ""
    outputs: int = 0


@dataclass(slots=True)
class AgentNumbers:
    """What happened so far in this process."""

    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    outputs: int = 0
    """Artifacts of completed runs."""
    total_s: float = 0.0
    """Time of all runs together, hooks included, in seconds."""
    longest_s: float = 0.0
    errors: Counter[str] | None = None
    """Failed runs by type of error; None before the first."""


class MetricsComponent(AgentComponent):
    """Measures runs, in the process where they happen.

    With OpenTelemetry's metrics configured in the workers: the counters `flock.agent.runs` (`agent`, `outcome`:
    completed, failed or cancelled, and `error.type`) and `flock.agent.outputs` (`agent`, `type`), and the histogram
    `flock.agent.run.duration` in seconds (`agent`, `outcome`). `snapshot()` has the same numbers without it, of
    this process only: use it in tests and on a `VirtualFlock`. A run is counted when its code has ended, which is
    before the board commits it; a repeated attempt counts again.
    """

    priority: int = -3000

    _running: OrderedDict[RunKey, _Started] = PrivateAttr(default_factory=OrderedDict)
    _numbers: dict[str, AgentNumbers] = PrivateAttr(default_factory=dict)
    _instruments: Any = PrivateAttr(default=None)

    def __getstate__(self) -> dict[Any, Any]:
        """Leave the numbers behind: each process has its own."""
        state = super().__getstate__()
        empty: dict[str, Any] = {"_running": OrderedDict(), "_numbers": {}, "_instruments": None}
        return {**state, "__pydantic_private__": empty}

    def snapshot(self) -> dict[str, AgentNumbers]:
        """Return the numbers of this process by agent; they go on changing."""
        return dict(self._numbers)

    async def on_initialize(self, agent: AgentDefinition, ctx: Context) -> None:
        """Begin to measure a run."""
        self._running[_key(ctx)] = _Started(asyncio.get_running_loop().time())
        while len(self._running) > MAX_RUNNING:
            self._running.popitem(last=False)

    async def on_post_publish(self, agent: AgentDefinition, ctx: Context, artifact: Artifact) -> None:
        """Count an output."""
        started = self._running.get(_key(ctx))
        if started is not None:
            started.outputs += 1
        self._instruments_of()[1].add(1, {"agent": agent.name, "type": artifact.type})

    async def on_error(self, agent: AgentDefinition, ctx: Context, error: BaseException) -> None:
        """Remember why the run failed."""
        started = self._running.get(_key(ctx))
        if started is not None:
            started.error = type(error).__name__

    async def on_terminate(self, agent: AgentDefinition, ctx: Context) -> None:
        """Count the run."""
        started = self._running.pop(_key(ctx), None)
        if started is None:
            return
        task = asyncio.current_task()
        took_s = asyncio.get_running_loop().time() - started.at_s
        numbers = self._numbers.setdefault(agent.name, AgentNumbers())
        outcome = "failed" if started.error else "completed"
        if not started.error and task is not None and task.cancelling():
            outcome = "cancelled"
        if outcome == "failed":
            numbers.failed += 1
            numbers.errors = numbers.errors or Counter()
            numbers.errors[started.error] += 1
        elif outcome == "cancelled":
            numbers.cancelled += 1
        else:
            numbers.completed += 1
            numbers.outputs += started.outputs
        numbers.total_s += took_s
        numbers.longest_s = max(numbers.longest_s, took_s)
        runs, _, durations = self._instruments_of()
        attributes = {"agent": agent.name, "outcome": outcome}
        runs.add(1, {**attributes, _ERROR_TYPE: started.error} if started.error else attributes)
        durations.record(took_s, attributes)

    def _instruments_of(self) -> tuple[Any, Any, Any]:
        if self._instruments is None:
            self._instruments = _instruments()
        made: tuple[Any, Any, Any] = self._instruments
        return made


class _Nothing:
    """Stands for an instrument where OpenTelemetry is not installed."""

    def add(self, *_: Any) -> None:
        """Do nothing."""

    record = add


def _key(ctx: Context) -> RunKey:
    return ctx.task_id, ctx.attempt


def _instruments() -> tuple[Any, Any, Any]:
    try:
        # Not at the top: only processes whose agents are measured load it.
        import opentelemetry.metrics as otel
    except ImportError:
        return _Nothing(), _Nothing(), _Nothing()
    meter = otel.get_meter("flock_ray")
    return (
        meter.create_counter("flock.agent.runs", description="Runs of an agent that ended."),
        meter.create_counter("flock.agent.outputs", description="Artifacts that runs made."),
        meter.create_histogram("flock.agent.run.duration", unit="s", description="Time of a run."),
    )
