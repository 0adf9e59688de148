"""Budgets of one shard: reservations and settlements as commands and records."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from flock_ray.core.budgets import Account, Limit, Refusal, Reserve, Settle, Terms, home_of_account
from flock_ray.core.letters import LetterDesk
from flock_ray.core.records import BudgetSet, Reserved, Settled

__all__ = ["BudgetDesk"]

MAX_TOLD = 10_000


class BudgetDesk(LetterDesk):
    """The ledgers of one shard's slots."""

    def __init__(self, owned: Collection[int], *, max_artifacts: int | None, durable: bool) -> None:
        """Start with no accounts."""
        super().__init__(owned, max_artifacts=max_artifacts, durable=durable)
        self._told_exceeded: dict[str, int] = {}
        """Accounts of which an event has said that they are used up, with the limit that was."""
        self._replays |= {
            Reserved: self._on_reserved,
            Settled: self._on_settled,
            BudgetSet: self._on_budget_set,
        }

    def reserve(self, ask: Reserve, now_us: int) -> Refusal | None:
        """Reserve the worst case of a call in every account; None: it may be made. Safe to repeat.

        Accounts of other shards are refused as `gone`: whoever asks splits a call by shard.
        """
        for charge in ask.charges:
            slot = self.slots.get(home_of_account(charge.account))
            refusal = (
                Refusal(charge.account, "gone") if slot is None else slot.ledger.refusal(charge, ask, now_us)
            )
            if refusal is not None:
                self._tell_exceeded(ask, refusal, now_us)
                return refusal
        for charge in ask.charges:
            index = home_of_account(charge.account)
            if not self.slots[index].ledger.knows(charge.account, ask.key):
                record = Reserved(now_us, index, ask.key, ask.amount, charge)
                self._log(record)
                self._on_reserved(record)
        return None

    def settle(self, end: Settle, now_us: int) -> bool:
        """End a reservation, once; False when it is not open (any more)."""
        index = home_of_account(end.account)
        slot = self.slots.get(index)
        if slot is None or not slot.ledger.is_open(end.account, end.key):
            return False
        record = Settled(now_us, index, end.key, end.account, end.used)
        self._log(record)
        self._on_settled(record)
        return True

    def set_budget(
        self, account: str, limit: Limit | None, terms: Terms | None, *, add: bool, by: str, now_us: int
    ) -> bool:
        """Give an account a limit of its own, or add to the one it has.

        False: the account is not kept on this shard, or has no limit yet to which one could add.

        Args:
            account: Its name.
            limit: The limit, or what to add; None: what agents declare holds again.
            terms: What happens when it is used up; None: as before.
            add: Whether `limit` comes on top.
            by: Who wants it.
            now_us: Now.
        """
        index = home_of_account(account)
        if index not in self.slots:
            return False
        if add and limit is not None:
            known = self.slots[index].ledger.accounts.get(account) or Account()
            base = known.limit if known.own is None else known.own
            if base == Limit():
                return False  # nothing would be left of a limit that an agent declares
            limit = base.plus(limit)
        record = BudgetSet(now_us, index, account, limit, terms, by)
        self._log(record)
        self._on_budget_set(record)
        self._decide(now_us, "budget.set", account, by, _shown(limit))
        return True

    def budget_accounts(self, after: tuple[int, str], limit: int) -> Iterator[tuple[int, str, Account]]:
        """Iterate over (slot, name, account) behind a place, in order of slots and names, at most `limit`."""
        for index in sorted(self.slots):
            accounts = self.slots[index].ledger.accounts
            if index < after[0] or not accounts:
                continue
            for name in sorted(accounts):
                if (index, name) <= after:
                    continue
                if limit <= 0:
                    return
                limit -= 1
                yield index, name, accounts[name]

    # -- what the records do ----------------------------------------------------------------------

    def _on_reserved(self, record: Reserved) -> None:
        self.slots[record.slot].ledger.take(record.charge, record.key, record.amount, record.at_us)

    def _on_settled(self, record: Settled) -> None:
        self.slots[record.slot].ledger.settle(record.account, record.key, record.used)

    def _on_budget_set(self, record: BudgetSet) -> None:
        self.slots[record.slot].ledger.set(record.account, record.limit, record.terms, record.at_us)
        self._told_exceeded.pop(record.account, None)
        self.events.note(
            record.at_us,
            "budget.set",
            detail=f"{record.account}: {_shown(record.limit)}, by {record.by or 'somebody'}",
        )

    def _tell_exceeded(self, ask: Reserve, refusal: Refusal, now_us: int) -> None:
        """Say once that an account is used up: not for every call that wants more of it."""
        if refusal.may_free:
            return
        told = self._told_exceeded
        day_us = refusal.renews_us or 1
        if told.get(refusal.account) == day_us:
            return
        if len(told) >= MAX_TOLD:
            told.clear()
        told[refusal.account] = day_us
        self.events.note(
            now_us, "budget.exceeded", agent=ask.agent, correlation_id=ask.workflow,
            detail=f"{refusal.account}: {refusal.what}: limit {refusal.limit}, left {max(0, refusal.left)}, "
            f"a call needs {refusal.needed}",
        )  # fmt: skip


def _shown(limit: Limit | None) -> str:
    if limit is None:
        return "as declared"
    parts = [] if limit.nusd is None else [f"{limit.nusd / 1e9:g} USD"]
    parts += [] if limit.tokens is None else [f"{limit.tokens} tokens"]
    parts += [] if limit.calls is None else [f"{limit.calls} calls"]
    return ", ".join(parts) or "no limit"
