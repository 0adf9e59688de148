"""Budgets of one shard: what gateways reserve and settle, and what operators look at and set."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from flock_ray.core.budgets import Account, AccountRow, Reserve, SetBudget, Settle

if TYPE_CHECKING:
    from flock_ray.core.shard import ShardCore

__all__ = ["ShardLedgers"]

MAX_PAGE = 10_000


encode = msgspec.msgpack.Encoder().encode
decode_reserves = msgspec.msgpack.Decoder(list[Reserve]).decode
decode_settles = msgspec.msgpack.Decoder(list[Settle]).decode
_decode_set = msgspec.msgpack.Decoder(SetBudget).decode


class ShardLedgers:
    """The part of `Shard` that knows budgets."""

    core: ShardCore

    async def _durable(self) -> None:
        raise NotImplementedError  # ShardReaders'

    def _enqueue(self, kind: str, subject: Any, size: int) -> asyncio.Future[Any]:
        raise NotImplementedError  # Shard's

    async def reserve(self, blob: bytes) -> bytes:
        """Take reservations of calls; answers one `Refusal` or None each, once they are in the journal."""
        refusals: bytes = await self._enqueue("reserve", decode_reserves(blob), len(blob))
        return refusals

    async def settle(self, blob: bytes) -> int:
        """Take calls that ended; answers how many of them were open, once they are in the journal."""
        settled: int = await self._enqueue("settle", decode_settles(blob), len(blob))
        return settled

    async def set_budget(self, blob: bytes) -> bool:
        """Take a `SetBudget`; False: its account is not kept here."""
        known: bool = await self._enqueue("set_budget", _decode_set(blob), len(blob))
        return known

    async def budget_accounts(self, slot: int, after: str, limit: int) -> bytes:
        """Return at most `limit` accounts behind one, in order of slots and names, as AccountRows."""
        await self._durable()
        found = self.core.budget_accounts((slot, after), min(limit, MAX_PAGE))
        return encode([_row(index, name, account) for index, name, account in found])

    async def budget_account(self, slot: int, name: str) -> bytes:
        """Return one account, as a list of AccountRows: empty when there is none."""
        await self._durable()
        known = self.core.slots.get(slot)
        account = None if known is None else known.ledger.accounts.get(name)
        return encode([] if account is None else [_row(slot, name, account)])

    def _apply_ledger(self, kind: str, subject: Any, now_us: int) -> Any:
        core = self.core
        if kind == "reserve":
            return encode([core.reserve(ask, now_us) for ask in subject])
        if kind == "settle":
            return sum([core.settle(end, now_us) for end in subject])
        return core.set_budget(
            subject.account, subject.limit, subject.terms, add=subject.add, by=subject.by, now_us=now_us
        )


def _row(slot: int, name: str, account: Account) -> AccountRow:
    limit = account.limit if account.own is None else account.own
    return AccountRow(
        slot, name, limit, account.own is not None, account.spent, account.held, len(account.open),
        account.own_terms or account.terms,
    )  # fmt: skip
