"""Run a flock as an application: typed workflows with deadlines, a stream of outputs and one durable result.

async with FlockApplication(build_flock, input_type=Question, output_types=(Answer,)) as app:
    result = await app.run(Question(text="..."), context=WorkflowContext(workflow_id="job-42"))
    result.raise_for_status()
"""

from __future__ import annotations

from flock_ray.application.admission import AdmissionController, CountingAdmission
from flock_ray.application.application import FlockApplication
from flock_ray.application.contract import WorkflowFactory
from flock_ray.application.errors import (
    ApplicationNotRunning,
    CapacityExceeded,
    ContractError,
    InvalidWorkflowInput,
    SessionRequired,
    WorkflowFailedError,
    WorkflowIdConflict,
    WorkflowRejected,
)
from flock_ray.application.records import Conversation, ConversationMessage, ConversationTurn
from flock_ray.application.stream import WorkflowStream
from flock_ray.application.types import (
    AccessPolicy,
    CompletionPolicy,
    FailureCode,
    HistoryMode,
    OutputContract,
    WorkflowContext,
    WorkflowEvent,
    WorkflowFailure,
    WorkflowResult,
    WorkflowStatus,
)

__all__ = [
    "AccessPolicy",
    "AdmissionController",
    "ApplicationNotRunning",
    "CapacityExceeded",
    "CompletionPolicy",
    "ContractError",
    "Conversation",
    "ConversationMessage",
    "ConversationTurn",
    "CountingAdmission",
    "FailureCode",
    "FlockApplication",
    "HistoryMode",
    "InvalidWorkflowInput",
    "OutputContract",
    "SessionRequired",
    "WorkflowContext",
    "WorkflowEvent",
    "WorkflowFactory",
    "WorkflowFailedError",
    "WorkflowFailure",
    "WorkflowIdConflict",
    "WorkflowRejected",
    "WorkflowResult",
    "WorkflowStatus",
    "WorkflowStream",
]
