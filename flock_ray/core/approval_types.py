"""The artifact types that approvals publish. A program may have types of its own under these names.

None of them is registered by itself: whoever consumes or reads one brings its class, this one or another that fits
the payload. So `ApprovalRequest` may just as well be a class of the program with the fields that it wants to see.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

__all__ = ["ApprovalDecision", "ApprovalNotice", "ApprovalOutcome", "ApprovalRejected", "ApprovalRequest"]


class ApprovalRequest(BaseModel):
    """An artifact that waits for approval; agents see it that have the name of an approver."""

    model_config = ConfigDict(frozen=True)

    artifact: Any
    """What would be published, in JSON terms."""
    requires_approval: bool = True
    """Whether anything waits for it; not in training mode."""
    artifact_id: str
    """Id that the artifact will have, and that of the approval: text of a UUID."""
    artifact_type: str
    artifact_version: int = 1
    agent: str
    """Who made it."""
    approvers: list[str] = Field(default_factory=list)
    """People and roles; empty: anybody."""
    quorum: int = 1
    timeout_s: float = 0.0
    summary: str = ""
    shown: str
    """SHA-256 of type, version and content, in hexadecimal: decisions carry it."""
    visibility: dict[str, Any] | None = None
    """Who will see the artifact; None: everybody."""
    edited_by: str = ""
    """Who made this version of it, if it was edited."""


class ApprovalNotice(BaseModel):
    """Approvers should hear of something; it says nothing of the content but its summary."""

    model_config = ConfigDict(frozen=True)

    artifact_id: str
    artifact_type: str
    agent: str
    notice: Literal["requested", "reminder", "escalated", "edited", "delegated"]
    about: str = ""
    """Who edited, or to whom it was delegated."""
    approvers: list[str] = Field(default_factory=list)
    quorum: int = 1
    summary: str = ""
    shown: str = ""
    expires_at: AwareDatetime
    at: AwareDatetime
    shadow: bool = False
    approved_by: list[str] = Field(default_factory=list)


class ApprovalDecision(BaseModel):
    """What one person decided."""

    model_config = ConfigDict(frozen=True)

    decision: Literal["approve", "reject", "abstain", "changes", "delegate", "edit"]
    by: str
    at: AwareDatetime
    comment: str = ""
    shown: str
    """SHA-256 of what they saw, in hexadecimal."""
    to: str = ""
    """To whom they delegated."""
    key: str = ""
    counts: bool = True
    """False: something else was shown later, or others were asked."""


class ApprovalOutcome(BaseModel):
    """How an approval ended; as visible as its request was."""

    model_config = ConfigDict(frozen=True)

    artifact_id: str
    artifact_type: str
    agent: str
    outcome: Literal["approved", "rejected", "expired", "changes_requested"]
    reason: str = ""
    decided_at: AwareDatetime
    shown: str
    """SHA-256 of what was approved or not, in hexadecimal."""
    shadow: bool = False
    decisions: list[ApprovalDecision] = Field(default_factory=list)


class ApprovalRejected(BaseModel):
    """An artifact will not be published; whoever would have seen it sees this."""

    model_config = ConfigDict(frozen=True)

    artifact_id: str
    artifact_type: str
    agent: str
    outcome: Literal["rejected", "expired", "changes_requested"]
    reason: str = ""
    """The comment of who said no."""
    by: list[str] = Field(default_factory=list)
    decided_at: AwareDatetime
