"""Too much: priorities, shares of tenants, and publishers that are faster than the agents."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from datetime import timedelta

import pytest

from flock_ray.core.events import EventLog
from flock_ray.errors import BackpressureError, ConfigurationError
from flock_ray.testing import MemoryPersistence, VirtualFlock, run_virtual
from tests.unit.semantics.shop import Order


class Desk:
    """An agent that takes a while, and when the orders of each tenant were done."""

    def __init__(self, run_s: float = 0.2) -> None:
        self.run_s = run_s
        self.draw = random.Random(1)
        self.latency: dict[str, list[float]] = {}
        self.order: list[str] = []
        self.published: dict[int, float] = {}

    async def work(self, order: Order) -> None:
        await asyncio.sleep(self.run_s * self.draw.uniform(0.5, 1.5))
        now = asyncio.get_running_loop().time()
        self.order.append(order.region)
        self.latency.setdefault(order.region, []).append(now - self.published.get(order.n, now))

    def p99(self, region: str) -> float:
        times = sorted(self.latency[region])
        return times[len(times) * 99 // 100]


async def ask_now_and_then(flock: VirtualFlock, desk: Desk, count: int) -> None:
    for n in range(count):
        desk.published[n] = asyncio.get_running_loop().time()
        await flock.publish(Order(n=n, region="quiet"), tags={"tenant:quiet"})
        await asyncio.sleep(0.07)


@pytest.mark.parametrize("limited", [False, True])
def test_a_backlog_of_10000_of_one_tenant_does_not_double_the_p99_of_another(limited: bool) -> None:
    async def measure(backlog: int) -> float:
        async with VirtualFlock(max_open=100_000, shards=2) as flock:
            desk = Desk()
            agent = flock.agent("desk").consumes(Order).runs(desk.work).max_concurrency(10)
            if limited:
                agent.concurrency(10)
            if backlog:
                await flock.publish_many(
                    [Order(n=-1, region="loud") for _ in range(backlog)], tags={"tenant:loud"}
                )
                await asyncio.sleep(5)
            await ask_now_and_then(flock, desk, 150)
            await asyncio.sleep(5)
            assert len(desk.latency["quiet"]) == 150
            if backlog:  # and the rest goes to the other one
                assert len(desk.latency["loud"]) > 300
            return desk.p99("quiet")

    alone = run_virtual(measure(0))
    assert run_virtual(measure(10_000)) < 2 * alone


def test_weights_come_from_the_flock_and_stay_on_the_board() -> None:
    async def share(flock: VirtualFlock, desk: Desk) -> float:
        flock.agent("desk").consumes(Order).runs(desk.work).max_concurrency(4)
        for tenant in ("big", "small"):
            await flock.publish_many([Order(n=-1, region=tenant)] * 1_000, tags={f"tenant:{tenant}"})
        await asyncio.sleep(20)
        return desk.order.count("big") / desk.order.count("small")

    async def main() -> None:
        kept = MemoryPersistence()
        async with VirtualFlock(tenant_weights={"big": 3.0}, persistence=kept) as flock:
            assert await share(flock, Desk()) == pytest.approx(3, rel=0.2)
            assert flock.local is not None and flock.local.shards[0] is not None
            table = flock.local.shards[0].core.table
        assert [info.weights for info in table.agents] == [(("big", 3.0),)]
        async with VirtualFlock() as flock:
            assert await share(flock, Desk()) == pytest.approx(1, rel=0.15)

    run_virtual(main())


def test_weights_are_checked() -> None:
    with pytest.raises(ConfigurationError, match="give a number from"):
        VirtualFlock(tenant_weights={"acme": 0})


def test_priorities_go_first_over_tenants_and_tenants_take_turns_within_one() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            desk = Desk()
            flock.agent("desk").consumes(Order).runs(desk.work).max_concurrency(1)
            await flock.pause(agent="desk")
            for tenant, priority in (("a", 0), ("b", 0), ("urgent", 5)):
                orders = [Order(n=-1, region=tenant) for _ in range(20)]
                await flock.publish_many(orders, tags={f"tenant:{tenant}"}, priority=priority)
            await flock.resume(agent="desk")
            await flock.run_until_idle(timeout=60)
            assert desk.order[:20] == ["urgent"] * 20
            assert 8 <= desk.order[20:40].count("a") <= 12

    run_virtual(main())


def test_a_publisher_at_ten_times_the_capacity_for_a_minute_leaves_memory_flat() -> None:
    """Capacity: 5 runs per second. The publisher offers 50 per second, and is told to wait."""

    async def main() -> None:
        async with VirtualFlock(
            max_open=20, max_artifacts=1_000, publish_timeout=timedelta(seconds=0.1)
        ) as flock:
            desk = Desk(run_s=2)
            flock.agent("desk").consumes(Order).runs(desk.work).max_concurrency(10)
            await flock.start()
            assert flock.local is not None and flock.local.shards[0] is not None
            flock.local.shards[0].core.events = EventLog(50)  # a minute does not fill the one of 50,000
            taken = refused = 0
            sizes: list[int] = []
            waits: list[float] = []

            async def offer(n: int) -> None:
                nonlocal taken, refused
                try:
                    await flock.publish_many([Order(n=-1, region=f"r{n}") for _ in range(5)])
                    taken += 5
                except BackpressureError as error:
                    refused += 5
                    waits.append(error.retry_after_s or 0)

            tracemalloc.start()
            try:
                for tick in range(600):
                    await offer(tick)
                    await asyncio.sleep(0.1)
                    if tick % 100 == 99:
                        stats = (await (await flock._ready_board()).each("stats"))[0]
                        assert stats["open"] <= 25  # the limit, and the batch that reached it
                        desk.order.clear()
                        desk.latency.clear()
                        sizes.append(tracemalloc.get_traced_memory()[0])
            finally:
                tracemalloc.stop()
            assert refused >= 3 * taken and min(waits) > 0
            assert max(sizes[1:]) - sizes[1] < 500_000
            await flock.run_until_idle(timeout=60)

    run_virtual(main())
