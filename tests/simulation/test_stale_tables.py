from __future__ import annotations

import asyncio
from typing import Any

from pydantic import BaseModel

from flock_ray import flock_type
from flock_ray.board import Board
from flock_ray.ports import PeerGoneError
from flock_ray.testing import VirtualClock, VirtualFlock, run_virtual


@flock_type(name="StaleIn")
class In(BaseModel):
    n: int


@flock_type(name="StaleMid")
class Mid(BaseModel):
    n: int


def test_batches_that_wait_for_their_turn_are_matched_with_the_table_that_they_claim() -> None:
    async def scenario() -> None:
        seen: list[int] = []
        async with VirtualFlock() as first:
            first.agent("known").consumes(In).runs(lambda item: None)
            await first.start()
            # Given a second client that deploys an agent of which the first has not heard
            assert first._opened is not None
            assert first.local is not None
            second = VirtualFlock()
            second.agent("late").consumes(In).runs(lambda item: seen.append(item.n))
            board = Board(
                first.local.links(), owner="other", registry=second._registry, codec=first.local.codec,
                clock=VirtualClock(), monotonic=lambda: asyncio.get_running_loop().time(),
                max_payload_bytes=1000, publish_timeout_s=30,
            )  # fmt: skip
            await board.deploy(second._definitions())
            # When the first publishes so much at once that some batches wait for others
            await first.publish_many([In(n=n) for n in range(4000)])
            await first.run_until_idle()
        # Then the new agent gets all of it
        assert sorted(seen) == list(range(4000))

    run_virtual(scenario())


def test_results_that_are_sent_again_after_a_deploy_are_matched_again() -> None:
    async def scenario() -> None:
        seen: list[int] = []
        async with VirtualFlock() as flock:
            flock.agent("first").consumes(In).publishes(Mid).runs(lambda item: Mid(n=item.n))
            await flock.start()
            assert flock.local is not None
            shard: Any = flock.local.shards[0]
            complete = shard.complete

            async def cut_off(blob: bytes) -> bytes:
                raise PeerGoneError("the network is away")

            # Given a result whose first report does not come through
            shard.complete = cut_off
            await flock.publish(In(n=1))
            await asyncio.sleep(0.3)
            shard.complete = complete
            # When an agent is deployed that consumes it, before it is sent again
            flock.agent("late").consumes(Mid).runs(lambda item: seen.append(item.n))
            await flock.start()
            await flock.run_until_idle()
        # Then that agent gets it
        assert seen == [1]

    run_virtual(scenario())
