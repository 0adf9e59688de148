"""Every error that flock_ray raises on purpose.

```
FlockError                     code, retryable, http_status are class data; survives pickling through Ray
|- ConfigurationError          TypeRegistrationError  DuplicateAgentError (a ValueError)
|                              AgentNotPicklableError  DeployConflictError
|- ArtifactError     ArtifactNotFoundError  PayloadTooLargeError  DuplicateArtifactError  VersionConflictError
|  |                           PayloadLostError
|  `- ArtifactSchemaError      UnknownTypeError
|- RoutingError                NoSubscriberError  LoopGuardError  UnknownAgentError (a KeyError)
|                              AggregateIncompleteError
|- AgentError                  AgentTimeoutError (a TimeoutError)  AgentCrashedError
|  |                           OutputContractError  NoEngineError
|  |                           ContextProviderError  BudgetExceededError
|  |- GuardBlockedError        GuardUnavailableError
|  `- ModelError               RateLimitError (retry_after_s)  ModelTimeoutError (a TimeoutError)
|     |- ModelRequestError     ContextTooLongError  CassetteMissError
|     `- ModelAnswerError      ModelRefusedError
|- CapacityError               PoolSaturatedError  BackpressureError (all with retry_after_s)
|- StoreError                  StoreUnavailableError  StaleEpochError  StoreCorruptError  LeaseLostError
|- ApprovalError               ApprovalDeniedError  ApprovalExpiredError
|- AccessError                 UnauthenticatedError  ForbiddenError
`- BoardClosedError            WaitTimeoutError (a TimeoutError)
```

A message says what happened and ends in what to do next; an error raised without one gets
its class's `text`. This module imports nothing heavy: it is on the path of `import flock_ray`.
"""

from __future__ import annotations

from flock_ray.error_artifacts import (
    ArtifactError,
    ArtifactNotFoundError,
    ArtifactSchemaError,
    DuplicateArtifactError,
    PayloadLostError,
    PayloadTooLargeError,
    UnknownTypeError,
    VersionConflictError,
)
from flock_ray.error_base import FlockError, safe_error_text
from flock_ray.store_errors import (
    LeaseLostError,
    StaleEpochError,
    StoreCorruptError,
    StoreError,
    StoreUnavailableError,
)

__all__ = [
    "AccessError",
    "AgentCrashedError",
    "AgentError",
    "AgentNotPicklableError",
    "AgentTimeoutError",
    "AggregateIncompleteError",
    "ApprovalDeniedError",
    "ApprovalError",
    "ApprovalExpiredError",
    "ArtifactError",
    "ArtifactNotFoundError",
    "ArtifactSchemaError",
    "BackpressureError",
    "BoardClosedError",
    "BudgetExceededError",
    "CapacityError",
    "CassetteMissError",
    "ConfigurationError",
    "ContextProviderError",
    "ContextTooLongError",
    "DeployConflictError",
    "DuplicateAgentError",
    "DuplicateArtifactError",
    "FlockError",
    "ForbiddenError",
    "GuardBlockedError",
    "GuardUnavailableError",
    "LeaseLostError",
    "LoopGuardError",
    "ModelAnswerError",
    "ModelError",
    "ModelRefusedError",
    "ModelRequestError",
    "ModelTimeoutError",
    "NoEngineError",
    "NoSubscriberError",
    "OutputContractError",
    "PayloadLostError",
    "PayloadTooLargeError",
    "PoolSaturatedError",
    "RateLimitError",
    "RoutingError",
    "StaleEpochError",
    "StoreCorruptError",
    "StoreError",
    "StoreUnavailableError",
    "TypeRegistrationError",
    "UnauthenticatedError",
    "UnknownAgentError",
    "UnknownTypeError",
    "VersionConflictError",
    "WaitTimeoutError",
    "safe_error_text",
]


class ConfigurationError(FlockError):
    """A declaration, parameter or environment variable makes no sense."""

    code = "configuration_error"
    text = "The flock is not configured correctly. Correct the declaration and start again."


class TypeRegistrationError(ConfigurationError):
    """A class cannot be an artifact type under this name."""

    code = "type_registration_error"
    text = 'Not an artifact type. Use a BaseModel subclass with a name of its own: @flock_type(name="...").'


class DuplicateAgentError(ConfigurationError, ValueError):
    """A second agent was declared under a name that is taken."""

    code = "duplicate_agent"
    http_status = 409
    text = "An agent of this name exists already. Rename one, or change the first: get_agent(name)."


