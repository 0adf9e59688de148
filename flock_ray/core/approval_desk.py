"""Approvals of one shard: cases open with their request, and end by votes, by time or with their workflow."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import msgspec

from flock_ray.core.activations import iso
from flock_ray.core.approval_orders import (
    ApprovalAnswer,
    ApprovalOrder,
    ApprovalQuery,
    ApprovalRow,
    ShadowRow,
)
from flock_ray.core.approvals import (
    APPROVED,
    CHANGES,
    EXPIRED,
    REJECTED,
    Case,
    ShadowCount,
    Vote,
    can_delegate,
    refusal,
    standing,
    verdict,
)
from flock_ray.core.ids import activation_id, derive_id, shown_id
from flock_ray.core.records import ApprovalDecided
from flock_ray.core.schedule_desk import ScheduleDesk
from flock_ray.core.state import MATCH_AGENT, RELEASE, Activation, Slot
from flock_ray.core.wire import Completion, Envelope, Posting

__all__ = ["ApprovalDesk", "request_id"]

MAX_REMINDERS = 100

ENDS = {
    APPROVED: "approval.approved",
    REJECTED: "approval.rejected",
    EXPIRED: "approval.expired",
    CHANGES: "approval.changes_requested",
}
"""By outcome: the event."""

BOARD = "board"
"""Who decides when the time is over."""


def request_id(case: bytes, round_: int) -> bytes:
    """Name the artifact that shows a case; an edit makes another one."""
    return derive_id(b"approval request", case, b"%d" % round_)


class ApprovalDesk(ScheduleDesk):
    """The approvals of one shard's slots."""

    def __init__(self, owned: Collection[int], *, max_artifacts: int | None, durable: bool) -> None:
        """Start with nothing to approve."""
        super().__init__(owned, max_artifacts=max_artifacts, durable=durable)
        self._replays[ApprovalDecided] = self._replay_approval_decided

    # -- commands -------------------------------------------------------------------------------

    def decide_approval(self, order: ApprovalOrder, now_us: int) -> ApprovalAnswer:
        """Take a decision of a person, once; whoever may not decide is told so, and an event says it."""
        slot = self.slots.get(order.slot)
        case = None if slot is None else slot.approvals.get(order.case)
        if slot is None or case is None:
            self._refuse_decision(order, "", "", "gone", now_us)
            return ApprovalAnswer("gone")
        why = refusal(case, order.kind, order.by, order.roles, order.shown, order.key, order.comment)
        if why == "known" and not order.one_time:
            return ApprovalAnswer("ok")
        if not why and order.kind == "edit" and not self._fits(slot, case, order):
            why = "stale"
        if not why and order.kind == "delegate" and not can_delegate(case, order.by, order.to):
            why = "to_nobody"
        if why:
            self._refuse_decision(order, case.correlation_id, case.ask.agent, why, now_us)
            return ApprovalAnswer(why)
        record = ApprovalDecided(now_us, order)
        self._log(record)
        return ApprovalAnswer("ok", self._on_approval_decided(record))

    def _fits(self, slot: Slot, case: Case, order: ApprovalOrder) -> bool:
        """Say whether what an edit brings is the next request of its case."""
        if order.edited is None or order.edited.approval is None:
            return False
        new = order.edited.envelope
        return (
            new.id == request_id(case.id, case.round + 1)
            and new.id not in self.index
            and new.slot == slot.index
            and new.correlation_id == case.correlation_id
            and new.visibility == case.header.visibility
        )

    def _refuse_decision(
        self, order: ApprovalOrder, correlation_id: str, agent: str, why: str, now_us: int
    ) -> None:
        self.events.note(
            now_us, "approval.refused", agent=agent, correlation_id=correlation_id, artifact_ids=(order.case,),
            detail=f"{order.kind} by {order.by}: {why}",
        )  # fmt: skip

    # -- reading --------------------------------------------------------------------------------

    def approval_rows(self, query: ApprovalQuery) -> Iterator[ApprovalRow | None]:
        """Iterate over the open cases that a query selects, in no order; None: one that it does not."""
        for index, slot in list(self.slots.items()):
            for case in list(slot.approvals.values()):
                chosen = (case.opened_us, case.id) > query.after and query.selects(case)
                yield ApprovalRow(index, case) if chosen else None

    def find_approval(self, key: bytes) -> ApprovalRow | None:
        """Return an open case by its id; None when none is open."""
        for index, slot in self.slots.items():
            case = slot.approvals.get(key)
            if case is not None:
                return ApprovalRow(index, case)
        return None

    def shadow_rows(self) -> Iterator[ShadowRow]:
        """Iterate over what people would have said."""
        for slot in self.slots.values():
            for (agent, type_name), count in slot.shadows.items():
                yield ShadowRow(agent, type_name, count)

    # -- what the records do --------------------------------------------------------------------

    def _open_case(self, slot: Slot, posting: Posting, now_us: int) -> None:
        """Begin to wait for people; called when the request is accepted."""
        ask, envelope = posting.approval, posting.envelope
        workflow = slot.workflows[envelope.correlation_id]
        if ask is None or ask.artifact in slot.approvals:
            return
        if workflow.cancelled:
            self.events.note(
                now_us, "approval.cancelled", agent=ask.agent, correlation_id=workflow.id,
                artifact_ids=(ask.artifact,), detail="its workflow was cancelled before",
            )  # fmt: skip
            return
        terms = ask.terms
        case = Case(ask, _header(envelope), now_us, now_us + terms.timeout_us, terms.approvers, terms.quorum)
        slot.approvals[case.id] = case
        if terms.shadow:
            self._shadow_of(slot, case).asked += 1
        else:
            workflow.waiting += 1
            self._touch(workflow)
            if envelope.scatter:  # the chunk may still deliver something
                self._hold(slot, envelope.scatter[-1])
        self._await_case(slot, case, now_us)
        self._note_case(case, "approval.requested", now_us, f"{ask.type} for {_names(case.approvers)}")
        self._decide(now_us, "approval.requested", shown_id(case.id), ask.agent, _said(case))
        self._tell_approvers(slot, case, "requested", now_us)

    def _replay_approval_decided(self, record: ApprovalDecided) -> None:
        self._on_approval_decided(record)

    def _on_approval_decided(self, record: ApprovalDecided) -> str:
        order, now_us = record.order, record.at_us
        slot = self.slots[record.slot]
        case = slot.approvals[order.case]
        covers = standing(case, order.by, order.roles)
        vote = Vote(
            order.kind,
            order.by,
            covers,
            now_us,
            order.shown,
            order.key,
            case.round,
            order.comment,
            order.to,
            order.amount,
        )
        case.votes.append(vote)
        self._note_case(case, "approval.decided", now_us, f"{order.kind} by {order.by}")
        detail = (
            _said(case)
            + (f" to {order.to}" if order.to else "")
            + (f": {order.comment}" if order.comment else "")
        )
        self._decide(now_us, f"approval.{order.kind}", shown_id(case.id), order.by, detail)
        if order.kind == "delegate":
            case.delegations += ((order.by, order.to, covers),)
            self._tell_approvers(slot, case, "delegated", now_us, order.to)
        elif order.kind == "edit" and order.edited is not None and order.edited.approval is not None:
            new = order.edited.approval
            case.round += 1
            case.ask = msgspec.structs.replace(case.ask, shown=new.shown, version=new.version)
            case.header = _header(order.edited.envelope)
            case.editors += (order.by,)
            self._publish_output(slot, order.edited, now_us, unmatched=True)
            self._tell_approvers(slot, case, "edited", now_us, order.by)
        outcome, reason = verdict(case)
        if outcome:
            self._close_case(slot, case, outcome, now_us, reason)
        return outcome

    def _on_approval_due(self, slot: Slot, key: bytes, now_us: int) -> None:
        """A reminder or the timeout of a case is due, unless its timer is not true any more."""
        case = slot.approvals.get(key)
        if case is None or now_us < case.wake_us:
            return
        if now_us < case.due_us:
            case.reminders += 1
            self._note_case(case, "approval.reminded", now_us, f"until {iso(case.due_us)}")
            self._tell_approvers(slot, case, "reminder", now_us)
            self._await_case(slot, case, now_us)
            return
        terms = case.ask.terms
        if terms.on_timeout == "escalate" and not case.escalated:
            self._escalate(slot, case, now_us)
        elif terms.on_timeout == "approve" and not terms.shadow:
            self._close_case(slot, case, APPROVED, now_us, "nobody decided in time, and on_timeout says so")
        else:
            self._close_case(slot, case, EXPIRED, now_us, "nobody decided in time")

    def _escalate(self, slot: Slot, case: Case, now_us: int) -> None:
        """Have others decide, anew and with as much time again."""
        terms = case.ask.terms
        case.escalated = True
        case.round += 1
        case.approvers, case.quorum = terms.escalate_to, min(case.quorum, len(terms.escalate_to))
        case.due_us = now_us + terms.timeout_us
        self._await_case(slot, case, now_us)
        self._note_case(case, "approval.escalated", now_us, f"to {_names(case.approvers)}")
        self._decide(now_us, "approval.escalated", shown_id(case.id), BOARD, _names(case.approvers))
        self._tell_approvers(slot, case, "escalated", now_us)

    def _await_case(self, slot: Slot, case: Case, now_us: int) -> None:
        remind_us = case.ask.terms.remind_us
        case.wake_us = case.due_us
        if remind_us and not case.ask.terms.shadow and case.reminders < MAX_REMINDERS:
            case.wake_us = min(case.due_us, now_us + remind_us)
        self._add_timer(slot, case.wake_us, "approval", case.id, b"")

    def _close_case(self, slot: Slot, case: Case, outcome: str, now_us: int, reason: str) -> None:
        """End a case: release what waited, or say that it will not come."""
        del slot.approvals[case.id]
        kind = ENDS[outcome]
        people = [vote.by for vote in case.current]
        # No comments here: they are for those who may see the request.
        self._note_case(
            case, kind, now_us, f"by {', '.join(people)}" if people and outcome != EXPIRED else reason
        )
        if outcome == EXPIRED or not people:
            self._decide(now_us, kind, shown_id(case.id), BOARD, f"{_said(case)}: {reason}")
        if case.ask.terms.shadow:
            self._count_shadow(slot, case, outcome)
            if outcome != EXPIRED:  # by a person; when the time is over, its workflow may be anywhere
                self._publish_outcome(slot, case, outcome, reason, now_us)
            return
        workflow = slot.workflows[case.correlation_id]
        self._publish_outcome(slot, case, outcome, reason, now_us)
        opened = self._give(slot, case, now_us) if outcome == APPROVED else False
        if outcome != APPROVED:
            self._keep_back(slot, case, now_us)
        self._shift(workflow, int(opened), -1, now_us)
        self._let_chunk_go(slot, case, now_us)

    def _let_chunk_go(self, slot: Slot, case: Case, now_us: int) -> None:
        if case.header.scatter:
            self._free(slot, case.header.scatter[-1], now_us)

    def _give(self, slot: Slot, case: Case, now_us: int) -> bool:
        """Do what was approved; True: an activation of its workflow is open for it."""
        self._release_case(slot, case, now_us)
        return True

    def _keep_back(self, slot: Slot, case: Case, now_us: int) -> None:
        """Take notice that something was not approved; an artifact just is not made."""

    def _release_case(self, slot: Slot, case: Case, now_us: int) -> None:
        """Have a worker make the artifact of its request and match it; it checks that it is what was approved."""
        request = self.index.get(case.request)
        assert request is not None  # its workflow waits, so it has not left memory
        name = f"{RELEASE}{case.ask.shown.hex()}"
        key = activation_id(MATCH_AGENT, name, (case.id,), 0)
        activation = Activation(key, MATCH_AGENT, name, slot.index, case.correlation_id, (request,), now_us)
        slot.open[key] = activation
        if request.scatter:
            self._hold(slot, request.scatter[-1])
        self.num_open += 1
        self.dispatch.push(activation)

    def _on_released(self, slot: Slot, activation: Activation, completion: Completion, now_us: int) -> None:
        """Publish what was approved; when no worker could make it, an error takes its place."""
        for posting in completion.outputs:
            self._publish_output(slot, posting, now_us)
        if completion.error is not None:
            error, [request] = completion.error, activation.inputs
            agent = request.produced_by.partition("#")[2]
            self._publish_error(
                slot, activation.id, agent, activation.correlation_id, activation.inputs, error.type,
                f"approved, and could not be released: {error.message}", now_us,
            )  # fmt: skip

    def _end_cases_of(self, slot: Slot, workflow: str, now_us: int) -> int:
        """End the cases of a workflow that is cancelled; returns how many of them it had counted as waiting."""
        waited = 0
        for case in [c for c in slot.approvals.values() if c.correlation_id == workflow]:
            del slot.approvals[case.id]
            self._note_case(case, "approval.cancelled", now_us, "its workflow was cancelled")
            self._decide(now_us, "approval.cancelled", shown_id(case.id), BOARD, _said(case))
            if case.ask.terms.shadow:
                self._count_shadow(slot, case, EXPIRED)
            else:
                waited += 1
                self._let_chunk_go(slot, case, now_us)
        return waited

    # -- what others see ------------------------------------------------------------------------

    def _publish_outcome(self, slot: Slot, case: Case, outcome: str, reason: str, now_us: int) -> None:
        """Publish how a case ended, for approvers; and to whom the artifact would have come, that it does not."""
        ask = case.ask
        self._counting_record(slot, case.correlation_id, now_us)
        payload: dict[str, Any] = {
            "artifact_id": shown_id(case.id), "artifact_type": ask.type, "agent": ask.agent, "outcome": outcome,
            "reason": reason, "decided_at": iso(now_us), "shown": ask.shown.hex(), "shadow": ask.terms.shadow,
            "decisions": [
                {
                    "decision": v.kind, "by": v.by, "at": iso(v.at_us), "comment": v.comment, "shown": v.shown.hex(),
                    "to": v.to, "key": v.key.hex(), "counts": v.round == case.round,
                }
                for v in case.votes
            ],
        }  # fmt: skip
        self._publish_own(
            slot, "ApprovalOutcome", payload, outcome_id(case.id), ask.agent, case.correlation_id, (case.header,), None,
            now_us,
        )  # fmt: skip
        if outcome not in (REJECTED, EXPIRED, CHANGES) or ask.terms.shadow:
            return
        told = {
            name: payload[name]
            for name in ("artifact_id", "artifact_type", "agent", "outcome", "reason", "decided_at")
        }
        told["by"] = sorted({v.by for v in case.current if v.kind in ("reject", "changes")})
        self._publish_own(
            slot, "ApprovalRejected", told, derive_id(case.id, b"rejected"), ask.agent, case.correlation_id,
            (msgspec.structs.replace(case.header, visibility=ask.visibility),), None, now_us,
            parents=case.header.parents,
        )  # fmt: skip

    def _tell_approvers(self, slot: Slot, case: Case, what: str, now_us: int, about: str = "") -> None:
        """Publish what approvers should hear of, if anybody listens for it; nothing of the content is in it."""
        case.notices += 1
        if "ApprovalNotice" not in self.matched_types:
            return
        self._counting_record(slot, case.correlation_id, now_us)
        ask = case.ask
        payload = {
            "artifact_id": shown_id(case.id), "artifact_type": ask.type, "agent": ask.agent, "notice": what,
            "about": about, "approvers": list(case.approvers), "quorum": case.quorum, "summary": ask.summary,
            "shown": ask.shown.hex(), "expires_at": iso(case.due_us), "at": iso(now_us), "shadow": ask.terms.shadow,
            "approved_by": [v.by for v in case.current if v.kind == "approve"],
        }  # fmt: skip
        self._publish_own(
            slot, "ApprovalNotice", payload, derive_id(case.id, b"notice", b"%d" % case.notices), ask.agent,
            case.correlation_id, (case.header,), None, now_us,
        )  # fmt: skip

    def _note_case(self, case: Case, kind: str, now_us: int, detail: str) -> None:
        self.events.note(
            now_us, kind, agent=case.ask.agent, correlation_id=case.correlation_id, artifact_ids=(case.id,),
            detail=detail,
        )  # fmt: skip

    # -- shadows --------------------------------------------------------------------------------

    def _shadow_of(self, slot: Slot, case: Case) -> ShadowCount:
        return slot.shadows.setdefault((case.ask.agent, case.ask.type), ShadowCount())

    def _count_shadow(self, slot: Slot, case: Case, outcome: str) -> None:
        count = self._shadow_of(slot, case)
        if outcome == APPROVED:
            count.approved += 1
        elif outcome in (REJECTED, CHANGES):
            count.rejected += 1
        else:
            count.expired += 1


def _header(request: Envelope) -> Envelope:
    return msgspec.structs.replace(request, payload=b"")


def outcome_id(case: bytes) -> bytes:
    """Name the artifact that says how a case ended."""
    return derive_id(case, b"outcome")


def _names(names: Collection[str]) -> str:
    return ", ".join(names) or "anybody"


def _said(case: Case) -> str:
    return f"shown sha256:{case.ask.shown.hex()}"
