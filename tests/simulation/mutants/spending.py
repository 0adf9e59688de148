"""Ledgers that lose count of what calls have used."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from unittest import mock

from flock_ray.core import budgets, recovery
from flock_ray.core.budget_desk import BudgetDesk
from flock_ray.core.budgets import Amount, Charge, Ledger, Refusal, Reserve
from flock_ray.core.letters import LetterDesk
from flock_ray.core.records import LetterEdited, Record
from flock_ray.core.recovery import SlotState
from flock_ray.core.shard import ShardCore
from flock_ray.core.state import Slot
from flock_ray.core.wire import Envelope


@contextlib.contextmanager
def settle_twice() -> Iterator[None]:
    """A call whose end is told twice is spent twice."""
    settle = Ledger.settle

    def again(self: Ledger, name: str, key: bytes, used: Amount | None) -> bool:
        if settle(self, name, key, used):
            return True
        account = self.accounts.get(name)
        if account is None or used is None:
            return False
        account.spent = account.spent.plus(used)
        return True

    def is_open(self: Ledger, name: str, key: bytes) -> bool:
        account = self.accounts.get(name)
        return account is not None and (key in account.open or budgets._mark(key, name) in self.settled)

    with mock.patch.object(Ledger, "settle", again), mock.patch.object(Ledger, "is_open", is_open):
        yield


def forget_reservations() -> AbstractContextManager[object]:
    """What a snapshot says is reserved is free again after a restart."""
    restore = recovery._restore

    def without(core: ShardCore, slot: Slot, state: SlotState) -> list[tuple[int, Envelope]]:
        for account in state.ledger.accounts.values():
            account.open, account.held = {}, Amount()
        return restore(core, slot, state)

    return mock.patch.object(recovery, "_restore", without)


def reserve_without_a_record() -> AbstractContextManager[object]:
    """A reservation is granted that the journal does not have."""
    reserve = BudgetDesk.reserve

    def unlogged(self: BudgetDesk, ask: Reserve, now_us: int) -> Refusal | None:
        def drop(record: Record) -> None:
            pass

        with mock.patch.object(self, "_log", drop):
            return reserve(self, ask, now_us)

    return mock.patch.object(BudgetDesk, "reserve", unlogged)


@contextlib.contextmanager
def give_back_what_a_dead_gateway_held() -> Iterator[None]:
    """A reservation that is not settled soon is taken for a call that was not made."""
    take = Ledger.take

    def generous(self: Ledger, charge: Charge, key: bytes, amount: Amount, now_us: int) -> None:
        take(self, charge, key, amount, now_us)
        account = self.accounts[charge.account]
        for old, (worst, since_us) in list(account.open.items()):
            if since_us + 3_000_000 < now_us:
                del account.open[old]
                account.held = account.held.minus(worst)

    with mock.patch.object(Ledger, "take", generous):
        yield


def reserve_again_what_was_settled() -> AbstractContextManager[object]:
    """A message that comes once more reserves once more: nobody will ever settle that."""

    def knows(self: Ledger, name: str, key: bytes) -> bool:
        return self.is_open(name, key)

    return mock.patch.object(Ledger, "knows", knows)


def forget_edits() -> AbstractContextManager[object]:
    """An edit of a dead letter is answered, and not in the journal."""

    def unlogged(
        self: LetterDesk, slot: int, letter: bytes, old: bytes, new: bytes, by: str, now_us: int
    ) -> str:
        known = self.slots[slot].letters.get(letter) if slot in self.slots else None
        if known is None:
            return "gone"
        if old not in known.inputs:
            return "mismatch"
        self._on_letter_edited(LetterEdited(now_us, slot, letter, old, new, by))
        return "ok"

    return mock.patch.object(LetterDesk, "edit_letter", unlogged)


ALL = (
    settle_twice,
    forget_reservations,
    reserve_without_a_record,
    give_back_what_a_dead_gateway_held,
    reserve_again_what_was_settled,
    forget_edits,
)
