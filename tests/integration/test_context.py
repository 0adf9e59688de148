"""Contexts on a real Ray: read by workers from several shards, over a killed shard, and by sync functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from flock_ray import Artifact, Context, Flock, SQLitePersistence, WorkflowError, only_for
from flock_ray.actors.handles import actor_name
from flock_ray.context_provider import (
    ContextRequest,
    CorrelatedContextProvider,
    RecentContextProvider,
    RedactingContextProvider,
)
from tests.integration.models import Job, Length, Shout, Word

pytestmark = pytest.mark.timeout(180)

NewFlock = Callable[..., Flock]


async def seen_async(ctx: Context, job: Job) -> Shout:
    return Shout(
        text=" ".join(sorted(a.payload["text"] for a in ctx.artifacts if a.type == "integration.Word"))
    )


def seen_sync(ctx: Context, job: Job) -> Length:
    texts = [a.payload["text"] for a in ctx.artifacts]
    return Length(text=" ".join(texts), length=len(texts))


async def greedy(request: ContextRequest) -> list[Artifact]:
    """Return what was read, and a forged copy of what was not."""
    found = await request.store.list()
    return [*found, Artifact.from_model(Word(text="invented"))]


async def test_workers_read_contexts_from_every_shard(new_flock: NewFlock) -> None:
    flock = new_flock(shards=3)
    flock.agent("mine").consumes(Job).publishes(Shout).with_context(CorrelatedContextProvider()).runs(
        seen_async
    )
    # What the other agent makes of the same job may be there first.
    recent = RecentContextProvider(2, exclude_types=["integration.Shout"])
    flock.agent("newest").consumes(Job).publishes(Length).with_context(
        RedactingContextProvider(recent, patterns=["w7"])
    ).runs(seen_sync)  # fmt: skip
    for n in range(8):
        await flock.publish(
            Word(text=f"w{n}"), correlation_id="a" if n % 2 else "b", partition_key=f"key {n}"
        )
    await flock.publish(Word(text="secret"), correlation_id="a", visibility=only_for("boss"))
    await flock.publish(Job(n=1), correlation_id="a")
    await flock.run_until_idle(timeout=60)

    assert await flock.store.get_by_type(WorkflowError) == []
    assert await flock.store.get_by_type(Shout) == [Shout(text="w1 w3 w5 w7")]
    assert await flock.store.get_by_type(Length) == [Length(text="w6 [REDACTED]", length=2)]


async def test_a_killed_shard_is_waited_for(new_flock: NewFlock, tmp_path: Path) -> None:
    flock = new_flock(shards=2, persistence=SQLitePersistence(tmp_path / "boards"))
    flock.agent("all").consumes(Job).publishes(Shout).with_context(greedy).runs(seen_async)
    await flock.publish(Word(text="a"), correlation_id="a", partition_key="1")
    await flock.publish(Word(text="b"), correlation_id="a", partition_key="2")
    board = await flock._ready_board()
    namespace = board.shard(0)._namespace
    for index in range(2):
        ray.kill(ray.get_actor(actor_name(namespace, "shard", index), namespace), no_restart=False)
        await flock.publish(Job(n=index), correlation_id="a", partition_key=f"{1 + index}")
    await flock.run_until_idle(timeout=90)

    assert await flock.store.get_by_type(WorkflowError) == []
    assert await flock.store.get_by_type(Shout) == [Shout(text="a b")] * 2
