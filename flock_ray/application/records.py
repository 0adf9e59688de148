"""What an application keeps on the board: that a workflow started, how it ended, and the turns of a conversation.

All of it is for the application alone: no agent sees or consumes it, but for `Conversation`. Ids are derived
from the workflow's, so that two processes that do the same thing write one artifact.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from flock_ray.application.types import WorkflowContext
from flock_ray.core.ids import derive_id
from flock_ray.core.registry import TypeRegistry, flock_type, to_json

__all__ = ["Conversation", "ConversationMessage", "ConversationTurn", "WorkflowEnded", "WorkflowStarted"]

BY = "flock:application"
"""`produced_by` of these artifacts."""

RESERVED = "flock:"
"""No workflow id begins so: these correlation ids are the application's own."""


@flock_type(name="flock.WorkflowStarted")
class WorkflowStarted(BaseModel):
    """A workflow was admitted; on the board together with its input, before anything runs."""

    model_config = ConfigDict(frozen=True)

    application: str
    workflow_id: str
    principal_id: str | None = None
    session_id: str | None = None
    attributes: dict[str, str] = Field(default_factory=dict)
    digest: str
    """SHA-256 of the input's type and content, in hexadecimal."""
    started_at: AwareDatetime
    deadline: AwareDatetime
    token: str
    """Drawn by the process that started it."""

    def context(self) -> WorkflowContext:
        """Return the context it was started with."""
        return WorkflowContext(self.workflow_id, self.principal_id, self.session_id, self.attributes)


@flock_type(name="flock.WorkflowEnded")
class WorkflowEnded(BaseModel):
    """How a workflow ended: whoever writes it first has decided."""

    model_config = ConfigDict(frozen=True)

    at: AwareDatetime
    status: str
    failure: str | None = None
    agent: str | None = None
    condition_met: bool | None = None
    outputs: list[str] = Field(default_factory=list)
    """Ids of the outputs in their order."""
    diagnostics: dict[str, Any] = Field(default_factory=dict)
    stop: bool = False
    """Something was left to cancel when it was written."""


class ConversationMessage(BaseModel):
    """An input or output of an earlier workflow."""

    type: str
    payload: Any


@flock_type(name="flock.ConversationTurn")
class ConversationTurn(BaseModel):
    """One workflow of a session that succeeded: what went in, and what its caller got."""

    number: int = Field(ge=0)
    """Counts the turns of the session."""
    workflow_id: str
    at: AwareDatetime
    input: ConversationMessage
    outputs: list[ConversationMessage] = Field(default_factory=list)
    visibility: Any = None
    """The narrowest one that fits all outputs, in JSON terms; None is public."""


@flock_type(name="flock.Conversation")
class Conversation(BaseModel):
    """The earlier turns of a session, the oldest first; published beside the input of each workflow.

    An agent that wants it consumes it: `.consumes(Question, Conversation)`.
    """

    session_id: str
    turns: list[ConversationTurn] = Field(default_factory=list)
    omitted: int = 0
    """Turns before these that are left out, by number or size."""


OWN_TYPES = (WorkflowStarted, WorkflowEnded, ConversationTurn, Conversation)


def key_of(what: str, workflow_id: str) -> str:
    """Return the idempotency key of one of a workflow's artifacts: start, input, history, end or turn."""
    return f"flock-application:{what}:{workflow_id}"


def id_of(what: str, workflow_id: str) -> bytes:
    """Return the id that the artifact of such a key has."""
    return derive_id(b"idempotency", key_of(what, workflow_id).encode())


def session_log(application: str, principal_id: str | None, session_id: str) -> str:
    """Return the correlation id under which the turns of a session are kept."""
    name = json.dumps([application, principal_id, session_id]).encode()
    return f"{RESERVED}session:{sha256(name).hexdigest()[:32]}"


def digest_of(value: BaseModel, registry: TypeRegistry) -> str:
    """Return the digest that tells two inputs apart."""
    content = json.dumps(json.loads(to_json(value)), sort_keys=True, separators=(",", ":"))
    return sha256(f"{registry.name_for(type(value))}\n{content}".encode()).hexdigest()
