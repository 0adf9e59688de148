"""Checks that an application, its flock and its contract fit together, before anything is admitted."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import BaseModel

from flock_ray.application.errors import ContractError
from flock_ray.application.observation import Terms, default_access_policy, own_type_names
from flock_ray.application.types import CompletionPolicy, OutputContract
from flock_ray.core.conditions import Condition, as_condition, bind_correlation
from flock_ray.core.definition import Subscription
from flock_ray.core.registry import TypeRegistry
from flock_ray.core.system_types import TimerTick, WorkflowError
from flock_ray.errors import ConfigurationError, FlockError
from flock_ray.flock import Flock

WorkflowFactory = Callable[..., "Flock | Awaitable[Flock]"]
"""Builds the flock of an application; called once."""

ANY_WORKFLOW = "flock:any"
"""Stands for the workflow in a condition that is evaluated workflow by workflow."""


async def built(factory: WorkflowFactory | Flock) -> Flock:
    """Return the flock of an application.

    Raises:
        ContractError: The factory raised, wants an argument, or returned something else.
    """
    if isinstance(factory, Flock):
        return factory
    if _wants_arguments(factory):
        raise ContractError(
            "The factory has a parameter: it is called once for all workflows, without any. "
            "What depends on the workflow belongs into its input."
        )
    try:
        made: Any = factory()
        if inspect.isawaitable(made):
            made = await made
    except Exception as error:
        raise ContractError(f"The factory raised {type(error).__name__}: {error}") from error
    if not isinstance(made, Flock):
        raise ContractError(f"The factory returned {made!r}: it must return a Flock.")
    if made._opened is None:
        _isolate(made)
    return made


def _isolate(flock: Flock) -> None:
    """Keep the workflows of a flock that is built for an application apart, as when each had its own flock."""
    for builder in flock.agents:
        subscriptions = builder.definition.subscriptions
        subscriptions[:] = [
            dataclasses.replace(sub, scope="workflow") if _mixes(sub) else sub for sub in subscriptions
        ]


def _mixes(subscription: Subscription) -> bool:
    """Say whether a subscription would, without anybody having said so, put several workflows into one run."""
    return subscription.scope is None and subscription.kind not in ("single", "and")


def _wants_arguments(factory: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return False  # a builtin: calling it will tell
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(p.default is p.empty and p.kind not in variable for p in parameters)


def terms_of(flock: Flock, contract: OutputContract, completion: CompletionPolicy, max_outputs: int) -> Terms:
    """Check a contract against the agents that are declared, and return what its workflows share.

    Raises:
        ContractError: It can't work; says everything that is wrong.
    """
    registry = flock._registry
    problems: list[str] = []
    own = own_type_names(registry) | {registry.ensure(cls).name for cls in (WorkflowError, TimerTick)}
    given = _name_of(registry, contract.input_type, problems)
    outputs = {_name_of(registry, model, problems): model for model in contract.output_types}
    consumed, published = _declared(flock)
    if given not in consumed:
        problems.append(f"no agent consumes the input type {given}")
    problems += [f"no agent publishes the output type {name}" for name in sorted(outputs.keys() - published)]
    problems += [f"{name} is internal and can be no output" for name in sorted(outputs.keys() & own)]
    problems += [
        f'{sub.id} would mix workflows: say scope="workflow", or scope="board" if that is meant'
        for builder in flock.agents
        for sub in builder.definition.subscriptions
        if _mixes(sub)
    ]
    until = _bound(completion.until, problems)
    if problems:
        raise ContractError(f"The application can't work: {'; '.join(problems)}.")
    return Terms(
        registry,
        outputs,
        tuple(registry.name_for(model) for model in contract.required_output_types),
        contract.access_policy or default_access_policy,
        completion,
        until,
        max_outputs,
        lambda: flock._builders.keys(),
    )


def _name_of(registry: TypeRegistry, model: type[BaseModel], problems: list[str]) -> str:
    try:
        return registry.ensure(model).name
    except FlockError as error:
        problems.append(str(error).rstrip("."))
        return model.__qualname__


def _declared(flock: Flock) -> tuple[set[str], set[str]]:
    """Return the names of the types that agents consume from the board, and of those they publish."""
    registry = flock._registry
    definitions = [builder.definition for builder in flock.agents]
    subscriptions = [sub for definition in definitions for sub in definition.subscriptions]
    consumed = {registry.ensure(c).name for sub in subscriptions if sub.mode != "direct" for c in sub.types}
    groups = [group for definition in definitions for group in definition.output_groups]
    published = {registry.ensure(output.type).name for group in groups for output in group.outputs}
    return consumed, published


def _bound(until: Any, problems: list[str]) -> Condition | None:
    if until is None:
        return None
    try:
        return bind_correlation(as_condition(until), ANY_WORKFLOW, strict=True)
    except ConfigurationError as error:
        problems.append(f"until: {str(error).rstrip('.')}")
        return None
