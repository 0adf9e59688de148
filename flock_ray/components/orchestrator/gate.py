"""The hooks of orchestrator components that are part of matching. Goes to every edge with the agents."""

from __future__ import annotations

import inspect
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic_core import from_json

from flock_ray.artifact import Artifact
from flock_ray.components.orchestrator.base import Deferral, OrchestratorComponent, ScheduleDecision
from flock_ray.components.settings import settings_digest
from flock_ray.core.matching import Check
from flock_ray.errors import ConfigurationError, safe_error_text

if TYPE_CHECKING:
    from flock_ray.core.definition import AgentDefinition, Subscription
    from flock_ray.core.wire import Envelope

__all__ = ["ComponentGate", "NoFlockHere"]

MAX_REMEMBERED = 1000
"""Artifacts whose on_artifact_published is remembered, so that it is called once and not once per subscription."""


class NoFlockHere:
    """What edge hooks get as their orchestrator: they run in many processes, and none has the Flock."""

    def __init__(self, component: str) -> None:
        """Keep the name of the component, for the error."""
        self._component = component

    def __getattr__(self, name: str) -> NoReturn:
        """Refuse every attribute.

        Raises:
            ConfigurationError: Always; AttributeError for what Python itself asks for.
        """
        if name.startswith("__"):
            raise AttributeError(name)
        raise ConfigurationError(
            f"{self._component} asked for the orchestrator's {name!r}. Its hook is part of matching, which happens on "
            "workers, too: there is no flock. Decide by the artifact, the agent and the subscription."
        )


class ComponentGate:
    """Asks the components of a flock about each artifact that one of its subscriptions would get."""

    def __init__(self, components: Sequence[OrchestratorComponent]) -> None:
        """Hold the components, in order."""
        self.components = tuple(components)
        self._seen: OrderedDict[bytes, Check | None] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def of(cls, components: Sequence[OrchestratorComponent]) -> ComponentGate | None:
        """Return the gate of those that are enabled and have a hook at the edge; None when there are none."""
        asked = [
            one for one in components if one.config.enabled and (_has_published(one) or _has_schedule(one))
        ]
        return cls(asked) if asked else None

    def __reduce__(self) -> Any:
        """Travel without what was remembered, and without the lock."""
        return (ComponentGate, (self.components,))

    def digest(self) -> bytes:
        """Hash classes and settings: agents whose gate differs are deployed again."""
        return b"".join(settings_digest(component) for component in self.components)

    def checks(
        self, envelope: Envelope, agent: AgentDefinition, subscription: Subscription
    ) -> Iterator[Check]:
        """Yield what each component says; the caller stops at the first that refuses."""
        refused = self._published(envelope)
        if refused is not None:
            yield refused
            return
        for component in self.components:
            if _has_schedule(component):
                yield _scheduled(component, envelope, agent, subscription)

    def _published(self, envelope: Envelope) -> Check | None:
        """Return why no agent of the flock gets an artifact; None when they may."""
        asked = [component for component in self.components if _has_published(component)]
        if not asked:
            return None
        with self._lock:
            if envelope.id in self._seen:
                return self._seen[envelope.id]
        answer = next((check for one in asked if (check := _looked_at(one, envelope)) is not None), None)
        with self._lock:
            self._seen[envelope.id] = answer
            while len(self._seen) > MAX_REMEMBERED:
                self._seen.popitem(last=False)
        return answer


def _looked_at(component: OrchestratorComponent, envelope: Envelope) -> Check | None:
    """Call on_artifact_published; None when the artifact may go on."""
    name = f"{_label(component)}.on_artifact_published"
    artifact = Artifact.from_envelope(envelope)
    try:
        answer = _now(component.on_artifact_published(NoFlockHere(_label(component)), artifact), name)
        if answer is None:
            return Check(name, False, "returned None")
        # Another object of the same content is what `return artifact.model_copy()` makes.
        same = isinstance(answer, Artifact) and answer.id == artifact.id
        if not same or answer.payload != from_json(envelope.payload):
            raise ConfigurationError(
                f"{name} returned something else than the artifact. Agents get what is on the board: publish the "
                "change as a new artifact, or change an agent's inputs in on_pre_consume of an AgentComponent."
            )
    except Exception as error:
        return Check(name, False, "raised", ": ".join(safe_error_text(error)))
    return None


def _scheduled(
    component: OrchestratorComponent, envelope: Envelope, agent: AgentDefinition, subscription: Subscription
) -> Check:
    """Call on_before_schedule."""
    name = f"{_label(component)}.on_before_schedule"
    artifact = Artifact.from_envelope(envelope)
    try:
        flock = NoFlockHere(_label(component))
        answer = _now(component.on_before_schedule(flock, artifact, agent, subscription), name)
        if answer is ScheduleDecision.DEFER:
            answer = Deferral(component.config.defer_for)
        if isinstance(answer, Deferral):
            if answer.delay <= timedelta(0):
                raise ConfigurationError(
                    f"{name} deferred for {answer.delay}: give a time longer than nothing."
                )
            due_us = envelope.created_us + answer.delay // timedelta(microseconds=1)
            return Check(name, True, f"deferred for {answer.delay}", None, due_us)
        if not isinstance(answer, ScheduleDecision):
            raise ConfigurationError(f"{name} returned {answer!r}: return a ScheduleDecision or a Deferral.")
        return Check(name, answer is not ScheduleDecision.SKIP, answer.value)
    except Exception as error:
        return Check(name, False, "raised", ": ".join(safe_error_text(error)))


def _now(answer: Any, name: str) -> Any:
    """Return what a hook answers at once; it may be a coroutine that waits for nothing."""
    if not inspect.iscoroutine(answer):
        return answer
    try:
        answer.send(None)
    except StopIteration as done:
        return done.value
    answer.close()
    raise ConfigurationError(
        f"{name} waits for something. It is part of matching, like a predicate, and has to answer at once: "
        "look things up in on_pre_consume of an AgentComponent instead."
    )


def _label(component: OrchestratorComponent) -> str:
    return component.name or type(component).__name__


def _has_published(component: OrchestratorComponent) -> bool:
    return type(component).on_artifact_published is not OrchestratorComponent.on_artifact_published


def _has_schedule(component: OrchestratorComponent) -> bool:
    return type(component).on_before_schedule is not OrchestratorComponent.on_before_schedule
