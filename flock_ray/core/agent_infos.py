"""What shards must know of an agent, from what it declares."""

from __future__ import annotations

import msgspec

from flock_ray.core.definition import AgentDefinition
from flock_ray.core.flow import outputs_of
from flock_ray.core.registry import TypeRegistry
from flock_ray.core.wire import AgentInfo, LimitSpec


def _limits(definition: AgentDefinition) -> LimitSpec | None:
    limits = None if definition.limits is None else definition.limits.spec()
    if definition.retry is not None and definition.retry.budget is not None:
        # One slot counts the retries of the whole cluster.
        return msgspec.structs.replace(limits or LimitSpec(), together=True)
    return limits


def agent_info(definition: AgentDefinition, registry: TypeRegistry) -> AgentInfo:
    """Return it."""
    return AgentInfo(
        definition.name,
        definition.max_iterations if definition.max_iterations is not None else 1000,
        definition.max_crashes,
        definition.effective_concurrency(),
        limits=_limits(definition),
        retry=None if definition.retry is None else definition.retry.spec(),
        dead_letter=None if definition.dead_letter is None else definition.dead_letter.spec(),
        weights=definition.tenant_weights,
        deadline_us=definition.deadline_us,
        outputs=tuple(dict.fromkeys(registry.ensure(output.type).name for output in outputs_of(definition))),
    )
