"""A fan-out whose shards, router and workers are killed while its chunks are worked on."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel

from flock_ray import FanInStrategy, FanOutStrategy, Flock, SQLitePersistence, Until, flock_type
from flock_ray.verifying import verify_board
from tests.chaos.test_durable_boards import Killer, within

pytestmark = pytest.mark.timeout(400)

CHUNKS = 3_000
"""More than one part, and enough for several seconds."""


@flock_type(name="chaos.fan.Data")
class Data(BaseModel):
    size: int


@flock_type(name="chaos.fan.Chunk")
class Chunk(BaseModel):
    index: int


@flock_type(name="chaos.fan.Done")
class Done(BaseModel):
    index: int


@flock_type(name="chaos.fan.Total")
class Total(BaseModel):
    indexes: list[int]


@flock_type(name="chaos.fan.Tree")
class Tree(BaseModel):
    indexes: list[int]


def work(chunk: Chunk) -> Done:
    time.sleep(0.001)
    return Done(index=chunk.index)


def declare(flock: Flock) -> None:
    flock.agent("cut").consumes(Data).fan_out(
        Chunk, strategy=FanOutStrategy.CUSTOM, split=lambda data: (Chunk(index=n) for n in range(data.size))
    ).max_crashes(20)
    flock.agent("work").consumes(Chunk).publishes(Done).runs(work).max_crashes(20)
    flock.agent("sum").fan_in(
        Done, into=Total, merge_fn=lambda parts: Total(indexes=[p.index for p in parts])
    ).max_crashes(20)
    flock.agent("tree").fan_in(
        Done, into=Tree, strategy=FanInStrategy.REDUCE, width=16,
        merge_fn=lambda parts: Tree(indexes=[p.index for p in parts]),
        combine=lambda trees: Tree(indexes=[n for t in trees for n in t.indexes]),
    ).max_crashes(20)  # fmt: skip


async def test_killed_processes_lose_no_chunk_and_count_none_twice(
    new_flock: Callable[..., Flock], tmp_path: Path
) -> None:
    # Given a durable board that has begun with a large fan-out
    persistence = SQLitePersistence(str(tmp_path / "boards"))
    name = f"chaos-{uuid.uuid4().hex}"
    flock = new_flock(persistence=persistence, namespace=name, shards=2, max_workers=2)
    declare(flock)
    artifact = await flock.publish(Data(size=CHUNKS))
    await flock.run_until(Until.artifact_count(Done).at_least(50), timeout=60)

    # When shards, the router and workers are killed meanwhile
    killer = Killer(flock, seed=3)
    await within(120, killer.run(4))
    await within(200, flock.run_until_idle(timeout=180))

    # Then each fan-in has one result, of every chunk once and in order
    everything = list(range(CHUNKS))
    assert [total.indexes for total in await flock.store.get_by_type(Total)] == [everything], killer.killed
    assert [tree.indexes for tree in await flock.store.get_by_type(Tree)] == [everything], killer.killed
    assert (await flock.workflow_status(artifact.correlation_id or "")).open == 0
    assert (await verify_board(persistence, name)).violations == []
