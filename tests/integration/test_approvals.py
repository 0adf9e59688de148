"""Approvals on Ray, with a store: what waits survives a shard that is killed between two votes."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from flock_ray import ApprovalRejected, ApprovalSpec, Flock, SQLitePersistence, Until, flock_type
from flock_ray.errors import ApprovalError, ForbiddenError

NewFlock = Callable[..., Flock]


@flock_type(name="RayApprovalIdea")
class Idea(BaseModel):
    amount: float


@flock_type(name="RayApprovalOrder")
class Order(BaseModel):
    amount: float


@flock_type(name="RayApprovalFill")
class Fill(BaseModel):
    amount: float


def declare(flock: Flock, **terms: Any) -> None:
    spec = ApprovalSpec(
        approvers=["risk", "legal"], quorum=2, when=lambda order: order.amount > 1000, **terms
    )
    flock.agent("trader").consumes(Idea).publishes(Order, approval=spec).runs(
        lambda i: Order(amount=i.amount)
    )
    flock.agent("exchange").consumes(Order).publishes(Fill).runs(lambda o: Fill(amount=o.amount))


PEOPLE = {"ann": ["risk"], "bob": ["legal"], "eve": []}


async def test_two_people_approve_and_a_killed_shard_forgets_neither(
    new_flock: NewFlock, tmp_path: Path
) -> None:
    flock = new_flock(
        namespace=f"approvals-{uuid.uuid4().hex[:8]}", persistence=SQLitePersistence(str(tmp_path)), shards=2,
        principals=PEOPLE, no_output=True,
    )  # fmt: skip
    declare(flock)
    await flock.publish(Idea(amount=10), correlation_id="small")
    await flock.publish(Idea(amount=2000), correlation_id="large")
    await flock.run_until_idle(timeout=120)
    [waiting] = await flock.approvals.pending()
    assert waiting.artifact == {"amount": 2000.0}
    with pytest.raises(ForbiddenError):
        await flock.approvals.approve(waiting, by="eve")
    await flock.approvals.approve(waiting, by="ann")

    board = await flock._ready_board()
    for index in range(2):
        os.kill(await board.shard(index).start_up(), signal.SIGKILL)
        await board.shard(index).start_up()  # it is back

    assert (await flock.approvals.get(waiting)).approved_by == ("ann",)
    with pytest.raises(ApprovalError, match="already"):
        await flock.approvals.approve(waiting, by="ann")
    assert (await flock.approvals.approve(waiting, by="bob")).state == "approved"
    await flock.run_until_idle(timeout=120)
    assert sorted(f.amount for f in await flock.store.get_by_type(Fill)) == [10.0, 2000.0]
    assert len(await flock.store.get_by_type(Order)) == 2


async def test_nobody_decides_in_time(new_flock: NewFlock) -> None:
    flock = new_flock(no_output=True)
    declare(flock, timeout=timedelta(seconds=1))
    await flock.publish(Idea(amount=2000))
    await flock.run_until(Until.artifact_count(ApprovalRejected).at_least(1), timeout=120)
    assert await flock.store.get_by_type(Order) == []
    assert await flock.approvals.pending() == []
