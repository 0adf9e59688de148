"""`.aggregates()`: the part of an agent's builder that makes one result of several artifacts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from flock_ray import agent_checks as checks
from flock_ray.core import signature
from flock_ray.core.balloting import MAX_WEIGHT, AggregateSpec, Value, Weights
from flock_ray.core.ballots import EXTREMES, VOTES
from flock_ray.core.definition import AgentDefinition, Scope, Subscription
from flock_ray.core.results import ResultPlan
from flock_ray.core.strategies import (
    AggregationStrategy,
    SessionWindow,
    SlidingWindow,
    TumblingWindow,
    Window,
)
from flock_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from flock_ray.agent import PublishBuilder
    from flock_ray.core.registry import TypeRegistry

__all__ = ["AggregateDeclaring", "check_model", "with_result_engine"]

MAX_COUNT = 100_000
"""Inputs of one aggregate: all of them become the inputs of one run."""


class AggregateDeclaring:
    """The part of an agent's builder that knows aggregates."""

    _definition: AgentDefinition
    _registry: TypeRegistry

    def _at(self, method: str) -> str:
        raise NotImplementedError  # AgentBuilder's

    def publishes(self, *types: type[BaseModel]) -> PublishBuilder:
        """Declare outputs."""
        raise NotImplementedError  # AgentBuilder's

    def _subscription_id(self, subscription: Subscription, name: str | None, at: str) -> str:
        raise NotImplementedError  # AgentBuilder's

    def aggregates(
        self,
        model: type[BaseModel],
        *,
        into: type[BaseModel],
        strategy: AggregationStrategy = AggregationStrategy.COLLECT_ALL,
        trigger_on_count: int | None = None,
        timeout: timedelta | None = None,
        field: Value | None = None,
        score: Value | None = None,
        by: Value | None = None,
        min_count: int = 1,
        weights: Weights | None = None,
        on_timeout: Literal["partial", "fail", "discard"] = "partial",
        tie: Literal["first", "abstain"] | Callable[[Any], Any] = "first",
        build: Callable[[Any], Any] | None = None,
        mapping: Mapping[str, Value] | None = None,
        early: bool | None = None,
        on_late: Literal["event", "correct"] = "event",
        repeat: bool = False,
        window: Window | None = None,
        event_time: Value | None = None,
        allowed_lateness: timedelta = timedelta(0),
        where: Callable[[Any], bool] | Sequence[Callable[[Any], bool]] | None = None,
        from_agents: Iterable[str] | None = None,
        tags: Iterable[str] | None = None,
        priority: int = 0,
        scope: Scope | None = None,
        name: str | None = None,
    ) -> PublishBuilder:
        """Collect artifacts of a type and make one result of them: one per workflow, per key, or per window.

        A group is decided once: when `trigger_on_count` inputs are there, when the outcome is certain, at its
        `timeout`; with neither count nor timeout when nothing of the workflow runs any more that could bring another
        input. All of it is journaled: a group goes on collecting after any crash, and is decided once.

        Functions given for `field`, `score`, `by`, `weights` and `event_time` run where an artifact is published,
        once; one that raises refuses the artifact, visibly. `build`, `mapping`, `tie` and MERGE run on a worker.

        Args:
            model: What to collect.
            into: What to make. Its fields come from the inputs by name, see docs/howto/aggregation.md; what can't be
                taken from them, the agent's engine or language model writes.
            strategy: How to decide, such as `AggregationStrategy.MAJORITY_VOTE` or `AggregationStrategy.QUORUM(3)`.
            trigger_on_count: Inputs that complete a group, from 1 to 100,000, abstentions among them; None: it has no
                such number.
            timeout: Since the first input of a group; with a window, since its last input. None: it waits.
            field: What is voted about, or (RANK) the field that is a ranking: a name, or a function of the model.
                An input whose value is None abstains.
            score: For MAX_BY and MIN_BY: a field or a function of the model; None abstains.
            by: Groups by a field or a function of the model, over all workflows; None: by workflow.
            min_count: Inputs that count, below which a timeout (or the end of all other work) is a failure.
            weights: For WEIGHTED_VOTE: a field, a function of the model, or weights by the agent that published it.
                From 0 to 1e9, counted in millionths.
            on_timeout: "partial": decide on what has come. "fail": a WorkflowError, or a dead letter. "discard": the
                inputs are let go, with an event.
            tie: "first": the value, or input, that came first. "abstain": there is no outcome. Or a function of an
                `Aggregated` that chooses one of its `tied`.
            build: Makes the result of an `Aggregated`; None: it is made by `mapping` and by name.
            mapping: By field of the result: a field of the inputs, or a function of an `Aggregated`.
            early: Whether a group is decided as soon as its outcome is certain, and runs of the workflow that can only
                feed it are withdrawn once it is decided. None: yes, unless `repeat` or `on_late="correct"`.
            on_late: What becomes of inputs that come after the decision. "event": an event says so. "correct": as long
                as their workflow goes on, the result is made again with them if that changes it.
            repeat: Whether what comes after a decision begins a new round, instead of being late.
            window: `TumblingWindow`, `SlidingWindow` or `SessionWindow` on event time; groups are then over the whole
                board unless `scope="workflow"`. None: no windows.
            event_time: When an artifact happened: a field or a function that gives an aware datetime. None: when it
                was published.
            allowed_lateness: How far the watermark stays behind the newest event time of its group.
            where: As for `consumes`.
            from_agents: As for `consumes`.
            tags: As for `consumes`.
            priority: Higher runs first.
            scope: Where inputs meet: in one "workflow", or anywhere on the "board". None: the board with `by` or
                `window`, otherwise the workflow.
            name: Identity of the subscription across deploys; None derives it from the rest.

        Returns:
            The builder, which now also offers `.only_for()` and `.visibility()` for the result.

        Raises:
            ConfigurationError: Something makes no sense, or a field of the result can't hold what it is given.
        """
        at = self._at("aggregates")
        models = checks.model_types((model,), at)
        (result,) = checks.model_types((into,), at)
        if any(other.aggregate is not None for other in self._definition.subscriptions):
            raise ConfigurationError(
                f"{at} the agent aggregates already; declare another agent for another result"
            )
        if early is None:
            early = not (repeat or on_late == "correct")
        if scope is None:
            scope = "board" if by is not None or window is not None else "workflow"
        spec = AggregateSpec(
            result, strategy,
            0 if trigger_on_count is None else checks.whole_number(trigger_on_count, "trigger_on_count", at),
            0 if timeout is None else _microseconds(timeout, "timeout", at),
            field, score, by, checks.whole_number(min_count, "min_count", at), weights, on_timeout, tie, build,
            tuple((mapping or {}).items()), bool(early), on_late == "correct", bool(repeat), window, event_time,
            _microseconds(allowed_lateness, "allowed_lateness", at, zero=True),
        )  # fmt: skip
        checks.choice(on_late, ("event", "correct"), "on_late", at)
        checks.choice(scope, ("workflow", "board"), "scope", at)
        _check_options(spec, models[0], at)
        _check_trigger(spec, scope, at)
        self._registry.ensure(models[0])
        ResultPlan(spec, models[0], at)
        subscription = Subscription(
            id="",
            agent=self._definition.name,
            types=models,
            where=checks.predicates(where, at),
            from_agents=checks.names(from_agents, "from_agents", at),
            tags=checks.names(tags, "tags", at),
            priority=checks.whole_number(priority, "priority", at, low=None),
            scope=scope,
            aggregate=spec,
        )
        if self._definition.function is not None:
            signature.check_arguments(self._definition.name, self._definition.function, subscription)
        identity = self._subscription_id(subscription, name, at)
        self._definition.subscriptions.append(dataclasses.replace(subscription, id=identity))
        return self.publishes(result)


