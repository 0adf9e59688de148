"""What the artifacts of a workflow say, in the order of the board: its outputs, its failures and its end.

A pure function of that order: whoever reads the same artifacts, in this process or the next, comes to the same
outputs and sequence numbers. No I/O, no clock.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from flock_ray.application.records import BY, OWN_TYPES
from flock_ray.application.types import (
    AccessPolicy,
    CompletionPolicy,
    FailureCode,
    WorkflowContext,
    WorkflowEvent,
    WorkflowFailure,
    WorkflowStatus,
)
from flock_ray.artifact import Artifact
from flock_ray.core.conditions import AnyField, Condition, Count, WorkflowErrors, evaluate, leaves
from flock_ray.core.lineage import ERROR_PRODUCER
from flock_ray.core.registry import TypeRegistry
from flock_ray.core.rows import ERASED
from flock_ray.core.system_types import WorkflowError
from flock_ray.core.visibility import AgentIdentity
from flock_ray.core.wire import Envelope

logger = logging.getLogger("flock_ray")

CALLER = "__caller__"
"""Name of the identity that stands for the caller in the default access policy."""

MAX_NAMED = 20
"""Most agents or gates that diagnostics name."""


def default_access_policy(artifact: Artifact, context: WorkflowContext) -> bool:
    """Show what the visibility shows to the caller at once; what becomes visible later is not shown."""
    return artifact.visibility.allows(AgentIdentity(name=CALLER, tenant_id=context.principal_id))


@dataclass(frozen=True, slots=True)
class Terms:
    """What all workflows of an application share."""

    registry: TypeRegistry
    output_models: Mapping[str, type[BaseModel]]
    """By registered name."""
    required: tuple[str, ...]
    access_policy: AccessPolicy
    completion: CompletionPolicy
    until: Condition | None
    """The condition, limited to the workflow that is looked at."""
    max_outputs: int
    agents: Callable[[], Collection[str]]
    """Names of the application's own agents."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a workflow ends."""

    status: WorkflowStatus
    failure: WorkflowFailure | None = None
    condition_met: bool | None = None
    diagnostics: dict[str, Any] = field(default_factory=dict)


