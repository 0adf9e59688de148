"""What an application refuses before a workflow starts, and how a result that is no success is raised.

```
FlockError
|- ConfigurationError
|  `- ContractError            (a ValueError) from the constructor and from start()
|- WorkflowRejected            nothing was started
|  |- InvalidWorkflowInput     (a ValueError)
|  |- WorkflowIdConflict
|  |- CapacityExceeded         (a CapacityError) with retry_after_s
|  |- SessionRequired
|  `- ApplicationNotRunning
`- WorkflowFailedError         from WorkflowResult.raise_for_status(), with the result
```

Once a workflow has started, whatever becomes of it is a `WorkflowResult` and not an exception.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flock_ray.error_base import FlockError
from flock_ray.errors import CapacityError, ConfigurationError

if TYPE_CHECKING:
    from flock_ray.application.types import WorkflowResult

__all__ = [
    "ApplicationNotRunning",
    "CapacityExceeded",
    "ContractError",
    "InvalidWorkflowInput",
    "SessionRequired",
    "WorkflowFailedError",
    "WorkflowIdConflict",
    "WorkflowRejected",
]


class ContractError(ConfigurationError, ValueError):
    """The factory, the contract or a parameter of an application can't work."""

    code = "application_contract"
    text = "The application can't work like this. Correct its factory, contract or parameters."


class WorkflowRejected(FlockError):  # upstream's name; it reads as an outcome
    """The workflow was not admitted; nothing was started."""

    code = "workflow_rejected"
    http_status = 400
    text = "The workflow was not admitted. Correct the call and repeat it."


class InvalidWorkflowInput(WorkflowRejected, ValueError):
    """The input does not fit the contract's input type, or an option is out of range."""

    code = "invalid_workflow_input"
    http_status = 422
    text = "The input does not fit the application. Compare it with the JSON schema of its input type."


class WorkflowIdConflict(WorkflowRejected):
    """The workflow id belongs to another input, principal or session, or its result is gone."""

    code = "workflow_id_conflict"
    http_status = 409
    text = "The workflow id is not available. Take a new one for each new input."


class CapacityExceeded(WorkflowRejected, CapacityError):
    """Too many workflows are active."""

    code = "application_capacity"
    retryable = True
    http_status = 429
    text = "Too many workflows are active. Wait retry_after_s seconds and repeat the call."

    def __init__(self, message: str = "", *, retry_after_s: float = 1.0) -> None:
        """Make the error; `retry_after_s` is how long to wait, in seconds."""
        FlockError.__init__(self, message)
        self.retry_after_s = retry_after_s


class SessionRequired(WorkflowRejected):
    """History mode "conversation" needs a session."""

    code = "session_required"
    http_status = 422
    text = 'History "conversation" needs a session: WorkflowContext(..., session_id="...").'


class ApplicationNotRunning(WorkflowRejected):
    """The application drains, or was shut down."""

    code = "application_not_running"
    http_status = 503
    text = "The application takes no workflows: it drains or was shut down. Ask another replica."


class WorkflowFailedError(FlockError, RuntimeError):
    """A workflow did not succeed."""

    code = "workflow_failed"
    text = "The workflow did not succeed. Look at the error's result."

    def __init__(self, result: WorkflowResult) -> None:
        """Make the error of a result."""
        why = "" if result.failure is None else f": {result.failure.code}: {result.failure.message}"
        super().__init__(f"Workflow {result.workflow_id!r} {result.status}{why}")
        self.result = result
