"""What a run may know about itself. It holds no way to the board."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import uuid
    from datetime import datetime

    from flock_ray.artifact import Artifact
    from flock_ray.core.visibility import AgentIdentity

__all__ = ["Context"]


@dataclass(frozen=True, slots=True)
class Context:
    """The run that a function, engine or component is part of."""

    agent_identity: AgentIdentity
    """Who the agent is to visibilities."""
    correlation_id: str | None
    """The workflow that the outputs go to."""
    task_id: str
    """`activation_id` as 32 hexadecimal digits, as in `WorkflowError.task_id`."""
    activation_id: uuid.UUID
    """Names the run: the same in every attempt, so it can be an idempotency key elsewhere."""
    attempt: int
    """Counts executions of this run, from 1; from 1 again when its shard has come back from its journal."""
    artifacts: list[Artifact] = field(default_factory=list)
    """What the agent may see of the board; empty unless `with_context()` or `enable_context` asked for it."""
    state: dict[str, Any] = field(default_factory=dict)
    """Shared by the hooks and engines of this attempt; gone afterwards."""
    is_batch: bool = False
    """Whether the inputs were collected by a `BatchSpec`."""
    trigger_type: Literal["artifact", "timer"] = "artifact"
    timer_iteration: int | None = None
    """Which tick of its schedule this is, from 0; None when no timer triggered the run."""
    fire_time: datetime | None = None
    """When the timer was due, aware; None when no timer triggered the run."""

    @property
    def idempotency_key(self) -> str:
        """What to give to a service outside the board, so that a second execution of this run changes nothing there."""
        return self.task_id

    def get_variable(self, key: str, default: Any = None) -> Any:
        """Return a value of `state`, or the default when there is none."""
        return self.state.get(key, default)
