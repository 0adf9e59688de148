"""The artifact types that flock_ray itself publishes."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from flock_ray.core.registry import flock_type

__all__ = [
    "DeadLetter",
    "DeadLetterAction",
    "DeadlineMissed",
    "FailedAttempt",
    "FanInPartial",
    "LetterCondition",
    "LetterInput",
    "TimerTick",
    "WorkflowError",
]


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
    window_start: AwareDatetime | None = None
    """Of a `SlidingWindowTrigger`: the window that the tick is about begins then."""
    window_end: AwareDatetime | None = None
    """It ends then, exclusively; the fire time."""

    @property
    def window(self) -> tuple[datetime, datetime] | None:
        """Begin and end of the window; None: the tick is about none."""
        if self.window_start is None or self.window_end is None:
            return None
        return self.window_start, self.window_end


class FailedAttempt(BaseModel):
    """One attempt of a run that failed."""

    model_config = ConfigDict(frozen=True)

    number: int
    """From 1, attempts that ended with the death of their worker included."""
    ended_at: AwareDatetime
    run_s: float = 0.0
    """Seconds in the agent's code; 0 when its worker died."""
    worker: str = ""
    """Id of the worker; empty when it is not known."""
    error_type: str
    """Name of the exception's class."""
    error_message: str
    """At most 8 KiB."""
    traceback: str = ""
    """Empty unless the queue has `include_trace`."""
    delay_s: float = 0.0
    """Seconds from its end to the next attempt; 0 for the last one."""
    models: list[str] = Field(default_factory=list)
    """Language models that it called."""


class LetterInput(BaseModel):
    """One input of a run that failed."""

    model_config = ConfigDict(frozen=True)

    id: str
    """Text of a UUID."""
    type: str
    version: int = 1


class LetterCondition(BaseModel):
    """What a condition of the subscription made of an input, when the last attempt failed."""

    model_config = ConfigDict(frozen=True)

    input: str
    """Id of the input: text of a UUID."""
    condition: str
    """Such as `where[0]`, `visibility` or `join key`."""
    passed: bool
    value: str = ""
    """At most 500 characters."""
    error: str = ""
    """What the predicate raised; empty when it answered."""


@flock_type(name="DeadLetter")
class DeadLetter(BaseModel):
    """A run that failed for good, of an agent with a dead letter queue; its visibility is no wider than the inputs'."""

    model_config = ConfigDict(frozen=True)

    queue: str
    agent: str
    subscription: str = ""
    """Id of the subscription that the inputs had matched."""
    activation_id: str
    """Of the run, in hexadecimal."""
    correlation_id: str
    slot: int
    """Where the board keeps the letter while it is open."""
    error_type: str
    """Of the last attempt: name of the exception's class."""
    error_message: str
    """At most 8 KiB."""
    failed_at: AwareDatetime
    redrives: int = 0
    """Dead letters of the same inputs before this one."""
    crashes: int = 0
    """Workers that died while they had it."""
    inputs: list[LetterInput]
    attempts: list[FailedAttempt] = Field(default_factory=list)
    """The first one and the newest; at most 20."""
    conditions: list[LetterCondition] = Field(default_factory=list)
    """Evaluated by the worker of the last attempt, with the code that ran; at most 200. Empty when that worker died."""


@flock_type(name="DeadLetterAction")
class DeadLetterAction(BaseModel):
    """Somebody redrove, edited or discarded a dead letter, which is its parent."""

    model_config = ConfigDict(frozen=True)

    letter: str
    """Id of the letter: text of a UUID."""
    action: Literal["redriven", "edited", "discarded"]
    by: str = ""
    """Who; empty when they did not say."""
    detail: str = ""
    at: AwareDatetime
    activation_id: str | None = None
    """Of a redrive: the new run, in hexadecimal."""


@flock_type(name="FanInPartial")
class FanInPartial(BaseModel):
    """What one run of a reduce has merged and another one merges further; its fields are those of the result."""

    model_config = ConfigDict(frozen=True, extra="allow")


@flock_type(name="DeadlineMissed")
class DeadlineMissed(BaseModel):
    """A run or a workflow was not done by when it had to be; published only if an agent consumes it."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["run", "workflow"]
    correlation_id: str
    agent: str = ""
    """Of a run."""
    activation_id: str | None = None
    """Of a run, in hexadecimal."""
    due: AwareDatetime
    missed_at: AwareDatetime
    """When the board took note of it: later than `due` if it was away."""
    open: int = 0
    """Of a workflow: runs that are not done."""
    waiting: int = 0
    """Of a workflow: inputs that wait for others."""
    delayed: int = 0
    """Of a workflow: deliveries that wait for a time."""
