"""Models and small pieces that the tests of the runner share."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydantic import BaseModel

from flock_ray.core.system_types import WorkflowError
from flock_ray.core.wire import Completion

if TYPE_CHECKING:
    from tests.unit.engines.conftest import Host

TASK_ID = b"t" * 16
NOW = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)


class Order(BaseModel):
    n: int = 0


class Item(BaseModel):
    n: int = 0


class Receipt(BaseModel):
    n: int = 0


class Refund(BaseModel):
    n: int = 0


def receipt(order: Order) -> Receipt:
    return Receipt(n=order.n)


def error_of(host: Host, completion: Completion) -> WorkflowError:
    assert completion.error is not None
    (posting,) = completion.outputs
    model = host.decode(posting)
    assert isinstance(model, WorkflowError)
    return model
