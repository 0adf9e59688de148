"""Checked by mypy, never run: what the builder's methods return."""

from __future__ import annotations

from datetime import timedelta
from typing import assert_type

from pydantic import BaseModel

from flock_ray.agent import AgentBuilder, Pipeline, PublishBuilder, RunHandle
from flock_ray.core.registry import TypeRegistry
from flock_ray.core.retries import FixedDelay


class Order(BaseModel):
    id: int


class OwnStrategy:
    max_attempts = 2

    def delay(self, attempt: int, error: BaseException) -> timedelta | None:
        return None


def bill(order: Order) -> Order | None:
    return order


def chain(registry: TypeRegistry) -> None:
    agent = AgentBuilder("biller", registry=registry)
    assert_type(agent.consumes(Order, where=lambda order: order.id > 3), AgentBuilder)
    assert_type(agent.publishes(Order, fan_out=(1, 3)), PublishBuilder)
    assert_type(agent.publishes(Order).only_for("boss"), PublishBuilder)
    assert_type(agent.publishes(Order).only_for("boss").runs(bill).best_of(2, lambda r: 1.0), AgentBuilder)
    assert_type(agent.run(Order(id=1)), RunHandle)
    assert_type(agent.run(Order(id=1)).then(agent), Pipeline)
    agent.consumes("Order")  # type: ignore[arg-type]
    agent.consumes(Order, mode="sometimes")  # type: ignore[arg-type]
    agent.consumes(Order, delivery="one")  # type: ignore[arg-type]
    agent.timeout(30)  # type: ignore[arg-type]
    assert_type(agent.timeout(None, idle=timedelta(seconds=30)), AgentBuilder)
    assert_type(agent.retry(OwnStrategy(), on=[TimeoutError]), AgentBuilder)
    assert_type(agent.retry(FixedDelay(timedelta(seconds=1)), max_attempts=3), AgentBuilder)
    agent.retry(max_attempts="3")  # type: ignore[arg-type]
    agent.retry(3)  # type: ignore[arg-type]
    agent.publishes(Order, fan_out="many")  # type: ignore[arg-type]
