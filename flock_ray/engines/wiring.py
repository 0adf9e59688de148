"""Gives an agent the services of the worker that runs it, and an engine when it brought none."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any

from flock_ray.engines.context import RunHooks
from flock_ray.engines.outputs import MAX_NOTES, Note
from flock_ray.engines.services import NeedsServices, Services, TextSink

if TYPE_CHECKING:
    from collections.abc import Callable

    from flock_ray.core.definition import AgentDefinition
    from flock_ray.core.wire import Task

__all__ = ["hooks_of", "is_for_model", "services_for", "with_services"]

_NO_HOOKS = RunHooks()


def with_services(definition: AgentDefinition, services: Services) -> AgentDefinition:
    """Bind everything of an agent that uses services.

    Args:
        definition: The agent; not changed.
        services: What this worker has.

    Returns:
        The definition, with the LLM engine if the agent has neither function nor engine and there is
        a model for it.
    """
    if is_for_model(definition) and _model_name(definition, services) and services.model is not None:
        # Not at the top: agents that run functions need none of it.
        from flock_ray.engines.llm import LiteLLMEngine

        definition = dataclasses.replace(definition, engines=[LiteLLMEngine()])
    parts: list[Any] = [*definition.engines, *definition.utilities, definition.context_provider]
    for part in parts:
        # A class has the method as well, but is nothing that could be bound.
        if isinstance(part, NeedsServices) and not isinstance(part, type):
            part.bind(services)
    return definition


def is_for_model(definition: AgentDefinition) -> bool:
    """Tell whether only a language model could run an agent: no function, no engine, and something to do."""
    has_work = bool(definition.output_groups or definition.tools or definition.mcp_servers)
    return definition.function is None and not definition.engines and has_work


def services_for(definition: AgentDefinition, services: Services) -> Services:
    """Return what a worker has for one agent: its embedder came along with the agent.

    Candidates of `best_of` don't stream: they speak at the same time, and all but one are given up. Nor does an
    agent whose outputs are looked at before anybody may see them.
    """
    if services.stream is not None and (
        definition.best_of is not None or any(_holds_back(one) for one in definition.utilities)
    ):
        services = dataclasses.replace(services, stream=None)
    if definition.idle_timeout_s is not None and services.heartbeat is not None:
        # It does not say who listens: an answer streams for its signs of life, also when nobody does.
        services = dataclasses.replace(
            services, stream=partial(_stream_alive, services.heartbeat, services.stream)
        )
    if definition.embedder is None:
        return services
    return dataclasses.replace(services, embedder=definition.embedder)


def _stream_alive(
    beat: Callable[[Task], bool | None], stream: TextSink | None, task: Task, kind: str, text: str
) -> None:
    """Take what a run streams as a sign of life; without anybody to show it to, that is all it is for."""
    beat(task)
    if stream is not None:
        stream(task, kind, text)


def _holds_back(utility: Any) -> bool:
    """Tell whether a component may change or stop what the run says: a stream would have said it already."""
    is_enabled = getattr(getattr(utility, "config", None), "enabled", True)
    return bool(is_enabled and getattr(utility, "holds_back_outputs", False))


def hooks_of(services: Services, task: Task, notes: list[Note] | None = None) -> RunHooks:
    """Return how one run reaches its worker, and the event log through `notes`."""
    if services.stream is None and services.heartbeat is None and notes is None:
        return _NO_HOOKS
    listened = getattr(services.stream, "listened", None)
    return RunHooks(
        note=None if notes is None else partial(_add, notes),
        listened=None if listened is None else partial(listened, task),
        stream=None if services.stream is None else partial(services.stream, task),
        heartbeat=None if services.heartbeat is None else partial(services.heartbeat, task),
    )


def _add(notes: list[Note], kind: str, detail: str) -> None:
    # Only so many are kept of a run, and a long one should not hold all of them until it ends.
    if len(notes) < 2 * MAX_NOTES or kind.startswith("guard."):
        notes.append((kind, detail))


def _model_name(definition: AgentDefinition, services: Services) -> str | None:
    return definition.model or services.default_model