def with_result_engine(definition: AgentDefinition) -> AgentDefinition:
    """Return an agent that aggregates with what makes its result; all others as they are.

    Raises:
        ConfigurationError: It also consumes or publishes other things, and has nothing that could do so.
    """
    subscription = next((sub for sub in definition.subscriptions if sub.aggregate is not None), None)
    if subscription is None or definition.function is not None or subscription.aggregate is None:
        return definition
    from flock_ray.engines.aggregating import AggregateEngine, AggregateFacts

    at = f"agent {definition.name!r}: aggregates()"
    plan = ResultPlan(subscription.aggregate, subscription.types[0], at)
    if definition.engines or not plan.is_complete:
        if not _asks_model(definition):
            return definition  # its own engines make what they make
        facts = AggregateFacts(subscription=subscription)
        return dataclasses.replace(definition, utilities=[*definition.utilities, facts])
    into = subscription.aggregate.into
    others = [
        output.type
        for group in definition.output_groups
        for output in group.outputs
        if output.type is not into
    ]
    if len(definition.subscriptions) > 1 or others:
        raise ConfigurationError(
            f"{at} the agent makes {into.__name__} of what it collects, and nothing runs for what else it consumes or "
            "publishes: declare another agent for that, or give .runs(fn) or .with_engines(...)"
        )
    return dataclasses.replace(definition, engines=[AggregateEngine(subscription=subscription)])


