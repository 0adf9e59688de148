"""Models and small pieces that the tests of the builder share."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from flock_ray.agent import AgentBuilder
from flock_ray.core.registry import TypeRegistry


class Order(BaseModel):
    id: int = 0


class Payment(BaseModel):
    id: int = 0


class Invoice(BaseModel):
    id: int = 0


class Context:
    """Stands for the context of a run."""


class Recorder:
    """Counts the changes of a builder."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def builder(name: str = "biller", **kwargs: Any) -> AgentBuilder:
    return AgentBuilder(name, registry=TypeRegistry(), **kwargs)


def ids(agent: AgentBuilder) -> list[str]:
    return [subscription.id for subscription in agent.definition.subscriptions]


def by_id(model: Any) -> int:
    return int(model.id)
