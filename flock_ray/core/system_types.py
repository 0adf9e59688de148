"""The artifact types that flock_ray itself publishes."""

from __future__ import annotations

from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from flock_ray.core.registry import flock_type

__all__ = ["TimerTick", "WorkflowError"]


@flock_type(name="WorkflowError")
class WorkflowError(BaseModel):
    """A run of an agent failed for good; its visibility is no wider than the inputs'."""

    model_config = ConfigDict(frozen=True)

    failed_agent: str
    error_type: str
    """Name of the exception's class."""
    error_message: str
    """At most 8 KiB."""
    timestamp: AwareDatetime
    task_id: str
    """Id of the activation, in hexadecimal."""
    correlation_id: str | None = None


@flock_type(name="TimerTick")
class TimerTick(BaseModel):
    """A schedule fired; only the agent that declared it consumes the tick."""

    model_config = ConfigDict(frozen=True)

    timer_name: str
    fire_time: AwareDatetime
    """When it was due, which may be before it was published."""
    iteration: int = Field(ge=0)
    """Counts from 0."""
    schedule_spec: dict[str, Any] = Field(default_factory=dict)
    """What was declared, as `ScheduleSpec.describe` gives it."""
