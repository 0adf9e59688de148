"""Gateways that reserve and settle calls in budgets and die meanwhile, and what must be true of the ledgers."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flock_ray.core.budgets import Amount, Charge, Limit, Reserve, Settle, Terms
from flock_ray.core.records import Reserved, Settled
from flock_ray.core.shard import ShardCore
from flock_ray.errors import StoreUnavailableError
from flock_ray.gateway.budgets import LedgerLink
from tests.simulation.world import World

if TYPE_CHECKING:
    from tests.simulation.workload import Story

ACCOUNTS = {
    "tenant:a": Limit(nusd=1_500),
    "tenant:b": Limit(calls=6),
    "agent:x": Limit(nusd=3_000, calls=25),
    "agent:y/tenant:a": Limit(nusd=700),
}
"""None that begins anew: then the sum of all bills could be above a limit."""

MAX_WORST = 300


@dataclass
class Books:
    """What gateways know of their calls, and the provider of what it has billed."""

    billed: dict[str, Amount] = field(default_factory=lambda: defaultdict(Amount))
    worst: dict[bytes, Amount] = field(default_factory=dict)
    """Of calls that were made."""
    said: dict[bytes, Amount] = field(default_factory=dict)
    """What a gateway has said, or was about to say, that a call used."""
    certain: set[bytes] = field(default_factory=set)
    """Calls whose end a gateway has told all ledgers."""
    lost: set[bytes] = field(default_factory=set)
    """Calls that were made and of whose end nobody will ever hear."""
    given_up: set[bytes] = field(default_factory=set)
    """Calls that were not made: an account had refused, or did not answer."""
    accounts: dict[bytes, tuple[str, ...]] = field(default_factory=dict)


class Gateway:
    """One gateway's process."""

    def __init__(self, world: World, story: Story, rng: random.Random) -> None:
        self._world, self._story, self._rng = world, story, rng
        self._calls: set[asyncio.Task[None]] = set()
        self.saying: set[bytes] = set()
        """Calls that have ended, of which the ledgers may not have heard."""

        async def num_shards() -> int:
            return story.flock.sim.num_shards

        self.ledger = LedgerLink(
            lambda index: story.flock.sim.shard(index), num_shards,
            monotonic=lambda: asyncio.get_running_loop().time(), new_key=lambda: rng.randbytes(16),
        )  # fmt: skip

    def begin(self) -> None:
        """Begin a call that some accounts pay for."""
        task = asyncio.ensure_future(self._call())
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _call(self) -> None:
        rng, books = self._rng, self._story.books
        names = tuple(sorted(rng.sample(sorted(ACCOUNTS), rng.choice((1, 1, 2, 3)))))
        charges = tuple(Charge(name, ACCOUNTS[name], Terms()) for name in names)
        key, worst = self.ledger.new_key(), Amount(rng.randrange(1, MAX_WORST), 0, 1)
        books.accounts[key] = names
        books.given_up.add(key)  # until it is known to be made
        try:
            refusal = await self.ledger.reserve(Reserve(key, worst, charges))
        except StoreUnavailableError:
            return
        if refusal is not None:
            return
        books.given_up.discard(key)
        books.worst[key] = worst
        books.lost.add(key)  # until its end is said
        used = Amount(rng.randrange(worst.nusd + 1), 0, 1)
        for name in names:
            total = books.billed[name] = books.billed[name].plus(used)
            limit = ACCOUNTS[name]
            if total.nusd > (limit.nusd or 2**60) or total.calls > (limit.calls or 2**60):
                self._world.broken(0, f"the budget {name} was exceeded: {total} of {limit}")
        await asyncio.sleep(rng.random() * 2)
        how = rng.choice(("settled", "settled", "settled", "unknown", "lost"))
        if how == "lost":
            return
        books.lost.discard(key)
        books.said[key] = worst if how == "unknown" else used
        self.saying.add(key)
        ends = [Settle(key, name, None if how == "unknown" else used) for name in names]
        for _ in range(rng.choice((1, 1, 2))):  # a gateway may say it twice
            self.ledger.settle(ends)

    async def end(self) -> None:
        """Let every call end, and tell all of it."""
        while self._calls:
            await asyncio.wait(self._calls)
        await self.ledger.flushed()
        self._story.books.certain |= self.saying

    def die(self) -> None:
        """Die at once: calls that ran were made, and what was not said never is."""
        for task in self._calls:
            task.cancel()
        for line in self.ledger._lines.values():
            if line.sender is not None:
                line.sender.cancel()


async def spend(world: World, story: Story, calls: int) -> None:
    """Make calls; sometimes the gateway dies and another one takes its place."""
    # What it decides is not drawn from the world's randomness, so that all else stays as it is.
    rng = random.Random(world.seed + 3)
    story.gateway = Gateway(world, story, rng)
    for _ in range(calls):
        await asyncio.sleep(rng.random() * 0.4)
        if rng.random() < 0.05:
            world.trace.note("the gateway dies")
            story.gateway.die()
            story.gateway = Gateway(world, story, rng)
        story.gateway.begin()


class SpendingAudit(ShardCore):
    """The part of an audit that keeps account of reservations while it is replayed."""

    def __init__(self, owned: Iterable[int]) -> None:
        super().__init__(list(owned))
        self.reserved: Counter[tuple[bytes, str]] = Counter()
        self.settled: Counter[tuple[bytes, str]] = Counter()

    def _on_reserved(self, record: Reserved) -> None:
        self.reserved[record.key, record.charge.account] += 1
        super()._on_reserved(record)

    def _on_settled(self, record: Settled) -> None:
        place = (record.key, record.account)
        self.settled[place] += 1
        assert self.settled[place] == 1, f"a call was settled twice in {record.account}"
        assert self.reserved[place] == 1, (
            f"a call was settled in {record.account} and reserved {self.reserved[place]}x"
        )
        super()._on_settled(record)


def check_ledgers(cores: Sequence[Any], books: Books) -> None:
    """Every account has exactly what its calls used, and holds exactly what nobody will ever settle."""
    for core in cores:
        for slot in core.slots.values():
            for name, account in slot.ledger.accounts.items():
                mine = {key for key, names in books.accounts.items() if name in names}
                held = set(account.open)
                assert held <= mine, f"{name} holds what nobody reserved"
                assert not held & books.certain, f"{name} holds calls whose end it was told"
                assert books.lost & mine <= held, f"{name} has forgotten calls that may have been billed"
                spent = Amount()
                for key in books.said.keys() & mine - held:
                    spent = spent.plus(books.said[key])
                assert (account.spent.nusd, account.spent.calls) == (spent.nusd, spent.calls), (
                    f"{name} has {account.spent}, its calls used {spent}"
                )
                worst = Amount()
                for amount, _ in account.open.values():
                    worst = worst.plus(amount)
                assert account.held == worst
