"""Components around agents and flocks. Names are loaded on first use: an agent pays only for those that it has."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flock_ray.components.azure import AzurePromptShieldComponent
    from flock_ray.components.budget import BudgetHook
    from flock_ray.components.cache import CacheComponent
    from flock_ray.components.guards import GuardComponent, GuardComponentConfig, GuardVerdict
    from flock_ray.components.language import LanguageComponent
    from flock_ray.components.metrics import MetricsComponent
    from flock_ray.components.orchestrator.base import (
        Deferral,
        OrchestratorComponent,
        OrchestratorComponentConfig,
        ScheduleDecision,
    )
    from flock_ray.components.output_length import OutputLengthComponent
    from flock_ray.components.output_utility import OutputUtilityComponent, OutputUtilityConfig
    from flock_ray.components.rate_limit import RateLimitComponent
    from flock_ray.components.redaction import RedactionComponent
    from flock_ray.engines.component import AgentComponent, AgentComponentConfig, EngineComponent

_HOMES = {
    "AgentComponent": "flock_ray.engines.component",
    "AgentComponentConfig": "flock_ray.engines.component",
    "AzurePromptShieldComponent": "flock_ray.components.azure",
    "BudgetHook": "flock_ray.components.budget",
    "CacheComponent": "flock_ray.components.cache",
    "Deferral": "flock_ray.components.orchestrator.base",
    "EngineComponent": "flock_ray.engines.component",
    "GuardComponent": "flock_ray.components.guards",
    "GuardComponentConfig": "flock_ray.components.guards",
    "GuardVerdict": "flock_ray.components.guards",
    "LanguageComponent": "flock_ray.components.language",
    "MetricsComponent": "flock_ray.components.metrics",
    "OrchestratorComponent": "flock_ray.components.orchestrator.base",
    "OrchestratorComponentConfig": "flock_ray.components.orchestrator.base",
    "OutputLengthComponent": "flock_ray.components.output_length",
    "OutputUtilityComponent": "flock_ray.components.output_utility",
    "OutputUtilityConfig": "flock_ray.components.output_utility",
    "RateLimitComponent": "flock_ray.components.rate_limit",
    "RedactionComponent": "flock_ray.components.redaction",
    "ScheduleDecision": "flock_ray.components.orchestrator.base",
}

__all__ = [
    "AgentComponent",
    "AgentComponentConfig",
    "AzurePromptShieldComponent",
    "BudgetHook",
    "CacheComponent",
    "Deferral",
    "EngineComponent",
    "GuardComponent",
    "GuardComponentConfig",
    "GuardVerdict",
    "LanguageComponent",
    "MetricsComponent",
    "OrchestratorComponent",
    "OrchestratorComponentConfig",
    "OutputLengthComponent",
    "OutputUtilityComponent",
    "OutputUtilityConfig",
    "RateLimitComponent",
    "RedactionComponent",
    "ScheduleDecision",
]


def __getattr__(name: str) -> Any:
    """Load a name from its home."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
