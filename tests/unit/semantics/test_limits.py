"""Rates, concurrency, debouncing and singletons of agents, on a board in virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from flock_ray import JoinSpec, flock_type
from flock_ray.errors import ConfigurationError, UnknownAgentError
from flock_ray.testing import MemoryPersistence, VirtualFlock, run_virtual

S = timedelta(seconds=1)


@flock_type(name="limits.Job")
class Job(BaseModel):
    n: int = 0
    who: str = "a"


@flock_type(name="limits.Ack")
class Ack(BaseModel):
    n: int = 0


@flock_type(name="limits.Parcel")
class Parcel(BaseModel):
    n: int = 0


class Runs:
    """An engine that takes a second of virtual time, and what is known of its runs."""

    def __init__(self, takes_s: float = 1.0) -> None:
        self.takes_s = takes_s
        self.starts: list[tuple[float, int]] = []
        self.ended: list[int] = []
        self.cancelled: list[int] = []
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.most_together = 0

    async def __call__(self, job: Job) -> Ack:
        self.starts.append((round(asyncio.get_running_loop().time(), 6), job.n))
        self.now[job.who] += 1
        self.most |= self.now
        self.most_together = max(self.most_together, self.now.total())
        try:
            await asyncio.sleep(self.takes_s)
            self.ended.append(job.n)
            return Ack(n=job.n)
        except asyncio.CancelledError:
            self.cancelled.append(job.n)
            raise
        finally:
            self.now[job.who] -= 1

    def times(self) -> list[float]:
        return [at for at, _ in self.starts]

    def order(self) -> list[int]:
        return [n for _, n in self.starts]


async def event_details(flock: VirtualFlock, *kinds: str) -> list[str]:
    found: list[str] = []

    async def collect() -> None:
        async for event in flock.events(*kinds):
            found.append(event.detail)

    reader = asyncio.ensure_future(collect())
    await asyncio.sleep(0.001)
    reader.cancel()
    return found


@pytest.mark.parametrize("shards", [1, 4])
def test_runs_start_at_the_rate_and_keep_their_order(shards: int) -> None:
    async def main() -> Runs:
        runs = Runs(0.1)
        async with VirtualFlock(shards=shards, max_workers=3) as flock:
            flock.agent("slow").consumes(Job).publishes(Ack).runs(runs).rate_limit(3, per=S)
            await flock.publish_many([Job(n=n) for n in range(10)])
            await flock.run_until_idle()
        return runs

    runs = run_virtual(main())
    assert list(range(10)) == runs.order()
    assert [0, 0, 0, 1, 1, 1, 2, 2, 2, 3] == [round(at, 2) for at in runs.times()]


@given(
    arrivals=st.lists(st.tuples(st.floats(0, 2), st.integers(1, 5)), min_size=1, max_size=8),
    limit=st.integers(1, 4),
)
@settings(max_examples=15, deadline=None)
def test_no_window_has_more_starts_than_the_rate(arrivals: list[tuple[float, int]], limit: int) -> None:
    async def main() -> Runs:
        runs = Runs(0.05)
        async with VirtualFlock(shards=2, max_workers=4) as flock:
            flock.agent("slow").consumes(Job).publishes(Ack).runs(runs).rate_limit(limit, per=S)
            for gap_s, count in arrivals:
                await asyncio.sleep(gap_s)
                for _ in range(count):
                    await flock.publish(Job())
            await flock.run_until_idle()
        return runs

    times = run_virtual(main()).times()
    assert sum(count for _, count in arrivals) == len(times)
    # What the shard lets through at one moment starts in the worker a moment later: never closer than decided.
    assert all(sum(first <= at < first + 1 - 1e-6 for at in times) <= limit for first in times)


def test_several_rates_hold_together() -> None:
    async def main() -> Runs:
        runs = Runs(0.01)
        async with VirtualFlock() as flock:
            builder = flock.agent("slow").consumes(Job).publishes(Ack).runs(runs)
            builder.rate_limit(2, per=S).rate_limit(5, per=10 * S)
            await flock.publish_many([Job(n=n) for n in range(7)])
            await flock.run_until_idle()
        return runs

    assert [0, 0, 1, 1, 2, 10, 10] == [round(at, 1) for at in run_virtual(main()).times()]


@pytest.mark.parametrize("shards", [1, 3])
def test_keys_have_rates_of_their_own_and_do_not_hold_each_other_up(shards: int) -> None:
    async def main() -> Runs:
        runs = Runs(0.01)
        async with VirtualFlock(shards=shards) as flock:
            flock.agent("slow").consumes(Job).publishes(Ack).runs(runs).rate_limit(1, S, key=lambda j: j.who)
            await flock.publish_many([Job(n=n, who="a") for n in range(4)])
            await flock.publish_many([Job(n=n, who="b") for n in range(10, 12)])
            await flock.run_until_idle()
        return runs

    starts = run_virtual(main()).starts
    assert [(0, 0), (1, 1), (2, 2), (3, 3)] == [(round(at), n) for at, n in starts if n < 10]
    assert [(0, 10), (1, 11)] == [(round(at), n) for at, n in starts if n >= 10]


@pytest.mark.parametrize("shards", [1, 4])
def test_concurrency_is_that_of_the_whole_cluster(shards: int) -> None:
    async def main() -> Runs:
        runs = Runs()
        async with VirtualFlock(shards=shards, max_workers=4) as flock:
            flock.agent("slow").consumes(Job).publishes(Ack).runs(runs).concurrency(3)
            for n in range(10):  # workflows of their own: in all slots
                await flock.publish(Job(n=n))
            await flock.run_until_idle()
        return runs

    runs = run_virtual(main())
    assert 3 == runs.most_together
    assert 10 == len(runs.ended)
    assert 4.1 > max(runs.times())  # 10 runs of a second, three at a time: nothing idles


def test_concurrency_per_key() -> None:
    async def main() -> Runs:
        runs = Runs()
        async with VirtualFlock(shards=2, max_workers=4) as flock:
            builder = flock.agent("slow").consumes(Job).publishes(Ack).runs(runs).max_concurrency(50)
            builder.concurrency(2, key=lambda job: job.who).concurrency(5)
            for n in range(20):
                await flock.publish(Job(n=n, who="abcd"[n % 4]))
            await flock.run_until_idle()
        return runs

    runs = run_virtual(main())
    assert {2} == set(runs.most.values())
    assert 5 == runs.most_together
    assert 20 == len(runs.ended)


def test_a_failure_gives_its_place_back() -> None:
    async def main() -> int:
        async def fail(job: Job) -> Ack:
            await asyncio.sleep(1)
            raise RuntimeError("no")

        async with VirtualFlock() as flock:
            flock.agent("slow").consumes(Job).publishes(Ack).runs(fail).concurrency(1)
            await flock.publish_many([Job(n=n) for n in range(3)])
            await flock.run_until_idle(timeout=100)
            return (await flock.limits.get("slow")).running

    assert 0 == run_virtual(main())


def test_a_cancel_gives_places_back_and_takes_what_waits() -> None:
    async def main() -> tuple[Runs, list[int]]:
        runs = Runs(100)
        async with VirtualFlock(shards=2) as flock:
            flock.agent("slow").consumes(Job).publishes(Ack).runs(runs).concurrency(2)
            for n in range(5):
                await flock.publish(Job(n=n), correlation_id="old")
            await flock.publish(Job(n=9), correlation_id="new")
            await asyncio.sleep(1)
            before = await flock.limits.get("slow")
            await flock.cancel("old")
            await asyncio.sleep(1)
            after = await flock.limits.get("slow")
        return runs, [before.running, before.waiting, after.running, after.waiting]

    runs, counts = run_virtual(main())
    assert [2, 4, 1, 0] == counts
    assert [0, 1, 9] == runs.order()


def test_debouncing_runs_on_the_last_input_once_nothing_newer_comes() -> None:
    async def main() -> tuple[Runs, list[str]]:
        runs = Runs(0.01)
        async with VirtualFlock(shards=2) as flock:
            builder = flock.agent("slow").consumes(Job).publishes(Ack).runs(runs)
            builder.debounce(2 * S, key=lambda job: job.who)
            for n in range(5):
                await flock.publish(Job(n=n, who="a"))
                if n == 2:
                    await flock.publish(Job(n=90, who="b"))
                await asyncio.sleep(1)
            await asyncio.sleep(5)
            await flock.publish(Job(n=5, who="a"))
            await flock.run_until_idle()
            return runs, await event_details(flock, "activation.replaced")

    runs, replaced = run_virtual(main())
    assert [(4, 90), (6, 4), (12, 5)] == [(round(at), n) for at, n in runs.starts]
    assert 4 == len(replaced)
    assert all("key 'a'" in text for text in replaced)


def test_a_queueing_singleton_runs_one_after_the_other() -> None:
    async def main() -> Runs:
        runs = Runs()
        async with VirtualFlock(shards=2, max_workers=3) as flock:
            flock.agent("slow").consumes(Job).publishes(Ack).runs(runs).singleton()
            for n in range(4):
                await flock.publish(Job(n=n))
            await flock.run_until_idle()
        return runs

    runs = run_virtual(main())
    assert [0, 1, 2, 3] == runs.order()
    assert 1 == runs.most_together


def test_a_skipping_singleton_drops_what_comes_while_one_is_open() -> None:
    async def main() -> tuple[Runs, list[str], str]:
        runs = Runs()
        async with VirtualFlock(shards=2) as flock:
            builder = flock.agent("slow").consumes(Job).publishes(Ack).runs(runs)
            builder.singleton(key=lambda job: job.who, on_conflict="skip")
            await flock.publish(Job(n=0, who="a"))
            await flock.publish(Job(n=1, who="a"), correlation_id="dropped")
            await flock.publish(Job(n=2, who="b"))
            await flock.run_until_idle()
            await flock.publish(Job(n=3, who="a"))
            await flock.run_until_idle()
            state = (await flock.workflow_status("dropped")).state
            return runs, await event_details(flock, "activation.skipped"), state

    runs, skipped, state = run_virtual(main())
    assert [0, 2, 3] == runs.order()
    assert 1 == len(skipped)
    assert "completed" == state


def test_a_replacing_singleton_cancels_the_older_run() -> None:
    async def main() -> tuple[Runs, list[str]]:
        runs = Runs()
        async with VirtualFlock(shards=2) as flock:
            builder = flock.agent("slow").consumes(Job).publishes(Ack).runs(runs)
            builder.singleton(on_conflict="replace")
            await flock.publish(Job(n=0))
            await asyncio.sleep(0.5)
            await flock.publish(Job(n=1))
            await flock.run_until_idle()
            return runs, await event_details(flock, "activation.replaced")

    runs, replaced = run_virtual(main())
    assert ([0], [1]) == (runs.cancelled, runs.ended)
    assert 1 == len(replaced)


def test_limits_hold_for_joins_too_by_the_key_of_the_first_input() -> None:
    async def main() -> Runs:
        runs = Runs()

        async def ship(job: Job, ack: Ack) -> Parcel:
            return Parcel(n=(await runs(job)).n)

        async with VirtualFlock(shards=2, max_workers=3) as flock:
            spec = JoinSpec(by=lambda x: x.n, within=60 * S)
            builder = flock.agent("slow").consumes(Job, Ack, join=spec).publishes(Parcel).runs(ship)
            builder.concurrency(1, key=lambda x: getattr(x, "who", "?"))
            for n in range(4):
                await flock.publish(Job(n=n, who="ab"[n % 2]))
                await flock.publish(Ack(n=n))
            await flock.run_until_idle()
        return runs

    runs = run_virtual(main())
    assert {"a": 1, "b": 1} == dict(runs.most)
    assert 2 == runs.most_together
    assert 4 == len(runs.ended)


def test_a_key_that_raises_refuses_the_input_and_why_says_so() -> None:
    async def main() -> tuple[str, list[str]]:
        async with VirtualFlock() as flock:
            flock.agent("slow").consumes(Job).runs(Runs()).publishes(Ack).concurrency(
                1, key=lambda job: job.nothing
            )
            job = await flock.publish(Job())
            await flock.run_until_idle()
            return str(await flock.why(job)), await event_details(flock, "match.refused")

    why, refused = run_virtual(main())
    assert "NO  limit key" in why
    assert "limit key: AttributeError" in refused[0]


def test_a_direct_run_is_under_the_limits_and_an_invocation_is_not() -> None:
    async def main() -> Runs:
        runs = Runs()
        async with VirtualFlock() as flock:
            builder = flock.agent("slow").consumes(Job, where=lambda job: job.n < 0).publishes(Ack).runs(runs)
            builder.concurrency(1, key=lambda job: job.who)
            jobs = [Job(n=n, who=who) for n, who in enumerate("aab")]
            await asyncio.gather(*(flock.arun(builder, job) for job in jobs))
            assert ({"a": 1, "b": 1}, 2) == (runs.most, runs.most_together)
            await asyncio.gather(*(flock.invoke(builder, job) for job in jobs))
        return runs

    assert 3 == run_virtual(main()).most_together


def test_why_and_limits_show_what_is_held_back() -> None:
    async def main() -> None:
        async with VirtualFlock(shards=2) as flock:
            builder = flock.agent("slow").consumes(Job).publishes(Ack).runs(Runs(100))
            builder.concurrency(1, key=lambda job: job.who)
            flock.agent("free").consumes(Ack).runs(lambda ack: None)
            for n in range(4):
                last = await flock.publish(Job(n=n, who="ab"[n % 2]))
            await asyncio.sleep(1)
            [load] = await flock.limits.list()
            assert (2, 2, 0, {"a": 1, "b": 1}) == (load.running, load.waiting, load.delayed, load.keys)
            assert "waiting (waits for the limits of its agent)" in str(await flock.why(last))
            assert "limits: 2 let through, 2 wait" in str(await flock.why(builder))
            assert "let through" not in str(await flock.why("free"))
            with pytest.raises(ConfigurationError, match="'free' has no limits"):
                await flock.limits.get("free")
            with pytest.raises(UnknownAgentError, match="'nobody'"):
                await flock.limits.get("nobody")

    run_virtual(main())


def slowly(runs: Runs, **limits: Any) -> Any:
    def declare(flock: VirtualFlock) -> None:
        builder = flock.agent("slow").consumes(Job).publishes(Ack).runs(runs)
        for method, arguments in limits.items():
            getattr(builder, method)(**arguments)

    return declare


async def dies(flock: VirtualFlock) -> None:
    """End the process of a board: nothing is flushed or said goodbye to."""
    assert flock.local is not None and flock._opened is not None
    flock._opened.board.let_go()
    await flock.local.close()


@pytest.mark.parametrize("shards", [1, 2])
def test_a_rate_goes_on_where_it_was_after_a_restart(shards: int) -> None:
    async def main() -> Runs:
        runs, kept = Runs(0.01), MemoryPersistence()
        declare = slowly(runs, rate_limit={"n": 2, "per": 10 * S})
        first = VirtualFlock(persistence=kept, shards=shards)
        declare(first)
        await first.publish_many([Job(n=n) for n in range(5)])
        await asyncio.sleep(3)
        await dies(first)
        second = VirtualFlock(persistence=kept)
        declare(second)
        await second.run_until_idle(timeout=100)
        await second.shutdown()
        return runs

    runs = run_virtual(main())
    assert [0, 0, 10, 10, 20] == [round(at) for at in runs.times()]
    assert [0, 1, 2, 3, 4] == runs.order()


def test_what_ran_when_the_board_died_runs_again_within_the_limits() -> None:
    async def main() -> Runs:
        runs, kept = Runs(5), MemoryPersistence()
        declare = slowly(runs, concurrency={"n": 2})
        first = VirtualFlock(persistence=kept, shards=2)
        declare(first)
        for n in range(5):
            await first.publish(Job(n=n))
        await asyncio.sleep(3)
        await dies(first)
        for worker in list(first.local.workers.values()):  # type: ignore[union-attr]  # it was opened
            worker.close()
        await asyncio.sleep(0.1)
        second = VirtualFlock(persistence=kept)
        declare(second)
        await second.run_until_idle(timeout=100)
        await second.shutdown()
        return runs

    runs = run_virtual(main())
    assert [0, 1, 2, 3, 4] == sorted(runs.ended)
    assert 2 == runs.most_together


def test_a_debounce_ends_at_its_time_although_the_board_was_away() -> None:
    async def main() -> Runs:
        runs, kept = Runs(0.01), MemoryPersistence()
        declare = slowly(runs, debounce={"wait": 10 * S})
        first = VirtualFlock(persistence=kept)
        declare(first)
        await first.publish(Job(n=1))
        await first.publish(Job(n=2))
        await asyncio.sleep(2)
        await dies(first)
        second = VirtualFlock(persistence=kept)
        declare(second)
        await second.start()
        await asyncio.sleep(1)
        assert [] == runs.starts
        await second.run_until_idle(timeout=100)
        await second.shutdown()
        return runs

    assert [2] == run_virtual(main()).order()


def test_a_deploy_without_the_limits_lets_everything_go() -> None:
    async def main() -> Runs:
        runs, kept = Runs(0.01), MemoryPersistence()
        first = VirtualFlock(persistence=kept, shards=2)
        slowly(runs, rate_limit={"n": 1, "per": 3600 * S})(first)
        for n in range(5):
            await first.publish(Job(n=n))
        await asyncio.sleep(3)
        await dies(first)
        second = VirtualFlock(persistence=kept)
        slowly(runs)(second)
        await second.run_until_idle(timeout=100)
        await second.shutdown()
        return runs

    assert [0, 1, 2, 3, 4] == sorted(run_virtual(main()).order())


def test_a_deploy_with_limits_holds_for_what_was_ready_without_them() -> None:
    """What had been ready when the limits came was once let through all at once."""

    async def main() -> Runs:
        # Given nine runs of an agent without limits: three were handed out, one by each shard; six are ready
        runs = Runs()
        async with VirtualFlock(shards=3) as flock:
            builder = flock.agent("work").consumes(Job).publishes(Ack).runs(runs.__call__).max_concurrency(1)
            await asyncio.gather(*(flock.publish(Job(n=n), correlation_id=f"w{n}") for n in range(9)))
            await asyncio.sleep(0.5)
            assert [0.0] == [round(at) for at in runs.times()]
            # When a deploy lets more run at once, but no more than two in a minute
            builder.max_concurrency(9).rate_limit(2, per=60 * S)
            await flock.start()
            await flock.run_until_idle(timeout=1_000)
            return runs

    runs = run_virtual(main())
    assert sorted(runs.ended) == list(range(9))
    after = runs.times()[3:]
    assert all(later - now >= 59.9 for now, later in zip(after, after[2:], strict=False))
