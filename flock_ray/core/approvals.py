"""Approvals as a state machine: who may decide, what a decision does, when a case is over. No I/O and no clock.

A case is one thing that waits for people. Everything that a decision depends on is in the case and in the order, so
a replay decides the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any, Literal

import msgspec

from flock_ray.core.approval_terms import ApprovalAsk
from flock_ray.core.wire import Envelope

__all__ = [
    "APPROVED",
    "CHANGES",
    "EXPIRED",
    "REJECTED",
    "Case",
    "DecisionKind",
    "ShadowCount",
    "Vote",
    "can_delegate",
    "refusal",
    "shown_hash",
    "standing",
    "verdict",
]

DecisionKind = Literal["approve", "reject", "abstain", "changes", "delegate", "edit"]
"""What one can do with a case: `changes` sends it back to be done again, `edit` replaces what is shown."""

APPROVED, REJECTED, EXPIRED, CHANGES = "approved", "rejected", "expired", "changes_requested"
"""How a case ends; a cancelled workflow ends its cases as `cancelled`."""

MAX_VOTES = 1_000
"""Decisions that one case takes: people, edits and delegations together."""


class Vote(msgspec.Struct, array_like=True, frozen=True):
    """A decision that somebody took."""

    kind: DecisionKind
    by: str
    covers: tuple[str, ...]
    """The approvers for whom this person could speak."""
    at_us: int
    shown: bytes
    """Hash of exactly what they saw."""
    key: bytes
    """Identity of the decision: the same one again changes nothing."""
    round: int
    comment: str = ""
    to: str = ""
    """To whom it was delegated."""
    amount: int = 0
    """Of more budget, how much: nano-dollars, tokens or calls; 0: what was asked for."""


class Case(msgspec.Struct, array_like=True):
    """One thing that waits for people."""

    ask: ApprovalAsk
    header: Envelope
    """The artifact that shows it, without its payload."""
    opened_us: int
    due_us: int
    """When it times out."""
    approvers: tuple[str, ...]
    quorum: int
    wake_us: int = 0
    """When a reminder or the timeout is due: earlier timers of it do nothing."""
    votes: list[Vote] = []
    round: int = 0
    """An edit and an escalation begin a new one: only votes of the newest count."""
    escalated: bool = False
    reminders: int = 0
    notices: int = 0
    """Notices published so far."""
    editors: tuple[str, ...] = ()
    delegations: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    """(from, to, the approvers for whom the one could speak)."""

    @property
    def id(self) -> bytes:
        """Id of the case, which is that of the artifact."""
        return self.ask.artifact

    @property
    def request(self) -> bytes:
        """Id of the artifact that shows it."""
        return self.header.id

    @property
    def correlation_id(self) -> str:
        """Its workflow."""
        return self.header.correlation_id

    @property
    def current(self) -> list[Vote]:
        """The votes that count."""
        return [
            v
            for v in self.votes
            if v.round == self.round and v.kind in ("approve", "reject", "abstain", "changes")
        ]


class ShadowCount(msgspec.Struct, array_like=True):
    """What people would have said of one agent's outputs of one type."""

    asked: int = 0
    approved: int = 0
    rejected: int = 0
    """Changes asked for are among them."""
    expired: int = 0
    """Nobody said anything in time."""


def shown_hash(type_name: str, version: int, payload: Any) -> bytes:
    """Return the SHA-256 of what approvers see: type, version and content as JSON with sorted keys."""
    text = json.dumps([type_name, version, payload], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return sha256(text.encode()).digest()


def standing(case: Case, by: str, roles: Iterable[str]) -> tuple[str, ...]:
    """Return the approvers for whom a person can speak; empty: none. Who has delegated has nothing left to say."""
    if any(source == by for source, _, _ in case.delegations):
        return ()
    if not case.approvers:
        return (by,)
    names = {by, *roles}
    found = [name for name in case.approvers if name in names]
    for _, target, covers in case.delegations:
        if target == by:
            found += [name for name in covers if name in case.approvers]
    return tuple(dict.fromkeys(found))


def refusal(
    case: Case, kind: DecisionKind, by: str, roles: Iterable[str], shown: bytes, key: bytes, comment: str
) -> str:
    """Say why a decision is not taken; empty when it is.

    Returns:
        `known`: this very decision was taken before. `forbidden`: not one of the approvers. `own`: separation of
        duties. `voted`: this person has decided. `stale`: something else is shown by now. `comment`: there must be
        one. `no_edit`: it may not be edited. `full`: it has taken too many decisions.
    """
    if any(vote.key == key for vote in case.votes):
        return "known"
    if not standing(case, by, roles):
        return "forbidden"
    if shown != case.ask.shown:
        return "stale"
    if any(vote.by == by for vote in case.current):
        return "voted"
    terms = case.ask.terms
    if kind == "approve" and terms.separation and (by in case.ask.involved or by in case.editors):
        return "own"
    if kind == "edit" and (not terms.allow_edit or terms.shadow):
        return "no_edit"
    if terms.require_comment and kind in ("approve", "reject", "changes", "edit") and not comment.strip():
        return "comment"
    return "full" if len(case.votes) >= MAX_VOTES else ""


def can_delegate(case: Case, by: str, to: str) -> bool:
    """Say whether somebody can decide in the place of another one: not who has handed on what they had themselves."""
    return to not in ("", by) and not any(source == to for source, _, _ in case.delegations)


def verdict(case: Case) -> tuple[str, str]:
    """Return how a case has ended by its votes, and why; empty when it goes on.

    One rejection rejects. It is approved when so many people as the quorum says approve, each for another one of the
    approvers: a second member of the same role counts only when the quorum is larger than the list of approvers.
    """
    votes = case.current
    against = [vote for vote in votes if vote.kind in ("reject", "changes")]
    if against:
        last = against[-1]
        return (REJECTED if last.kind == "reject" else CHANGES), last.comment
    yes = [vote for vote in votes if vote.kind == "approve"]
    needed = min(case.quorum, len(case.approvers)) if case.approvers else 0
    if len(yes) >= case.quorum and _distinct({vote.by: vote.covers for vote in yes}) >= needed:
        return APPROVED, ""
    if case.approvers and all(_is_spent(case, name, votes) for name in case.approvers):
        return REJECTED, "everybody has decided, and the quorum can't be reached any more"
    return "", ""


def _distinct(covers: Mapping[str, tuple[str, ...]]) -> int:
    """Count for how many approvers, at most, people can speak, one each: a maximum matching."""
    taken: dict[str, str] = {}

    def place(person: str, seen: set[str]) -> bool:
        for name in covers[person]:
            if name in seen:
                continue
            seen.add(name)
            if name not in taken or place(taken[name], seen):
                taken[name] = person
                return True
        return False

    return sum(place(person, set()) for person in covers)


def _is_spent(case: Case, name: str, votes: list[Vote]) -> bool:
    """Say whether an approver is a person who has decided: a role could always have another member."""
    if any(vote.by == name for vote in votes):
        return True
    stands_in = [target for source, target, _ in case.delegations if source == name]
    return any(vote.by == target for target in stands_in for vote in votes)
