"""What an agent declares, as plain values: filled by the builder, read by edges and workers.

These records hold user callables, so they travel by cloudpickle from the user's own driver
to the user's own workers and nowhere else. Shards only ever see `wire.SubscriptionSpec`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pydantic import BaseModel

    from flock_ray.core.balloting import AggregateSpec
    from flock_ray.core.budget_rules import BudgetRule
    from flock_ray.core.conditions import Condition
    from flock_ray.core.scatter import FanInRule
    from flock_ray.core.schedules import ScheduleInfo
    from flock_ray.core.similarity import TextPredicate, Vectors
    from flock_ray.core.specs import BatchSpec, FanOutRange, JoinSpec
    from flock_ray.core.visibility import Visibility

DIRECT = "__direct__"
"""`produced_by` of the input of a direct run."""

Mode = Literal["both", "events", "direct"]
Delivery = Literal["all", "exclusive"]
Scope = Literal["workflow", "board"]


@dataclass(frozen=True, slots=True)
class Subscription:
    """One `.consumes(...)` of one agent."""

    id: str
    """Stable across deploys: agent + declared name or shape, never a position in a list."""
    agent: str
    types: tuple[type[BaseModel], ...]
    """Declared order, repeated for counts."""
    where: tuple[Callable[[Any], bool], ...] = ()
    from_agents: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()
    """Any tag in common is enough; empty means no tag condition."""
    join: JoinSpec | None = None
    batch: BatchSpec | None = None
    mode: Mode = "both"
    priority: int = 0
    delivery: Delivery = "all"
    scope: Scope | None = None
    """None: the default of the kind (AND: workflow; join and batch: board)."""
    activation: Condition | None = None
    semantic: tuple[TextPredicate, ...] = ()
    """What its text must be similar to, all of it; empty means no such condition."""
    reevaluate_us: int = 0
    """How often artifacts whose `where` did not hold are offered again, in microseconds; 0: never."""
    fan_in: FanInRule | None = None
    """Of a fan-in: it gets everything that the chunks of one fan-out deliver, at once."""
    aggregate: AggregateSpec | None = None
    """How its artifacts are counted and decided about; None: it is no aggregate."""

    @property
    def kind(self) -> str:
        """One of single, and, join, batch, join_batch, fan_in, aggregate."""
        if self.fan_in is not None:
            return "fan_in"
        if self.aggregate is not None:
            return "aggregate"
        if self.join is not None:
            return "join" if self.batch is None else "join_batch"
        if self.batch is not None:
            return "batch"
        return "single" if len(self.types) == 1 else "and"


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """One declared output type of a group."""

    type: type[BaseModel]
    count: int = 1
    """Exact number of artifacts expected; ignored when `fan_out` is set."""
    fan_out: FanOutRange | None = None
    """A range of how many; None for exactly `count`."""
    where: Callable[[Any], bool] | None = None
    validate: tuple[tuple[Callable[[Any], bool], str], ...] = ()
    visibility: Visibility | Callable[[Any], Visibility] | None = None
    """None: public, unless the inputs' visibility must be inherited."""
    description: str | None = None
    approval: Any = None
    """`approvals.ApprovalSpec`: who decides whether it is published; None: nobody is asked."""


@dataclass(frozen=True, slots=True)
class OutputGroup:
    """One `.publishes(...)` call: produced by one engine call."""

    outputs: tuple[OutputSpec, ...]
    description: str | None = None


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """Processes of an agent's own, from `.pool(...)`; agents without one share workers."""

    min: int = 0
    max: int | None = None
    """None: as many as the cluster's resources allow."""
    num_cpus: float = 0.0
    num_gpus: float = 0.0
    resources: tuple[tuple[str, float], ...] = ()
    idle_timeout_s: float = 60.0


@dataclass(slots=True)
class AgentDefinition:
    """Everything a worker needs to run an agent and an edge needs to match for it."""

    name: str
    description: str | None = None
    subscriptions: list[Subscription] = field(default_factory=list)
    output_groups: list[OutputGroup] = field(default_factory=list)
    function: Callable[..., Any] | None = None
    """The plain Python engine of `.runs(fn)`."""
    engines: list[Any] = field(default_factory=list)
    """EngineComponent instances, run in a chain."""
    utilities: list[Any] = field(default_factory=list)
    labels: frozenset[str] = frozenset()
    tenant: str | None = None
    tenant_weights: tuple[tuple[str, float], ...] = ()
    """Tenants whose share of the agent's time is not 1, by name."""
    max_concurrency: int | None = None
    """Activations at once per replica; None: 1 for sync functions, 16 otherwise."""
    pool: PoolSpec | None = None
    timeout_s: float | None = None
    """Limit of one activation; None: no limit."""
    idle_timeout_s: float | None = None
    """Limit of the time in which a run shows no sign of life; None: no limit."""
    retry: Any = None
    """`core.retries.RetryPolicy`; None: a failure is final."""
    dead_letter: Any = None
    """`dead_letters.DeadLetterQueue`; None: a failure becomes a WorkflowError."""
    sees_all: bool = False
    """Matched whatever the visibility of artifacts says: for agents of ours that pass on nothing of the content."""
    best_of: tuple[int, Callable[[Any], float]] | None = None
    good_enough: float | None = None
    """Score from which on `best_of` makes no more candidates; None: it makes all."""
    prevent_self_trigger: bool = True
    calls: Callable[..., Any] | None = None
    max_iterations: int | None = None
    max_crashes: int = 3
    tools: list[Any] = field(default_factory=list)
    """Functions, or `engines.tools.Tool`, that a language model may call."""
    context_provider: Any = None
    model: str | None = None
    mcp_servers: tuple[Any, ...] = ()
    """`mcp.McpUse` of the servers whose tools it may call, in declared order."""
    embedder: Vectors | None = None
    """What compares meanings for its subscriptions and context; None: the flock has none."""
    limits: Any = None
    """`core.limiting.AgentLimits`, from `.rate_limit()`, `.circuit_breaker()` and others; None: it has none."""
    budgets: tuple[BudgetRule, ...] = ()
    """What its calls to language models may use; those of its flock come first."""
    gate: Any = None
    """`components.orchestrator.gate.ComponentGate`: asked last about what a subscription gets; None: nobody is."""
    starters: tuple[Any, ...] = ()
    """Orchestrator components with hooks of the beginning of a run, by priority."""
    schedules: tuple[ScheduleInfo, ...] = ()
    """What runs it by the clock."""
    fan_out: Any = None
    """`engines.fan.chunking.FanOut`, which is its function, too; None: it is no fan-out."""
    fan_in: Any = None
    """`engines.fan.merging.FanIn`, which is its function, too; None: it is no fan-in."""
    deadline_us: int = 0
    """Within what time of its inputs being there a run must be done; 0: whenever."""
    schedule_for: str | None = None
    """The agent that a schedule named for what this one publishes; None: it named none."""

    def effective_concurrency(self) -> int:
        """Activations at once per replica."""
        if self.max_concurrency is not None:
            return self.max_concurrency
        if self.function is not None and not _is_async(self.function):
            return 1
        return 16


def _is_async(function: Callable[..., Any]) -> bool:
    while isinstance(function, partial):
        function = function.func
    call = function if inspect.isroutine(function) else type(function).__call__
    return inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call)
