"""Which accounts pay for what a run does: from what its agent declares, and from the tags of its inputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from flock_ray.core.budgets import Charge, Limit, Terms, account_name
from flock_ray.errors import ConfigurationError

__all__ = ["BUDGET_TAG", "BudgetRule", "Per", "budget_tag", "charges_of"]

Per = Literal["workflow", "tenant", "agent", "day"]

BUDGET_TAG = "budget:"
"""Begins the tag of everything that a workflow's own budget pays for; its id follows."""

MAX_CHARGES = 256


@dataclass(frozen=True, slots=True)
class BudgetRule:
    """One budget of an agent, or one that its flock gives to all of its agents."""

    per: Per
    limit: Limit
    terms: Terms
    own: bool = False
    """It counts only what this agent does."""
    renews: str = ""
    """`day` or `month`: it begins anew with each; empty: never, unless it is per day."""


def budget_tag(workflow: str) -> str:
    """Return the tag that says: the budget of this workflow pays."""
    return BUDGET_TAG + workflow


def charges_of(
    rules: Sequence[BudgetRule], *, agent: str, workflow: str, tenant: str, tags: Iterable[str]
) -> tuple[Charge, ...]:
    """Return the accounts that pay for a run, each once.

    Args:
        rules: Of its agent, in declared order.
        agent: Its name.
        workflow: Of the run.
        tenant: Of the run; "" is one tenant, too.
        tags: Of its inputs.

    Raises:
        ConfigurationError: They are too many: a batch of inputs with budgets of their own.
    """
    names = {"workflow": workflow, "tenant": tenant, "agent": agent, "day": ""}
    found: dict[str, Charge] = {}
    for rule in rules:
        whose, number = agent if rule.own else "", 1
        account = account_name(rule.per, names[rule.per], agent=whose, renews=rule.renews)
        while account in found:  # two budgets over the same thing, such as dollars here and calls there
            number += 1
            account = account_name(rule.per, names[rule.per], agent=whose, number=number, renews=rule.renews)
        found[account] = Charge(account, rule.limit, rule.terms)
    for tag in tags:
        if tag.startswith(BUDGET_TAG):
            account = account_name("workflow", tag[len(BUDGET_TAG) :])
            # Its own limit is known where the account is, and wins there over a declared one.
            found.setdefault(account, Charge(account))
    if len(found) > MAX_CHARGES:
        raise ConfigurationError(
            f"{len(found)} budgets would pay for one run of agent {agent!r}, at most {MAX_CHARGES} can: "
            "make its batches smaller, or give a tenant the budget instead of each workflow."
        )
    return tuple(found[account] for account in sorted(found))
