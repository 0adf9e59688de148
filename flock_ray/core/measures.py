"""Numbers about a shard for dashboards: how often something happened, and how much there is of something.

Nothing is counted for them on the way of an artifact but one number per event that is logged anyway; what there is
of something is looked up when somebody asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from flock_ray.core.budgets import NUSD, period_of
from flock_ray.core.shard import ShardCore

__all__ = ["HELP", "Kind", "Measurement", "measure", "summed"]

Kind = Literal["counter", "gauge"]
Labels = tuple[tuple[str, str], ...]

_COUNTERS: dict[str, tuple[str, str, str]] = {
    "artifact.published": ("flock_artifacts", "", ""),
    "activation.completed": ("flock_runs", "outcome", "completed"),
    "activation.failed": ("flock_runs", "outcome", "failed"),
    "activation.skipped": ("flock_runs", "outcome", "skipped"),
    "activation.replaced": ("flock_runs", "outcome", "replaced"),
    "activation.retried": ("flock_retries", "", ""),
    "retry.refused": ("flock_retries_refused", "", ""),
    "activation.worker_lost": ("flock_crashes", "", ""),
    "dead_letter.created": ("flock_dead_letters", "action", "created"),
    "dead_letter.redriven": ("flock_dead_letters", "action", "redriven"),
    "dead_letter.edited": ("flock_dead_letters", "action", "edited"),
    "dead_letter.discarded": ("flock_dead_letters", "action", "discarded"),
    "breaker.opened": ("flock_breaker_changes", "state", "open"),
    "breaker.half_open": ("flock_breaker_changes", "state", "half_open"),
    "breaker.closed": ("flock_breaker_changes", "state", "closed"),
    "limit.waiting": ("flock_limits_reached", "", ""),
    "budget.exceeded": ("flock_budgets_exceeded", "", ""),
    "match.refused": ("flock_matches_refused", "", ""),
    "gate.expired": ("flock_gates_expired", "", ""),
}
"""By kind of event: what is counted, and the label that the kind stands for."""

HELP: dict[str, str] = {
    "flock_artifacts": "Artifacts that were accepted.",
    "flock_runs": "Runs that ended for good, by agent and outcome.",
    "flock_retries": "Attempts that failed and after which another one is made, by agent.",
    "flock_retries_refused": "Retries that an agent's budget of retries did not allow.",
    "flock_crashes": "Runs whose worker died, by agent.",
    "flock_dead_letters": "What happened with dead letters, by agent and action.",
    "flock_dead_letters_open": "Dead letters that nobody has redriven or discarded.",
    "flock_breaker_changes": "Changes of circuit breakers, by agent and new state.",
    "flock_breaker_state": "Circuit breakers, by agent: 0 closed, 1 half-open, 2 open.",
    "flock_limits_reached": "How often the limits of an agent began to hold something back.",
    "flock_limited": "Runs that the limits of an agent hold back.",
    "flock_budgets_exceeded": "Budgets that were found used up, by agent.",
    "flock_budget_spent_usd": "US dollars spent, by account; of accounts per day and per agent only.",
    "flock_budget_reserved_usd": "US dollars reserved for calls that run, by account.",
    "flock_matches_refused": "Matches that user code made impossible.",
    "flock_gates_expired": "Groups of inputs whose window ended before they were complete, by agent.",
    "flock_ready": "Runs that wait for a worker and nothing else, by agent.",
    "flock_ready_oldest_seconds": "Age of about the oldest of these, by agent.",
    "flock_running": "Runs that workers have, by agent.",
    "flock_open": "Runs that have not ended, whatever they wait for.",
    "flock_outbox": "Messages for other slots that these have not acknowledged.",
}
"""What every number means. One name always has the same labels."""

MAX_ACCOUNTS = 200
"""Accounts of a shard that are measured."""

_STATES = {"closed": 0, "half_open": 1, "open": 2}


class Measurement(msgspec.Struct, array_like=True, frozen=True):
    """One number."""

    name: str
    kind: Kind
    """`counter`: since the process of the shard began; `gauge`: now."""
    value: float
    labels: Labels = ()


def measure(core: ShardCore, now_us: int) -> list[Measurement]:
    """Return all numbers of a shard; takes time in proportion to its agents, not to its work."""
    return [*_counted(core), *_queues(core, now_us), *_breakers(core), *_budgets(core)]


def _counted(core: ShardCore) -> Iterator[Measurement]:
    for (kind, agent), count in core.events.counts.items():
        known = _COUNTERS.get(kind)
        if known is not None:
            name, label, value = known
            labels: Labels = () if name == "flock_artifacts" else (("agent", agent),)
            yield Measurement(name, "counter", count, (*labels, (label, value)) if label else labels)


def _queues(core: ShardCore, now_us: int) -> Iterator[Measurement]:
    for agent, count in core.wanted(now_us).items():
        labels = (("agent", agent),)
        yield Measurement("flock_ready", "gauge", count, labels)
        if oldest_us := core.oldest_wanted_us(agent):
            age_s = max(0, now_us - oldest_us) / 1e6
            yield Measurement("flock_ready_oldest_seconds", "gauge", age_s, labels)
    for agent, count in core.dispatch.running().items():
        yield Measurement("flock_running", "gauge", count, (("agent", agent),))
    for agent, count in core.held_back().items():
        yield Measurement("flock_limited", "gauge", count, (("agent", agent),))
    yield Measurement("flock_open", "gauge", core.num_open)
    yield Measurement("flock_outbox", "gauge", core.num_outbox)
    yield Measurement("flock_dead_letters_open", "gauge", sum(len(s.letters) for s in core.slots.values()))


def _breakers(core: ShardCore) -> Iterator[Measurement]:
    for agent, info in core.agents.items():
        if info.limits is None or info.limits.breaker is None:
            continue
        slot = core.slots.get(info.limits.home(agent, ""))
        if slot is not None:
            lane = slot.lanes.get(agent)
            state = "closed" if lane is None else lane.breaker.state
            yield Measurement("flock_breaker_state", "gauge", _STATES[state], (("agent", agent),))


def _budgets(core: ShardCore) -> Iterator[Measurement]:
    left = MAX_ACCOUNTS
    for slot in core.slots.values():
        for name, account in slot.ledger.accounts.items():
            # Tenants and workflows are too many for a dashboard, and their names may be nobody else's business.
            if (
                "tenant:" in name
                or "workflow:" in name
                or (account.limit.nusd is None and account.own is None)
            ):
                continue
            if left <= 0:
                return
            left -= 1
            labels = (("account", name), ("period", period_of(name) or "none"))
            yield Measurement("flock_budget_spent_usd", "gauge", account.spent.nusd / NUSD, labels)
            yield Measurement("flock_budget_reserved_usd", "gauge", account.held.nusd / NUSD, labels)


def summed(parts: Iterable[Measurement]) -> list[Measurement]:
    """Add up the numbers of several shards, by name and labels; of ages, the highest counts."""
    totals: Counter[tuple[str, Kind, Labels]] = Counter()
    for part in parts:
        key = (part.name, part.kind, part.labels)
        if part.name == "flock_ready_oldest_seconds":
            totals[key] = max(totals[key], part.value)  # type: ignore[assignment]  # a Counter of floats
        else:
            totals[key] += part.value  # type: ignore[assignment]
    return [Measurement(name, kind, value, labels) for (name, kind, labels), value in sorted(totals.items())]
