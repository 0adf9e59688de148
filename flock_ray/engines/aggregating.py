"""Makes the result of an aggregate on a worker, alone or together with a language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flock_ray.core.ballots import decode_decision
from flock_ray.core.results import Aggregated, ResultPlan, aggregated
from flock_ray.engines.component import AgentComponent, EngineComponent, EvalInputs, EvalResult

if TYPE_CHECKING:
    from flock_ray.core.balloting import AggregateSpec
    from flock_ray.core.definition import AgentDefinition, OutputGroup, Subscription
    from flock_ray.core.wire import Task
    from flock_ray.engines.context import Context

__all__ = ["AggregateEngine", "AggregateFacts", "about", "collected"]


class AggregateEngine(EngineComponent):
    """Makes the result from what was collected and decided; no model is asked."""

    subscription: Any
    """The `Subscription` that the agent's aggregate is."""

    async def evaluate(
        self, agent: AgentDefinition, ctx: Context, inputs: EvalInputs, output_group: OutputGroup
    ) -> EvalResult:
        """Make the result.

        Raises:
            OutputContractError: What was collected does not fit it.
        """
        found = collected(self.subscription, ctx, inputs)
        made = plan_of(self.subscription).build(found)
        return _undecided(ctx, found) if made is None else EvalResult.from_object(made, agent=agent)


class AggregateFacts(AgentComponent):
    """Puts what was collected and decided into the answer of a model: decisions are never the model's."""

    subscription: Any
    """The `Subscription` that the agent's aggregate is."""
    priority: int = -1_000_000
    """Before all others: guards see what is going to be published."""

    async def on_post_evaluate(
        self, agent: AgentDefinition, ctx: Context, inputs: EvalInputs, result: EvalResult
    ) -> EvalResult:
        """Replace the fields that have a source."""
        spec: AggregateSpec = self.subscription.aggregate
        found = collected(self.subscription, ctx, inputs)
        values = plan_of(self.subscription).values(found)
        if values is None:
            return _undecided(ctx, found)
        models = [artifact.model() for artifact in result.artifacts]
        changed = [
            spec.into.model_validate({**dict(model), **values}) if isinstance(model, spec.into) else model
            for model in models
        ]
        return result.model_copy(
            update={"artifacts": EvalResult.from_objects(*changed, agent=agent).artifacts}
        )


def plan_of(subscription: Subscription) -> ResultPlan:
    """Return the plan of an aggregate; it was checked when it was declared."""
    assert subscription.aggregate is not None
    return ResultPlan(
        subscription.aggregate, subscription.types[0], f"agent {subscription.agent!r}: aggregates()"
    )


def collected(subscription: Subscription, ctx: Context, inputs: EvalInputs) -> Aggregated:
    """Return what was collected and decided, with the inputs as the utilities have left them."""
    assert subscription.aggregate is not None
    models = [artifact.model(cls=subscription.types[0]) for artifact in inputs.artifacts]
    envelopes = [artifact.envelope for artifact in inputs.artifacts]
    return aggregated(subscription.aggregate, subscription.types[0], ctx.decision, models, envelopes)


def about(subscription: Subscription, task: Task) -> dict[str, Any]:
    """Return what the context of a run says of the decision that it is about: `aggregated`, and `decision` for us."""
    decision = decode_decision(task.decision)
    if subscription.aggregate is None or decision is None:
        return {}
    found = aggregated(subscription.aggregate, subscription.types[0], decision)
    return {"aggregated": found, "decision": decision}


def _undecided(ctx: Context, found: Aggregated) -> EvalResult:
    if ctx.hooks.note is not None:
        ctx.hooks.note(
            "aggregate.undecided", f"no outcome: {found.tally or 'nobody voted'}; nothing is published"
        )
    return EvalResult.empty()
