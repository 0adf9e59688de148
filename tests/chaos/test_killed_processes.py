from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from flock_ray import Flock, WorkflowError
from tests.integration.models import Done, Job

pytestmark = pytest.mark.timeout(240)

NewFlock = Callable[..., Flock]
RESTART_BOUND_S = 15.0
"""Generous: the machine may be busy. What it took is printed."""


def _work(job: Job) -> Done:
    """Note every start in the folder of the gate, then wait for the gate."""
    if not job.gate:
        return Done(n=job.n, pid=os.getpid())
    gate = Path(job.gate)
    with (gate.parent / f"start-{job.n}").open("a") as file:
        file.write(f"{os.getpid()} {time.time()}\n")
    while not gate.exists():
        time.sleep(0.005)
    return Done(n=job.n, pid=os.getpid())


def starts(folder: Path, n: int) -> list[tuple[int, float]]:
    """Return (process, wall time) of every start of a job."""
    path = folder / f"start-{n}"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(pid), float(at)) for pid, at in (line.split() for line in lines)]


def alive(pid: int) -> bool:
    """Tell whether a process is there; a zombie is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def started(folder: Path, n: int, times: int) -> list[tuple[int, float]]:
    """Wait until a job has started so often."""
    deadline = time.monotonic() + 60
    while len(found := starts(folder, n)) < times:
        assert time.monotonic() < deadline, f"job {n} started {len(found)} times"
        await asyncio.sleep(0.01)
    return found


async def exactly_once(flock: Flock, jobs: range) -> None:
    """Check that every job has one result, that no id appears twice and that nothing failed."""
    artifacts = await flock.store.list_by_type("integration.Done")
    assert Counter(a.payload["n"] for a in artifacts) == Counter(jobs)
    assert len({a.id for a in artifacts}) == len(jobs)
    assert await flock.store.count(WorkflowError) == 0


async def test_the_work_of_a_killed_worker_runs_elsewhere_and_has_one_result(
    new_flock: NewFlock, tmp_path: Path
) -> None:
    # Given a worker in the middle of an activation, with more queued
    flock = new_flock()
    flock.agent("work").consumes(Job).publishes(Done).max_concurrency(4).runs(_work)
    gate = tmp_path / "gate"
    await flock.publish(Job(n=0, gate=str(gate)))
    ((pid, _),) = await started(tmp_path, 0, 1)
    await asyncio.gather(*(flock.publish(Job(n=n, gate=str(gate))) for n in range(1, 20)))

    # When it is killed
    killed_at = time.time()
    os.kill(pid, signal.SIGKILL)

    # Then its activation starts again in another process, within seconds
    _, (other, at) = await started(tmp_path, 0, 2)
    print(f"worker killed: its work ran again after {at - killed_at:.2f} s")
    assert other != pid
    assert at - killed_at < RESTART_BOUND_S
    gate.touch()
    await flock.run_until_idle(timeout=60)
    await exactly_once(flock, range(20))


async def test_a_stopped_worker_is_declared_dead_and_what_it_says_later_is_refused(
    new_flock: NewFlock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker in the middle of an activation, on a board with a short heartbeat deadline
    monkeypatch.setenv("FLOCK_HEARTBEAT_DEADLINE", "PT3S")
    flock = new_flock(max_workers=1)
    flock.agent("work").consumes(Job).publishes(Done).runs(_work)
    gate = tmp_path / "gate"
    await flock.publish(Job(n=0, gate=str(gate)))
    ((pid, _),) = await started(tmp_path, 0, 1)

    # When the process is stopped
    stopped_at = time.time()
    os.kill(pid, signal.SIGSTOP)
    try:
        # Then its work starts elsewhere after the deadline
        _, (other, at) = await started(tmp_path, 0, 2)
        print(f"worker stopped (deadline 3 s): its work ran again after {at - stopped_at:.2f} s")
        assert other != pid
    finally:
        # And when it goes on and finishes as well, that changes nothing
        gate.touch()
        if alive(pid):
            os.kill(pid, signal.SIGCONT)
    await flock.run_until_idle(timeout=60)
    deadline = time.monotonic() + 30
    while alive(pid):
        assert time.monotonic() < deadline, "the stopped worker did not end"
        await asyncio.sleep(0.1)
    await exactly_once(flock, range(1))


async def test_work_flows_while_a_killed_router_restarts_and_pools_scale_after(
    new_flock: NewFlock, tmp_path: Path
) -> None:
    # Given a board at work
    flock = new_flock(shards=2)
    flock.agent("work").consumes(Job).publishes(Done).runs(_work)
    await flock.publish(Job(n=0))
    await flock.run_until_idle(timeout=60)
    board = await flock._ready_board()
    (before,) = (await flock.pools())["shared"]["workers"]
    router = await board.router.pid()

    # When the router is killed and new work comes at once
    os.kill(router, signal.SIGKILL)
    killed = time.monotonic()
    asked = asyncio.create_task(flock.pools())
    await asyncio.gather(*(flock.publish(Job(n=n)) for n in range(1, 50)))
    await flock.run_until_idle(timeout=60)
    print(f"router killed: 49 new jobs done after {time.monotonic() - killed:.2f} s")

    # Then nothing is lost or repeated, by the worker that was there
    await exactly_once(flock, range(50))
    assert len({d.pid for d in await flock.store.get_by_type(Done)}) == 1

    # And who asked the router meanwhile has his answer
    # And the new one knows that worker, takes deploys and scales a pool from zero
    assert "shared" in await asked
    flock.agent("late").consumes(Done, where=lambda d: d.n == 50).publishes(Job).pool(
        max=1, idle_timeout=timedelta(seconds=30)
    ).runs(lambda d: Job(n=51))
    await flock.publish(Job(n=50))
    await flock.run_until_idle(timeout=60)
    await exactly_once(flock, range(52))
    assert await board.router.pid() != router
    assert (await flock.pools())["shared"]["workers"] == [before]


async def test_router_and_worker_killed_together_lose_nothing(new_flock: NewFlock, tmp_path: Path) -> None:
    # Given a worker in the middle of an activation
    flock = new_flock()
    flock.agent("work").consumes(Job).publishes(Done).runs(_work)
    gate = tmp_path / "gate"
    await flock.publish_many([Job(n=n, gate=str(gate)) for n in range(10)])
    ((worker, _),) = await started(tmp_path, 0, 1)
    router = await (await flock._ready_board()).router.pid()

    # When it and the router die together
    killed_at = time.time()
    os.kill(router, signal.SIGKILL)
    os.kill(worker, signal.SIGKILL)

    # Then the new router has the work done by a new worker
    _, (_, at) = await started(tmp_path, 0, 2)
    print(f"router and worker killed: the work ran again after {at - killed_at:.2f} s")
    assert at - killed_at < 2 * RESTART_BOUND_S
    gate.touch()
    await flock.run_until_idle(timeout=60)
    await exactly_once(flock, range(10))


async def test_five_kills_during_two_thousand_items_leave_exact_results(new_flock: NewFlock) -> None:
    # Given two thousand jobs for workers that are told to survive any number of crashes
    flock = new_flock(shards=2)
    flock.agent("work").consumes(Job).publishes(Done).max_crashes(50).runs(_slow)
    for start in range(0, 2000, 500):
        await flock.publish_many([Job(n=n) for n in range(start, start + 500)], correlation_id=f"w{start}")

    # When a worker that has just produced something is killed, five times
    killed = set[int]()
    deadline = time.monotonic() + 120
    while len(killed) < 5 and time.monotonic() < deadline:
        count = await flock.store.count(Done)
        if count >= 300 * len(killed) + 100:
            pid = (await flock.store.get_by_type(Done))[-1].pid
            if pid not in killed and alive(pid):
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        await asyncio.sleep(0.02)
    assert len(killed) == 5

    # Then every job has exactly one result
    await flock.run_until_idle(timeout=100)
    await exactly_once(flock, range(2000))


def _slow(job: Job) -> Done:
    time.sleep(0.004)
    return Done(n=job.n, pid=os.getpid())
