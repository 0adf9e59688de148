"""Attempts and limits of time on real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from flock_ray import Context, FixedDelay, Flock, SQLitePersistence, WorkflowError
from tests.integration.models import Done, Job, Shout, Word

pytestmark = pytest.mark.timeout(180)

NewFlock = Callable[..., Flock]


def _work(ctx: Context, job: Job) -> Done:
    """Fail, die with the worker, fail, work; and leave a line about each."""
    with Path(job.gate).open("a") as file:
        file.write(f"{ctx.attempt} {os.getpid()}\n")
    if ctx.attempt == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if ctx.attempt < 4 or job.n > 1:
        raise TimeoutError(f"attempt {ctx.attempt}")
    return Done(n=ctx.attempt, pid=os.getpid())


def lines(path: Path) -> list[tuple[int, int]]:
    """Return (attempt, process) of each line."""
    found = path.read_text().splitlines() if path.exists() else []
    return [(int(attempt), int(pid)) for attempt, pid in (line.split() for line in found)]


async def lines_of(path: Path, count: int) -> list[tuple[int, int]]:
    """Return the lines once there are so many."""
    deadline = time.monotonic() + 60
    while len(lines(path)) < count:
        assert time.monotonic() < deadline, lines(path)
        await asyncio.sleep(0.05)
    return lines(path)


async def test_attempts_survive_a_worker_that_dies_which_is_no_attempt(
    new_flock: NewFlock, tmp_path: Path
) -> None:
    # Given an agent that may be tried three times: its first attempt fails, and its second kills the worker
    flock = new_flock()
    log = tmp_path / "attempts"
    flock.agent("work").consumes(Job).publishes(Done).runs(_work).retry(
        FixedDelay(timedelta(milliseconds=200), 3), on=[TimeoutError]
    )

    # When it gets work
    await flock.publish(Job(n=1, gate=str(log)))
    await flock.run_until_idle(timeout=90, include_timers=True)

    # Then the third failure did not come: the crash was not counted, and the run ended well
    assert [4] == [done.n for done in await flock.store.get_by_type(Done)]
    found = await lines_of(log, 4)
    assert [1, 2, 3, 4] == [attempt for attempt, _ in found]
    assert found[0][1] == found[1][1] != found[2][1]


async def test_attempts_and_waits_survive_a_shard_that_dies(new_flock: NewFlock, tmp_path: Path) -> None:
    # Given a durable board with a run whose second attempt waits
    flock = new_flock(persistence=SQLitePersistence(tmp_path / "board"), shards=1)
    log = tmp_path / "attempts"
    flock.agent("work").consumes(Job).publishes(Done).runs(_fail).retry(FixedDelay(timedelta(seconds=4), 3))
    await flock.publish(Job(n=9, gate=str(log)))
    await lines_of(log, 1)
    await asyncio.sleep(1)
    board = await flock._ready_board()

    # When its shard is killed
    os.kill(await board.shard(0).start_up(), signal.SIGKILL)
    await flock.run_until_idle(timeout=90, include_timers=True)

    # Then it was tried three times in all, and knew its number each time
    assert [1, 2, 3] == [attempt for attempt, _ in await lines_of(log, 3)]
    [error] = await flock.store.get_by_type(WorkflowError)
    assert error.error_message == "attempt 3"


def _fail(ctx: Context, job: Job) -> Done:
    with Path(job.gate).open("a") as file:
        file.write(f"{ctx.attempt} {os.getpid()}\n")
    raise TimeoutError(f"attempt {ctx.attempt}")


def _beat(ctx: Context, word: Word) -> Shout:
    """Work for three seconds, with signs of life or, at the first attempt of "silent", without; notice the end."""
    marks = Path(word.text)
    silent = marks.name == "silent" and ctx.attempt == 1
    try:
        for _ in range(30):
            time.sleep(0.1)
            if not silent:
                ctx.heartbeat()
        ctx.heartbeat()
    except asyncio.CancelledError:
        marks.with_suffix(".stopped").touch()
        raise
    return Shout(text=f"{marks.name} {ctx.attempt}")


async def _beat_async(ctx: Context, word: Word) -> Shout:
    for _ in range(30):
        await asyncio.sleep(0.1)
        if ctx.attempt > 1:
            await ctx.heartbeat()
    return Shout(text=f"async {ctx.attempt}")


async def test_a_run_without_a_sign_of_life_is_tried_again_and_hears_that_it_was_given_up(
    new_flock: NewFlock, tmp_path: Path
) -> None:
    # Given agents that work for longer than they may be silent
    flock = new_flock(max_workers=2)
    idle = timedelta(seconds=1)
    for name, function in (("sync", _beat), ("async", _beat_async)):
        agent = flock.agent(name).consumes(Word).publishes(Shout).runs(function).max_concurrency(2)
        agent.timeout(idle=idle).retry(FixedDelay(timedelta(0), 2), on=[TimeoutError])

    # When they get work
    await flock.publish(Word(text=str(tmp_path / "silent")))
    await flock.publish(Word(text=str(tmp_path / "speaking")))
    await flock.run_until_idle(timeout=90, include_timers=True)

    # Then those with heartbeats were left alone, and silent attempts were made again
    found = sorted(shout.text for shout in await flock.store.get_by_type(Shout))
    assert ["async 2", "async 2", "silent 2", "speaking 1"] == found

    # And the thread that nobody waited for ended at its next heartbeat
    assert (tmp_path / "silent.stopped").exists()
