from __future__ import annotations

import asyncio
import pickle
import sys
from datetime import timedelta
from typing import Any

import pytest
from opentelemetry import metrics as api
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from flock_ray.components import MetricsComponent
from flock_ray.engines.component import EvalInputs
from flock_ray.testing import VirtualFlock, run_virtual
from tests.unit.components.board import AGENT, Answer, Ask, Replies, context, run_one


def fail(_: EvalInputs) -> None:
    raise ValueError("no")


def test_runs_outputs_and_durations_are_counted() -> None:
    measures = MetricsComponent()
    run_one(measures, engine=Replies(takes_s=2.0), times=3)

    numbers = measures.snapshot()["a"]
    assert (numbers.completed, numbers.failed, numbers.outputs, numbers.errors) == (3, 0, 3, None)
    assert (round(numbers.total_s, 3), round(numbers.longest_s, 3)) == (6.0, 2.0)


def test_failures_are_counted_by_type() -> None:
    measures = MetricsComponent()
    run_one(measures, engine=Replies(reply=fail), times=2)

    numbers = measures.snapshot()["a"]
    assert (numbers.completed, numbers.failed, numbers.errors) == (0, 2, {"ValueError": 2})


def test_a_run_past_its_timeout_is_cancelled_and_not_completed() -> None:
    measures = MetricsComponent()

    async def scenario() -> None:
        async with VirtualFlock() as flock:
            agent = flock.agent("a").consumes(Ask).publishes(Answer).with_engines(Replies(takes_s=60))
            agent.with_utilities(measures).timeout(timedelta(seconds=1))
            await flock.publish(Ask())
            await flock.run_until_idle()
            await asyncio.sleep(0)

    run_virtual(scenario())
    numbers = measures.snapshot()["a"]
    assert (numbers.completed, numbers.failed, numbers.cancelled) == (0, 0, 1)


def test_nothing_is_kept_of_runs_that_ended() -> None:
    measures = MetricsComponent()
    run_one(measures, times=5)

    assert not measures._running


async def test_runs_that_never_end_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flock_ray.components.metrics.MAX_RUNNING", 3)
    measures = MetricsComponent()
    for _ in range(10):
        await measures.on_initialize(AGENT, context())

    assert len(measures._running) == 3


def test_opentelemetry_gets_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    monkeypatch.setattr(api, "get_meter", provider.get_meter)
    run_one(MetricsComponent(), times=2)
    run_one(MetricsComponent(), engine=Replies(reply=fail))

    data = reader.get_metrics_data()
    assert data is not None
    points: dict[tuple[str, Any], Any] = {
        (metric.name, tuple(sorted((point.attributes or {}).items()))): point
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }
    provider.shutdown()
    failed = (("agent", "a"), ("error.type", "ValueError"), ("outcome", "failed"))
    completed = (("agent", "a"), ("outcome", "completed"))
    assert points["flock.agent.runs", completed].value == 2
    assert points["flock.agent.runs", failed].value == 1
    assert points["flock.agent.outputs", (("agent", "a"), ("type", "Answer"))].value == 2
    assert points["flock.agent.run.duration", completed].count == 2


def test_it_counts_without_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.metrics", None)
    measures = MetricsComponent()
    run_one(measures)

    assert measures.snapshot()["a"].completed == 1


def test_it_travels_without_its_numbers() -> None:
    measures = MetricsComponent()
    run_one(measures)

    assert pickle.loads(pickle.dumps(measures)).snapshot() == {}