def check_model(definition: AgentDefinition) -> None:
    """Refuse an aggregate whose result only a language model could write, when there is none.

    Raises:
        ConfigurationError: There is no model.
    """
    if definition.function is not None or definition.engines or definition.model:
        return
    for sub in definition.subscriptions:
        if sub.aggregate is not None:
            plan = ResultPlan(sub.aggregate, sub.types[0], f"agent {definition.name!r}: aggregates()")
            if not plan.is_complete:
                raise ConfigurationError(plan.explain())


def _asks_model(definition: AgentDefinition) -> bool:
    if not definition.engines:
        return True
    from flock_ray.engines.llm import LiteLLMEngine

    return any(isinstance(engine, LiteLLMEngine) for engine in definition.engines)


def _check_options(spec: AggregateSpec, model: type[BaseModel], at: str) -> None:
    """Refuse what does not belong together, and names that are no fields."""
    if not isinstance(spec.strategy, AggregationStrategy):
        raise ConfigurationError(
            f"{at} strategy={spec.strategy!r} is none: write strategy=AggregationStrategy.MAJORITY_VOTE"
        )
    checks.choice(spec.on_timeout, ("partial", "fail", "discard"), "on_timeout", at)
    if not callable(spec.tie):
        checks.choice(spec.tie, ("first", "abstain"), "tie", at)
    if spec.build is not None:
        checks.function(spec.build, "build to be a function of an Aggregated", at)
    strategy, name = spec.strategy.name, str(spec.strategy)
    if strategy == "quorum" and not spec.strategy.number:
        raise ConfigurationError(f"{at} QUORUM needs its number: AggregationStrategy.QUORUM(3)")
    if strategy == "merge" and spec.strategy.function is None:
        raise ConfigurationError(
            f"{at} MERGE needs its function: AggregationStrategy.MERGE(lambda items: ...)"
        )
    votes = strategy in VOTES or strategy == "rank"
    if votes != (spec.field is not None):
        raise ConfigurationError(
            f'{at} {name} needs what is voted about: field="is_safe"' if votes
            else f"{at} {name} counts no votes: leave field= out, or choose MAJORITY_VOTE"
        )  # fmt: skip
    if (strategy in EXTREMES) != (spec.score is not None):
        raise ConfigurationError(
            f"{at} {name} needs what to compare: score=lambda item: item.quality" if strategy in EXTREMES
            else f"{at} {name} compares no scores: leave score= out, or choose MAX_BY"
        )  # fmt: skip
    if (strategy == "weighted") != (spec.weights is not None):
        raise ConfigurationError(
            f'{at} WEIGHTED_VOTE needs weights="confidence", a function of the model, or weights by agent'
            if strategy == "weighted" else f"{at} {name} knows no weights: leave weights= out, or choose WEIGHTED_VOTE"
        )  # fmt: skip
    for parameter, value in (("field", spec.field), ("score", spec.score), ("by", spec.by),
                             ("event_time", spec.event_time), ("weights", spec.weights)):  # fmt: skip
        if not (isinstance(value, Mapping) and parameter == "weights"):
            _check_value(value, parameter, model, at)
    if isinstance(spec.weights, Mapping):
        _check_weights(spec.weights, at)


