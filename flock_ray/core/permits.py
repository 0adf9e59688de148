"""Permits: what the router lets a shard start, by agent and worker, until they run out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flock_ray.core.state import Activation
from flock_ray.core.wire import Allowance, Grant, GrantBatch

READ_AHEAD_US = 50_000
"""Work a worker may have queued per unit of concurrency: enough to hide the round trip, little enough
that a slow activation holds up few others."""

Leases = Mapping[str, Mapping[bytes, Activation]]
"""By worker: what it holds."""


class Holding:
    """Permits of one agent on one worker, and how many are in use."""

    __slots__ = ("concurrency", "credit", "used")

    def __init__(self) -> None:
        """Start with none in use."""
        self.credit = 0
        self.concurrency = 1
        self.used = 0

    def room(self, mean_run_us: float) -> int:
        """Return how many more attempts may go there now, given the mean run time (0: unknown)."""
        window = self.concurrency
        if mean_run_us:
            window = int(window * max(1.0, READ_AHEAD_US / mean_run_us))
        return min(self.credit, window) - self.used


class Permits:
    """All permits that a shard holds. A batch replaces them all or renews them; what stays as it is costs little."""

    __slots__ = ("by_agent", "expires_us", "seq", "whole")

    def __init__(self) -> None:
        """Start without any."""
        self.by_agent: dict[str, dict[str, Holding]] = {}
        self.seq = 0
        """Number of the newest batch; 0 before the first."""
        self.expires_us = 0
        self.whole = True
        """Nothing of the newest batch was dropped since; otherwise it can't be renewed."""

    def take(self, batch: GrantBatch, now_us: int, leases: Leases) -> bool:
        """Take a batch; False for one that comes late, or that renews what is not held whole here.

        Args:
            batch: From the router.
            now_us: Now.
            leases: What workers hold: counts as used where a worker is new here.
        """
        if batch.seq <= self.seq or (batch.renews and (batch.renews != self.seq or not self.whole)):
            return False
        self.seq = batch.seq
        self.expires_us = now_us + int(batch.ttl_s * 1_000_000)
        if not batch.renews:
            self.whole = True
            self._replace(batch.grants, leases)
        return True

    def expired(self, now_us: int) -> bool:
        """Say whether permits are held past their time to live."""
        return bool(self.by_agent) and now_us > self.expires_us

    def drop(self, worker: str) -> None:
        """Forget a worker that is gone, or does not take what it is given; only a new batch brings it back."""
        for holdings in self.by_agent.values():
            if holdings.pop(worker, None) is not None:
                self.whole = False

    def _replace(self, grants: Sequence[Grant], leases: Leases) -> None:
        wanted: dict[str, list[tuple[tuple[str, ...], Allowance]]] = {}
        for grant in grants:
            for allowance in grant.agents:
                wanted.setdefault(allowance.agent, []).append((grant.workers, allowance))
        for agent in self.by_agent.keys() - wanted.keys():
            del self.by_agent[agent]
        for agent, parts in wanted.items():
            holdings = self.by_agent.setdefault(agent, {})
            for worker in holdings.keys() - set().union(*(workers for workers, _ in parts)):
                del holdings[worker]
            for workers, allowance in parts:
                credit, concurrency = allowance.credit, allowance.concurrency
                for worker in workers:
                    holding = holdings.get(worker)
                    if holding is None:
                        holding = holdings[worker] = _counted(agent, leases.get(worker, {}))
                    holding.credit, holding.concurrency = credit, concurrency


def _counted(agent: str, held: Mapping[bytes, Activation]) -> Holding:
    """Return new permits that count what a worker holds of an agent already."""
    holding = Holding()
    for activation in held.values():
        if activation.agent == agent:
            activation.holding = holding
            holding.used += 1
    return holding