class Observation:
    """One workflow, artifact by artifact."""

    def __init__(self, terms: Terms, context: WorkflowContext) -> None:
        """Start before the first artifact."""
        self.outputs: list[WorkflowEvent] = []
        self.failure: WorkflowFailure | None = None
        """The first one."""
        self.closed = False
        """What comes later changes nothing: a failure or the condition has ended it."""
        self.condition_met: bool | None = None if terms.until is None else False
        self._terms = terms
        self._context = context
        self._fatal = False
        self._late = 0
        self._failed: dict[str, None] = {}
        self._looped: dict[str, None] = {}
        self._facts = _Facts(terms.until, terms.registry)

    def see(self, envelope: Envelope) -> None:
        """Take the next artifact of the workflow; the application's own records are passed over."""
        if envelope.produced_by == BY or envelope.payload == ERASED:
            return
        if self.closed:
            self._late += envelope.type in self._terms.output_models
            return
        try:
            if envelope.type == "WorkflowError":
                self._error(envelope)
            elif envelope.type == "DeadLetter" and envelope.produced_by.startswith(ERROR_PRODUCER):
                self._agent_failed(envelope.produced_by.removeprefix(ERROR_PRODUCER))
            elif envelope.type in self._terms.output_models:
                self._output(envelope)
            if not self.closed:
                self._check_condition(envelope)
        except Exception as error:  # user code: a policy or a predicate, or a payload that does not fit
            # Only the type: messages and tracebacks of these may quote the payload.
            logger.error(
                "workflow %r: an artifact of %r by %r can't be handled: %s",
                self._context.workflow_id, envelope.type, envelope.produced_by, type(error).__name__,
            )  # fmt: skip
            self.fail(FailureCode.INTERNAL_ERROR, envelope.produced_by, fatal=True)

    def fail(self, code: FailureCode, agent: str | None = None, *, fatal: bool) -> None:
        """Note a failure; the first one counts, and a fatal one ends the workflow."""
        if self.failure is None:
            self.failure = WorkflowFailure.of(code, agent)
        if fatal:
            self._fatal = self.closed = True

    def _error(self, envelope: Envelope) -> None:
        error = self._terms.registry.validate(
            envelope.type, envelope.version, envelope.payload, cls=WorkflowError
        )
        assert isinstance(error, WorkflowError)
        if error.error_type == "LoopGuardError":
            self._looped[error.failed_agent] = None  # what still runs is no part of the loop
            return
        self._agent_failed(error.failed_agent)

    def _agent_failed(self, agent: str) -> None:
        self._failed[agent] = None
        self.fail(FailureCode.AGENT_FAILED, agent, fatal=self._terms.completion.on_error == "stop")

    def _output(self, envelope: Envelope) -> None:
        terms = self._terms
        if envelope.produced_by not in terms.agents():
            return
        artifact = Artifact.from_envelope(envelope)
        if not terms.access_policy(artifact, self._context):
            return
        if len(self.outputs) >= terms.max_outputs:
            self.fail(FailureCode.OUTPUT_LIMIT_EXCEEDED, envelope.produced_by, fatal=True)
            return
        self.outputs.append(self.event(len(self.outputs), artifact))

    def event(self, sequence: int, artifact: Artifact) -> WorkflowEvent:
        """Return an artifact as an output.

        Raises:
            ArtifactSchemaError: It does not fit its type.
        """
        model = self._terms.output_models[artifact.type]
        return WorkflowEvent(sequence, artifact, artifact.model(self._terms.registry, cls=model))

    def _check_condition(self, envelope: Envelope) -> None:
        terms = self._terms
        if terms.until is None or self.condition_met:
            return
        self._facts.see(envelope)
        if evaluate(terms.until, self._facts):
            self.condition_met = True
            self.closed = terms.completion.on_condition == "stop"

    def verdict(self, *, cancelled: bool, due: bool, settled: bool) -> Verdict | None:
        """Decide whether the workflow is over, and how.

        Args:
            cancelled: Somebody wants it cancelled, or it is.
            due: Its deadline has passed.
            settled: Nothing of it runs or is due any more, and everything was seen.

        Returns:
            None while it goes on.
        """
        if not (self.closed or cancelled or due or settled):
            return None
        found: dict[str, Any] = {}
        if self._late:
            found["late_outputs"] = self._late
        if self._failed:
            found["failed_agents"] = list(self._failed)[:MAX_NAMED]
        if self._looped:
            found["iteration_limit"] = list(self._looped)[:MAX_NAMED]
        status, failure = self._status(cancelled, due, found)
        return Verdict(status, failure, self.condition_met, found)

    def _status(
        self, cancelled: bool, due: bool, found: dict[str, Any]
    ) -> tuple[WorkflowStatus, WorkflowFailure | None]:
        failed = WorkflowStatus.FAILED
        if cancelled and not self.closed:
            return WorkflowStatus.CANCELLED, None
        if self.failure is not None:
            return failed, self.failure
        if due and not self.closed:
            return WorkflowStatus.TIMED_OUT, None
        if self._looped:
            agent = next(iter(self._looped))
            return failed, WorkflowFailure.of(FailureCode.ITERATION_LIMIT_EXCEEDED, agent)
        if self.condition_met is False:
            return failed, WorkflowFailure.of(FailureCode.CONDITION_NOT_MET)
        made = {event.artifact.type for event in self.outputs}
        if missing := [name for name in self._terms.required if name not in made]:
            found["missing_outputs"] = missing
            return failed, WorkflowFailure.of(FailureCode.REQUIRED_OUTPUT_MISSING)
        return WorkflowStatus.SUCCEEDED, None


class _Facts:
    """The workflow's answers to the leaves of a condition, kept up to date by its artifacts."""

    def __init__(self, condition: Condition | None, registry: TypeRegistry) -> None:
        self._registry = registry
        self._found = dict.fromkeys(() if condition is None else leaves(condition), 0)

    def see(self, envelope: Envelope) -> None:
        for leaf, count in self._found.items():
            if self._selects(leaf, envelope, count):
                self._found[leaf] = count + 1

    def _selects(self, leaf: Condition, envelope: Envelope, count: int) -> bool:
        if isinstance(leaf, Count):
            return (
                envelope.type == leaf.type_name
                and leaf.tags <= set(envelope.tags)
                and leaf.produced_by in (None, envelope.produced_by)
            )
        if isinstance(leaf, WorkflowErrors):
            return envelope.type == "WorkflowError"
        if isinstance(leaf, AnyField) and not count and envelope.type == leaf.type_name:
            return leaf.holds(self._registry.validate(envelope.type, envelope.version, envelope.payload))
        return False

    # the Facts protocol of core.conditions

    def count(self, leaf: Count, /) -> int:
        return self._found[leaf]

    def idle(self) -> bool:
        return False  # a condition of an application has no such leaf

    def flag(self, leaf: Condition, /) -> bool:
        return self._found[leaf] > 0


def own_type_names(registry: TypeRegistry) -> frozenset[str]:
    """Register the application's own types and return their names."""
    return frozenset(registry.ensure(model).name for model in OWN_TYPES)


def artifact_key(artifact_id: str) -> bytes:
    """Return the id of an artifact as the board has it."""
    return uuid.UUID(artifact_id).bytes
