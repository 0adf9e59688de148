"""What a context provider is: the question it gets, and the base class of our own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from flock_ray.artifact import Artifact
from flock_ray.context.budget import checked_limit, newest_within, ordered
from flock_ray.core.visibility import AgentIdentity
from flock_ray.engines.function import is_async_callable
from flock_ray.errors import ConfigurationError

if TYPE_CHECKING:
    import uuid

    from flock_ray.context.view import ContextView
    from flock_ray.core.definition import AgentDefinition

__all__ = [
    "BaseContextProvider",
    "BudgetedContextProvider",
    "ContextProvider",
    "ContextRequest",
    "checked_provider",
]


@dataclass(frozen=True, slots=True)
class ContextRequest:
    """For which run a context is wanted."""

    agent: AgentDefinition
    correlation_id: str | None
    """The workflow of the run's outputs."""
    store: ContextView
    """The board as the agent may see it."""
    agent_identity: AgentIdentity
    exclude_ids: set[uuid.UUID] = field(default_factory=set)
    """The inputs of the run: what it gets anyway is no context."""
    inputs: tuple[Artifact, ...] = ()
    """The inputs themselves."""
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    """The present, aware."""
    offload: Callable[..., Awaitable[Any]] = field(default=asyncio.to_thread, repr=False, compare=False)
    """Runs a blocking function off the event loop: `await request.offload(function, argument)`."""

    def sees(self, artifact: Artifact) -> bool:
        """Tell whether an artifact, as it says itself, is visible to the identity and no input of the run."""
        created_at = artifact.created_at
        allowed = artifact.visibility.allows(self.agent_identity, now=self.now, created_at=created_at)
        return allowed and artifact.id not in self.exclude_ids


@runtime_checkable
class ContextProvider(Protocol):
    """Chooses what an agent sees of the board. Any async callable will do; it goes to the workers by cloudpickle.

    It returns artifacts that it got from `request.store`. Their content may be changed (redacted); who made them,
    when, and who may see them stays what is stored. Anything else is left out, and said so by an event.
    """

    async def __call__(self, request: ContextRequest) -> list[Artifact]:
        """Return the context of one run, in any order."""
        ...


class BaseContextProvider:
    """Base of providers with a class: overwrite `get_artifacts`."""

    max_tokens: int | None = None
    """Budget as `estimated_tokens` counts; the newest artifacts are kept. None is no limit."""

    async def get_artifacts(self, request: ContextRequest) -> list[Artifact]:
        """Return the artifacts that the context is made of.

        Visibility, inputs of the run, order and budget are taken care of afterwards.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a method: async def get_artifacts(...)")

    async def __call__(self, request: ContextRequest) -> list[Artifact]:
        """Return what `get_artifacts` finds and the agent may see, oldest first, within the budget."""
        found = await self.get_artifacts(request)
        return newest_within(ordered(a for a in found if request.sees(a)), self.max_tokens)


class BudgetedContextProvider(BaseContextProvider):
    """Puts a budget on any provider; what `with_context(provider, max_tokens=...)` makes."""

    def __init__(self, inner: ContextProvider, max_tokens: int) -> None:
        """Limit a provider."""
        self.inner = inner
        self.max_tokens = checked_limit(max_tokens, "max_tokens=")

    def bind(self, services: Any) -> None:
        """Hand on the services of the worker."""
        bind_inner(self.inner, services)

    async def get_artifacts(self, request: ContextRequest) -> list[Artifact]:
        """Return what the provider finds."""
        return await self.inner(request)


def bind_inner(inner: object, services: Any) -> None:
    """Hand the services of a worker on to a wrapped provider that uses any."""
    bind = getattr(inner, "bind", None)
    if bind is not None:
        bind(services)


def checked_provider(provider: object, at: str, *, max_tokens: int | None = None) -> Any:
    """Return a provider, with its budget if there is one.

    Args:
        provider: What the user gave.
        at: Beginning of an error's message.
        max_tokens: A budget for it; None: only its own, if it has one.

    Raises:
        ConfigurationError: It is no async callable, or the budget is no number.
    """
    if isinstance(provider, type):
        raise ConfigurationError(f"{at} takes a provider, not its class: write {provider.__name__}(...)")
    if not callable(provider):
        raise ConfigurationError(
            f"{at} takes a context provider, for example RecentContextProvider(limit=20), got {provider!r}"
        )
    if not is_async_callable(provider):
        raise ConfigurationError(
            f"{at} needs an async provider: a blocking one stops every agent of its worker; "
            "write `async def provider(request): ...`"
        )
    if max_tokens is None:
        return provider
    checked_limit(max_tokens, f"{at} max_tokens=")
    return BudgetedContextProvider(cast(Any, provider), max_tokens)
