"""Upstream's import path for components of agents; the base classes are in `flock_ray.engines.component`."""

from __future__ import annotations

from flock_ray.components.azure import AzurePromptShieldComponent
from flock_ray.components.guards import GuardComponent, GuardComponentConfig, GuardVerdict
from flock_ray.components.output_utility import OutputUtilityComponent, OutputUtilityConfig
from flock_ray.engines.component import AgentComponent, AgentComponentConfig, EngineComponent

__all__ = [
    "AgentComponent",
    "AgentComponentConfig",
    "AzurePromptShieldComponent",
    "EngineComponent",
    "GuardComponent",
    "GuardComponentConfig",
    "GuardVerdict",
    "OutputUtilityComponent",
    "OutputUtilityConfig",
]
