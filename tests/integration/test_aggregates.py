"""Aggregates on real processes: votes from everywhere, a shard that is killed, runs that are withdrawn."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel

from flock_ray import AggregationStrategy, Flock, SQLitePersistence, Until, flock_type
from tests.integration.test_schedules import kill_shard, patiently

pytestmark = pytest.mark.timeout(180)


@flock_type(name="integration.Question")
class Question(BaseModel):
    gate: str
    """A file that has to appear before the slow one answers."""
    number: int


@flock_type(name="integration.Answer")
class Answer(BaseModel):
    ok: bool


@flock_type(name="integration.Agreed")
class Agreed(BaseModel):
    ok: bool
    ballots: int
    reason: str


async def answer(question: Question) -> Answer:
    while question.gate and not os.path.exists(question.gate):  # noqa: ASYNC110, ASYNC240  # another process makes it
        await asyncio.sleep(0.05)
    return Answer(ok=question.number != 1)


def declare(flock: Flock) -> None:
    flock.agent("answerer").consumes(Question).publishes(Answer).runs(answer).max_concurrency(10)
    flock.agent("judge").aggregates(
        Answer, into=Agreed, strategy=AggregationStrategy.MAJORITY_VOTE, field="ok", trigger_on_count=5
    )


async def test_what_an_early_decision_does_not_need_is_withdrawn_while_it_runs(
    new_flock: Callable[..., Flock], tmp_path: Path
) -> None:
    # Given five who are asked, two of whom would never answer
    flock = new_flock()
    declare(flock)
    gate = str(tmp_path / "never")
    await flock.publish_many(
        [Question(gate=gate if n > 2 else "", number=n if n != 1 else 2) for n in range(5)]
    )
    # When three agree
    await flock.run_until_idle(timeout=120)
    # Then it is decided, and nobody waits for the two
    assert [Agreed(ok=True, ballots=3, reason="early")] == await flock.store.get_by_type(Agreed)
    withdrawn = 0
    async for _ in flock.events("activation.withdrawn"):
        withdrawn += 1
        if withdrawn == 2:
            break


async def test_a_vote_goes_on_when_its_shard_is_killed_and_is_decided_once(
    new_flock: Callable[..., Flock], tmp_path: Path
) -> None:
    # Given a stored board on which two have answered
    flock = new_flock(persistence=SQLitePersistence(tmp_path / "board"))
    declare(flock)
    gate = tmp_path / "gate"
    await flock.publish_many(
        [Question(gate="" if n < 2 else str(gate), number=n) for n in range(5)], correlation_id="w"
    )
    assert await flock.run_until(Until.artifact_count(Answer).at_least(2), timeout=120)
    # When its shard dies, and the others answer to its successor
    await kill_shard(flock)
    gate.touch()
    # Then the two are not forgotten, and there is one decision
    deadline = time.monotonic() + 120
    while not (made := await patiently(lambda: flock.store.get_by_type(Agreed))):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)
    await patiently(lambda: flock.run_until_idle(timeout=120))
    made = await flock.store.get_by_type(Agreed)
    assert [True] == [agreed.ok for agreed in made]
    assert made[0].ballots in (4, 5)  # the third yes may come fourth or fifth: one of the first two said no
