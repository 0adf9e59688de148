"""A model that fails all the time, workers and gateways that die meanwhile: every workflow ends, once."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from flock_ray import Flock, SQLitePersistence, WorkflowError
from flock_ray.core.retries import ExponentialBackoff
from flock_ray.dead_letters import DeadLetterQueue
from flock_ray.errors import FlockError
from flock_ray.gateway.settings import ModelSettings
from flock_ray.verifying import verify_board
from tests.chaos.questions import MODEL, Answered, Question, answer, answering
from tests.chaos.test_durable_boards import worker_pids
from tests.llm_server import in_thread

pytestmark = pytest.mark.timeout(600)

NewFlock = Callable[..., Flock]

FAULTS = ("rate_limited", "error_500", "error_503", "cut", "dropped", "stall")


async def kill_some(flock: Flock, rounds: int) -> list[str]:
    """Kill a worker now and then."""
    rng, killed = random.Random(11), list[str]()
    for _ in range(rounds):
        await asyncio.sleep(rng.uniform(1.0, 3.0))
        if pids := await worker_pids(flock):
            os.kill(rng.choice(pids), signal.SIGKILL)
            killed.append("worker")
    return killed


async def test_every_workflow_is_answered_or_a_dead_letter(new_flock: NewFlock, tmp_path: Path) -> None:
    numbers, name = range(1000), f"models-{uuid.uuid4().hex}"
    persistence = SQLitePersistence(tmp_path / "boards")
    with in_thread(respond=answer, faults=0.2, fault_kinds=FAULTS, seed=5) as server:
        # Given a model that fails one time in five, and an agent that tries twice
        settings = ModelSettings(api_base=server.url, api_key=server.key, max_tries=1)
        flock = new_flock(
            model=MODEL, models={MODEL: settings}, persistence=persistence, namespace=name, shards=2
        )
        answering(flock).retry(
            ExponentialBackoff(timedelta(milliseconds=50), timedelta(seconds=1)), max_attempts=2,
            on=[FlockError], dead_letter=DeadLetterQueue("unanswered"),
        ).timeout(timedelta(seconds=20), idle=timedelta(seconds=5)).max_crashes(50)  # fmt: skip
        await flock.start()

        # When workers die meanwhile
        async def publish() -> None:
            await asyncio.gather(*(
                flock.publish(Question(number=n), correlation_id=f"q-{n}", idempotency_key=f"q-{n}") for n in numbers
            ))  # fmt: skip

        killed, _ = await asyncio.gather(kill_some(flock, 4), publish())
        await flock.run_until_idle(timeout=400)

        # Then each question has one answer or one open dead letter
        answers = Counter(a.number for a in await flock.store.get_by_type(Answered))
        letters = await flock.dead_letters.list(queue="unanswered", limit=1000)
        dead = Counter(int(letter.workflow.removeprefix("q-")) for letter in letters)
        print(f"killed {killed}; {len(answers)} answered, {len(dead)} dead letters")
        assert answers + dead == Counter(numbers)
        assert dead
        assert await flock.store.count(WorkflowError) == 0

        # And when the model is well again, redriving them answers the rest, once each
        server.faults = 0.0
        await flock.dead_letters.redrive_all(queue="unanswered")
        await flock.run_until_idle(timeout=120)
        assert Counter(a.number for a in await flock.store.get_by_type(Answered)) == Counter(numbers)
        assert await flock.dead_letters.count() == 0
        states = Counter([(await flock.workflow_status(f"q-{n}")).state for n in numbers])
        assert states == {"completed": len(numbers)}
    assert (await verify_board(persistence, name)).violations == []
