from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from flock_ray import Flock
from flock_ray.errors import StaleEpochError
from flock_ray.gateway.settings import ModelSettings
from flock_ray.ports import Persistence
from flock_ray.verifying import verify_board
from tests.chaos.backends import Backend, running
from tests.chaos.orders import check_orders, declare, publish_orders
from tests.chaos.questions import MODEL, Answered, Question, answer, answering
from tests.llm_server import in_thread
from tests.proxy import Proxy

pytestmark = pytest.mark.timeout(400)

NewFlock = Callable[..., Flock]


async def shard_pid(flock: Flock, index: int) -> int:
    board = await flock._ready_board()
    pid: int = await board.shard(index).start_up()
    return pid


async def gateway_pid(flock: Flock) -> int | None:
    """Return the process of a board's gateway; None while there is none, or one that begins."""
    namespace = (await flock._ready_board()).shard(0)._namespace
    try:
        handle: Any = await asyncio.to_thread(ray.get_actor, f"flock:{namespace}:gateway:0", namespace)
        return int(await asyncio.wait_for(handle.start_up.remote(), 20))
    except (ValueError, RayActorError, TimeoutError):
        return None


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
        elif what == "gateway":
            if (pid := await gateway_pid(self._flock)) is not None:
                os.kill(pid, signal.SIGKILL)
        elif pids := await worker_pids(self._flock):
            os.kill(self._rng.choice(pids), signal.SIGKILL)

    async def run(self, rounds: int) -> None:
        for what in self._rng.sample(("shard", "worker", "router", "gateway") * rounds, 4 * rounds):
            await asyncio.sleep(self._rng.uniform(0.3, 1.5))
            await self.kill(what)


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    with running(request.param, tmp_path / "backend") as backend:
        yield backend


async def finish(flock: Flock, persistence: Persistence, numbers: range, history: Path) -> None:
    """Let a board come to its end and check everything that it promises."""
    await flock.run_until_idle(timeout=150)
    await flock.flush_batches()
    await flock.run_until_idle(timeout=60)
    await check_orders(flock, numbers)
    name = flock._settings.namespace
    assert name is not None
    verdict = await verify_board(persistence, name, history=history)
    assert verdict.violations == []
    assert verdict.acknowledged >= 2 * len(numbers)


async def test_killed_shards_workers_routers_and_gateways_lose_and_repeat_nothing(
    new_flock: NewFlock, backend: Backend, tmp_path: Path
) -> None:
    # Given a durable board with two shards at work, some of which is to ask a model
    persistence, history = backend.persistence(), tmp_path / "acks.jsonl"
    name = f"chaos-{uuid.uuid4().hex}"
    with in_thread(respond=answer) as server:
        models = {MODEL: ModelSettings(api_base=server.url, api_key=server.key)}
        flock = new_flock(
            persistence=persistence,
            namespace=name,
            shards=2,
            history=str(history),
            model=MODEL,
            models=models,
        )
        declare(flock)
        answering(flock).max_crashes(100)
        await flock.start()
        numbers, questions = range(1000), range(200)

        async def ask() -> None:
            for n in questions:
                await flock.publish(Question(number=n), correlation_id=f"q-{n}", idempotency_key=f"q-{n}")

        # When processes are killed at random meanwhile
        killer = Killer(flock, seed=7)
        await within(200, asyncio.gather(killer.run(2), publish_orders(flock, numbers, at_once=8), ask()))

        # Then the results are those of an undisturbed run
        print(
            f"{backend.name}: killed {killer.killed}; "
            f"shards back after {[f'{s:.1f} s' for s in killer.recovery_s]}"
        )
        await finish(flock, persistence, numbers, history)
        assert Counter(a.number for a in await flock.store.get_by_type(Answered)) == Counter(questions)


