"""Context providers under upstream's import path: what an agent gets to see of the board besides its inputs."""

from flock_ray.context.budget import estimated_tokens
from flock_ray.context.providers import (
    BoundContextProvider,
    CorrelatedContextProvider,
    DefaultContextProvider,
    EmptyContextProvider,
    FilteredContextProvider,
    RecentContextProvider,
    TimeWindowContextProvider,
)
from flock_ray.context.redacting import RedactingContextProvider
from flock_ray.context.request import BaseContextProvider, ContextProvider, ContextRequest
from flock_ray.context.semantic import SemanticContextProvider
from flock_ray.context.view import ContextView
from flock_ray.context.window import WindowContextProvider
from flock_ray.filters import FilterConfig

__all__ = [
    "BaseContextProvider",
    "BoundContextProvider",
    "ContextProvider",
    "ContextRequest",
    "ContextView",
    "CorrelatedContextProvider",
    "DefaultContextProvider",
    "EmptyContextProvider",
    "FilterConfig",
    "FilteredContextProvider",
    "RecentContextProvider",
    "RedactingContextProvider",
    "SemanticContextProvider",
    "TimeWindowContextProvider",
    "WindowContextProvider",
    "estimated_tokens",
]
