"""The public names of the package: adding or dropping one is a decision."""

from __future__ import annotations

import pytest

import flock_ray

NAMES = [
    "AfterVisibility",
    "AgentBuilder",
    "AgentComponent",
    "AgentComponentConfig",
    "AgentIdentity",
    "Artifact",
    "ArtifactEnvelope",
    "BAMLAdapter",
    "BatchSpec",
    "ChatAdapter",
    "CompletionPolicy",
    "ConsumptionRecord",
    "Context",
    "Cursor",
    "DSPyEngine",
    "EngineComponent",
    "EvalInputs",
    "EvalResult",
    "FanOutRange",
    "FanOutSpec",
    "File",
    "FilterConfig",
    "Flock",
    "FlockApplication",
    "FlockError",
    "FlockSettings",
    "Gap",
    "GatewayPlan",
    "Image",
    "JSONAdapter",
    "JoinSpec",
    "LabelledVisibility",
    "LiteLLMEngine",
    "MCPServerConfig",
    "ModelLimits",
    "ModelSettings",
    "ModelUsage",
    "OrchestratorComponent",
    "OrchestratorComponentConfig",
    "PostgresPersistence",
    "PrivateVisibility",
    "PublicVisibility",
    "RayConfig",
    "RedisPersistence",
    "RetentionPolicy",
    "SQLitePersistence",
    "TenantVisibility",
    "TimerTick",
    "TwoStepAdapter",
    "Until",
    "Visibility",
    "When",
    "WorkflowContext",
    "WorkflowError",
    "WorkflowEvent",
    "WorkflowResult",
    "WorkflowStatus",
    "XMLAdapter",
    "flock_tool",
    "flock_type",
    "only_for",
    "upcaster",
]


def test_the_public_names_are_these() -> None:
    assert flock_ray.__all__ == NAMES == sorted(flock_ray.__all__)
    assert set(dir(flock_ray)) >= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_can_be_loaded(name: str) -> None:
    assert getattr(flock_ray, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Nonsense"):
        flock_ray.Nonsense  # noqa: B018
