"""The context of runs that a sliding window has set off: what was created within the window, and nothing else."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from flock_ray.artifact import Artifact
from flock_ray.context.budget import checked_limit, header_of
from flock_ray.context.request import BaseContextProvider, ContextProvider, ContextRequest, bind_inner
from flock_ray.context.view import MAX_ARTIFACTS
from flock_ray.core.system_types import TimerTick
from flock_ray.errors import ConfigurationError
from flock_ray.filters import FilterConfig

__all__ = ["WindowContextProvider"]

TICK = "TimerTick"


class WindowContextProvider(BaseContextProvider):
    """Shows what was created within the window that the run is about, from its begin on and before its end.

    The window is that of the tick which is an input of the run, or from which an input was made: so agents that a
    `SlidingWindowTrigger` runs, or that get what it publishes, have one. Agents that it names have this provider unless
    they have one of their own. Runs without a window see what the inner provider shows.
    """

    def __init__(
        self,
        types: Iterable[str] | None = None,
        *,
        limit: int = MAX_ARTIFACTS,
        max_tokens: int | None = None,
        inner: ContextProvider | None = None,
    ) -> None:
        """Choose what of the window is shown.

        Args:
            types: Names of types; None: all but ticks.
            limit: At most so many artifacts, the newest; from 1, and 1000 are the most. What does not fit is an event
                `context.cut`.
            max_tokens: A budget, see `estimated_tokens`; None is no limit.
            inner: For runs without a window; None: they see nothing.

        Raises:
            ConfigurationError: A limit is no whole number from 1, or the types are no set of strings.
        """
        if isinstance(types, str):
            raise ConfigurationError(f"WindowContextProvider(types={types!r}): give a set of strings.")
        self.types = None if types is None else frozenset(types)
        self.limit = checked_limit(limit, "WindowContextProvider(limit=)")
        if max_tokens is not None:
            self.max_tokens = checked_limit(max_tokens, "WindowContextProvider(max_tokens=)")
        self.inner = inner

    def bind(self, services: Any) -> None:
        """Hand on the services of the worker."""
        bind_inner(self.inner, services)

    async def get_artifacts(self, request: ContextRequest) -> list[Artifact]:
        """Read the window from the boards' indexes of time."""
        window = await _window_of(request)
        if window is None:
            return [] if self.inner is None else await self.inner(request)
        start, end = window
        names = None if self.types is None else set(self.types)
        within = FilterConfig(type_names=names, start=start, end=end - timedelta(microseconds=1))
        left_out = () if self.types is not None else (TICK,)
        return await request.store.newest(within, limit=self.limit, exclude_types=left_out)


async def _window_of(request: ContextRequest) -> tuple[datetime, datetime] | None:
    """Return the window of the tick behind a run; None: there is none."""
    for artifact in request.inputs:
        ticks = [artifact] if artifact.type == TICK else []
        if not ticks and artifact.produced_by.startswith("schedule-"):
            parents = [await request.store.get(uuid.UUID(bytes=key)) for key in header_of(artifact).parents]
            ticks = [parent for parent in parents if parent is not None and parent.type == TICK]
        for tick in ticks:
            said = TimerTick.model_validate_json(header_of(tick).payload)
            if said.window is not None:
                return said.window
    return None
