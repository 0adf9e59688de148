"""The builder that `flock.agent(name)` returns, and what its `run()` and `then()` return."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from flock_ray import agent_checks as checks
from flock_ray.aggregating import AggregateDeclaring, with_result_engine
from flock_ray.approvals.declaring import ApprovalSpec, with_approval
from flock_ray.budgets import BudgetDeclaring
from flock_ray.core import signature
from flock_ray.core.definition import AgentDefinition, Delivery, Mode, OutputGroup, Scope, Subscription
from flock_ray.core.similarity import text_predicates
from flock_ray.core.specs import BatchSpec, FanOutSpec, JoinSpec
from flock_ray.core.visibility import AgentIdentity, Visibility, only_for
from flock_ray.deadlines import DeadlineDeclaring
from flock_ray.engines.tools import Tool
from flock_ray.errors import ConfigurationError
from flock_ray.fanning import FanDeclaring, check_fan_out
from flock_ray.limiting import LimitDeclaring
from flock_ray.mcp.declaring import McpSelecting
from flock_ray.retrying import Retrying
from flock_ray.scheduling import TimerDeclaring

if TYPE_CHECKING:
    from pydantic import BaseModel

    from flock_ray.core.conditions import Condition
    from flock_ray.core.registry import TypeRegistry
    from flock_ray.core.similarity import SemanticMatch

__all__ = ["AgentBuilder", "Pipeline", "PublishBuilder", "RunHandle"]


def _ignore() -> None:
    """Take notice of nothing: for a builder without a flock."""


class AgentBuilder(
    AggregateDeclaring,
    BudgetDeclaring,
    FanDeclaring,
    LimitDeclaring,
    Retrying,
    McpSelecting,
    TimerDeclaring,
    DeadlineDeclaring,
):
    """Declares one agent. Every method returns the builder and takes effect at the next deploy.

    All methods raise `ConfigurationError` for what makes no sense; the declaration is then unchanged.
    """

    def __init__(
        self,
        name: str,
        *,
        registry: TypeRegistry,
        on_change: Callable[[], None] = _ignore,
        owner: Any = None,
    ) -> None:
        """Start a declaration; users call `flock.agent(name)` instead.

        Args:
            name: Unique in its flock; no slash.
            registry: Where consumed and published types are registered.
            on_change: Called after every change of the declaration.
            owner: The Flock that runs the agent; None for a declaration that can't `run()`.
        """
        self._definition = AgentDefinition(name=checks.agent_name(name))
        self._registry = registry
        self._on_change = on_change
        self._owner = owner
        self._root: AgentBuilder = self

    def __repr__(self) -> str:
        """Show the name and what flows through."""
        consumed = " | ".join("+".join(t.__name__ for t in s.types) for s in self._definition.subscriptions)
        published = ", ".join(o.type.__name__ for g in self._definition.output_groups for o in g.outputs)
        return f"<agent {self.name!r}: {consumed or 'nothing'} -> {published or 'nothing'}>"

    @property
    def name(self) -> str:
        """The agent's name."""
        return self._definition.name

    @property
    def definition(self) -> AgentDefinition:
        """The declaration so far; it changes with the builder."""
        return self._definition

    def definition_checked(self) -> AgentDefinition:
        """Check what only the whole declaration shows, and return a copy that no longer changes.

        Raises:
            ConfigurationError: The function of `.runs()` does not fit consumes() and publishes().
        """
        definition = with_result_engine(self._definition)
        check_fan_out(definition)
        if definition.function is not None:
            for subscription in definition.subscriptions:
                signature.check_arguments(self.name, definition.function, subscription)
            signature.check_returns(self.name, definition.function, definition.output_groups)
        checks.engines(definition)
        return dataclasses.replace(
            definition,
            subscriptions=list(definition.subscriptions),
            output_groups=list(definition.output_groups),
            engines=list(definition.engines),
            utilities=list(definition.utilities),
            tools=list(definition.tools),
        )

    def description(self, text: str) -> AgentBuilder:
        """Say what the agent does; an LLM engine uses it as its instructions."""
        self._definition.description = checks.text(text, "the description", self._at("description"))
        return self._changed()

    # --- what flows in ------------------------------------------------------------------------

    def consumes(
        self,
        *types: type[BaseModel],
        where: Callable[[Any], bool] | Sequence[Callable[[Any], bool]] | None = None,
        reevaluate: timedelta | None = None,
        semantic_match: SemanticMatch | None = None,
        semantic_threshold: float = 0.0,
        from_agents: Iterable[str] | None = None,
        tags: Iterable[str] | None = None,
        join: JoinSpec | Mapping[str, Any] | None = None,
        batch: BatchSpec | Mapping[str, Any] | None = None,
        mode: Mode = "both",
        priority: int = 0,
        activation: Condition | None = None,
        delivery: Delivery = "all",
        scope: Scope | None = None,
        name: str | None = None,
    ) -> AgentBuilder:
        """Subscribe to artifacts. Several types wait for each other; several calls are alternatives.

        Args:
            types: Pydantic models; one that is repeated is needed that often. With `batch` and no
                `join`, artifacts of any of the types fill the batch.
            where: Predicates of the model; all must hold. One that raises refuses the artifact, visibly.
            reevaluate: Ask `where` again every so often about artifacts for which it was false, until it is true, once.
                For predicates of the time: `lambda d: now() - d.created_at > timedelta(days=30)`. None: never again.
            semantic_match: What the artifact's text should be about: a text, {"query": ..., "threshold": ...,
                "field": ...}, or a list of these, of which all must be reached. Asks for `Flock(embedder=...)`.
            semantic_threshold: Least similarity, up to 1, of queries that name none; 0 is the default of 0.4.
            from_agents: Only artifacts of these producers; None for any.
            tags: Only artifacts with at least one of these tags; None for any.
            join: `JoinSpec` or {"by": function, "within": timedelta or a number of artifacts}.
            batch: `BatchSpec` or {"size": int, "timeout": timedelta}.
            mode: "events" for published artifacts, "direct" for invocations only, or "both".
            priority: Higher runs first.
            activation: A `When...` condition that must hold; until then inputs wait.
            delivery: "all": every matching agent gets the artifact. "exclusive": of the exclusive
                subscriptions that match, only one does.
            scope: Where several types must meet: in one "workflow", or anywhere on the "board". None:
                the workflow for several types; the board for join and batch.
            name: Identity of the subscription across deploys; None derives it from the rest.
        """
        at = self._at("consumes")
        models = checks.model_types(types, at)
        subscription = Subscription(
            id="",
            agent=self.name,
            types=models,
            where=checks.predicates(where, at),
            from_agents=checks.names(from_agents, "from_agents", at),
            tags=checks.names(tags, "tags", at),
            join=checks.join_spec(join, models, at),
            batch=checks.batch_spec(batch, at),
            mode=checks.choice(mode, ("both", "events", "direct"), "mode", at),
            priority=checks.whole_number(priority, "priority", at, low=None),
            delivery=checks.choice(delivery, ("all", "exclusive"), "delivery", at),
            scope=checks.choice(scope, (None, "workflow", "board"), "scope", at),
            activation=checks.activation(activation, at),
            semantic=text_predicates(semantic_match, semantic_threshold, models, at),
            reevaluate_us=checks.reevaluation(reevaluate, where, mode, delivery, at),
        )
        if self._definition.function is not None:
            signature.check_arguments(self.name, self._definition.function, subscription)
        identity = self._subscription_id(subscription, name, at)
        self._definition.subscriptions.append(dataclasses.replace(subscription, id=identity))
        return self._changed()

    def prevent_self_trigger(self, enabled: bool = True) -> AgentBuilder:
        """Keep the agent from consuming its own outputs (on unless switched off)."""
        self._definition.prevent_self_trigger = bool(enabled)
        return self._changed()

    # --- what flows out -----------------------------------------------------------------------

    def publishes(
        self,
        *types: type[BaseModel],
        visibility: Visibility | Callable[[Any], Visibility] | None = None,
        fan_out: FanOutSpec | None = None,
        where: Callable[[Any], bool] | None = None,
        validate: Callable[[Any], bool] | Sequence[tuple[Callable[[Any], bool], str]] | None = None,
        description: str | None = None,
        approval: ApprovalSpec | Literal["shadow"] | None = None,
    ) -> PublishBuilder:
        """Declare outputs. The types of one call come from one run of the engine.

        Args:
            types: Pydantic models; `publishes(Idea, Idea, Idea)` is three ideas.
            visibility: Who may see the outputs, or a function of the model; None is everybody,
                unless the inputs were restricted.
            fan_out: Of each type, this exact number, or a range as (min, max); None is one.
            where: Outputs for which it is false are not published.
            validate: A function, or pairs of function and message; one that is false fails the run.
            description: What the outputs are, for an LLM engine.
            approval: Who has to approve them before they are published; None: nobody.

        Returns:
            The builder, which now also offers `.only_for()` and `.visibility()` for these outputs.
        """
        at = self._at("publishes")
        models = checks.model_types(types, at)
        outputs = checks.output_specs(
            models,
            fan_out=fan_out,
            where=where,
            validate=validate,
            visibility=visibility,
            description=description,
            at=at,
        )
        for model in models:
            self._registry.ensure(model)
        outputs = with_approval(outputs, approval, at)
        self._definition.output_groups.append(OutputGroup(outputs=outputs, description=description))
        self._changed()
        return PublishBuilder(self._root, len(self._definition.output_groups) - 1)

    # --- what runs ----------------------------------------------------------------------------

    def runs(self, fn: Callable[..., Any]) -> AgentBuilder:
        """Make a plain function, sync or async, the agent's engine.

        It gets its inputs as models, one argument per consumed type in declared order: a list for a
        type that is consumed several times and for a batch, a list of tuples for join + batch. A
        leading parameter named `ctx`, or annotated `Context`, gets the context. It returns a model,
        a list or tuple of models, or None. Type hints are checked, now and at deploy.
        """
        at = self._at("runs")
        checks.function(fn, "a function", at)
        if self._definition.engines:
            raise ConfigurationError(f"{at} the agent has engines already; use .runs() or .with_engines()")
        if self._definition.function is not None:
            raise ConfigurationError(f"{at} the agent runs a function already; combine the two in one")
        signature.check_function(self.name, fn)
        for subscription in self._definition.subscriptions:
            signature.check_arguments(self.name, fn, subscription)
        if self._definition.output_groups:
            signature.check_returns(self.name, fn, self._definition.output_groups)
        self._definition.function = fn
        return self._changed()

    def with_engines(self, *engines: Any) -> AgentBuilder:
        """Add engines (EngineComponent instances); each gets what the one before it made."""
        at = self._at("with_engines")
        if self._definition.function is not None:
            raise ConfigurationError(
                f"{at} the agent runs a function already; use .runs() or .with_engines()"
            )
        if not engines:
            raise ConfigurationError(f"{at} needs at least one engine")
        for engine in engines:
            checks.function(getattr(engine, "evaluate", None), "engines with an evaluate() method", at)
        self._definition.engines.extend(engines)
        return self._changed()

    def with_utilities(self, *components: Any) -> AgentBuilder:
        """Add components (AgentComponent instances) whose hooks surround every run."""
        if not components:
            raise ConfigurationError(f"{self._at('with_utilities')} needs at least one component")
        self._definition.utilities.extend(components)
        return self._changed()

    def with_tools(self, tools: Iterable[Callable[..., Any] | Tool]) -> AgentBuilder:
        """Add functions that an LLM engine may call: typed by their hints, described by their docstrings.

        A `flock_ray.engines.tools.Tool` may stand for a function, too.
        """
        at = self._at("with_tools")
        if callable(tools) or not isinstance(tools, Iterable):
            raise ConfigurationError(f"{at} takes a list of functions: with_tools([{tools!r}])")
        added = [tool if isinstance(tool, Tool) else checks.function(tool, "functions", at) for tool in tools]
        self._definition.tools.extend(added)
        return self._changed()

    def with_context(self, provider: Any, *, max_tokens: int | None = None) -> AgentBuilder:
        """Show the agent more of the board than its inputs, as `ctx.artifacts`: what a context provider chooses.

        `max_tokens` limits any provider, as `estimated_tokens` counts, and keeps the newest; None is no limit.
        """
        from flock_ray.context.request import checked_provider

        at = self._at("with_context")
        self._definition.context_provider = checked_provider(provider, at, max_tokens=max_tokens)
        return self._changed()

    def best_of(
        self, n: int, score: Callable[[Any], float], good_enough: float | None = None
    ) -> AgentBuilder:
        """Run the engine `n` times (from 1), at the same time if it can, and keep the result that scores highest.

        Args:
            n: How many candidates; one that fails does not fail the others.
            score: Rates an `EvalResult`.
            good_enough: As soon as a candidate scores this, it is taken and the rest is cancelled; None: never.
        """
        at = self._at("best_of")
        checks.whole_number(n, "n", at)
        if good_enough is not None and not isinstance(good_enough, int | float):
            raise ConfigurationError(f"{at} good_enough must be a number or None, got {good_enough!r}")
        self._definition.good_enough = good_enough
        self._definition.best_of = (n, checks.function(score, "score to be a function of the result", at))
        return self._changed()

    def calls(self, func: Callable[..., Any]) -> AgentBuilder:
        """Call a function with the first output after every run; it publishes nothing itself."""
        self._definition.calls = checks.function(func, "a function", self._at("calls"))
        return self._changed()

    # --- who it is ----------------------------------------------------------------------------

    def labels(self, *labels: str) -> AgentBuilder:
        """Add labels, which `LabelledVisibility` asks for."""
        self._definition.labels |= checks.names(labels, "labels", self._at("labels"))
        return self._changed()

    def tenant(self, tenant_id: str) -> AgentBuilder:
        """Set the tenant, which `TenantVisibility` asks for."""
        self._definition.tenant = checks.text(tenant_id, "the tenant's id", self._at("tenant"))
        return self._changed()

    def identity(self, identity: AgentIdentity) -> AgentBuilder:
        """Set labels and tenant together; the name must be the agent's own.

        An agent under another agent's name would see what is private to that one.
        """
        at = self._at("identity")
        if not isinstance(identity, AgentIdentity):
            raise ConfigurationError(f"{at} takes an AgentIdentity, got {identity!r}")
        if identity.name != self.name:
            raise ConfigurationError(f"{at} must be the agent's own: AgentIdentity(name={self.name!r}, ...)")
        self._definition.labels = frozenset(identity.labels)
        self._definition.tenant = identity.tenant_id
        return self._changed()

    # --- how much of it -----------------------------------------------------------------------

    def max_concurrency(self, n: int) -> AgentBuilder:
        """Set how many activations one replica runs at once, from 1."""
        self._definition.max_concurrency = checks.whole_number(n, "n", self._at("max_concurrency"))
        return self._changed()

    def pool(
        self,
        min: int = 0,
        max: int | None = None,
        num_cpus: float = 0,
        num_gpus: float = 0,
        resources: Mapping[str, float] | None = None,
        idle_timeout: timedelta = timedelta(seconds=60),
    ) -> AgentBuilder:
        """Give the agent processes of its own, instead of sharing workers with light agents.

        Args:
            min: Replicas that are always there; 0 scales to nothing when idle.
            max: Most replicas; None is what the cluster's resources allow.
            num_cpus: CPUs that Ray reserves per replica; fractions are allowed.
            num_gpus: GPUs that Ray reserves per replica; fractions are allowed.
            resources: Custom Ray resources per replica; not CPU or GPU.
            idle_timeout: How long a replica above `min` stays without work.
        """
        self._definition.pool = checks.pool_spec(
            min=min,
            max=max,
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            resources=resources,
            idle_timeout=idle_timeout,
            at=self._at("pool"),
        )
        return self._changed()

    def max_agent_iterations(self, n: int) -> AgentBuilder:
        """Set how often the agent may run in one workflow, from 1; the flock's limit otherwise."""
        self._definition.max_iterations = checks.whole_number(n, "n", self._at("max_agent_iterations"))
        return self._changed()

    def max_crashes(self, n: int) -> AgentBuilder:
        """Set after how many dead processes an activation is given up as failed, from 1."""
        self._definition.max_crashes = checks.whole_number(n, "n", self._at("max_crashes"))
        return self._changed()

    # --- running by hand ----------------------------------------------------------------------

    def run(self, *inputs: Any) -> RunHandle:
        """Prepare a direct run on these inputs; nothing happens before `execute()`."""
        return RunHandle(self._owner, ((self._root, inputs),))

    def then(self, builder: AgentBuilder) -> Pipeline:
        """Prepare to run this agent and then another on its outputs."""
        return Pipeline(self._owner, ((self._root, ()),)).then(builder)

    # --- inside -------------------------------------------------------------------------------

    def _at(self, method: str) -> str:
        return f"agent {self.name!r}: {method}()"

    def _changed(self) -> AgentBuilder:
        self._on_change()
        return self._root

    def _subscription_id(self, subscription: Subscription, name: str | None, at: str) -> str:
        taken = {other.id for other in self._definition.subscriptions}
        type_names = [self._registry.ensure(model).name for model in subscription.types]
        if name is not None:
            return checks.named_subscription_id(self.name, name, taken=taken, at=at)
        options = {
            "join": subscription.join is not None,
            "batch": subscription.batch is not None,
            "aggregate": subscription.aggregate is not None,
            "from_agents": sorted(subscription.from_agents),
            "tags": sorted(subscription.tags),
            "mode": "" if subscription.mode == "both" else subscription.mode,
            "delivery": "" if subscription.delivery == "all" else subscription.delivery,
            "scope": None if subscription.aggregate is not None else subscription.scope,
            "semantic": [dataclasses.astuple(predicate) for predicate in subscription.semantic],
        }
        given = {key: value for key, value in options.items() if value}
        return checks.subscription_id(self.name, type_names, given, taken=taken)


