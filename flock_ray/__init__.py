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
    from flock_ray.application import (
        CompletionPolicy,
        FlockApplication,
        WorkflowContext,
        WorkflowEvent,
        WorkflowResult,
        WorkflowStatus,
    )
    from flock_ray.approvals.declaring import ApprovalSpec, ApprovalTimeout
    from flock_ray.approvals.notifiers import EmailNotifier
    from flock_ray.approvals.principals import StaticPrincipals
    from flock_ray.approvals.views import Agreement, Approval
    from flock_ray.artifact import Artifact
    from flock_ray.budgets import Budget, BudgetStatus, degrade
    from flock_ray.components.orchestrator.base import OrchestratorComponent, OrchestratorComponentConfig
    from flock_ray.config import FlockSettings, RayConfig
    from flock_ray.core.approval_types import (
        ApprovalDecision,
        ApprovalNotice,
        ApprovalOutcome,
        ApprovalRejected,
        ApprovalRequest,
    )
    from flock_ray.core.conditions import Until, When
    from flock_ray.core.notifications import Notification
    from flock_ray.core.registry import flock_tool, flock_type, upcaster
    from flock_ray.core.results import Aggregated
    from flock_ray.core.retention import RetentionPolicy
    from flock_ray.core.retries import (
        ExponentialBackoff,
        FixedDelay,
        LinearBackoff,
        RetryBudget,
        RetryStrategy,
    )
    from flock_ray.core.specs import BatchSpec, FanOutRange, FanOutSpec, JoinSpec
    from flock_ray.core.strategies import (
        AggregationStrategy,
        SessionWindow,
        SlidingWindow,
        TumblingWindow,
    )
    from flock_ray.core.system_types import (
        DeadLetter,
        DeadLetterAction,
        DeadlineMissed,
        TimerTick,
        WorkflowError,
    )
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
    from flock_ray.dead_letters import DeadLetterQueue
    from flock_ray.engines.component import (
        AgentComponent,
        AgentComponentConfig,
        EngineComponent,
        EvalInputs,
        EvalResult,
    )
    from flock_ray.engines.context import Context
    from flock_ray.engines.fan.chunking import FanOutStrategy
    from flock_ray.engines.fan.merging import FanInStrategy, Gathered
    from flock_ray.engines.llm import LiteLLMEngine
    from flock_ray.engines.llm.upstream import (
        BAMLAdapter,
        ChatAdapter,
        DSPyEngine,
        JSONAdapter,
        TwoStepAdapter,
        XMLAdapter,
    )
    from flock_ray.errors import FlockError, RateLimitError
    from flock_ray.filters import ArtifactEnvelope, ConsumptionRecord, FilterConfig
    from flock_ray.flock import Flock
    from flock_ray.gateway.settings import GatewayPlan, ModelBreaker, ModelLimits, ModelSettings
    from flock_ray.mcp.declaring import MCPServerConfig
    from flock_ray.media import File, Image
    from flock_ray.present import now
    from flock_ray.streaming import Cursor, Gap
    from flock_ray.triggers import (
        CronTrigger,
        DailyTrigger,
        IntervalTrigger,
        OnceTrigger,
        SlidingWindowTrigger,
    )
    from flock_ray.usage import ModelUsage
    from flock_ray.webhooks import Webhook

__version__ = "0.1.0"

