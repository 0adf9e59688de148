"""How many runs may begin in a time, per replica."""

from __future__ import annotations

import asyncio
from collections import deque
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pydantic import Field, PrivateAttr, field_validator

from flock_ray.engines.component import AgentComponent
from flock_ray.errors import CapacityError

if TYPE_CHECKING:
    from flock_ray.artifact import Artifact
    from flock_ray.core.definition import AgentDefinition
    from flock_ray.engines.context import Context

__all__ = ["RateLimitComponent"]

MAX_RUNS = 100_000


class RateLimitComponent(AgentComponent):
    """Lets at most so many runs of an agent begin in any window of time, on each replica of it.

    It counts in the process that runs the agent and knows nothing of other replicas: an agent with three of them
    runs three times as often. For a limit of the whole agent give it one replica: `.pool(max=1)`; limits of
    language models, over the whole cluster, belong to the model gateway.

    A run that waits holds its place in `max_concurrency`. Runs begin in the order in which they came.
    """

    priority: int = -1000
    runs_per_replica: int = Field(ge=1, le=MAX_RUNS)
    """Runs that may begin within `per`."""
    per: timedelta = timedelta(minutes=1)
    max_wait: timedelta = timedelta(seconds=30)
    """A run that would have to wait longer fails at once with a retryable CapacityError; zero: none waits."""

    _starts: deque[float] = PrivateAttr(default_factory=deque)
    _loop: Any = PrivateAttr(default=None)

    @field_validator("per")
    @classmethod
    def _some_time(cls, per: timedelta) -> timedelta:
        if per <= timedelta(0):
            raise ValueError("per must be longer than nothing")
        return per

    @field_validator("max_wait")
    @classmethod
    def _not_negative(cls, wait: timedelta) -> timedelta:
        if wait < timedelta(0):
            raise ValueError("max_wait can't be negative")
        return wait

    def __getstate__(self) -> dict[Any, Any]:
        """Leave the count behind: each replica has its own."""
        state = super().__getstate__()
        return {**state, "__pydantic_private__": {"_starts": deque(), "_loop": None}}

    async def on_pre_consume(
        self, agent: AgentDefinition, ctx: Context, inputs: list[Artifact]
    ) -> list[Artifact]:
        """Wait for the run's turn.

        Raises:
            CapacityError: It would take longer than `max_wait`; retryable after `retry_after_s`.
        """
        wait_s = self._reserve(agent.name)
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        return inputs

    def _reserve(self, agent: str) -> float:
        """Take the next turn and return how far it is, in seconds. A run that gives up keeps its turn."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            # Another loop has another clock.
            self._loop = loop
            self._starts = deque(maxlen=self.runs_per_replica)
        now = loop.time()
        start = now
        if len(self._starts) == self.runs_per_replica:
            start = max(now, self._starts[0] + self.per.total_seconds())
        wait_s = start - now
        if wait_s > self.max_wait.total_seconds():
            raise CapacityError(
                f"Agent {agent!r} may begin {self.runs_per_replica} runs per {self.per} on a replica; the next turn is "
                f"in {wait_s:.3g} s. Run it again then, raise max_wait, or add replicas.",
                retry_after_s=wait_s,
            )
        self._starts.append(start)
        return wait_s
