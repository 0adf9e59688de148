"""Agents that come or change after the board has started."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from flock_ray.testing import VirtualFlock, run_virtual
from tests.unit.semantics.shop import Note, Order, Parcel, Payment, Seen


def test_an_agent_declared_later_is_deployed_at_the_next_use_and_gets_no_backlog() -> None:
    async def main() -> list[tuple[str, int]]:
        seen = Seen()
        async with VirtualFlock() as flock:
            flock.agent("early").consumes(Order).runs(seen.by("early"))
            await flock.publish(Order(n=1))
            await flock.run_until_idle()
            flock.agent("late").consumes(Order).runs(seen.by("late"))
            await flock.publish(Order(n=2))
            await flock.run_until_idle()
        return sorted(seen)

    assert run_virtual(main()) == [("early", 1), ("early", 2), ("late", 2)]


def test_publishers_that_come_while_the_agents_are_deployed_are_matched_with_them() -> None:
    async def main() -> list[int]:
        seen = Seen()
        async with VirtualFlock(shards=2) as flock:
            await flock.publish(Note(text="the board is open"))
            flock.agent("a").consumes(Order).runs(lambda o: seen.append(o.n))
            await asyncio.gather(*(flock.publish(Order(n=n)) for n in range(10)))
            await flock.run_until_idle()
        return sorted(seen)

    assert run_virtual(main()) == list(range(10))


def test_outputs_of_a_run_that_began_before_a_deploy_reach_the_new_agent() -> None:
    async def main() -> list[int]:
        seen = Seen()

        async def slow(order: Order) -> Parcel:
            await asyncio.sleep(100)
            return Parcel(n=order.n)

        async with VirtualFlock() as flock:
            flock.agent("slow").consumes(Order).publishes(Parcel).runs(slow)
            await flock.publish(Order(n=1))
            await asyncio.sleep(10)
            flock.agent("late").consumes(Parcel).runs(lambda p: seen.append(p.n))
            await flock.run_until_idle()
        return list(seen)

    assert run_virtual(main()) == [1]


def test_a_redeploy_keeps_what_waits_in_gates_and_for_a_time() -> None:
    async def main() -> list[object]:
        seen = Seen()
        async with VirtualFlock() as flock:
            flock.agent("pair").consumes(Order, Payment).runs(lambda o, p: seen.append((o.n, p.n)))
            agent = flock.agent("note").consumes(Note).runs(lambda n: seen.append(n.text))
            await flock.publish(Order(n=1), correlation_id="w")
            await flock.publish(Note(text="later"), delay=timedelta(hours=1))
            agent.description("changed")
            flock.agent("other").consumes(Parcel).runs(lambda p: None)
            await flock.publish(Payment(n=2), correlation_id="w")
            await flock.run_until_idle(include_timers=True)
        return list(seen)

    assert run_virtual(main()) == [(1, 2), "later"]


def test_an_agent_declared_while_others_are_deployed_is_deployed_too() -> None:
    async def main() -> list[tuple[str, int]]:
        seen = Seen()
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Order).runs(seen.by("a"))
            first = asyncio.ensure_future(flock.publish(Order(n=1)))
            await asyncio.sleep(0)
            flock.agent("b").consumes(Order).runs(seen.by("b"))
            await first
            await flock.publish(Order(n=2))
            await flock.run_until_idle()
        return sorted(pair for pair in seen if pair[1] == 2)

    assert run_virtual(main()) == [("a", 2), ("b", 2)]
