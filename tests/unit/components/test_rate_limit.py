from __future__ import annotations

import asyncio
import pickle
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from flock_ray.components import RateLimitComponent
from flock_ray.errors import CapacityError
from flock_ray.testing import VirtualFlock, run_virtual
from tests.unit.components.board import AGENT, Answer, Ask, Replies, context, detail, events


async def begin(limit: RateLimitComponent) -> float:
    """Begin a run; returns when it began."""
    await limit.on_pre_consume(AGENT, context(), [])
    return asyncio.get_running_loop().time()


def test_runs_over_the_limit_wait_for_their_turn_in_order() -> None:
    async def scenario() -> list[float]:
        limit = RateLimitComponent(runs_per_replica=2, per=timedelta(seconds=10))
        return [*await asyncio.gather(*(begin(limit) for _ in range(5)))]

    assert run_virtual(scenario()) == pytest.approx([0, 0, 10, 10, 20])


@given(
    runs=st.integers(1, 5),
    pauses=st.lists(st.floats(0, 5, allow_nan=False), min_size=1, max_size=30),
)
def test_no_window_has_more_runs_than_the_limit(runs: int, pauses: list[float]) -> None:
    per_s = 7.0

    async def scenario() -> list[float]:
        limit = RateLimitComponent(
            runs_per_replica=runs, per=timedelta(seconds=per_s), max_wait=timedelta(hours=9)
        )
        running: list[asyncio.Task[float]] = []
        for pause in pauses:
            await asyncio.sleep(pause)
            running.append(asyncio.create_task(begin(limit)))
        return sorted(await asyncio.gather(*running))

    began = run_virtual(scenario())
    for first, last in zip(began, began[runs:], strict=False):
        assert last - first >= per_s - 1e-3


def test_a_run_that_would_wait_too_long_fails_with_a_retryable_error_and_takes_no_turn() -> None:
    async def scenario() -> None:
        limit = RateLimitComponent(
            runs_per_replica=1, per=timedelta(seconds=60), max_wait=timedelta(seconds=5)
        )
        await begin(limit)
        for _ in range(3):
            with pytest.raises(CapacityError) as caught:
                await begin(limit)
            assert caught.value.retry_after_s == pytest.approx(60)
            assert caught.value.retryable
        await asyncio.sleep(57)
        assert await begin(limit) == pytest.approx(60)

    run_virtual(scenario())


def test_it_limits_an_agent_on_a_board() -> None:
    async def scenario() -> tuple[float, list[str]]:
        async with VirtualFlock() as flock:
            agent = flock.agent("a").consumes(Ask).publishes(Answer).with_engines(Replies())
            agent.with_utilities(
                RateLimitComponent(
                    runs_per_replica=1, per=timedelta(seconds=20), max_wait=timedelta(seconds=30)
                )
            )
            for number in range(3):
                await flock.publish(Ask(text=str(number)))
            await flock.run_until_idle()
            made = [answer.text for answer in await flock.store.get_by_type(Answer)]
            assert detail(await events(flock), "activation.failed").startswith("CapacityError")
            return asyncio.get_running_loop().time(), made

    took_s, made = run_virtual(scenario())
    assert (round(took_s), made) == (20, ["re: 0", "re: 1"])


def test_another_event_loop_starts_anew() -> None:
    limit = RateLimitComponent(runs_per_replica=1, per=timedelta(hours=1), max_wait=timedelta(0))

    assert run_virtual(begin(limit)) == 0
    assert run_virtual(begin(limit)) == 0


def test_it_travels_without_its_count() -> None:
    limit = RateLimitComponent(runs_per_replica=1, max_wait=timedelta(0))
    run_virtual(begin(limit))

    sent: RateLimitComponent = pickle.loads(pickle.dumps(limit))

    assert run_virtual(begin(sent)) == 0


@pytest.mark.parametrize(
    "bad", [{"runs_per_replica": 0}, {"per": timedelta(0)}, {"max_wait": timedelta(seconds=-1)}]
)
def test_bad_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RateLimitComponent(**{"runs_per_replica": 1, **bad})
