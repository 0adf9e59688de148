"""What a run may know about itself. It holds no way to the board."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import uuid
    from datetime import datetime

    from flock_ray.artifact import Artifact
    from flock_ray.core.results import Aggregated
    from flock_ray.core.visibility import AgentIdentity

__all__ = ["Context", "RunHooks"]


class _Told:
    """Nothing to wait for: may be awaited, or not."""

    __slots__ = ()

    def __await__(self) -> Generator[None, None, None]:
        """Return at once."""
        yield from ()


_TOLD = _Told()


@dataclass(frozen=True, slots=True)
class RunHooks:
    """Ways from a run to the worker that runs it; for engines of ours, not for user code."""

    stream: Callable[[str, str], None] | None = None
    """Takes (kind, text) of what the run streams, see `services.TextSink`; None: nobody listens."""
    listened: Callable[[], bool] | None = None
    """Tells whether somebody may read what it streams; None: take it that somebody does."""
    heartbeat: Callable[[], bool | None] | None = None
    """Tells the worker that the run goes on; False: it was given up. None: nobody asks."""
    note: Callable[[str, str], None] | None = None
    """Takes (kind, detail) for the event log; None: the run keeps none."""


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
    """Counts executions of this run, from 1. When its shard has come back from its journal: those that failed, and
    this one."""
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
    window: tuple[datetime, datetime] | None = None
    """Begin and end, exclusively, of the sliding window that the timer is about; None: there is none."""
    groups: tuple[int, ...] = ()
    """Sizes of the groups in the inputs of a batch of joins; empty otherwise."""
    aggregated: Aggregated | None = None
    """What an aggregate decided, without its inputs, which the run gets anyway; None: the run is for none."""
    decision: Any = field(default=None, repr=False, compare=False)
    """Internal: the same as the board keeps it."""
    hooks: RunHooks = field(default=RunHooks(), repr=False, compare=False)
    """Internal: how engines reach their worker."""

    @property
    def idempotency_key(self) -> str:
        """What to give to a service outside the board, so that a second execution of this run changes nothing there."""
        return self.task_id

    def heartbeat(self) -> Awaitable[None]:
        """Tell the worker that a long run goes on, before `.timeout(idle=...)` ends it; cheap, from any thread.

        It takes effect at once: `await` it or not, as you like. It does not move the limit of the whole run.

        Raises:
            asyncio.CancelledError: The run was given up (it took too long, or its workflow was cancelled): nobody waits
                for its result. Let it through, and a function that is not async ends here, too.
        """
        if self.hooks.heartbeat is not None and self.hooks.heartbeat() is False:
            raise asyncio.CancelledError("this run was given up: nobody waits for its result any more")
        return _TOLD

    def stream(self, text: str, kind: str = "token") -> None:
        """Show text to whoever follows this run; see `flock.stream_tokens`. Never blocks, and may get lost.

        Args:
            text: The next piece of the answer, or what `kind` says.
            kind: `token`, `status` (what the run does now) or `final` (the end of the answer).
        """
        if self.hooks.stream is not None:
            self.hooks.stream(kind, str(text))

    def get_variable(self, key: str, default: Any = None) -> Any:
        """Return a value of `state`, or the default when there is none."""
        return self.state.get(key, default)
