"""The public vocabulary of an application: what goes into a workflow, what comes out of it and when it is over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel

from flock_ray.application.errors import ContractError, InvalidWorkflowInput, WorkflowFailedError

if TYPE_CHECKING:
    from flock_ray.artifact import Artifact
    from flock_ray.core.conditions import Condition

__all__ = [
    "AccessPolicy",
    "CompletionPolicy",
    "FailureCode",
    "HistoryMode",
    "OutputContract",
    "WorkflowContext",
    "WorkflowEvent",
    "WorkflowFailure",
    "WorkflowResult",
    "WorkflowStatus",
]

ModelT = TypeVar("ModelT", bound=BaseModel)

HistoryMode = Literal["stateless", "conversation"]

MAX_ID_LENGTH = 256
"""Longest id of a context, in characters."""


@dataclass(frozen=True, slots=True)
class WorkflowContext:
    """Who starts a workflow, and under which name: trusted, so made by the host and not by its caller.

    Raises:
        InvalidWorkflowInput: An id is empty, longer than 256 characters, or holds a control character.
    """

    workflow_id: str
    """Names this execution. It is the correlation id on the board; a second call with it attaches."""
    principal_id: str | None = None
    """Tenant or user on whose behalf it runs; None is nobody in particular."""
    session_id: str | None = None
    """The conversation it belongs to; None is none."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """Anything the host wants to find again in its access policy; not stored."""

    def __post_init__(self) -> None:
        """Check the ids and freeze the attributes."""
        for name in ("workflow_id", "principal_id", "session_id"):
            value = getattr(self, name)
            if value is None and name != "workflow_id":
                continue
            if not isinstance(value, str) or not value.strip() or len(value) > MAX_ID_LENGTH:
                raise InvalidWorkflowInput(
                    f"WorkflowContext({name}=...): give a string of 1 to {MAX_ID_LENGTH} characters."
                )
            if not value.isprintable():
                raise InvalidWorkflowInput(
                    f"WorkflowContext({name}=...): it holds a line break or another control character. Leave it out."
                )
        frozen = MappingProxyType({str(key): str(value) for key, value in self.attributes.items()})
        object.__setattr__(self, "attributes", frozen)


class WorkflowStatus(StrEnum):
    """How a workflow ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"


class FailureCode(StrEnum):
    """Why a workflow failed; safe to show to callers."""

    AGENT_FAILED = "agent_failed"
    INTERNAL_ERROR = "internal_error"
    REQUIRED_OUTPUT_MISSING = "required_output_missing"
    CONDITION_NOT_MET = "condition_not_met"
    OUTPUT_LIMIT_EXCEEDED = "output_limit_exceeded"
    ITERATION_LIMIT_EXCEEDED = "iteration_limit_exceeded"
    TIMER_FAILED = "timer_failed"
    FACTORY_ERROR = "factory_error"


_SAID = {
    FailureCode.AGENT_FAILED: "An agent failed.",
    FailureCode.INTERNAL_ERROR: "Something failed inside the application; its log says what.",
    FailureCode.REQUIRED_OUTPUT_MISSING: "Everything ran, and a required output is missing.",
    FailureCode.CONDITION_NOT_MET: "Everything ran, and the completion condition does not hold.",
    FailureCode.OUTPUT_LIMIT_EXCEEDED: "There were more outputs than the application allows.",
    FailureCode.ITERATION_LIMIT_EXCEEDED: "An agent ran in a loop until its iteration limit stopped it.",
    FailureCode.TIMER_FAILED: "The timer of a scheduled agent failed.",
    FailureCode.FACTORY_ERROR: "The application could not be set up.",
}


@dataclass(frozen=True, slots=True)
class WorkflowFailure:
    """Why a workflow failed: fixed text, never that of an exception, which may quote data."""

    code: FailureCode
    agent: str | None = None
    """The agent that failed first; None when it was no agent."""
    message: str = ""

    @classmethod
    def of(cls, code: FailureCode, agent: str | None = None) -> WorkflowFailure:
        """Make a failure with the text of its code."""
        return cls(code, agent, _SAID[code])


