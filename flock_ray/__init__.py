"""flock_ray: the declarative blackboard for LLM agents, durable and distributed on Ray.

Names are loaded on first use, so that `import flock_ray` is fast and imports neither Ray nor litellm.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flock_ray.adapters.postgres import PostgresPersistence
    from flock_ray.adapters.redis import RedisPersistence
    from flock_ray.adapters.sqlite import SQLitePersistence
    from flock_ray.agent import AgentBuilder
    from flock_ray.artifact import Artifact
    from flock_ray.config import FlockSettings, RayConfig
    from flock_ray.core.conditions import Until, When
    from flock_ray.core.registry import flock_tool, flock_type, upcaster
    from flock_ray.core.retention import RetentionPolicy
    from flock_ray.core.specs import BatchSpec, FanOutRange, FanOutSpec, JoinSpec
    from flock_ray.core.system_types import TimerTick, WorkflowError
    from flock_ray.core.visibility import (
        AfterVisibility,
        AgentIdentity,
        LabelledVisibility,
        PrivateVisibility,
        PublicVisibility,
        TenantVisibility,
        Visibility,
        only_for,
    )
    from flock_ray.engines.component import EngineComponent, EvalInputs, EvalResult
    from flock_ray.engines.context import Context
    from flock_ray.errors import FlockError
    from flock_ray.filters import ArtifactEnvelope, ConsumptionRecord, FilterConfig
    from flock_ray.flock import Flock
    from flock_ray.streaming import Cursor, Gap

__version__ = "0.1.0"

_HOMES = {
    "AfterVisibility": "core.visibility",
    "AgentBuilder": "agent",
    "AgentIdentity": "core.visibility",
    "Artifact": "artifact",
    "ArtifactEnvelope": "filters",
    "BatchSpec": "core.specs",
    "ConsumptionRecord": "filters",
    "Context": "engines.context",
    "Cursor": "streaming",
    "EngineComponent": "engines.component",
    "EvalInputs": "engines.component",
    "EvalResult": "engines.component",
    "FanOutRange": "core.specs",
    "FanOutSpec": "core.specs",
    "FilterConfig": "filters",
    "Flock": "flock",
    "FlockError": "errors",
    "FlockSettings": "config",
    "Gap": "streaming",
    "JoinSpec": "core.specs",
    "LabelledVisibility": "core.visibility",
    "PostgresPersistence": "adapters.postgres",
    "PrivateVisibility": "core.visibility",
    "PublicVisibility": "core.visibility",
    "RayConfig": "config",
    "RedisPersistence": "adapters.redis",
    "RetentionPolicy": "core.retention",
    "SQLitePersistence": "adapters.sqlite",
    "TenantVisibility": "core.visibility",
    "TimerTick": "core.system_types",
    "Until": "core.conditions",
    "Visibility": "core.visibility",
    "When": "core.conditions",
    "WorkflowError": "core.system_types",
    "flock_tool": "core.registry",
    "flock_type": "core.registry",
    "only_for": "core.visibility",
    "upcaster": "core.registry",
}

__all__ = [
    "AfterVisibility",
    "AgentBuilder",
    "AgentIdentity",
    "Artifact",
    "ArtifactEnvelope",
    "BatchSpec",
    "ConsumptionRecord",
    "Context",
    "Cursor",
    "EngineComponent",
    "EvalInputs",
    "EvalResult",
    "FanOutRange",
    "FanOutSpec",
    "FilterConfig",
    "Flock",
    "FlockError",
    "FlockSettings",
    "Gap",
    "JoinSpec",
    "LabelledVisibility",
    "PostgresPersistence",
    "PrivateVisibility",
    "PublicVisibility",
    "RayConfig",
    "RedisPersistence",
    "RetentionPolicy",
    "SQLitePersistence",
    "TenantVisibility",
    "TimerTick",
    "Until",
    "Visibility",
    "When",
    "WorkflowError",
    "flock_tool",
    "flock_type",
    "only_for",
    "upcaster",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its home."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'flock_ray' has no attribute {name!r}")
    value = getattr(import_module(f"flock_ray.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
