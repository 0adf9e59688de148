"""Calls over a network that delays, loses and repeats, and what they promise is checked as they pass."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from flock_ray.actors.ledgers import decode_reserves
from flock_ray.actors.shard import Shard
from flock_ray.core import wire
from flock_ray.core.budgets import Refusal
from flock_ray.core.letter_index import decode_orders
from flock_ray.core.state import MATCH_AGENT
from flock_ray.ports import PeerGoneError
from flock_ray.testing.local import sent
from tests.simulation.world import World


class SimLink:
    """Calls to a process that may die."""

    def __init__(
        self, world: World, find: Callable[[], Any], name: str, is_final: Callable[[], bool]
    ) -> None:
        self._world = world
        self._find = find
        self._name = name
        self._is_final = is_final

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        if method.startswith("__"):
            raise AttributeError(method)

        async def call(*args: Any) -> Any:
            if method == "forward":
                check_forwards(self._world, args[0])
            elif method == "run":
                tasks = wire.decode_run(args[0]).tasks
                self._world.matching.update(task.id for task in tasks if task.agent == MATCH_AGENT)
            return await asyncio.shield(self._world.send(self._travel(method, args)))

        return call

    async def _travel(self, method: str, args: tuple[Any, ...]) -> Any:
        world, faults, rng = self._world, self._world.faults, self._world.rng
        await world.delay()
        if rng.random() < faults.lost_request:
            raise PeerGoneError(f"request to {self._name}.{method} lost")
        if rng.random() < faults.repeated and method not in ("invoke", "cancel"):
            world.send(self._later(method, args))
        reply = await self._execute(method, args)
        await world.delay()
        if rng.random() < faults.lost_reply:
            raise PeerGoneError(f"reply of {self._name}.{method} lost")
        return reply

    async def _later(self, method: str, args: tuple[Any, ...]) -> None:
        await self._world.delay()
        await asyncio.sleep(self._world.faults.max_repeat_s * self._world.rng.random())
        await self._execute(method, args)

    async def _execute(self, method: str, args: tuple[Any, ...]) -> Any:
        target = self._find()
        if target is None:
            raise PeerGoneError(f"{self._name} is dead", final=self._is_final())
        work = asyncio.ensure_future(getattr(target, method)(*[sent(arg) for arg in args]))
        world, faults, rng = self._world, self._world.faults, self._world.rng
        death = world.death(target)
        try:
            await asyncio.wait([work, death], return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not work.done():
                work.cancel()
        if death.done():
            if not work.cancelled() and work.done():
                work.exception()
            if rng.random() < faults.repeated_to_successor:
                world.send(self._later(method, args))
            raise PeerGoneError(f"{self._name} died", final=self._is_final())
        if isinstance(target, Shard) and method in _PROMISES:
            _PROMISES[method](self._world, target.index, args[0], work.result())
        if isinstance(target, Shard) and method in _ORDERS:
            _ORDERS[method](self._world, target.index, args, work.result())
        return sent(work.result())


def check_forwards(world: World, blob: bytes) -> None:
    """What a shard tells another one must be in its journal: a crash would take it back."""
    batch = wire.decode_forward(blob)
    durable = world.disks[batch.shard].sent
    if early := [f.seq for f in batch.forwards if f.seq > durable.get((f.source, f.target), 0)]:
        world.broken(batch.shard, f"forwards {early} were sent before they were durable")


def check_published(world: World, shard: int, blob: bytes, answer: bytes) -> None:
    """G1: what is accepted is on the disk, or it was not accepted."""
    reply = wire.decode_publish_reply(answer)
    if reply.status != "ok":
        return
    world.heard.append((shard, blob))
    for posting, outcome in zip(wire.decode_publish(blob).postings, reply.outcomes, strict=True):
        known = posting.envelope.id in world.disks[shard].positions
        if outcome in (wire.PUBLISHED, wire.DUPLICATE) and not known:
            world.broken(
                shard, f"G1: {posting.envelope.id.hex()[:8]} was acknowledged and is not on the disk"
            )


def check_completed(world: World, shard: int, blob: bytes, answer: bytes) -> None:
    """G2: a result that a worker may forget has a row, or another one of its activation has, or is still to come."""
    if wire.decode_complete_reply(answer).status != "ok":
        return
    for completion in wire.decode_complete(blob).completions:
        if completion.error is not None and completion.error.type == wire.NOT_RUN:
            continue
        unfinished = completion.split is not None and completion.split.more
        if (completion.retry is not None or unfinished) and world.is_open(shard, completion):
            continue
        if completion.id in world.disks[shard].ended or completion.id in world.matching:
            continue
        if completion.retry is not None:
            # It came late, and the result of the next attempt is on its way to the disk: the end of the run tells.
            world.owed[completion.id] = shard
        elif not world.has_moved(completion):  # a deploy has brought it to another slot: it runs again there
            world.broken(shard, f"G2: result of {completion.id.hex()[:8]} was taken and is not on the disk")


def check_acked(world: World, shard: int, _: bytes, answer: bytes) -> None:
    """G2: what a sender may forget has been applied for good."""
    durable = world.disks[shard].received
    for source, target, seq in wire.decode_forward_reply(answer).acks:
        if seq > durable.get((source, target), 0):
            world.broken(shard, f"forward {source}>{target} #{seq} was acknowledged before it was durable")


_PROMISES = {
    "publish": check_published, "complete": check_completed, "forward": check_acked,
    "publish_large": check_published, "complete_large": check_completed,
}  # fmt: skip


def check_reserved(world: World, shard: int, args: tuple[Any, ...], answer: bytes) -> None:
    """A call may be made only when its worst case is on the disk."""
    refusals = msgspec.msgpack.decode(answer, type=list[Refusal | None])
    for ask, refusal in zip(decode_reserves(args[0]), refusals, strict=True):
        for charge in ask.charges if refusal is None else ():
            if ("reserved", ask.key, charge.account) not in world.disks[shard].facts:
                world.broken(shard, f"a reservation in {charge.account} was granted and is not on the disk")


def check_paused(world: World, shard: int, args: tuple[Any, ...], answer: str) -> None:
    """Who is told that something is paused can rely on it, also after a crash. It may have been so before."""
    kind, name, on = args[:3]
    facts = world.disks[shard].facts
    if (
        answer == "ok"
        and ("paused", kind, name, on) not in facts
        and (on or ("paused", kind, name, True) in facts)
    ):
        world.broken(shard, f"{kind} {name} is {'paused' if on else 'resumed'}, and the disk does not know")


def check_letters(world: World, shard: int, args: tuple[Any, ...], answers: list[str]) -> None:
    """Who is told that a letter was redriven, discarded or edited can rely on it, also after a crash."""
    facts = world.disks[shard].facts
    for order, answer in zip(decode_orders(args[0]), answers, strict=False):
        if answer != "ok" or order.kind == "put":
            continue
        new = b"" if order.new is None else order.new.id
        fact = ("edited", order.letter, order.old, new) if order.kind == "edit" else ("closed", order.letter)
        if fact not in facts:
            world.broken(
                shard, f"letter {order.letter.hex()[:8]}: {order.kind} was answered and is not on the disk"
            )


_ORDERS: dict[str, Callable[[World, int, tuple[Any, ...], Any], None]] = {
    "reserve": check_reserved,
    "pause": check_paused,
    "order_letters": check_letters,
}