class AgentNotPicklableError(ConfigurationError):
    """An agent holds something that cannot be sent to a worker."""

    code = "agent_not_picklable"
    text = "The agent cannot be sent to a worker. Open connections, locks and files inside its function."


class DeployConflictError(ConfigurationError):
    """Two programs declare the same agents differently, or a deploy would forget waiting inputs."""

    code = "deploy_conflict"
    http_status = 409
    text = "The deployed agents contradict these. Deploy from one program, or use another namespace."


class RoutingError(FlockError):
    """An artifact or call cannot reach an agent."""

    code = "routing_error"
    http_status = 422
    text = "There is no way to an agent. Ask flock.why(artifact) or flock.check() which condition refused it."


class NoSubscriberError(RoutingError):
    """Nobody consumes what was published, and the caller asked to be told."""

    code = "no_subscriber"
    text = "No agent consumes this artifact. Declare one that does, or ask flock.why(artifact)."


class LoopGuardError(RoutingError):
    """An agent ran more often in one workflow than its limit allows."""

    code = "loop_guard"
    http_status = 508
    text = (
        "The workflow runs in a loop. Give it an exit (where=, activation=), or raise max_agent_iterations."
    )


class AggregateIncompleteError(RoutingError):
    """An aggregate did not get in time what it needs."""

    code = "aggregate_incomplete"
    text = "An aggregate got too few inputs. Raise timeout= or lower min_count= of aggregates()."


class UnknownAgentError(RoutingError, KeyError):
    """No agent of this name is declared or deployed."""

    code = "unknown_agent"
    http_status = 404
    text = "No such agent exists. Check the name against flock.agents."


class AgentError(FlockError):
    """One run of an agent failed."""

    code = "agent_error"
    text = "The agent failed. Look at the WorkflowError artifact of the workflow, or at the dead letters."

    def __init__(self, message: str = "", *, agent: str | None = None) -> None:
        """Make the error; `agent` is the agent's name, None when unknown."""
        super().__init__(message)
        self.agent = agent


class AgentTimeoutError(AgentError, TimeoutError):
    """A run took longer than the agent's timeout."""

    code = "agent_timeout"
    retryable = True
    http_status = 504
    text = "The agent took longer than its timeout. Raise the agent's timeout, or make its work smaller."


class AgentCrashedError(AgentError):
    """The process that ran the agent died, as often as `max_crashes` allows."""

    code = "agent_crashed"
    retryable = True
    text = "The process of the agent died. Look for out-of-memory kills, or give the agent its own .pool()."


class OutputContractError(AgentError):
    """An agent returned something that its publishes() does not declare."""

    code = "output_contract"
    text = "The outputs are not what the agent declares. Return what it declares, or change publishes()."


class NoEngineError(AgentError):
    """An agent has nothing that could run it."""

    code = "no_engine"
    text = 'The agent has neither function nor model. Add .runs(function), or name a model: Flock("...").'


class ModelError(AgentError):
    """A model provider failed or refused."""

    code = "model_error"
    retryable = True
    http_status = 502
    text = "The model provider failed. Check its status, the model's name and the API key, and try again."


class RateLimitError(ModelError):
    """A model provider, or our own limit for it, refuses more calls for now."""

    code = "rate_limit"
    http_status = 429
    text = "The model's rate limit is reached. Wait retry_after_s seconds, or lower max_concurrency."

    def __init__(self, message: str = "", *, agent: str | None = None, retry_after_s: float = 1.0) -> None:
        """Make the error; `retry_after_s` is how long to wait, in seconds."""
        super().__init__(message, agent=agent)
        self.retry_after_s = retry_after_s


class ModelTimeoutError(ModelError, TimeoutError):
    """A model did not answer in time: connect, first token, idle or total."""

    code = "model_timeout"
    http_status = 504
    text = "The model did not answer in time. Raise the timeout, ask for less, or name a fallback model."


class ModelRequestError(ModelError):
    """The provider will never accept this call as it is: wrong key, unknown model, too long, bad schema."""

    code = "model_request"
    retryable = False
    text = "The model provider refuses the request. Check the model's name, the API key and the request."


class ContextTooLongError(ModelRequestError):
    """The request has more tokens than the model takes."""

    code = "context_too_long"
    text = "The request is longer than the model's context. Give the agent less context, or a larger model."


