from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flock_ray import Flock
from flock_ray.adapters.sqlite import SQLitePersistence
from flock_ray.errors import StaleEpochError
from tests.chaos.orders import check_orders, declare, publish_orders

pytestmark = pytest.mark.timeout(400)

NewFlock = Callable[..., Flock]


async def shard_pid(flock: Flock, index: int) -> int:
    board = await flock._ready_board()
    pid: int = await board.shard(index).start_up()
    return pid


async def worker_pids(flock: Flock) -> list[int]:
    board = await flock._ready_board()
    workers = [w for pool in (await flock.pools()).values() for w in pool["workers"]]
    return [await board.worker(worker).start_up() for worker in workers]


async def within(limit_s: float, work: Any) -> None:
    """Run something, and say what everybody waits for when it takes too long."""
    task = asyncio.ensure_future(work)
    done, _ = await asyncio.wait([task], timeout=limit_s)
    if not done:
        for other in asyncio.all_tasks():
            other.print_stack()
        task.cancel()
        raise AssertionError(f"not done after {limit_s:g} s")
    task.result()


class Killer:
    """Kills a random process of a board every now and then, and notes how long shards are away."""

    def __init__(self, flock: Flock, seed: int) -> None:
        self._flock = flock
        self._rng = random.Random(seed)
        self.killed: list[str] = []
        self.recovery_s: list[float] = []

    async def kill(self, what: str) -> None:
        board = await self._flock._ready_board()
        self.killed.append(what)
        if what == "shard":
            index = self._rng.randrange(board.num_shards)
            os.kill(await shard_pid(self._flock, index), signal.SIGKILL)
            killed = time.monotonic()
            await shard_pid(self._flock, index)
            self.recovery_s.append(time.monotonic() - killed)
        elif what == "router":
            os.kill(await board.router.pid(), signal.SIGKILL)
        elif pids := await worker_pids(self._flock):
            os.kill(self._rng.choice(pids), signal.SIGKILL)

    async def run(self, rounds: int) -> None:
        for _ in range(rounds):
            await asyncio.sleep(self._rng.uniform(0.3, 1.5))
            await self.kill(self._rng.choice(("shard", "shard", "worker", "router")))


@pytest.fixture
def sqlite(tmp_path: Path) -> SQLitePersistence:
    return SQLitePersistence(str(tmp_path / "boards"))


async def test_killed_shards_workers_and_routers_lose_and_repeat_nothing(
    new_flock: NewFlock, sqlite: SQLitePersistence
) -> None:
    # Given a durable board with two shards at work
    flock = new_flock(persistence=sqlite, namespace=f"chaos-{uuid.uuid4().hex}", shards=2)
    declare(flock)
    await flock.start()
    numbers = range(300)

    # When processes are killed at random meanwhile
    killer = Killer(flock, seed=7)
    await within(120, asyncio.gather(killer.run(8), publish_orders(flock, numbers)))
    await flock.run_until_idle(timeout=200)
    await flock.flush_batches()
    await flock.run_until_idle(timeout=60)

    # Then the results are those of an undisturbed run
    print(f"killed {killer.killed}; shards back after {[f'{s:.1f} s' for s in killer.recovery_s]}")
    await check_orders(flock, numbers)


DRIVER = """
    import asyncio, sys
    from flock_ray import Flock
    from flock_ray.adapters.sqlite import SQLitePersistence
    from tests.chaos.orders import check_orders, declare, publish_orders

    async def main(path, what, count):
        numbers = range(int(count))
        flock = Flock(persistence=SQLitePersistence(path), namespace="orders", shards=2, no_output=True)
        declare(flock)
        await flock.start()
        print("STARTED", flush=True)
        if what == "publish":
            await publish_orders(flock, numbers)
            print("PUBLISHED", flush=True)
            await asyncio.sleep(1000)
        await flock.run_until_idle(timeout=200)
        await flock.flush_batches()
        await flock.run_until_idle(timeout=60)
        await check_orders(flock, numbers)
        print("CHECKED", flush=True)
        await flock.shutdown()

    asyncio.run(main(*sys.argv[1:]))
"""


async def line_of(script: subprocess.Popen[str]) -> str:
    assert script.stdout is not None
    return (await asyncio.to_thread(script.stdout.readline)).strip()


async def test_a_cluster_that_is_killed_as_a_whole_goes_on_when_its_script_is_started_again(
    start_script: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    # Given a script with a Ray of its own, in the middle of its work
    path = str(tmp_path / "boards")
    first = start_script(DRIVER, path, "publish", "200")
    assert [await line_of(first), await line_of(first)] == ["STARTED", "PUBLISHED"]

    # When everything is killed at once
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()

    # Then the same script, started again, finishes what was accepted; the results are complete
    second = start_script(DRIVER, path, "finish", "200")
    out, err = await asyncio.to_thread(second.communicate, None, 300)
    assert "CHECKED" in out, err


async def test_a_shard_that_was_replaced_behind_its_back_is_refused_by_the_store(
    new_flock: NewFlock, sqlite: SQLitePersistence
) -> None:
    # Given a durable board
    namespace = f"fence-{uuid.uuid4().hex}"
    flock = new_flock(persistence=sqlite, namespace=namespace)
    declare(flock)
    await publish_orders(flock, range(5))
    await flock.run_until_idle(timeout=60)
    pid = await shard_pid(flock, 0)

    # When its shard is stopped and somebody else takes its slots meanwhile
    os.kill(pid, signal.SIGSTOP)
    try:
        other: Any = sqlite.store(namespace, 0, range(256))
        await other.acquire()
        await other.close()
    finally:
        os.kill(pid, signal.SIGCONT)

    # Then it can't write any more, and says so instead of accepting
    with pytest.raises(StaleEpochError):
        await publish_orders(flock, range(5, 6))
