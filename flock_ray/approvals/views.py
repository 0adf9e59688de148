"""What one sees of approvals."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic_core import from_json

from flock_ray.artifact import Artifact
from flock_ray.core.approval_orders import ApprovalRow
from flock_ray.core.approval_types import ApprovalDecision, ApprovalOutcome
from flock_ray.core.wire import Envelope
from flock_ray.errors import ArtifactNotFoundError, ConfigurationError

__all__ = ["Agreement", "Approval"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Approval:
    """Something that waits, or waited, for people."""

    id: uuid.UUID
    """Also the id that the artifact has once it is published."""
    state: str
    """pending, approved, rejected, expired or changes_requested."""
    artifact_type: str
    agent: str
    """Who made it."""
    workflow: str
    shown: str
    """SHA-256 of type, version and content, in hexadecimal: give it with a decision to decide about exactly this."""
    artifact: dict[str, Any] | None
    """The content, in JSON terms; None when it was erased or has left the board."""
    request: Artifact | None
    """The artifact that shows it."""
    approvers: tuple[str, ...] = ()
    """Who decides; empty: anybody, or it is decided."""
    quorum: int = 0
    """How many of them; 0 when it is decided."""
    summary: str = ""
    opened_at: datetime | None = None
    expires_at: datetime | None = None
    """None when it is decided."""
    decided_at: datetime | None = None
    reason: str = ""
    """Why it ended like this."""
    decisions: tuple[ApprovalDecision, ...] = ()
    """Oldest first; those with `counts=False` are about something that was shown before."""
    escalated: bool = False
    shadow: bool = False
    """Nothing waits for it."""

    @property
    def approved_by(self) -> tuple[str, ...]:
        """Who has approved what is shown now."""
        return tuple(d.by for d in self.decisions if d.counts and d.decision == "approve")


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often approvers would have said yes to an agent's outputs, in training mode."""

    agent: str
    artifact_type: str
    asked: int
    approved: int
    rejected: int
    expired: int
    """Nobody said anything in time."""

    @property
    def open(self) -> int:
        """Those that can still be decided."""
        return self.asked - self.approved - self.rejected - self.expired

    @property
    def rate(self) -> float | None:
        """Share of yes among what was decided, from 0 to 1; None when nothing was."""
        decided = self.approved + self.rejected
        return self.approved / decided if decided else None


def open_view(row: ApprovalRow, request: Envelope | None) -> Approval:
    """Show a case that is open."""
    case, ask = row.case, row.case.ask
    content = None if request is None else from_json(request.payload)
    return Approval(
        uuid.UUID(bytes=case.id), "pending", ask.type, ask.agent, case.correlation_id, ask.shown.hex(),
        content.get("artifact") if isinstance(content, dict) else None,
        None if request is None else Artifact.from_envelope(request), case.approvers, case.quorum, ask.summary,
        moment(case.opened_us), moment(case.due_us),
        decisions=tuple(
            ApprovalDecision(
                decision=v.kind, by=v.by, at=moment(v.at_us), comment=v.comment, shown=v.shown.hex(), to=v.to,
                key=v.key.hex(), counts=v.round == case.round,
            )
            for v in case.votes
        ),
        escalated=case.escalated, shadow=ask.terms.shadow,
    )  # fmt: skip


def closed_view(outcome: ApprovalOutcome, workflow: str, request: Envelope | None) -> Approval:
    """Show a case that was decided."""
    content = None if request is None else from_json(request.payload)
    return Approval(
        uuid.UUID(outcome.artifact_id), outcome.outcome, outcome.artifact_type, outcome.agent, workflow, outcome.shown,
        content.get("artifact") if isinstance(content, dict) else None,
        None if request is None else Artifact.from_envelope(request), decided_at=outcome.decided_at,
        reason=outcome.reason, decisions=tuple(outcome.decisions), shadow=outcome.shadow,
    )  # fmt: skip


def moment(us: int) -> datetime:
    """Return a time of the journal."""
    return _EPOCH + timedelta(microseconds=us)


def approval_id(approval: Approval | Artifact | uuid.UUID | str) -> bytes:
    """Return the id of an approval: of itself, of its request, or of the artifact that waits.

    Raises:
        ConfigurationError: It is no id.
    """
    if isinstance(approval, Approval):
        return approval.id.bytes
    if isinstance(approval, Artifact):
        named = approval.payload.get("artifact_id") if approval.type.startswith("Approval") else None
        approval = approval.id if named is None else str(named)
    try:
        return (approval if isinstance(approval, uuid.UUID) else uuid.UUID(approval)).bytes
    except (ValueError, AttributeError):
        raise ConfigurationError(f"{approval!r} is no id of an approval.") from None


def unknown_approval(key: bytes) -> ArtifactNotFoundError:
    """Return the error for an approval that is not there."""
    return ArtifactNotFoundError(f"There is no approval {uuid.UUID(bytes=key)} on this board: check its id.")