class ModelAnswerError(ModelError):
    """The model answered, and after all repairs the answer is still not what the agent declares."""

    code = "model_answer"
    retryable = False
    text = "The model's answer does not fit the agent's output types. Look at the problems, or raise max_repairs."


class ModelRefusedError(ModelAnswerError):
    """The model declined to answer, or a content filter of its provider cut the answer."""

    code = "model_refused"
    text = "The model refused to answer. Change the agent's description or its input."


class CassetteMissError(ModelRequestError):
    """A recorded run was replayed, and it does not have this request."""

    code = "cassette_miss"
    text = "The cassette does not have this request. Record it again with FLOCK_CASSETTE_MODE=record."


class GuardBlockedError(AgentError):
    """A guard has blocked the input or the output of a run."""

    code = "guard_blocked"
    text = "A guard blocked the run. Look at the guard.flagged event for its reason."


class GuardUnavailableError(GuardBlockedError):
    """A guard could not look at the input or the output, so the run was blocked."""

    code = "guard_unavailable"
    retryable = True
    http_status = 503
    text = 'A guard did not answer. Run it again later, or let its config allow that: on_error="allow".'


class BudgetExceededError(AgentError):
    """A budget does not allow the run."""

    code = "budget_exceeded"
    http_status = 402
    text = "The budget does not allow the run. Raise it, or wait until it is renewed."


class ContextProviderError(AgentError):
    """A context provider raised, or returned something that is no context; the agent did not run."""

    code = "context_provider"
    text = "The context provider failed, so the agent did not run. Correct the provider of with_context()."


class CapacityError(FlockError):
    """Too much work for now: nothing was accepted, so repeating the call is safe."""

    code = "capacity_error"
    retryable = True
    http_status = 429
    text = "The flock has more work than it can take. Wait retry_after_s seconds and repeat the call."

    def __init__(self, message: str = "", *, retry_after_s: float = 1.0) -> None:
        """Make the error; `retry_after_s` is how long to wait, in seconds."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class PoolSaturatedError(CapacityError):
    """Every replica of an agent is busy and its pool may not grow."""

    code = "pool_saturated"
    text = "Every replica of the agent is busy. Wait retry_after_s seconds, or enlarge the agent's pool."


class BackpressureError(CapacityError):
    """A queue has reached its limit."""

    code = "backpressure"
    text = "The queue is full. Wait retry_after_s seconds and publish again; nothing was accepted."


class ApprovalError(FlockError):
    """An approval did not come to a yes."""

    code = "approval_error"
    http_status = 409
    text = "The artifact was not approved. Ask the approvers, then publish again."

    def __init__(self, message: str = "", *, approval_id: str | None = None) -> None:
        """Make the error; `approval_id` names the request, None when unknown."""
        super().__init__(message)
        self.approval_id = approval_id


class ApprovalDeniedError(ApprovalError):
    """An approver said no."""

    code = "approval_denied"
    http_status = 403
    text = "An approver said no. Read the reason in the audit log, and publish a changed request."


class ApprovalExpiredError(ApprovalError):
    """Nobody decided in time, or the decision came too late."""

    code = "approval_expired"
    http_status = 410
    text = "Nobody decided in time. Publish the request again, or raise the timeout of its ApprovalSpec."


class AccessError(FlockError):
    """The caller may not do this."""

    code = "access_error"
    http_status = 403
    text = "You may not do this. Ask an administrator of the flock."


class UnauthenticatedError(AccessError):
    """The caller did not prove who it is."""

    code = "unauthenticated"
    http_status = 401
    text = "Who you are is not known. Send a valid API key or token."


class ForbiddenError(AccessError):
    """The caller is known, and lacks a role, label or tenant."""

    code = "forbidden"
    http_status = 403
    text = "Your identity lacks a role for this. Ask an administrator for the role, or use another key."


class BoardClosedError(FlockError):
    """The board was shut down; nothing was accepted."""

    code = "board_closed"
    http_status = 503
    text = "The board is shut down. Start a new Flock and publish there."


class WaitTimeoutError(FlockError, TimeoutError):
    """A wait reached its timeout; the work that was waited for goes on."""

    code = "wait_timeout"
    retryable = True
    http_status = 504
    text = "The timeout came first. Wait longer, or ask flock.workflow_status(correlation_id) what is open."
