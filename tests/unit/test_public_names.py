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
    "Aggregated",
    "AggregationStrategy",
    "Agreement",
    "Approval",
    "ApprovalDecision",
    "ApprovalNotice",
    "ApprovalOutcome",
    "ApprovalRejected",
    "ApprovalRequest",
    "ApprovalSpec",
    "ApprovalTimeout",
    "Artifact",
    "ArtifactEnvelope",
    "BAMLAdapter",
    "BatchSpec",
    "Budget",
    "BudgetStatus",
    "ChatAdapter",
    "CompletionPolicy",
    "ConsumptionRecord",
    "Context",
    "CronTrigger",
    "Cursor",
    "DSPyEngine",
    "DailyTrigger",
    "DeadLetter",
    "DeadLetterAction",
    "DeadLetterQueue",
    "DeadlineMissed",
    "EmailNotifier",
    "EngineComponent",
    "EvalInputs",
    "EvalResult",
    "ExponentialBackoff",
    "FanInStrategy",
    "FanOutRange",
    "FanOutSpec",
    "FanOutStrategy",
    "File",
    "FilterConfig",
    "FixedDelay",
    "Flock",
    "FlockApplication",
    "FlockError",
    "FlockSettings",
    "Gap",
    "GatewayPlan",
    "Gathered",
    "Image",
    "IntervalTrigger",
    "JSONAdapter",
    "JoinSpec",
    "LabelledVisibility",
    "LinearBackoff",
    "LiteLLMEngine",
    "MCPServerConfig",
    "ModelBreaker",
    "ModelLimits",
    "ModelSettings",
    "ModelUsage",
    "Notification",
    "OnceTrigger",
    "OrchestratorComponent",
    "OrchestratorComponentConfig",
    "PostgresPersistence",
    "PrivateVisibility",
    "PublicVisibility",
    "RateLimitError",
    "RayConfig",
    "RedisPersistence",
    "RetentionPolicy",
    "RetryBudget",
    "RetryStrategy",
    "SQLitePersistence",
    "SessionWindow",
    "SlidingWindow",
    "SlidingWindowTrigger",
    "StaticPrincipals",
    "TenantVisibility",
    "TimerTick",
    "TumblingWindow",
    "TwoStepAdapter",
    "Until",
    "Visibility",
    "Webhook",
    "When",
    "WorkflowContext",
    "WorkflowError",
    "WorkflowEvent",
    "WorkflowResult",
    "WorkflowStatus",
    "XMLAdapter",
    "degrade",
    "flock_tool",
    "flock_type",
    "now",
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
