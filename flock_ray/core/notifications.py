"""What people are told of an approval, whatever tells them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

__all__ = ["NoticeKind", "Notification"]

NoticeKind = Literal["requested", "reminder", "escalated", "edited", "delegated"]


@dataclass(frozen=True, slots=True)
class Notification:
    """Something that approvers should hear of. Of the content it has no more than the summary."""

    kind: NoticeKind
    approval: str
    """Its id: text of a UUID."""
    artifact_type: str
    agent: str
    """Who made it."""
    workflow: str
    approvers: tuple[str, ...]
    """Who decides now; empty: anybody."""
    quorum: int
    approved_by: tuple[str, ...]
    summary: str
    """What `ApprovalSpec(summary=)` says; empty: nothing."""
    shown: str
    """SHA-256 of what is shown, in hexadecimal."""
    expires_at: datetime
    about: str = ""
    """Who edited it, or to whom it was delegated."""
    shadow: bool = False
    """Nothing waits for it."""

    @property
    def to(self) -> tuple[str, ...]:
        """Who should hear of it: the person it was delegated to, or those who have not approved yet."""
        if self.kind == "delegated":
            return (self.about,)
        return tuple(name for name in self.approvers if name not in self.approved_by)
