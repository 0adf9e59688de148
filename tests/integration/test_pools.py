from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from flock_ray import Flock
from tests.integration.models import Done, Job, Shout, Word

pytestmark = pytest.mark.timeout(180)

NewFlock = Callable[..., Flock]


async def until(condition: Callable[[], object], *, timeout_s: float = 60) -> None:
    """Wait until an async condition holds."""
    deadline = time.monotonic() + timeout_s
    while not await condition():  # type: ignore[misc]  # callers pass coroutine functions
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.1)


def _work(job: Job) -> Done:
    started = time.monotonic()
    Path(f"{job.gate}.{job.n}").touch()
    while not Path(job.gate).exists():
        time.sleep(0.01)
    return Done(n=job.n, pid=os.getpid(), started=started, ended=time.monotonic())


async def test_a_pool_of_its_own_grows_from_zero_with_its_queue_and_drains_to_zero(
    new_flock: NewFlock, tmp_path: Path
) -> None:
    # Given an agent with a pool of its own, and no work
    gate = tmp_path / "gate"
    flock = new_flock()
    flock.agent("heavy").consumes(Job).publishes(Done).max_concurrency(1).pool(
        min=0, max=2, num_cpus=1, idle_timeout=timedelta(seconds=1)
    ).runs(_work)
    await flock.start()

    async def workers() -> int:
        return len((await flock.pools())["agent-heavy"]["workers"])

    assert await workers() == 0

    # When more work comes than one replica can do, it grows to its maximum
    await flock.publish_many([Job(n=n, gate=str(gate)) for n in range(10)])

    async def grown() -> bool:
        return int((await flock.pools())["agent-heavy"]["running"]) == 2

    await until(grown)

    # Then both share the work, each job is done once, and without work the replicas end
    gate.touch()
    await flock.run_until_idle(timeout=60)
    done = await flock.store.get_by_type(Done)
    assert sorted(d.n for d in done) == list(range(10))
    assert len({d.pid for d in done}) == 2

    async def gone() -> bool:
        return await workers() == 0

    await until(gone)
    # And it comes back when it is needed
    await flock.publish(Job(n=99, gate=str(gate)))
    await flock.run_until_idle(timeout=60)
    assert await flock.store.count(Done) == 11


async def test_light_agents_share_a_worker_and_each_keeps_its_concurrency(
    new_flock: NewFlock, tmp_path: Path
) -> None:
    # Given two light agents on one worker, of which one may run two at a time
    gate = tmp_path / "gate"
    flock = new_flock(max_workers=1)
    flock.agent("two").consumes(Job).publishes(Done).max_concurrency(2).runs(_work)
    flock.agent("pid").consumes(Word).publishes(Shout).runs(lambda w: Shout(text=str(os.getpid())))
    jobs = await flock.publish_many([Job(n=n, gate=str(gate)) for n in range(6)])

    # When both have work and the first one's is held up
    word = await flock.publish(Word(text="w"))
    await flock.wait(word.correlation_id, timeout=60)
    assert await flock.store.count(Done) == 0

    async def both_run() -> bool:
        return len(list(tmp_path.glob("gate.*"))) == 2  # noqa: ASYNC240  # a folder of two files

    await until(both_run)
    gate.touch()
    await flock.wait(jobs[0].correlation_id, timeout=60)

    # Then they ran in one process, and never more than two jobs at once
    done = await flock.store.get_by_type(Done)
    (shout,) = await flock.store.get_by_type(Shout)
    assert {d.pid for d in done} == {int(shout.text)}
    assert max(sum(a.started <= b.started < a.ended for a in done) for b in done) == 2


async def test_an_agent_that_asks_for_what_no_node_has_is_shown_and_holds_up_nobody(
    new_flock: NewFlock,
) -> None:
    # Given an agent that asks for a resource that does not exist
    flock = new_flock()
    flock.agent("greedy").consumes(Word).publishes(Shout).pool(resources={"unobtainium": 1}).runs(
        lambda w: Shout(text=w.text)
    )
    flock.agent("modest").consumes(Job).publishes(Done).runs(lambda j: Done(n=j.n, pid=0))

    # When both get work
    word = await flock.publish(Word(text="w"))
    job = await flock.publish(Job(n=1))

    # Then the other one's is done
    assert (await flock.wait(job.correlation_id, timeout=60)).state == "completed"

    # And the trouble is shown by pools and by why
    async def shown() -> bool:
        return bool((await flock.pools())["agent-greedy"]["error"])

    await until(shown)
    assert "unobtainium" in str(await flock.why("greedy"))
    assert "waits for a permit" in str(await flock.why(word))
    assert (await flock.workflow_status(word.correlation_id)).state == "active"
