"""What a posting says of an approval: it travels with the request, and the journal keeps it."""

from __future__ import annotations

import msgspec

__all__ = ["ApprovalAsk", "ApprovalTerms", "BudgetAsk"]


class ApprovalTerms(msgspec.Struct, array_like=True, frozen=True):
    """Under which terms something is approved: an `ApprovalSpec` without its functions."""

    approvers: tuple[str, ...] = ()
    """People and roles; empty: anybody."""
    quorum: int = 1
    timeout_us: int = 0
    on_timeout: str = "reject"
    """`reject`, `approve` or `escalate`."""
    escalate_to: tuple[str, ...] = ()
    remind_us: int = 0
    """Between reminders; 0: there are none."""
    allow_edit: bool = False
    require_comment: bool = False
    separation: bool = True
    """Who made it, asked for it or edited it may not approve it."""
    shadow: bool = False
    """Nothing waits for it: what people would have said is only counted."""


class BudgetAsk(msgspec.Struct, array_like=True, frozen=True):
    """More of a budget, of which a case is."""

    account: str
    what: str
    """nusd, tokens or calls."""
    asks: int
    """How much more, unless approvers name another amount."""


class ApprovalAsk(msgspec.Struct, array_like=True, frozen=True):
    """What a posting says of the artifact that waits; the posting itself is that of the request."""

    artifact: bytes
    """Id that it will have: also that of the case."""
    type: str
    version: int
    shown: bytes
    """`shown_hash` of what approvers see."""
    agent: str
    """Who made it."""
    involved: tuple[str, ...]
    """Who may not approve it under separation of duties."""
    visibility: bytes | None
    """What it was declared to have, encoded: it gets that when it is released."""
    summary: str
    """One line for lists and messages; empty when the declaration makes none."""
    terms: ApprovalTerms
    budget: BudgetAsk | None = None
    """It is about a budget; None: about an artifact."""