@dataclass(frozen=True, slots=True)
class WorkflowEvent:
    """One output that the caller may see."""

    sequence: int
    """Counts from 0 without gaps, in the order of the board; the same for whoever reads the workflow."""
    artifact: Artifact
    value: BaseModel
    kind: Literal["output"] = "output"


@dataclass(frozen=True, slots=True)
class WorkflowResult:
    """How a workflow ended, and what came out of it."""

    workflow_id: str
    status: WorkflowStatus
    outputs: tuple[WorkflowEvent, ...] = ()
    failure: WorkflowFailure | None = None
    """Only of a failed one."""
    condition_met: bool | None = None
    """Whether the completion condition held; None when there is none."""
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    """For operators, in JSON terms: see docs/howto/application.md."""

    @property
    def ok(self) -> bool:
        """Whether it succeeded."""
        return self.status is WorkflowStatus.SUCCEEDED

    def values(self, model: type[ModelT]) -> list[ModelT]:
        """Return the outputs of one type, in order."""
        return [event.value for event in self.outputs if isinstance(event.value, model)]

    def raise_for_status(self) -> None:
        """Do nothing if it succeeded.

        Raises:
            WorkflowFailedError: It did not.
        """
        if not self.ok:
            raise WorkflowFailedError(self)


def _is_model(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)


AccessPolicy = Callable[["Artifact", WorkflowContext], bool]
"""Says whether the caller may see an output. Without a side effect: it is asked again whenever one attaches."""


@dataclass(frozen=True)
class OutputContract:
    """What a workflow takes, and what of its artifacts its caller gets.

    Only artifacts of `output_types` that the application's own agents made are outputs.

    Raises:
        ContractError: It names no output type, or requires one that is none.
    """

    input_type: type[BaseModel]
    output_types: tuple[type[BaseModel], ...]
    required_output_types: tuple[type[BaseModel], ...] = ()
    """Without at least one of each the workflow has failed."""
    access_policy: AccessPolicy | None = None
    """None: what the visibility shows to an agent named `__caller__` of the tenant `principal_id`, at once."""

    def __post_init__(self) -> None:
        """Check that it fits together."""
        object.__setattr__(self, "output_types", tuple(self.output_types))
        object.__setattr__(self, "required_output_types", tuple(self.required_output_types))
        for model in (self.input_type, *self.output_types, *self.required_output_types):
            if not _is_model(model):
                raise ContractError(f"{model!r} is no artifact type: give pydantic models.")
        if not self.output_types:
            raise ContractError("output_types is empty: name at least one type that callers get.")
        if extra := set(self.required_output_types) - set(self.output_types):
            names = ", ".join(sorted(model.__name__ for model in extra))
            raise ContractError(f"{names}: required, and not among output_types. Add it there.")


@dataclass(frozen=True)
class CompletionPolicy:
    """When a workflow is over, besides: nothing of it runs or is due any more."""

    until: Condition | None = None
    """A condition on the workflow's artifacts: `Until...` without a correlation id, or `When.correlation(...)`."""
    on_condition: Literal["stop", "drain"] = "stop"
    """Once `until` holds: cancel what still runs, or let it finish."""
    on_error: Literal["stop", "continue"] = "stop"
    """At the first failed agent: cancel what still runs, or let it finish. It has failed either way."""

    def __post_init__(self) -> None:
        """Check the choices."""
        if self.on_condition not in ("stop", "drain"):
            raise ContractError(f'on_condition={self.on_condition!r}: give "stop" or "drain".')
        if self.on_error not in ("stop", "continue"):
            raise ContractError(f'on_error={self.on_error!r}: give "stop" or "continue".')
