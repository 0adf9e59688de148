"""Which fan-out a fan-in closes, by what agents declare: follow its type back to where it was cut."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flock_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from flock_ray.core.definition import AgentDefinition, Subscription
    from flock_ray.core.registry import TypeRegistry

MAX_DEPTH = 16
"""Fan-ins within fan-ins that are followed."""


def sources_of(
    definition: AgentDefinition,
    subscription: Subscription,
    definitions: Sequence[AgentDefinition],
    registry: TypeRegistry,
) -> tuple[str, ...]:
    """Return the fan-outs from whose chunks a fan-in's type can come, by name.

    A fan-in on the way stands for one level: the fan-out that it closes is passed by.
    """
    producers: dict[str, list[AgentDefinition]] = {}
    for other in definitions:
        for group in other.output_groups:
            for output in group.outputs:
                producers.setdefault(registry.ensure(output.type).name, []).append(other)
    found: set[str] = set()
    waiting = deque([(registry.ensure(cls).name, 0) for cls in subscription.types])
    seen = set(waiting)
    while waiting:
        type_name, depth = waiting.popleft()
        for other in producers.get(type_name, ()):
            if other.name == definition.name:
                continue
            below = depth
            if other.fan_in is not None:
                below += 1
            elif other.fan_out is not None:
                if not depth:
                    found.add(other.name)
                    continue
                below -= 1
            for sub in other.subscriptions:
                for cls in sub.types:
                    step = (registry.ensure(cls).name, below)
                    if step not in seen and below <= MAX_DEPTH:
                        seen.add(step)
                        waiting.append(step)
    return tuple(sorted(found))


def closers_of(
    definitions: Sequence[AgentDefinition], registry: TypeRegistry, *, strict: bool = True
) -> dict[str, tuple[str, ...]]:
    """Return, by subscription, the fan-outs that each fan-in closes.

    Raises:
        ConfigurationError: One closes none, or an agent that is no fan-out; with `strict`.
    """
    by_name = {definition.name: definition for definition in definitions}
    out: dict[str, tuple[str, ...]] = {}
    for definition in definitions:
        for subscription in definition.subscriptions:
            rule = subscription.fan_in
            if rule is None:
                continue
            if rule.closes:
                wrong = [n for n in rule.closes if n in by_name and by_name[n].fan_out is None]
                if wrong and strict:
                    raise ConfigurationError(
                        f"agent {definition.name!r}: fan_in() closes={wrong[0]!r} is no fan-out: it needs .fan_out()"
                    )
                out[subscription.id] = rule.closes
                continue
            sources = sources_of(definition, subscription, definitions, registry)
            if not sources and strict:
                name = subscription.types[0].__name__
                raise ConfigurationError(
                    f"agent {definition.name!r}: fan_in() gets {name}, which comes from no fan-out: some agent with "
                    f'.fan_out() must lead to what publishes {name}. If another program has it, say closes="its name".'
                )
            out[subscription.id] = sources
    return out