@pytest.mark.parametrize("backend", ["postgres", "redis"], indirect=True)
async def test_a_store_that_crashes_and_is_cut_off_delays_everything_and_loses_nothing(
    new_flock: NewFlock, backend: Backend, tmp_path: Path
) -> None:
    # Given a board that reaches its store through a network
    assert backend.server is not None
    proxy = Proxy(backend.server.port)
    await proxy.start()
    try:
        persistence, history = backend.persistence(proxy.port), tmp_path / "acks.jsonl"
        name = f"outage-{uuid.uuid4().hex}"
        flock = new_flock(persistence=persistence, namespace=name, history=str(history))
        declare(flock)
        await flock.start()
        numbers = range(300)

        async def trouble() -> None:
            for _ in range(2):
                await asyncio.sleep(0.7)
                await asyncio.to_thread(backend.crash)
                await asyncio.sleep(0.7)
                await proxy.cut()
                await asyncio.sleep(0.7)
                await proxy.start()
                await asyncio.sleep(0.7)
                proxy.silence()
                await asyncio.sleep(4)  # longer than the store's timeout
                proxy.resume()

        # When the store crashes, is cut off and falls silent meanwhile
        await within(150, asyncio.gather(trouble(), publish_orders(flock, numbers)))

        # Then everything goes on when it is back
        await finish(flock, persistence, numbers, history)
    finally:
        await proxy.stop()


DRIVER = """
    import asyncio, sys
    from flock_ray import Flock
    from flock_ray.persistence import persistence_from_url
    from flock_ray.verifying import verify_board
    from tests.chaos.orders import check_orders, declare, publish_orders

    async def main(url, what, count):
        numbers = range(int(count))
        flock = Flock(persistence=persistence_from_url(url), namespace="orders", shards=2, no_output=True)
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
        verdict = await verify_board(persistence_from_url(url), "orders")
        assert verdict.violations == [] and verdict.artifacts >= 6 * len(numbers), verdict
        print("CHECKED", flush=True)
        await flock.shutdown()

    asyncio.run(main(*sys.argv[1:]))
"""


async def line_of(script: subprocess.Popen[str]) -> str:
    assert script.stdout is not None
    return (await asyncio.to_thread(script.stdout.readline)).strip()


async def test_a_cluster_that_is_killed_as_a_whole_goes_on_when_its_script_is_started_again(
    start_script: Callable[..., subprocess.Popen[str]], backend: Backend
) -> None:
    # Given a script with a Ray of its own, in the middle of its work
    first = start_script(DRIVER, backend.url, "publish", "200")
    assert [await line_of(first), await line_of(first)] == ["STARTED", "PUBLISHED"]

    # When everything is killed at once
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()

    # Then the same script, started again, finishes what was accepted; the results are complete
    second = start_script(DRIVER, backend.url, "finish", "200")
    out, err = await asyncio.to_thread(second.communicate, None, 300)
    assert "CHECKED" in out, err


async def test_a_shard_that_was_replaced_behind_its_back_is_refused_by_the_store(
    new_flock: NewFlock, backend: Backend
) -> None:
    # Given a durable board
    namespace = f"fence-{uuid.uuid4().hex}"
    persistence = backend.persistence()
    flock = new_flock(persistence=persistence, namespace=namespace)
    declare(flock)
    await publish_orders(flock, range(5))
    await flock.run_until_idle(timeout=60)
    pid = await shard_pid(flock, 0)

    # When its shard is stopped and somebody else takes its slots meanwhile
    os.kill(pid, signal.SIGSTOP)
    try:
        other: Any = persistence.store(namespace, 0, range(256))
        await other.acquire()
        await other.close()
    finally:
        os.kill(pid, signal.SIGCONT)

    # Then it can't write any more, and says so instead of accepting
    with pytest.raises(StaleEpochError, match="started elsewhere"):
        await publish_orders(flock, range(5, 6))


async def test_a_shard_that_a_late_process_of_its_own_board_has_fenced_starts_again(
    new_flock: NewFlock, backend: Backend, tmp_path: Path
) -> None:
    # Given a durable board
    name, persistence, history = f"late-{uuid.uuid4().hex}", backend.persistence(), tmp_path / "acks.jsonl"
    flock = new_flock(persistence=persistence, namespace=name, history=str(history))
    declare(flock)
    await publish_orders(flock, range(5))
    board = await flock._ready_board()
    plan = await board.router.describe()
    pid = await shard_pid(flock, 0)

    # When a predecessor of its shard, which everybody took for dead, takes the slots
    other: Any = persistence.store(name, 0, range(256))
    await other.acquire(f"{plan.run_id} elsewhere:1")
    await other.close()

    # Then publishers notice nothing, and another process is the shard
    await publish_orders(flock, range(50))
    assert await shard_pid(flock, 0) != pid
    await finish(flock, persistence, range(50), history)
