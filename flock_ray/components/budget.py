"""A place for a budget to say no, before a run costs anything."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flock_ray.engines.component import AgentComponent
from flock_ray.errors import BudgetExceededError

if TYPE_CHECKING:
    from flock_ray.artifact import Artifact
    from flock_ray.core.definition import AgentDefinition
    from flock_ray.engines.context import Context

__all__ = ["BudgetHook"]


class BudgetHook(AgentComponent):
    """Asks a function of yours whether a run may begin. It keeps no account itself.

    The function gets (agent, ctx, inputs) and may be async. True or None lets the run begin; False, or text that
    says why, fails it with a BudgetExceededError. What it raises fails the run as it is: no answer is no yes.
    It is asked once per attempt, in the process that runs the agent: where it counts is for it to decide, and
    `ctx.idempotency_key` tells it which attempts are of the same run.
    """

    priority: int = -2000
    allows: Callable[..., Any]

    async def on_pre_consume(
        self, agent: AgentDefinition, ctx: Context, inputs: list[Artifact]
    ) -> list[Artifact]:
        """Ask.

        Raises:
            BudgetExceededError: The answer is no; not retryable.
        """
        answer = self.allows(agent, ctx, inputs)
        if inspect.isawaitable(answer):
            answer = await answer
        if answer is None or answer is True:
            return inputs
        if isinstance(answer, str):
            raise BudgetExceededError(f"No budget for agent {agent.name!r}: {answer}", agent=agent.name)
        if answer is False:
            raise BudgetExceededError(
                f"No budget for agent {agent.name!r}. Raise it, or wait until it is renewed.",
                agent=agent.name,
            )
        raise TypeError(
            f"The function of BudgetHook returned a {type(answer).__name__}: return True, False, or why not as text."
        )
