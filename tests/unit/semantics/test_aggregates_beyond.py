"""Aggregates and what else boards do: boards without drivers, fan-outs."""

from __future__ import annotations

import asyncio

from pydantic import BaseModel

from flock_ray import FanOutStrategy, WorkflowError, flock_type
from flock_ray.adapters.memory import MemoryPersistence
from flock_ray.testing import VirtualFlock, run_virtual
from tests.unit.semantics.test_aggregates import MINUTE, Ask, Result, S, Vote


def test_what_a_board_publishes_before_its_drivers_are_back_reaches_those_who_listen() -> None:
    def declared(flock: VirtualFlock) -> VirtualFlock:
        flock.agent("judge").aggregates(Vote, into=Result, min_count=2, timeout=MINUTE)
        flock.agent("clerk").consumes(WorkflowError).publishes(Ask).runs(lambda error: Ask(n=7))
        return flock

    async def main() -> list[Ask]:
        keep = MemoryPersistence()
        async with declared(VirtualFlock(persistence=keep)) as flock:
            await flock.publish(Vote())
        # Given a board that comes back without anybody who has its agents' code
        async with VirtualFlock(persistence=keep) as flock:
            # When a timer of it makes an error meanwhile
            await asyncio.sleep(100)
            assert await flock.store.get_by_type(WorkflowError)
            # Then it waits for the agents that consume it
            declared(flock)
            await flock.start()
            await flock.run_until_idle()
            return await flock.store.get_by_type(Ask)

    assert [Ask(n=7)] == run_virtual(main())


@flock_type(name="agg.Pile")
class Pile(BaseModel):
    items: list[int]


@flock_type(name="agg.Piece")
class Piece(BaseModel):
    items: list[int]


def test_votes_on_the_chunks_of_a_fan_out_are_decided_on_when_all_of_them_are_there() -> None:
    async def review(piece: Piece) -> Vote:
        await asyncio.sleep(piece.items[0] % 7)
        return Vote(ok=piece.items[0] % 3 > 0)

    async def main() -> list[Result]:
        async with VirtualFlock(shards=3) as flock:
            flock.agent("cutter").consumes(Pile).fan_out(
                into=Piece, strategy=FanOutStrategy.BY_SIZE, chunk_size=1
            )
            flock.agent("reviewer").consumes(Piece).publishes(Vote).runs(review).max_concurrency(5)
            flock.agent("judge").aggregates(Vote, into=Result, strategy=S.MAJORITY_VOTE, field="ok")
            await flock.publish(Pile(items=list(range(20))))
            await flock.run_until_idle()
            return await flock.store.get_by_type(Result)

    assert [(True, 20, "quiet")] == [(r.ok, r.ballots, r.reason) for r in run_virtual(main())]
