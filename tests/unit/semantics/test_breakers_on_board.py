"""Circuit breakers of agents, on a board in virtual time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from flock_ray import flock_type
from flock_ray.adapters.sqlite import SQLitePersistence
from flock_ray.errors import ConfigurationError, UnknownAgentError
from flock_ray.testing import MemoryPersistence, VirtualFlock, run_virtual

S = timedelta(seconds=1)


@flock_type(name="breakers.Call")
class Call(BaseModel):
    n: int = 0


@flock_type(name="breakers.Reply")
class Reply(BaseModel):
    n: int = 0


class Service:
    """An engine that fails while it is down."""

    def __init__(self, takes_s: float = 0.1) -> None:
        self.down = True
        self.takes_s = takes_s
        self.starts: list[tuple[float, int]] = []
        self.error: type[Exception] = ConnectionError

    async def __call__(self, call: Call) -> Reply:
        self.starts.append((round(asyncio.get_running_loop().time(), 2), call.n))
        await asyncio.sleep(self.takes_s)
        if self.down:
            raise self.error(f"call {call.n}: the service is down")
        return Reply(n=call.n)

    def times(self) -> list[float]:
        return [at for at, _ in self.starts]


def declare(flock: VirtualFlock, service: Service, **options: Any) -> Any:
    given = {"failure_threshold": 3, "recovery_timeout": 10 * S, "half_open_attempts": 2, **options}
    builder = flock.agent("caller").consumes(Call).publishes(Reply).runs(service)
    return builder.circuit_breaker(**given)


async def events(flock: VirtualFlock, *kinds: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []

    async def collect() -> None:
        async for event in flock.events(*kinds):
            found.append((event.kind.removeprefix("breaker."), event.detail))

    reader = asyncio.ensure_future(collect())
    await asyncio.sleep(0.001)
    reader.cancel()
    return found


@pytest.mark.parametrize("shards", [1, 3])
def test_it_opens_lets_exactly_so_many_try_and_closes(shards: int) -> None:
    async def main() -> tuple[Service, list[tuple[str, str]]]:
        service = Service()
        async with VirtualFlock(shards=shards, max_workers=4) as flock:
            declare(flock, service).concurrency(1)
            for n in range(20):
                await flock.publish(Call(n=n))
            await asyncio.sleep(5)
            assert 3 == len(service.starts)
            view = await flock.breakers.get("caller")
            assert ("open", 17) == (view.state, view.waiting)
            await asyncio.sleep(6)  # half-open: the first probe fails
            assert 4 == len(service.starts)
            service.down = False
            await flock.run_until_idle(timeout=100)
            assert "closed" == (await flock.breakers.get("caller")).state
            return service, await events(flock, "breaker")

    service, told = run_virtual(main())
    assert [0, 0.1, 0.2, 10.3, 20.4, 20.5] == [round(at, 1) for at in service.times()[:6]]
    assert list(range(20)) == [n for _, n in service.starts]
    assert ["opened", "half_open", "opened", "half_open", "closed"] == [kind for kind, _ in told]
    assert [
        "after 3 failures in a row", "2 may try", "an attempt failed", "2 may try", "all attempts succeeded",
    ] == [detail for _, detail in told]  # fmt: skip


@pytest.mark.parametrize("shards", [1, 3])
def test_half_open_no_more_than_so_many_run_however_many_workers_are_free(shards: int) -> None:
    async def main() -> tuple[int, int]:
        service = Service(takes_s=5)
        async with VirtualFlock(shards=shards, max_workers=4) as flock:
            declare(flock, service).max_concurrency(100)
            await flock.breakers.open("caller")
            for n in range(30):
                await flock.publish(Call(n=n))
            await asyncio.sleep(1)
            assert [] == service.starts
            await flock.breakers.close("caller")
            await asyncio.sleep(6)  # all 30 started at once, and failed
            first = len(service.starts)
            for n in range(30):
                await flock.publish(Call(n=n))
            await asyncio.sleep(13)
            return first, len(service.starts) - first

    assert (30, 2) == run_virtual(main())


def test_a_success_in_between_begins_the_count_anew() -> None:
    async def main() -> str:
        service = Service()
        async with VirtualFlock() as flock:
            declare(flock, service)
            for n in range(10):
                service.down = n % 3 != 2
                await flock.publish(Call(n=n))
                await flock.run_until_idle()
            return (await flock.breakers.get("caller")).state

    assert "closed" == run_virtual(main())


def test_a_rate_of_failures_opens_it() -> None:
    async def main() -> list[str]:
        service, states = Service(), list[str]()
        async with VirtualFlock() as flock:
            declare(flock, service, failure_threshold=6, failure_rate=0.5, window=60 * S)
            for n in range(6):
                service.down = n % 2 == 1
                await flock.publish(Call(n=n))
                await flock.run_until_idle()
                states.append((await flock.breakers.get("caller")).state)
        return states

    assert ["closed"] * 5 + ["open"] == run_virtual(main())


def test_on_says_what_counts() -> None:
    async def main() -> list[str]:
        service, states = Service(), list[str]()
        async with VirtualFlock() as flock:
            declare(flock, service, on=[ConnectionError, lambda error: "really" in str(error)])
            for error in (KeyError, ConnectionError):
                service.error = error
                for n in range(3):
                    await flock.publish(Call(n=n))
                await flock.run_until_idle(timeout=60)
                states.append((await flock.breakers.get("caller")).state)
        return states

    assert ["closed", "open"] == run_virtual(main())


def test_a_failure_that_does_not_count_is_no_success_either() -> None:
    async def main() -> str:
        service = Service()
        async with VirtualFlock() as flock:
            declare(flock, service, on=ConnectionError)
            for error in (ConnectionError, ConnectionError, KeyError, ConnectionError):
                service.error = error
                await flock.publish(Call())
                await flock.run_until_idle()
            return (await flock.breakers.get("caller")).state

    assert "open" == run_virtual(main())


def test_every_failed_attempt_counts_also_one_that_is_made_again() -> None:
    async def main() -> tuple[int, str]:
        service = Service()
        async with VirtualFlock() as flock:
            declare(flock, service).retry(max_attempts=10)
            await flock.publish(Call())
            async for _ in flock.events("breaker.opened"):
                break
            attempts = len(service.starts)
            service.down = False
            status = await flock.wait(await flock.publish(Call(n=1)), timeout=1000)
            await flock.run_until_idle(timeout=1000)
            return attempts, status.state

    assert (3, "completed") == run_virtual(main())


def test_by_hand_it_stays_open_and_inputs_wait() -> None:
    async def main() -> None:
        service = Service()
        service.down = False
        async with VirtualFlock(shards=2) as flock:
            builder = declare(flock, service)
            opened = await flock.breakers.open(builder, by="anna: the service moves")
            assert ("open", None, 0) == (opened.state, opened.until, opened.waiting)
            job = await flock.publish(Call(n=1))
            await asyncio.sleep(3600)
            assert [] == service.starts
            assert "the circuit breaker of its agent is open" in str(await flock.why(job))
            assert "circuit breaker of caller: open" in str(await flock.why(builder))
            assert 1 == (await flock.breakers.get("caller")).waiting
            assert "closed" == (await flock.breakers.close("caller", by="anna")).state
            await flock.run_until_idle(timeout=10)
            assert [1] == [n for _, n in service.starts]
            assert [
                ("opened", "by hand: anna: the service moves"),
                ("closed", "by hand: anna"),
            ] == await events(flock, "breaker")

    run_virtual(main())


def test_what_runs_when_it_opens_goes_on() -> None:
    async def main() -> int:
        service = Service(takes_s=10)
        service.down = False
        async with VirtualFlock() as flock:
            declare(flock, service)
            await flock.publish(Call(n=1))
            await asyncio.sleep(1)
            await flock.breakers.open("caller")
            await flock.run_until_idle(timeout=60)
            return await flock.store.count(Reply)

    assert 1 == run_virtual(main())


def test_list_shows_every_breaker_with_its_times() -> None:
    async def main() -> None:
        service = Service()
        async with VirtualFlock(shards=3) as flock:
            declare(flock, service)
            flock.agent("calm").consumes(Reply).runs(lambda reply: None).circuit_breaker()
            flock.agent("plain").consumes(Reply).runs(lambda reply: None)
            for n in range(3):
                await flock.publish(Call(n=n))
            await asyncio.sleep(5)
            caller, calm = await flock.breakers.list()
            assert ("calm", "closed", None, None, 0) == (
                calm.agent,
                calm.state,
                calm.since,
                calm.until,
                calm.waiting,
            )
            assert caller.since is not None and caller.until is not None
            assert datetime(2026, 1, 1, tzinfo=UTC) < caller.since < caller.until
            assert 10 * S == caller.until - caller.since
            assert str(caller).startswith(
                "caller: open, since 2026-01-01 00:00:00 UTC, until 00:00:10, 0 wait"
            )
            for name, error in (("plain", ConfigurationError), ("nobody", UnknownAgentError)):
                for call in (flock.breakers.get, flock.breakers.open, flock.breakers.close):
                    with pytest.raises(error, match=f"'{name}'"):
                        await call(name)
            with pytest.raises(ConfigurationError, match="at most 200"):
                await flock.breakers.open("caller", by="x" * 201)

    run_virtual(main())


async def dies(flock: VirtualFlock) -> None:
    """End the process of a board: nothing is flushed or said goodbye to."""
    assert flock.local is not None and flock._opened is not None
    flock._opened.board.let_go()
    await flock.local.close()


@pytest.mark.parametrize("shards", [1, 2])
def test_open_it_survives_a_restart(shards: int) -> None:
    async def main() -> tuple[int, list[float]]:
        service, kept = Service(), MemoryPersistence()
        first = VirtualFlock(persistence=kept, shards=shards)
        declare(first, service).concurrency(1)
        for n in range(6):
            await first.publish(Call(n=n))
        await asyncio.sleep(5)
        await dies(first)
        before = len(service.starts)
        service.down = False
        second = VirtualFlock(persistence=kept)
        declare(second, service).concurrency(1)
        await second.start()
        assert "open" == (await second.breakers.get("caller")).state
        await second.run_until_idle(timeout=100)
        assert "closed" == (await second.breakers.get("caller")).state
        await second.shutdown()
        return before, service.times()[before:]

    before, later = run_virtual(main())
    assert 3 == before
    assert 3 == len(later)
    assert later[0] >= 10.3


def test_opened_by_hand_it_survives_a_restart_on_sqlite(tmp_path: Path) -> None:
    async def main() -> list[int]:
        service = Service(takes_s=0)
        service.down = False
        first = VirtualFlock(persistence=SQLitePersistence(tmp_path), shards=2)
        declare(first, service)
        await first.breakers.open("caller", by="anna")
        for n in range(4):
            await first.publish(Call(n=n))
        await dies(first)
        second = VirtualFlock(persistence=SQLitePersistence(tmp_path))
        declare(second, service)
        await second.publish(Call(n=4))
        view = await second.breakers.get("caller")
        assert ("open", 5, 0) == (view.state, view.waiting, len(service.starts))
        await second.breakers.close("caller")
        await second.run_until_idle(timeout=30)
        await second.shutdown()
        return sorted(n for _, n in service.starts)

    assert [0, 1, 2, 3, 4] == asyncio.run(main())


def test_half_open_when_the_board_died_its_probes_count_once() -> None:
    async def main() -> list[tuple[float, int]]:
        service, kept = Service(takes_s=1), MemoryPersistence()
        first = VirtualFlock(persistence=kept)
        declare(first, service)
        for n in range(3):
            await first.publish(Call(n=n))
        await asyncio.sleep(5)
        service.takes_s = 100
        for n in range(10, 16):
            await first.publish(Call(n=n))
        await asyncio.sleep(10)  # two of them try
        await dies(first)
        for worker in list(first.local.workers.values()):  # type: ignore[union-attr]  # it was opened
            worker.close()
        before = len(service.starts)
        service.takes_s = 1
        second = VirtualFlock(persistence=kept)
        declare(second, service)
        await second.start()
        await asyncio.sleep(5)
        assert "open" == (await second.breakers.get("caller")).state
        service.down = False
        await second.run_until_idle(timeout=100)
        await second.shutdown()
        return [(at, n) for at, n in service.starts[before:]]

    starts = run_virtual(main())
    assert [10, 11] == sorted(n for _, n in starts[:2])
    assert [12, 13, 14, 15] == sorted(n for _, n in starts[2:])


@pytest.mark.parametrize("others", [True, False])
def test_a_deploy_that_takes_the_breaker_away_and_brings_it_back_does_not_get_stuck(others: bool) -> None:
    async def main() -> int:
        service, kept = Service(takes_s=1), MemoryPersistence()
        first = VirtualFlock(persistence=kept)
        declare(first, service)
        for n in range(3):
            await first.publish(Call(n=n))
        await asyncio.sleep(2)
        for n in range(3, 6):
            await first.publish(Call(n=n))
        await asyncio.sleep(9.5)
        assert 5 == len(service.starts)  # two try, and one waits
        await dies(first)
        service.down = False
        second = VirtualFlock(persistence=kept)
        plain = second.agent("caller").consumes(Call).publishes(Reply).runs(service)
        if others:
            plain.concurrency(9)
        await second.run_until_idle(timeout=100)
        await dies(second)
        third = VirtualFlock(persistence=kept)
        declare(third, service)
        await third.publish(Call(n=9))
        await third.run_until_idle(timeout=100)
        count = await third.store.count(Reply)
        await third.shutdown()
        return count

    assert 3 <= run_virtual(main())
