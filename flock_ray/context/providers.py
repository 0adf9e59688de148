"""The context providers that need nothing but the board."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from flock_ray.artifact import Artifact
from flock_ray.context.budget import checked_limit
from flock_ray.context.request import BaseContextProvider, ContextProvider, ContextRequest, bind_inner
from flock_ray.context.view import MAX_ARTIFACTS
from flock_ray.core.visibility import AgentIdentity
from flock_ray.errors import ConfigurationError
from flock_ray.filters import FilterConfig

__all__ = [
    "BoundContextProvider",
    "CorrelatedContextProvider",
    "DefaultContextProvider",
    "EmptyContextProvider",
    "FilteredContextProvider",
    "RecentContextProvider",
    "TimeWindowContextProvider",
]


class EmptyContextProvider(BaseContextProvider):
    """Shows nothing: for an agent of a flock whose other agents get a context."""

    async def get_artifacts(self, request: ContextRequest) -> list[Artifact]:
        """Return nothing."""
        return []


class _Newest(BaseContextProvider):
    """The newest of what a filter selects."""

    def __init__(
        self, *, limit: int, max_tokens: int | None = None, exclude_types: Iterable[str] = ()
    ) -> None:
        """Set the limits.

        Args:
            limit: At most so many artifacts, the newest; from 1, and 1000 are the most.
            max_tokens: A budget, see `estimated_tokens`; the newest are kept. None is no limit.
            exclude_types: Names of types that are left out.

        Raises:
            ConfigurationError: A limit is no whole number from 1.
        """
        name = type(self).__name__
        self.limit = checked_limit(limit, f"{name}(limit=)")
        self.max_tokens = None if max_tokens is None else checked_limit(max_tokens, f"{name}(max_tokens=)")
        if isinstance(exclude_types, str):
            raise ConfigurationError(f"{name}(exclude_types={exclude_types!r}): give a set of strings.")
        self.exclude_types = frozenset(exclude_types)

    def filters(self, request: ContextRequest) -> FilterConfig | None:
        """Return what to select; None is everything."""
        return None

    async def get_artifacts(self, request: ContextRequest) -> list[Artifact]:
        """Read from the board's indexes."""
        return await request.store.newest(
            self.filters(request), limit=self.limit, exclude_types=self.exclude_types
        )


class DefaultContextProvider(_Newest):
    """Shows the whole board, whatever the workflow; on a large one the newest 1000 artifacts."""

    def __init__(
        self,
        *,
        limit: int = MAX_ARTIFACTS,
        max_tokens: int | None = None,
        exclude_types: Iterable[str] = (),
    ) -> None:
        """Set the limits: see `RecentContextProvider`."""
        super().__init__(limit=limit, max_tokens=max_tokens, exclude_types=exclude_types)


class RecentContextProvider(_Newest):
    """Shows the newest artifacts of the whole board."""

    def __init__(
        self, limit: int = 50, *, max_tokens: int | None = None, exclude_types: Iterable[str] = ()
    ) -> None:
        """Set the limits.

        Args:
            limit: At most so many artifacts, from 1; 1000 are the most.
            max_tokens: A budget, see `estimated_tokens`; None is no limit.
            exclude_types: Names of types that are left out.
        """
        super().__init__(limit=limit, max_tokens=max_tokens, exclude_types=exclude_types)


class CorrelatedContextProvider(_Newest):
    """Shows the workflow that the run belongs to; what an engine's `enable_context` gives."""

    def __init__(
        self,
        *,
        limit: int = MAX_ARTIFACTS,
        max_tokens: int | None = None,
        exclude_types: Iterable[str] = (),
    ) -> None:
        """Set the limits: see `RecentContextProvider`."""
        super().__init__(limit=limit, max_tokens=max_tokens, exclude_types=exclude_types)

    def filters(self, request: ContextRequest) -> FilterConfig:
        """Select the workflow."""
        return FilterConfig(correlation_id=request.correlation_id)

    async def get_artifacts(self, request: ContextRequest) -> list[Artifact]:
        """Read the workflow; a run without one has no context."""
        return [] if request.correlation_id is None else await super().get_artifacts(request)


class TimeWindowContextProvider(_Newest):
    """Shows what was created within the last hours."""

    def __init__(
        self,
        hours: float = 1,
        *,
        limit: int = MAX_ARTIFACTS,
        max_tokens: int | None = None,
        exclude_types: Iterable[str] = (),
    ) -> None:
        """Set the window.

        Args:
            hours: How far back, above 0; fractions are allowed.
            limit: At most so many artifacts, the newest.
            max_tokens: A budget, see `estimated_tokens`; None is no limit.
            exclude_types: Names of types that are left out.
        """
        super().__init__(limit=limit, max_tokens=max_tokens, exclude_types=exclude_types)
        try:
            self.window = timedelta(hours=hours)
        except (TypeError, ValueError, OverflowError):
            self.window = timedelta(0)
        if self.window <= timedelta(0):
            raise ConfigurationError(
                f"TimeWindowContextProvider(hours={hours!r}): give a number of hours above 0."
            )

    def filters(self, request: ContextRequest) -> FilterConfig:
        """Select by the time of creation."""
        return FilterConfig(start=request.now - self.window)


class FilteredContextProvider(_Newest):
    """Shows the newest artifacts that a filter selects."""

    def __init__(
        self,
        filters: FilterConfig,
        limit: int = 50,
        *,
        max_tokens: int | None = None,
        exclude_types: Iterable[str] = (),
    ) -> None:
        """Set the filter.

        Args:
            filters: Which artifacts, of all workflows unless it names one.
            limit: At most so many, the newest.
            max_tokens: A budget, see `estimated_tokens`; None is no limit.
            exclude_types: Names of types that are left out.

        Raises:
            ConfigurationError: The filter makes no sense, for example because a datetime is naive.
        """
        super().__init__(limit=limit, max_tokens=max_tokens, exclude_types=exclude_types)
        if not isinstance(filters, FilterConfig):
            raise ConfigurationError(f"FilteredContextProvider takes a FilterConfig, got {filters!r}.")
        filters.query()
        self._filters = replace(filters)

    def filters(self, request: ContextRequest) -> FilterConfig:
        """Return the filter."""
        return self._filters


class BoundContextProvider(BaseContextProvider):
    """Shows of another provider's context only what also somebody else may see.

    The agent's own visibility applies in any case: this can only take away.
    """

    def __init__(self, inner: ContextProvider, identity: AgentIdentity) -> None:
        """Restrict a provider to what an identity may see."""
        if not isinstance(identity, AgentIdentity):
            raise ConfigurationError(f"BoundContextProvider takes an AgentIdentity, got {identity!r}.")
        self.inner = inner
        self.identity = identity

    def bind(self, services: Any) -> None:
        """Hand on the services of the worker."""
        bind_inner(self.inner, services)

    async def get_artifacts(self, request: ContextRequest) -> list[Artifact]:
        """Ask the provider as if for somebody who may see less."""
        return await self.inner(replace(request, store=request.store.narrowed(self.identity)))

    async def __call__(self, request: ContextRequest) -> list[Artifact]:
        """Return what both may see."""
        bound = replace(request, agent_identity=self.identity)
        return [artifact for artifact in await super().__call__(request) if bound.sees(artifact)]
