"""Pause, halt and cancel on a real Ray: what runs in other processes stops, and a pause outlives a shard."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from flock_ray import Flock, SQLitePersistence
from tests.integration.models import Done, Job

pytestmark = pytest.mark.timeout(180)

NewFlock = Callable[..., Flock]


async def eventually(folder: Path, pattern: str, count: int) -> list[Path]:
    """Wait until so many files are there."""
    for _ in range(600):
        if len(found := files(folder, pattern)) >= count:
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"{count} x {pattern}: {[path.name for path in files(folder, '*')]}")


def files(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern))


async def wait_long(job: Job) -> Done:
    """Say when it begins and when it is cancelled; the file `open` lets it end."""
    folder, number = Path(job.gate), f"{job.n}-{uuid.uuid4().hex[:6]}"
    started = time.time()
    (folder / f"began-{number}").touch()
    try:
        while not (folder / "open").exists():  # noqa: ASYNC110  # another process makes it
            await asyncio.sleep(0.05)
    except asyncio.CancelledError:
        (folder / f"cancelled-{number}").write_text(str(time.time()))
        raise
    return Done(n=job.n, pid=0, started=started, ended=time.time())


def block_long(job: Job) -> Done:
    """Do the same in a thread, which nobody can stop."""
    folder = Path(job.gate)
    (folder / f"began-{job.n}").touch()
    while not (folder / "open").exists():
        time.sleep(0.05)
    (folder / f"ended-{job.n}").touch()
    return Done(n=job.n, pid=0)


async def test_cancelling_a_workflow_stops_what_runs_in_workers_at_once(
    new_flock: NewFlock, tmp_path: Path
) -> None:
    flock = new_flock(shards=2)
    flock.agent("async").consumes(Job).publishes(Done).runs(wait_long).max_concurrency(20)
    # Given ten runs of a workflow on a worker, and one of another workflow
    await flock.publish_many([Job(n=n, gate=str(tmp_path)) for n in range(10)], correlation_id="w")
    await flock.publish(Job(n=99, gate=str(tmp_path)), correlation_id="other")
    await eventually(tmp_path, "began-*", 11)
    # When the workflow is cancelled
    asked = time.time()
    assert await flock.cancel("w") == 10
    # Then all ten stop: within a second on a machine that is not busy, and the other one goes on
    stopped = await eventually(tmp_path, "cancelled-*", 10)
    assert max(float(path.read_text()) for path in stopped) - asked < 10
    (tmp_path / "open").touch()
    await flock.run_until_idle(timeout=60)
    assert [done.n for done in await flock.store.get_by_type(Done)] == [99]
    assert len(files(tmp_path, "cancelled-*")) == 10


async def test_what_a_cancelled_sync_function_returns_is_ignored(new_flock: NewFlock, tmp_path: Path) -> None:
    flock = new_flock()
    flock.agent("sync").consumes(Job).publishes(Done).runs(block_long)
    await flock.publish(Job(n=1, gate=str(tmp_path)), correlation_id="w")
    await eventually(tmp_path, "began-1", 1)
    assert await flock.cancel("w") == 1
    await flock.run_until_idle(timeout=30)
    (tmp_path / "open").touch()
    await eventually(tmp_path, "ended-1", 1)
    await flock.publish(Job(n=2, gate=str(tmp_path)), correlation_id="x")
    await flock.run_until_idle(timeout=60)
    assert [done.n for done in await flock.store.get_by_type(Done)] == [2]


async def test_a_halted_board_stops_everything_and_runs_it_once_when_it_goes_on(
    new_flock: NewFlock, tmp_path: Path
) -> None:
    flock = new_flock(shards=2, max_workers=2)
    flock.agent("async").consumes(Job).publishes(Done).runs(wait_long).max_concurrency(5)
    for n in range(8):
        await flock.publish(Job(n=n, gate=str(tmp_path)), correlation_id=f"w{n}")
    await eventually(tmp_path, "began-*", 5)
    # When somebody pulls the plug
    await flock.halt(by="test", reason="drill")
    # Then everything that has begun stops
    await eventually(tmp_path, "cancelled-*", len(files(tmp_path, "began-*")))
    # And nothing begins, though it could end at once
    (tmp_path / "open").touch()
    before = len(files(tmp_path, "began-*"))
    await flock.publish(Job(n=8, gate=str(tmp_path)), correlation_id="w8")
    await asyncio.sleep(1)
    assert len(files(tmp_path, "began-*")) == before
    [view] = await flock.paused()
    assert (view.kind, view.by, view.reason, view.everywhere) == ("board", "test", "drill", True)
    # When it goes on, each job is done once, and no attempt counted as a crash
    await flock.resume()
    await flock.run_until_idle(timeout=60)
    assert sorted(done.n for done in await flock.store.get_by_type(Done)) == list(range(9))


async def test_a_pause_outlives_the_process_of_a_shard(new_flock: NewFlock, tmp_path: Path) -> None:
    name = f"pausing-{uuid.uuid4().hex}"
    (tmp_path / "open").touch()
    flock = new_flock(shards=2, namespace=name, persistence=SQLitePersistence(tmp_path / "board"))
    flock.agent("held").consumes(Job).publishes(Done).runs(wait_long)
    await flock.start()
    await flock.pause(agent="held", by="test")
    # When a shard dies, and work comes after that
    board = await flock._ready_board()
    os.kill(await board.shard(0).start_up(), signal.SIGKILL)
    for n in range(8):
        await flock.publish(Job(n=n, gate=str(tmp_path)), correlation_id=f"w{n}")
    await asyncio.sleep(1)
    # Then it is paused on both, still
    assert not files(tmp_path, "began-*")
    assert [view.everywhere for view in await flock.paused()] == [True]
    await flock.resume(agent="held")
    await flock.run_until_idle(timeout=60)
    assert sorted(done.n for done in await flock.store.get_by_type(Done)) == list(range(8))