_HOMES = {
    "AfterVisibility": "core.visibility",
    "AgentBuilder": "agent",
    "AgentComponent": "engines.component",
    "AgentComponentConfig": "engines.component",
    "AgentIdentity": "core.visibility",
    "Aggregated": "core.results",
    "AggregationStrategy": "core.strategies",
    "Agreement": "approvals.views",
    "Approval": "approvals.views",
    "ApprovalDecision": "core.approval_types",
    "ApprovalNotice": "core.approval_types",
    "ApprovalOutcome": "core.approval_types",
    "ApprovalRejected": "core.approval_types",
    "ApprovalRequest": "core.approval_types",
    "ApprovalSpec": "approvals.declaring",
    "ApprovalTimeout": "approvals.declaring",
    "Artifact": "artifact",
    "ArtifactEnvelope": "filters",
    "BAMLAdapter": "engines.llm.upstream",
    "BatchSpec": "core.specs",
    "Budget": "budgets",
    "BudgetStatus": "budgets",
    "ChatAdapter": "engines.llm.upstream",
    "CompletionPolicy": "application",
    "ConsumptionRecord": "filters",
    "Context": "engines.context",
    "CronTrigger": "triggers",
    "Cursor": "streaming",
    "DSPyEngine": "engines.llm.upstream",
    "DailyTrigger": "triggers",
    "DeadLetter": "core.system_types",
    "DeadLetterAction": "core.system_types",
    "DeadLetterQueue": "dead_letters",
    "DeadlineMissed": "core.system_types",
    "EmailNotifier": "approvals.notifiers",
    "EngineComponent": "engines.component",
    "EvalInputs": "engines.component",
    "EvalResult": "engines.component",
    "ExponentialBackoff": "core.retries",
    "FanInStrategy": "engines.fan.merging",
    "FanOutRange": "core.specs",
    "FanOutSpec": "core.specs",
    "FanOutStrategy": "engines.fan.chunking",
    "File": "media",
    "FilterConfig": "filters",
    "FixedDelay": "core.retries",
    "Flock": "flock",
    "FlockApplication": "application",
    "FlockError": "errors",
    "FlockSettings": "config",
    "Gap": "streaming",
    "GatewayPlan": "gateway.settings",
    "Gathered": "engines.fan.merging",
    "Image": "media",
    "IntervalTrigger": "triggers",
    "JSONAdapter": "engines.llm.upstream",
    "JoinSpec": "core.specs",
    "LabelledVisibility": "core.visibility",
    "LinearBackoff": "core.retries",
    "LiteLLMEngine": "engines.llm",
    "MCPServerConfig": "mcp.declaring",
    "ModelBreaker": "gateway.settings",
    "ModelLimits": "gateway.settings",
    "ModelSettings": "gateway.settings",
    "ModelUsage": "usage",
    "Notification": "core.notifications",
    "OnceTrigger": "triggers",
    "OrchestratorComponent": "components.orchestrator.base",
    "OrchestratorComponentConfig": "components.orchestrator.base",
    "PostgresPersistence": "adapters.postgres",
    "PrivateVisibility": "core.visibility",
    "PublicVisibility": "core.visibility",
    "RateLimitError": "errors",
    "RayConfig": "config",
    "RedisPersistence": "adapters.redis",
    "RetentionPolicy": "core.retention",
    "RetryBudget": "core.retries",
    "RetryStrategy": "core.retries",
    "SQLitePersistence": "adapters.sqlite",
    "SessionWindow": "core.strategies",
    "SlidingWindow": "core.strategies",
    "SlidingWindowTrigger": "triggers",
    "StaticPrincipals": "approvals.principals",
    "TenantVisibility": "core.visibility",
    "TimerTick": "core.system_types",
    "TumblingWindow": "core.strategies",
    "TwoStepAdapter": "engines.llm.upstream",
    "Until": "core.conditions",
    "Visibility": "core.visibility",
    "Webhook": "webhooks",
    "When": "core.conditions",
    "WorkflowContext": "application",
    "WorkflowError": "core.system_types",
    "WorkflowEvent": "application",
    "WorkflowResult": "application",
    "WorkflowStatus": "application",
    "XMLAdapter": "engines.llm.upstream",
    "degrade": "budgets",
    "flock_tool": "core.registry",
    "flock_type": "core.registry",
    "now": "present",
    "only_for": "core.visibility",
    "upcaster": "core.registry",
}

__all__ = [
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
