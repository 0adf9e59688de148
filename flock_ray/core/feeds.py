"""Which agents lead where, as far as the table says: by the types that they publish and consume."""

from __future__ import annotations

from flock_ray.core.wire import TableSpec


class Feeds:
    """Who feeds whom in one version of the table. What is asked for is worked out once."""

    def __init__(self, table: TableSpec) -> None:
        """Take a table; nothing is worked out yet."""
        self._outputs = {info.name: frozenset(info.outputs) for info in table.agents}
        self._consumers: dict[str, dict[str, str]] = {}
        """By type: subscriptions with their agents."""
        for spec in table.subscriptions:
            for name in spec.types:
                self._consumers.setdefault(name, {})[spec.id] = spec.agent
        self._only: dict[str, frozenset[str]] = {}
        self._reached: dict[str, frozenset[str]] = {}

    def only(self, subscription: str) -> frozenset[str]:
        """Return the agents all of whose outputs end in a subscription, maybe through others of them."""
        known = self._only.get(subscription)
        if known is None:
            found: set[str] = set()
            while more := {a for a in self._outputs.keys() - found if self._ends_in(a, subscription, found)}:
                found |= more
            known = self._only[subscription] = frozenset(found)
        return known

    def _ends_in(self, agent: str, subscription: str, found: set[str]) -> bool:
        consumers = [self._consumers.get(name, {}) for name in self._outputs[agent]]
        return bool(consumers) and all(
            some and all(sub == subscription or target in found for sub, target in some.items())
            for some in consumers
        )

    def reaches(self, agent: str, subscription: str) -> bool:
        """Say whether what an agent publishes can lead to an input of a subscription."""
        known = self._reached.get(agent)
        if known is None:
            subscriptions: set[str] = set()
            agents, seen = [agent], {agent}
            while agents:
                for name in self._outputs.get(agents.pop(), ()):
                    for sub, target in self._consumers.get(name, {}).items():
                        subscriptions.add(sub)
                        if target not in seen:
                            seen.add(target)
                            agents.append(target)
            known = self._reached[agent] = frozenset(subscriptions)
        return subscription in known
