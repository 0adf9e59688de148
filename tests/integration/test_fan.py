"""Fan-outs and fan-ins on Ray: spread over shards and workers, complete when a worker dies."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel

from flock_ray import FanInStrategy, FanOutStrategy, Flock, flock_type


@flock_type(name="ray.fan.Data")
class Data(BaseModel):
    items: list[int]


@flock_type(name="ray.fan.Chunk")
class Chunk(BaseModel):
    chunk_id: int
    items: list[int]


@flock_type(name="ray.fan.Done")
class Done(BaseModel):
    indexes: list[int]
    pids: set[int] = set()


@flock_type(name="ray.fan.Total")
class Total(BaseModel):
    indexes: list[int]
    pids: set[int] = set()


def merge(parts: list[Done]) -> Total:
    return Total(indexes=[i for p in parts for i in p.indexes], pids={pid for p in parts for pid in p.pids})


def work(chunk: Chunk) -> Done:
    return Done(indexes=[chunk.chunk_id], pids={os.getpid()})


async def test_chunks_of_several_shards_are_merged_in_order(new_flock: Callable[..., Flock]) -> None:
    flock = new_flock(shards=3, max_workers=2)
    flock.agent("cut").consumes(Data).fan_out(Chunk, strategy=FanOutStrategy.BY_COUNT, count=300)
    flock.agent("work").consumes(Chunk).publishes(Done).runs(work)
    flock.agent("sum").fan_in(Done, into=Total, merge_fn=merge)
    flock.agent("tree").fan_in(
        Done, into=Tree, strategy=FanInStrategy.REDUCE, merge_fn=as_tree, combine=as_tree, width=7
    )
    await flock.publish(Data(items=list(range(1000))))
    await flock.run_until_idle(timeout=120)
    [total] = await flock.store.get_by_type(Total)
    assert total.indexes == list(range(300))
    [tree] = await flock.store.get_by_type(Tree)
    assert tree.indexes == list(range(300))


@flock_type(name="ray.fan.Tree")
class Tree(BaseModel):
    indexes: list[int]


def as_tree(parts: list[Done] | list[Tree]) -> Tree:
    return Tree(indexes=[i for p in parts for i in p.indexes])


async def test_a_worker_that_dies_loses_no_chunk(new_flock: Callable[..., Flock], tmp_path: Path) -> None:
    died = str(tmp_path / "died")

    def fragile(chunk: Chunk) -> Done:
        if chunk.chunk_id == 17 and not os.path.exists(died):
            Path(died).touch()
            os._exit(1)
        return work(chunk)

    flock = new_flock(shards=2, max_workers=2)
    flock.agent("cut").consumes(Data).fan_out(Chunk, chunk_size=1)
    flock.agent("work").consumes(Chunk).publishes(Done).runs(fragile)
    flock.agent("sum").fan_in(Done, into=Total, merge_fn=merge)
    await flock.publish(Data(items=list(range(40))))
    await flock.run_until_idle(timeout=120)
    [total] = await flock.store.get_by_type(Total)
    assert total.indexes == list(range(40))
    assert total.indexes.count(17) == 1
