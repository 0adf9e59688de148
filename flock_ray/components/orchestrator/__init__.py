"""Components of a whole flock, under upstream's import path: see `base` for what their hooks can promise here."""

from __future__ import annotations

from typing import NoReturn

from flock_ray.components.orchestrator.base import (
    Deferral,
    OrchestratorComponent,
    OrchestratorComponentConfig,
    ScheduleDecision,
)

__all__ = ["Deferral", "OrchestratorComponent", "OrchestratorComponentConfig", "ScheduleDecision"]

_GONE = {
    "ActivationComponent": "the board itself does consumes(activation=...): leave the component out",
    "BuiltinCollectionComponent": "shards collect inputs: leave the component out",
    "CircuitBreakerComponent": "max_agent_iterations is a part of the board: leave the component out",
    "CollectionResult": "shards collect inputs: use consumes(A, B), join=, batch= or activation=",
    "DeduplicationComponent": "an agent gets an artifact once, by the journal: leave the component out",
    "TimerComponent": "leave the component out; see .schedule()",
    "WebhookDeliveryComponent": "read flock.stream() and send what it yields",
}


def __getattr__(name: str) -> NoReturn:
    """Say what became of a component of upstream's.

    Raises:
        ConfigurationError: It is not needed here; says what to do instead.
    """
    if name in _GONE:
        from flock_ray.errors import ConfigurationError

        raise ConfigurationError(f"There is no {name} in flock_ray: {_GONE[name]}.")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
