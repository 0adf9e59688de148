"""The hooks of orchestrator components around the beginning of a run. They travel with the agents, to their workers."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from flock_ray.artifact import Artifact
from flock_ray.components.orchestrator.base import OrchestratorComponent
from flock_ray.components.orchestrator.gate import NoFlockHere
from flock_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from flock_ray.core.definition import AgentDefinition

__all__ = ["started", "starting"]

_HOOKS = ("on_before_agent_schedule", "on_agent_scheduled")


def starting(components: Iterable[OrchestratorComponent]) -> tuple[OrchestratorComponent, ...]:
    """Return the components that are enabled and have one of the hooks, in order."""
    return tuple(
        one
        for one in components
        if one.config.enabled
        and any(getattr(type(one), hook) is not getattr(OrchestratorComponent, hook) for hook in _HOOKS)
    )


async def started(
    starters: Sequence[OrchestratorComponent], agent: AgentDefinition, artifacts: list[Artifact]
) -> tuple[list[Artifact], str]:
    """Let components see, change or refuse the inputs of a run that begins, and tell them that it does.

    Returns:
        The inputs, and the name of the component that refused the run; empty: none did.

    Raises:
        ConfigurationError: A component returned something else than artifacts.
    """
    for one in starters:
        name = one.name or type(one).__name__
        answer = await _awaited(one.on_before_agent_schedule(NoFlockHere(name), agent, list(artifacts)))
        if answer is None:
            return [], name
        if not isinstance(answer, (list, tuple)) or not all(isinstance(made, Artifact) for made in answer):
            raise ConfigurationError(
                f"{name}.on_before_agent_schedule returned {type(answer).__name__}: return the list of artifacts, "
                "or None for no run."
            )
        artifacts = list(answer)
    task = asyncio.current_task()
    for one in starters:
        name = one.name or type(one).__name__
        await _awaited(one.on_agent_scheduled(NoFlockHere(name), agent, list(artifacts), task))
    return artifacts, ""


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value