def _check_value(value: object, parameter: str, model: type[BaseModel], at: str) -> None:
    if value is None or callable(value):
        return
    if not isinstance(value, str):
        raise ConfigurationError(f"{at} {parameter} must be the name of a field or a function, got {value!r}")
    if value not in model.model_fields:
        raise ConfigurationError(
            f"{at} {parameter}={value!r} is no field of {model.__name__}; it has {', '.join(model.model_fields)}"
        )


def _check_weights(weights: Mapping[Any, Any], at: str) -> None:
    for agent, weight in weights.items():
        is_number = (
            isinstance(weight, int | float) and not isinstance(weight, bool) and 0 <= weight <= MAX_WEIGHT
        )
        if not isinstance(agent, str) or not is_number:
            raise ConfigurationError(
                f"{at} weights= must be numbers from 0 to 1e9 by name of agent, got {agent!r}: {weight!r}"
            )
    if not weights:
        raise ConfigurationError(
            f'{at} weights= names no agent: write weights={{"expert": 2.0, "novice": 1.0}}'
        )


def _check_trigger(spec: AggregateSpec, scope: str, at: str) -> None:
    """Refuse what could never be decided, or contradicts itself."""
    if spec.count > MAX_COUNT:
        raise ConfigurationError(
            f"{at} trigger_on_count is {spec.count:,}; at most {MAX_COUNT:,} fit into one run"
        )
    if spec.count and spec.min_count > spec.count:
        raise ConfigurationError(
            f"{at} min_count={spec.min_count} is more than trigger_on_count={spec.count}; lower it"
        )
    needed = spec.strategy.number
    if spec.count and needed > spec.count:
        raise ConfigurationError(
            f"{at} {spec.strategy} can't be reached by trigger_on_count={spec.count}; raise it"
        )
    if spec.on_timeout != "partial" and not spec.timeout_us:
        raise ConfigurationError(f"{at} on_timeout={spec.on_timeout!r} needs timeout=timedelta(...)")
    if spec.repeat and spec.early:
        raise ConfigurationError(
            f"{at} early=True and repeat=True contradict each other: what comes after an early decision would be "
            "counted in the next round; leave one of them out"
        )
    if spec.correct and (spec.repeat or spec.early or scope != "workflow" or spec.window is not None):
        raise ConfigurationError(
            f'{at} on_late="correct" needs groups by workflow that are decided once: leave out repeat, early, by, '
            'window and scope="board"'
        )
    if spec.window is None:
        if spec.event_time is not None or spec.lateness_us:
            raise ConfigurationError(
                f"{at} event_time= and allowed_lateness= need a window: window=TumblingWindow(timedelta(minutes=5))"
            )
        if scope == "board" and not (spec.count or spec.timeout_us):
            raise ConfigurationError(
                f'{at} with by= or scope="board" a group spans workflows, so nobody knows when it is complete: give '
                'trigger_on_count= or timeout=, or scope="workflow"'
            )
        return
    if not isinstance(spec.window, TumblingWindow | SlidingWindow | SessionWindow):
        raise ConfigurationError(f"{at} window={spec.window!r} is none: TumblingWindow(timedelta(minutes=5))")
    if spec.count or spec.repeat:
        raise ConfigurationError(
            f"{at} a window ends by time: leave trigger_on_count and repeat out, or leave window out"
        )
    if spec.on_timeout != "partial" or spec.min_count > 1:
        raise ConfigurationError(
            f"{at} windows are decided on what they hold: leave on_timeout and min_count out"
        )


def _microseconds(value: object, parameter: str, at: str, *, zero: bool = False) -> int:
    checks.duration_s(value, parameter, at, zero=zero)
    assert isinstance(value, timedelta)
    return value // timedelta(microseconds=1)
