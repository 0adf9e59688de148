"""Components of a whole flock: their hooks, and what these can promise on a distributed, durable board."""

from __future__ import annotations

from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

from flock_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from flock_ray.artifact import Artifact
    from flock_ray.core.definition import AgentDefinition, Subscription

__all__ = [
    "Deferral",
    "OrchestratorComponent",
    "OrchestratorComponentConfig",
    "ScheduleDecision",
    "refuse_impossible",
]


class ScheduleDecision(Enum):
    """What becomes of an artifact for one subscription."""

    CONTINUE = "continue"
    SKIP = "skip"
    """The subscription does not get it; `flock.why` says so."""
    DEFER = "defer"
    """The subscription gets it later: after the config's `defer_for`. Nothing is dropped."""


class Deferral(NamedTuple):
    """`ScheduleDecision.DEFER` with a time of its own."""

    delay: timedelta
    """From when the artifact was made; longer than nothing."""


class OrchestratorComponentConfig(BaseModel):
    """Settings of an orchestrator component; subclass it for more."""

    enabled: bool = True
    """A component that is not enabled is skipped."""
    defer_for: timedelta = timedelta(seconds=1)
    """How long DEFER lets an artifact wait, from when it was made."""

    @field_validator("defer_for")
    @classmethod
    def _some_time(cls, delay: timedelta) -> timedelta:
        if delay <= timedelta(0):
            raise ValueError("defer_for must be longer than nothing")
        return delay


class OrchestratorComponent(BaseModel):
    """Hooks of a flock, added by `flock.add_component(...)`. Lower priorities come first.

    `on_initialize`, `on_orchestrator_idle` and `on_shutdown` run in the program that has the Flock.
    `on_artifact_published` and `on_before_schedule` are part of matching: they travel with the flock's agents and
    run wherever an artifact is matched, on workers and in other programs, too. There they are like predicates:
    they must not wait, may be asked again about the same artifact, and what they keep in memory is per process.
    `on_before_agent_schedule` and `on_agent_scheduled` travel with the agents, too, and are called where a run begins.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    name: str | None = None
    """For logs and `flock.why`; None is the name of the class."""
    config: OrchestratorComponentConfig = Field(default_factory=OrchestratorComponentConfig)
    priority: int = 0

    async def on_initialize(self, orchestrator: Any) -> None:
        """Prepare; called once, after the flock's agents were first deployed. An error goes to who used the flock."""

    async def on_artifact_published(self, orchestrator: Any, artifact: Artifact) -> Artifact | None:
        """Look at an artifact that an agent of this flock consumes; None keeps it from all of them.

        The artifact is stored either way. To change it is refused: agents get what is on the board.
        """
        return artifact

    async def on_before_schedule(
        self, orchestrator: Any, artifact: Artifact, agent: AgentDefinition, subscription: Subscription
    ) -> ScheduleDecision | Deferral:
        """Decide whether a subscription whose conditions hold gets an artifact."""
        return ScheduleDecision.CONTINUE

    async def on_orchestrator_idle(self, orchestrator: Any) -> None:
        """See that `run_until_idle` of this flock found the board idle. An error is logged."""

    async def on_shutdown(self, orchestrator: Any) -> None:
        """Clean up; called once, before the flock lets go of its board. An error is logged."""

    async def on_collect_artifacts(
        self, orchestrator: Any, artifact: Artifact, agent: Any, subscription: Any
    ) -> Any:
        """Upstream's; `add_component` refuses a component that has it."""

    async def on_before_agent_schedule(
        self, orchestrator: Any, agent: AgentDefinition, artifacts: list[Artifact]
    ) -> list[Artifact] | None:
        """See and change the inputs of a run that begins, where it runs; None: it ends at once, without outputs.

        Its inputs are consumed then, and an event `activation.skipped` says by whom. It is called for every attempt
        of a run. An error fails the attempt. Runs by `invoke` and `arun` pass by.
        """
        return artifacts

    async def on_agent_scheduled(
        self, orchestrator: Any, agent: AgentDefinition, artifacts: list[Artifact], task: Any
    ) -> None:
        """See that a run begins, with its inputs and its asyncio task, in the process that runs it."""


_IMPOSSIBLE = {
    "on_collect_artifacts": (
        "shards collect the inputs of a run, and no code of yours runs in a shard. "
        "Collect with consumes(A, B), join=, batch= or activation="
    ),
}


def refuse_impossible(component: Any) -> None:
    """Refuse what is no component, or has a hook that nothing here could call.

    Raises:
        ConfigurationError: Says which hook, why, and what to use instead.
    """
    if not isinstance(component, OrchestratorComponent):
        raise ConfigurationError(
            f"add_component() takes OrchestratorComponent instances, got {component!r}. "
            "An AgentComponent goes to agent.with_utilities()."
        )
    for hook, why in _IMPOSSIBLE.items():
        if getattr(type(component), hook) is not getattr(OrchestratorComponent, hook):
            raise ConfigurationError(f"{type(component).__name__}.{hook} can't be called: {why}.")
