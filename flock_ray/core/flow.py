"""Which agent can trigger which, by which type, and which of them can do so for ever."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from flock_ray.core import approval_types
from flock_ray.core.binding import counts_of
from flock_ray.core.definition import AgentDefinition, OutputSpec, Subscription
from flock_ray.core.registry import TypeRegistry
from flock_ray.core.signature import may_return_nothing
from flock_ray.core.system_types import DeadLetter, DeadLetterAction, DeadlineMissed, TimerTick, WorkflowError

__all__ = ["OUTSIDE", "Edge", "Flow", "endless_loops", "outputs_of"]

OUTSIDE = "external"
"""What `produced_by` says of artifacts that no agent made; no agent may have this name."""


@dataclass(frozen=True, slots=True, eq=False)
class Edge:
    """A type that goes from one agent to a subscription of another."""

    source: AgentDefinition
    output: OutputSpec
    type: str
    target: AgentDefinition
    subscription: Subscription


class Flow:
    """Who can reach whom by which type; direct-only subscriptions take no part."""

    def __init__(
        self,
        definitions: Sequence[AgentDefinition],
        registry: TypeRegistry,
        published_from_outside: Collection[str],
    ) -> None:
        """Work out every edge between the agents."""
        self._registry = registry
        own = (WorkflowError, TimerTick, DeadLetter, DeadLetterAction, DeadlineMissed)
        # Those of approvals are registered by whoever consumes them, under these names.
        self._system = {registry.name_for(cls) for cls in own} | set(approval_types.__all__)
        self._outside = frozenset(published_from_outside)
        self.agents = {definition.name: definition for definition in definitions}
        self._producers: dict[str, list[tuple[AgentDefinition, OutputSpec]]] = {}
        for name in sorted(self.agents):
            for output in outputs_of(self.agents[name]):
                producers = self._producers.setdefault(self.name_of(output.type), [])
                producers.append((self.agents[name], output))
        self.edges = [edge for name in sorted(self.agents) for edge in self._edges_to(self.agents[name])]
        self.leaving: dict[str, list[Edge]] = {name: [] for name in self.agents}
        self.entering: dict[str, list[Edge]] = {name: [] for name in self.agents}
        for edge in self.edges:
            self.leaving[edge.source.name].append(edge)
            self.entering[edge.target.name].append(edge)

    def subscriptions(self, definition: AgentDefinition) -> list[tuple[Subscription, list[str]]]:
        """Return an agent's subscriptions to events, each with the names of its distinct types."""
        return [
            (subscription, [self.name_of(model) for model in counts_of(subscription)])
            for subscription in definition.subscriptions
            if subscription.mode != "direct"
        ]

    def name_of(self, model: type) -> str:
        """Return the registered name of a type."""
        return self._registry.ensure(model).name

    def arrives(self, subscription: Subscription, type_name: str) -> bool:
        """Tell whether artifacts of a type can come to a subscription at all."""
        from_outside = not subscription.from_agents or OUTSIDE in subscription.from_agents
        if type_name in self._system or (from_outside and type_name in self._outside):
            return True
        entering = self.entering[subscription.agent]
        return any(e.type == type_name and e.subscription is subscription for e in entering)

    def _edges_to(self, target: AgentDefinition) -> Iterator[Edge]:
        for subscription, type_names in self.subscriptions(target):
            for type_name in type_names:
                for source, output in self._producers.get(type_name, ()):
                    if source is target and target.prevent_self_trigger:
                        continue
                    if not subscription.from_agents or source.name in subscription.from_agents:
                        yield Edge(source, output, type_name, target, subscription)


def outputs_of(definition: AgentDefinition) -> Iterator[OutputSpec]:
    """Yield every declared output of an agent, group after group."""
    for group in definition.output_groups:
        yield from group.outputs


def endless_loops(flow: Flow) -> list[tuple[str, str]]:
    """Find groups of agents that trigger each other with nothing that would end it.

    Returns:
        Per group its first agent by name and the shortest cycle through it, as
        `a -(Type)-> b -(Type)-> a`; sorted.
    """
    edges = [edge for edge in flow.edges if not _has_exit(edge)]
    components = _components(edges)
    # An edge that falls away may have been what kept another one going.
    while len(kept := [edge for edge in edges if _feeds_itself(edge, edges, components)]) < len(edges):
        edges, components = kept, _components(kept)
    return [
        (min(component), _cycle(min(component), [e for e in edges if e.source.name in component]))
        for component in sorted(set(components.values()), key=sorted)
    ]


def _has_exit(edge: Edge) -> bool:
    function = edge.source.function
    return bool(
        edge.output.where is not None
        or edge.subscription.where
        or edge.subscription.semantic
        or edge.subscription.activation is not None
        or (function is not None and may_return_nothing(function))
    )


def _feeds_itself(edge: Edge, edges: list[Edge], components: dict[str, frozenset[str]]) -> bool:
    """Tell whether an edge is in a loop that needs nothing from elsewhere for its next round."""
    component = components.get(edge.target.name, frozenset())
    if edge.source.name not in component:
        return False
    if edge.subscription.kind in ("single", "batch"):
        return True
    fed = {
        other.output.type
        for other in edges
        if other.subscription is edge.subscription and other.source.name in component
    }
    return fed >= set(edge.subscription.types)


def _components(edges: list[Edge]) -> dict[str, frozenset[str]]:
    """Return, for every agent in a cycle, all agents that it shares cycles with."""
    following: dict[str, set[str]] = {}
    for edge in edges:
        following.setdefault(edge.source.name, set()).add(edge.target.name)
    reach = {name: _reachable(name, following) for name in following}
    return {
        name: frozenset(other for other in reach[name] if name in reach.get(other, ()))
        for name in following
        if name in reach[name]
    }


def _reachable(start: str, following: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for name in following.get(waiting.pop(), ()):
            if name not in seen:
                seen.add(name)
                waiting.append(name)
    return seen


def _cycle(start: str, edges: list[Edge]) -> str:
    """Write the shortest cycle through an agent as `a -(Type)-> b -(Type)-> a`."""
    waiting = [(start, start)]
    seen: set[str] = set()
    while waiting:
        name, path = waiting.pop(0)
        for edge in sorted(edges, key=lambda e: (e.target.name, e.type)):
            if edge.source.name != name:
                continue
            longer = f"{path} -({edge.type})-> {edge.target.name}"
            if edge.target.name == start:
                return longer
            if edge.target.name not in seen:
                seen.add(edge.target.name)
                waiting.append((edge.target.name, longer))
    return start
