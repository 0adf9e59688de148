"""Whose money a run spends, and how long it waits when there is none left."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from flock_ray.core.budget_rules import charges_of
from flock_ray.core.tenants import tenant_of
from flock_ray.core.wire import RetryAsk
from flock_ray.errors import BudgetExceededError

if TYPE_CHECKING:
    from flock_ray.core.budgets import Charge
    from flock_ray.core.definition import AgentDefinition
    from flock_ray.core.wire import Completion, Task
    from flock_ray.model import ModelRequest

__all__ = ["Paying", "Purse"]

SOON_S = 5.0
MIN_WAIT_S, MAX_WAIT_S = 60.0, 600.0
"""A run that waits for its budget looks again after so long: somebody may have raised it."""
MIN_DAILY_S, MAX_DAILY_S = 600.0, 1800.0
"""The same for a budget that begins anew by itself: each look is an attempt of the run."""
SPREAD_S = 30.0
"""Runs that wait for a new day begin within so long."""


class Paying:
    """What one agent's runs are charged for."""

    __slots__ = ("_definition", "_draw", "_now_us")

    def __init__(
        self, definition: AgentDefinition, now_us: Callable[[], int], draw: Callable[[], float]
    ) -> None:
        """Take what the agent declares.

        Args:
            definition: Of the agent.
            now_us: Wall clock, in microseconds since the Unix epoch.
            draw: Gives random numbers from 0 to below 1.
        """
        self._definition = definition
        self._now_us = now_us
        self._draw = draw

    def purse(self, task: Task) -> Purse:
        """Return what pays for one attempt; nothing is looked up before its first call."""
        return Purse(self._definition, task)

    def settled(self, completion: Completion, purse: Purse) -> Completion:
        """Let a run that failed for want of money wait for it, if its budget says so: without its worker."""
        error, wait = completion.error, purse.wait
        if wait is None or error is None or error.type != BudgetExceededError.__name__:
            return completion
        wait_s, renews_us = wait
        if wait_s <= SOON_S:
            after_s = 1.0 + (SOON_S - 1.0) * self._draw()
        elif wait_s < MIN_WAIT_S:  # somebody was asked for more
            after_s = wait_s * (1.0 + self._draw())
        elif not renews_us:
            after_s = MIN_WAIT_S + (MAX_WAIT_S - MIN_WAIT_S) * self._draw()
        else:
            after_s = MIN_DAILY_S + (MAX_DAILY_S - MIN_DAILY_S) * self._draw()
            left_s = max(0.0, (renews_us - self._now_us()) / 1e6)
            after_s = min(after_s, left_s + SPREAD_S * self._draw())
        ask = RetryAsk(int(after_s * 1e6), counts=False)
        return msgspec.structs.replace(completion, retry=ask, trips=False)


class Purse:
    """What pays for the calls of one attempt."""

    __slots__ = ("_definition", "_found", "_task", "wait")

    def __init__(self, definition: AgentDefinition, task: Task) -> None:
        """Pay for an attempt."""
        self._definition = definition
        self._task = task
        self._found: tuple[str, tuple[Charge, ...]] | None = None
        self.wait: tuple[float, int] | None = None
        """(seconds, renewal in microseconds or 0) of the last refusal that the run may wait for."""

    def paid(self, request: ModelRequest) -> ModelRequest:
        """Return a request with its tenant and the accounts that pay for it.

        Raises:
            ConfigurationError: They are too many.
        """
        if self._found is None:
            self._found = self._find()
        tenant, charges = self._found
        caller = request.caller
        if not charges and tenant == caller.tenant:
            return request
        task = self._task
        caller = msgspec.structs.replace(
            caller, tenant=tenant, charges=charges, agent=caller.agent or task.agent,
            workflow=caller.workflow or task.correlation_id,
        )  # fmt: skip
        return msgspec.structs.replace(request, caller=caller)

    def refused(self, error: BaseException) -> None:
        """Remember that a call was not made for want of money."""
        if isinstance(error, BudgetExceededError):
            wait_s = getattr(error, "retry_after_s", None)
            self.wait = None if wait_s is None else (float(wait_s), int(getattr(error, "renews_us", 0)))

    def _find(self) -> tuple[str, tuple[Charge, ...]]:
        definition, task = self._definition, self._task
        tags = {tag for envelope in task.inputs for tag in envelope.tags}
        tenant = tenant_of(tags) or definition.tenant or ""
        return tenant, charges_of(
            definition.budgets, agent=task.agent, workflow=task.correlation_id, tenant=tenant, tags=tags
        )
