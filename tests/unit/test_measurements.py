"""Numbers for dashboards: what they count, and what a meter is told."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from flock_ray import Budget, FixedDelay, ModelSettings, RetryBudget, flock_type
from flock_ray.actors.measuring import Told
from flock_ray.core.measures import HELP, Measurement
from flock_ray.engines.llm import LiteLLMEngine
from flock_ray.testing import ScriptedModel, VirtualFlock, run_virtual

SECOND = timedelta(seconds=1)


@flock_type(name="measured.Task")
class Task(BaseModel):
    n: int = 0


@flock_type(name="measured.Done")
class Done(BaseModel):
    n: int = 0


def by_name(found: list[Measurement]) -> dict[str, dict[str, float]]:
    """Values by name and by the values of their labels."""
    out: dict[str, dict[str, float]] = {}
    for one in found:
        out.setdefault(one.name, {})["/".join(value for _, value in one.labels)] = one.value
    return out


def test_retries_letters_breakers_and_queues_are_counted() -> None:
    async def main() -> dict[str, dict[str, float]]:
        broken = [True]

        def work(task: Task) -> Done:
            if broken[0]:
                raise ConnectionError("nobody there")
            return Done(n=task.n)

        async with VirtualFlock(shards=3) as flock:
            flock.agent("work").consumes(Task).publishes(Done).runs(work).retry(
                FixedDelay(SECOND), max_attempts=2, dead_letter="failed",
                budget=RetryBudget(ratio=0.01, min_retries=3),
            ).circuit_breaker(8, recovery_timeout=60 * SECOND, half_open_attempts=1)  # fmt: skip
            for n in range(5):
                await flock.publish(Task(n=n))
            await asyncio.sleep(30)
            await flock.publish(Task(n=9))
            await asyncio.sleep(1)
            failing = by_name(await flock.measurements())
            assert failing["flock_runs"] == {"work/failed": 5}
            assert failing["flock_retries"] == {"work": 3}
            assert failing["flock_retries_refused"] == {"work": 2}
            assert failing["flock_dead_letters"] == {"work/created": 5}
            assert failing["flock_dead_letters_open"] == {"": 5}
            assert failing["flock_breaker_changes"] == {"work/open": 1}
            assert failing["flock_breaker_state"] == {"work": 2}
            assert failing["flock_limited"] == {"work": 1}
            assert failing["flock_limits_reached"] == {"work": 1}
            broken[0] = False
            await asyncio.sleep(60)
            await flock.dead_letters.redrive_all()
            await flock.run_until_idle(include_timers=True)
            return by_name(await flock.measurements())

    mended = run_virtual(main())
    assert mended["flock_runs"] == {"work/completed": 6, "work/failed": 5}
    assert mended["flock_dead_letters"] == {"work/created": 5, "work/redriven": 5}
    assert mended["flock_breaker_changes"] == {"work/open": 1, "work/half_open": 1, "work/closed": 1}
    assert mended["flock_breaker_state"] == {"work": 0}
    assert mended["flock_open"] == mended["flock_dead_letters_open"] == {"": 0}
    assert mended["flock_artifacts"] == {"": 6 + 6 + 5 + 5}
    assert mended.keys() <= HELP.keys()


def test_what_waits_for_a_worker_and_what_runs_is_measured() -> None:
    async def main() -> dict[str, dict[str, float]]:
        async def slow(task: Task) -> Done:
            await asyncio.sleep(100)
            return Done()

        async with VirtualFlock(shards=1) as flock:
            flock.agent("slow").consumes(Task).publishes(Done).runs(slow).max_concurrency(2)
            await flock.publish_many([Task(n=n) for n in range(7)])
            await asyncio.sleep(50)
            return by_name(await flock.measurements())

    found = run_virtual(main())
    assert (found["flock_running"], found["flock_ready"]) == ({"slow": 2}, {"slow": 5})
    assert 49 <= found["flock_ready_oldest_seconds"]["slow"] <= 50


def test_budgets_are_measured_without_tenants_and_workflows() -> None:
    async def main() -> dict[str, dict[str, float]]:
        async with VirtualFlock(
            "dear",
            language_model=ScriptedModel(lambda request: Done(n=1)),
            models={"dear": ModelSettings(input_usd_per_mtok=1.0, output_usd_per_mtok=1.0)},
            budgets=[Budget(usd=1, per=per) for per in ("day", "tenant", "workflow", "agent")],
        ) as flock:
            flock.agent("oracle").consumes(Task).publishes(Done).with_engines(LiteLLMEngine(max_tokens=100))
            await flock.publish(Task(), tenant="secret")
            await flock.run_until_idle()
            return by_name(await flock.measurements())

    spent = run_virtual(main())["flock_budget_spent_usd"]
    assert spent.keys() == {"agent:oracle/none", "day/day"}
    assert all(value > 0 for value in spent.values())


class Heard:
    """A meter that remembers everything."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def count(self, name: str, added: float, labels: Mapping[str, str], text: str) -> None:
        assert text == HELP[name]
        self.said.append((name, added, *labels.values()))

    def gauge(self, name: str, value: float, labels: Mapping[str, str], text: str) -> None:
        assert text == HELP[name]
        self.said.append((name, value, *labels.values()))


def test_a_meter_is_told_what_was_added_and_what_is_gone() -> None:
    heard = Heard()
    told = Told(heard, 3)
    agent = (("agent", "a"),)
    told.tell(
        [Measurement("flock_retries", "counter", 5, agent), Measurement("flock_ready", "gauge", 7, agent)]
    )
    told.tell([Measurement("flock_retries", "counter", 8, agent)])
    told.tell([Measurement("flock_retries", "counter", 8, agent)])
    assert heard.said == [
        ("flock_ready", 7, "3", "a"), ("flock_retries", 5, "3", "a"), ("flock_retries", 3, "3", "a"),
        ("flock_ready", 0.0, "3", "a"),
    ] or heard.said == [
        ("flock_retries", 5, "3", "a"), ("flock_ready", 7, "3", "a"), ("flock_retries", 3, "3", "a"),
        ("flock_ready", 0.0, "3", "a"),
    ]  # fmt: skip


def test_a_shard_measures_from_time_to_time_and_survives_a_meter_that_fails() -> None:
    class Broken(Heard):
        def gauge(self, name: str, value: float, labels: Mapping[str, str], text: str) -> None:
            super().gauge(name, value, labels, text)
            raise OSError("no agent here")

    async def main() -> list[Any]:
        heard = Broken()
        async with VirtualFlock(shards=1) as flock:
            await flock.start()
            assert flock.local is not None
            [shard] = flock.local.shards
            assert shard is not None
            shard.measure_into(heard, every_s=10)
            await asyncio.sleep(35)
            await flock.publish(Task())
        return heard.said

    assert len(run_virtual(main())) == 3
