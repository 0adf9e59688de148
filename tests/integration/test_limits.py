"""Limits and circuit breakers on a real Ray: over two shards and several workers, and over killed processes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

from pydantic import BaseModel

from flock_ray import Flock, ModelBreaker, ModelSettings, SQLitePersistence, flock_type
from tests import llm_answers as answers
from tests.integration.models import Shout, Word
from tests.llm_server import LLMServer

NewFlock = Callable[..., Flock]


@flock_type(name="limited.Job")
class Job(BaseModel):
    n: int
    folder: str
    who: str = "a"


@flock_type(name="limited.Done")
class Done(BaseModel):
    n: int
    together: int
    """Runs that went on at the same time, this one included."""
    of_key: int
    pid: int


def work(job: Job) -> Done:
    mine = Path(job.folder) / f"{job.who}-{job.n}"
    mine.touch()
    try:
        running = [path.name for path in Path(job.folder).iterdir()]
        time.sleep(0.05)
        of_key = sum(name.startswith(f"{job.who}-") for name in running)
        return Done(n=job.n, together=len(running), of_key=of_key, pid=os.getpid())
    finally:
        mine.unlink()


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(300):
        if await holds():
            return
        await asyncio.sleep(0.1)
    raise AssertionError("it never came about")


async def test_concurrency_is_that_of_the_cluster_over_shards_and_workers(
    new_flock: NewFlock, tmp_path: Path
) -> None:
    # Given two shards, two workers that could run eight each, and limits of three, and of two per key
    flock = new_flock(shards=2, max_workers=2)
    builder = flock.agent("worker").consumes(Job).publishes(Done).runs(work).max_concurrency(8)
    builder.concurrency(3).concurrency(2, key=lambda job: job.who)

    # When sixty jobs of as many workflows come
    for n in range(60):
        await flock.publish(Job(n=n, folder=str(tmp_path), who="abc"[n % 3]))
    await flock.run_until_idle(timeout=60)

    # Then no run has ever seen more than the limits beside it
    done = await flock.store.get_by_type(Done)
    assert sorted(d.n for d in done) == list(range(60))
    assert max(d.together for d in done) == 3
    assert max(d.of_key for d in done) <= 2
    [load] = await flock.limits.list()
    assert (load.running, load.waiting) == (0, 0)


async def test_a_breaker_opened_by_hand_keeps_inputs_waiting_over_a_killed_shard_and_router(
    new_flock: NewFlock, tmp_path: Path
) -> None:
    # Given a stored board of two shards with a breaker that somebody has opened
    (tmp_path / "running").mkdir()
    flock = new_flock(shards=2, persistence=SQLitePersistence(tmp_path / "boards"))
    builder = flock.agent("worker").consumes(Job).publishes(Done).runs(work)
    builder.circuit_breaker(recovery_timeout=timedelta(seconds=1)).concurrency(4)
    await flock.breakers.open("worker", by="a test")
    for n in range(20):
        await flock.publish(Job(n=n, folder=str(tmp_path / "running")))

    # When both shards and the router are killed
    board = await flock._ready_board()
    for index in (0, 1):
        os.kill(await board.shard(index).start_up(), signal.SIGKILL)
    os.kill(await board.router.pid(), signal.SIGKILL)

    # Then it is open as before, and everything waits
    async def all_wait() -> bool:
        view = await flock.breakers.get("worker")
        return (view.state, view.until, view.waiting) == ("open", None, 20)

    await until(all_wait)
    await asyncio.sleep(2)
    assert await flock.store.count(Done) == 0
    assert await all_wait()

    # And once it is closed, each of them runs
    view = await flock.breakers.close("worker", by="a test")
    assert view.state == "closed"

    async def all_done() -> bool:
        return await flock.store.count(Done) == 20

    await until(all_done)
    done = await flock.store.get_by_type(Done)
    assert sorted(d.n for d in done) == list(range(20))
    assert max(d.together for d in done) <= 4


async def test_a_model_that_keeps_failing_is_left_alone_and_its_breaker_tells(new_flock: NewFlock) -> None:
    # Given a model that fails, with a breaker, and an agent that tries again
    async with LLMServer() as server:
        server.on(lambda _: True, answers.server_error(500))
        breaker = ModelBreaker(failure_threshold=3, recovery_timeout=timedelta(seconds=3))
        known = ModelSettings(api_key=server.key, api_base=server.url, max_tries=1, breaker=breaker)
        flock = new_flock(model="openai/gpt-4.1-mini", models={"openai/*": known})
        oracle = flock.agent("oracle").description("Answers.").consumes(Word).publishes(Shout)
        oracle.max_concurrency(1).retry(max_attempts=20)

        # When eight questions come
        for n in range(8):
            await flock.publish(Word(text=f"q{n}"))
        events = flock.events("model.breaker_opened", "model.breaker_half_open", "model.breaker_closed")
        first = await anext(events)

        # Then it is asked three times and no more, until it answers again
        assert (first.kind, first.detail) == (
            "model.breaker_opened", "openai/gpt-4.1-mini: after 3 failures in a row",
        )  # fmt: skip
        assert server.num_requests == 3
        server.on(lambda _: True, answers.json_answer({"text": "yes"}))
        assert [(await anext(events)).kind for _ in range(2)] == [
            "model.breaker_half_open", "model.breaker_closed",
        ]  # fmt: skip
        await flock.run_until_idle(timeout=60)
        assert await flock.store.count(Shout) == 8
