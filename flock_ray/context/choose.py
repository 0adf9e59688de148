"""What a flock does about contexts when its agents are deployed. Imports nothing heavy: every flock has it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from flock_ray.core.triggers import Sliding
from flock_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from flock_ray.core.definition import AgentDefinition

__all__ = ["give_context", "give_windows", "needs_embedder"]


def give_context(definition: AgentDefinition, provider: Any, *, has_embedder: bool) -> None:
    """Let an agent that is about to be deployed have the flock's provider, if it has none of its own.

    Args:
        definition: The agent; changed.
        provider: The flock's; None: there is none.
        has_embedder: Whether meanings can be compared.

    Raises:
        ConfigurationError: Its provider compares meanings, and there is no embedder.
    """
    if definition.context_provider is None:
        definition.context_provider = provider
    if not has_embedder and needs_embedder(definition.context_provider):
        raise ConfigurationError(
            f"The context of agent {definition.name!r} is chosen by meaning, and there is no embedder: give "
            'Flock(embedder="onnx:/path/to/model") or set FLOCK_EMBEDDER.'
        )


def give_windows(definitions: Iterable[AgentDefinition], provider: Any) -> None:
    """Let agents that sliding windows name see their windows, unless they have a provider of their own.

    Args:
        definitions: Agents that are about to be deployed; changed.
        provider: The flock's, for runs without a window; None: there is none.
    """
    by_name = {definition.name: definition for definition in definitions}
    for definition in list(by_name.values()):
        windowed = any(isinstance(schedule.trigger, Sliding) for schedule in definition.schedules)
        target = by_name.get(definition.schedule_for or definition.name) if windowed else None
        if target is not None and target.context_provider is None:
            from flock_ray.context.window import WindowContextProvider

            target.context_provider = WindowContextProvider(inner=provider)


def needs_embedder(provider: object) -> bool:
    """Tell whether a provider, or one that it wraps, compares meanings."""
    while provider is not None:
        if getattr(provider, "needs_embedder", False) is True:
            return True
        provider = getattr(provider, "inner", None)
    return False
