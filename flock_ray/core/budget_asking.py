"""Budgets that ask people for more when they are used up: a case in the slot that keeps the account."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from flock_ray.core.approval_desk import ApprovalDesk, request_id
from flock_ray.core.approval_terms import ApprovalAsk, ApprovalTerms, BudgetAsk
from flock_ray.core.approvals import Case, shown_hash
from flock_ray.core.budgets import NUSD, Charge, Limit, Refusal, Reserve, home_of_account
from flock_ray.core.ids import derive_id, shown_id
from flock_ray.core.records import BudgetAsked
from flock_ray.core.state import Slot
from flock_ray.core.visibility import PrivateVisibility, encode_visibility
from flock_ray.core.wire import Envelope, Posting

__all__ = ["BUDGET_INCREASE", "BudgetAskDesk"]

BUDGET_INCREASE = "BudgetIncrease"
"""Type that requests for more budget name; no such artifact is ever published."""

UNITS = {"nusd": "usd", "tokens": "tokens", "calls": "calls"}


class BudgetAskDesk(ApprovalDesk):
    """Asks for more budget, and gives what was approved."""

    def __init__(self, owned: Collection[int], *, max_artifacts: int | None, durable: bool) -> None:
        """Start with nothing to ask for."""
        super().__init__(owned, max_artifacts=max_artifacts, durable=durable)
        self._replays[BudgetAsked] = self._on_budget_asked

    def reserve(self, ask: Reserve, now_us: int) -> Refusal | None:
        """Reserve the worst case of a call; when an account that asks is used up, ask for more, once."""
        refusal = super().reserve(ask, now_us)
        if refusal is not None and refusal.terms.approval is not None and refusal.terms.policy == "ask":
            used_up = refusal.what in UNITS and not refusal.may_free
            charge = next((c for c in ask.charges if c.account == refusal.account), None)
            if used_up and charge is not None and not self._is_asked(refusal.account):
                record = BudgetAsked(
                    now_us, home_of_account(refusal.account), charge, refusal, ask.agent, ask.workflow
                )
                self._log(record)
                self._on_budget_asked(record)
        return refusal

    def _is_asked(self, account: str) -> bool:
        slot = self.slots[home_of_account(account)]
        known = slot.ledger.accounts.get(account)
        return known is not None and _case_id(account, known.asked) in slot.approvals

    def _on_budget_asked(self, record: BudgetAsked) -> None:
        slot, refusal, charge = self.slots[record.slot], record.refusal, record.charge
        terms = refusal.terms.approval
        if terms is None:
            return  # no such record is written
        asked = slot.ledger.ask(charge, record.at_us)
        case = _case_id(charge.account, asked)
        content = _content(charge, refusal, record.agent, record.workflow)
        shown = shown_hash(BUDGET_INCREASE, 1, content)
        visibility = encode_visibility(PrivateVisibility(agents=frozenset(terms.approvers)))
        summary = (
            f"{charge.account} is used up: {content['left']:g} of {content['limit']:g} {content['unit']} are left, "
            f"a call needs {content['needed']:g}"
        )
        more = BudgetAsk(charge.account, refusal.what, refusal.limit)
        ask = ApprovalAsk(
            case, BUDGET_INCREASE, 1, shown, record.agent, (record.agent,), visibility, summary, terms, more
        )
        envelope = Envelope(
            request_id(case, 0), "ApprovalRequest", 1, msgspec.json.encode(_request(ask, content, terms)),
            f"budget-{case.hex()}", slot.index, f"orchestrator#{record.agent}", record.at_us, (), visibility,
            f"budget:{charge.account}",
        )  # fmt: skip
        self._publish_output(slot, Posting(envelope, approval=ask), record.at_us, unmatched=True)

    def _give(self, slot: Slot, case: Case, now_us: int) -> bool:
        """Raise the limit of an account by what was approved: the least that anybody has named."""
        more = case.ask.budget
        if more is None:
            return super()._give(slot, case, now_us)
        named = [v.amount for v in case.current if v.kind == "approve" and v.amount > 0]
        amount = min(named, default=more.asks)
        account = slot.ledger.accounts.get(more.account)
        if account is not None:
            base = account.limit if account.own is None else account.own
            limit = base.plus(Limit(**{more.what: amount}))
            slot.ledger.set(more.account, limit, None, now_us)
            self._told_exceeded.pop(more.account, None)
            by = ", ".join(v.by for v in case.current if v.kind == "approve") or "board"
            self.events.note(
                now_us, "budget.set", detail=f"{more.account}: {_text(more.what, amount)} more, by {by}"
            )
            self._decide(now_us, "budget.set", more.account, by, f"{_text(more.what, amount)} more")
        return False

    def _keep_back(self, slot: Slot, case: Case, now_us: int) -> None:
        """Let calls fail from now on that would have waited for more."""
        more = case.ask.budget
        if more is not None:
            slot.ledger.deny(more.account)


def _case_id(account: str, asked: int) -> bytes:
    return derive_id(b"budget increase", account.encode("utf-8", "surrogatepass"), b"%d" % asked)


def _content(charge: Charge, refusal: Refusal, agent: str, workflow: str) -> dict[str, Any]:
    """Return what approvers see, in dollars, tokens or calls."""
    per = NUSD if refusal.what == "nusd" else 1
    return {
        "account": charge.account, "unit": UNITS[refusal.what], "limit": refusal.limit / per,
        "left": max(0, refusal.left) / per, "needed": refusal.needed / per, "asks_for": refusal.limit / per,
        "agent": agent, "workflow": workflow,
    }  # fmt: skip


def _request(ask: ApprovalAsk, content: dict[str, Any], terms: ApprovalTerms) -> dict[str, Any]:
    return {
        "artifact": content, "requires_approval": True, "artifact_id": shown_id(ask.artifact),
        "artifact_type": ask.type, "artifact_version": 1, "agent": ask.agent, "approvers": list(terms.approvers),
        "quorum": terms.quorum, "timeout_s": terms.timeout_us / 1e6, "summary": ask.summary, "shown": ask.shown.hex(),
        "visibility": None, "edited_by": "",
    }  # fmt: skip


def _text(what: str, amount: int) -> str:
    return f"{amount / NUSD:g} USD" if what == "nusd" else f"{amount} {what}"