class PublishBuilder(AgentBuilder):
    """The builder right after `.publishes(...)`: it can also say who sees those outputs."""

    def __init__(self, builder: AgentBuilder, group: int) -> None:
        """Continue a builder; `group` is the position of its output group."""
        self._definition = builder._definition
        self._registry = builder._registry
        self._on_change = builder._on_change
        self._owner = builder._owner
        self._root = builder._root
        self._group = group

    def only_for(self, *agents: str) -> PublishBuilder:
        """Let only the agents of these names see the outputs."""
        return self.visibility(only_for(*agents))

    def visibility(self, visibility: Visibility | Callable[[Any], Visibility]) -> PublishBuilder:
        """Set who sees the outputs: a visibility, or a function of the model that returns one."""
        checks.visibility_or_function(visibility, self._at("visibility"))
        group = self._definition.output_groups[self._group]
        outputs = tuple(dataclasses.replace(output, visibility=visibility) for output in group.outputs)
        self._definition.output_groups[self._group] = dataclasses.replace(group, outputs=outputs)
        self._changed()
        return self


class Pipeline:
    """Agents that run one after the other, each on the outputs of the one before."""

    def __init__(self, owner: Any, steps: tuple[tuple[AgentBuilder, tuple[Any, ...]], ...]) -> None:
        """Hold the steps: builders with inputs of their own; `owner` is their Flock."""
        self._owner = owner
        self._steps = steps

    def then(self, builder: AgentBuilder) -> Pipeline:
        """Return a pipeline with one more agent; this one is unchanged."""
        if not isinstance(builder, AgentBuilder):
            raise ConfigurationError(f"then() takes what flock.agent(name) returned, got {builder!r}")
        return Pipeline(self._owner, (*self._steps, (builder._root, ())))

    async def execute(self) -> Any:
        """Run every step once, on the flock that declared them, and return the last one's outputs.

        Raises:
            ConfigurationError: The first builder belongs to no Flock.
        """
        if self._owner is None:
            name = self._steps[0][0].name
            raise ConfigurationError(f"agent {name!r} belongs to no flock; make it by flock.agent({name!r})")
        return await self._owner._run_pipeline(list(self._steps))


class RunHandle(Pipeline):
    """A prepared direct run of one agent on given inputs."""
