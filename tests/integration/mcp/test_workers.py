"""Servers of the workers of a real board."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pydantic import BaseModel, PrivateAttr

from flock_ray import Context, EngineComponent, EvalInputs, EvalResult, Flock, flock_type
from flock_ray.engines.services import Services
from flock_ray.streaming import EventView
from tests.integration.mcp.conftest import children, gone, is_alive, program

pytestmark = pytest.mark.timeout(180)


@flock_type
class Sum(BaseModel):
    a: int
    b: int


@flock_type
class Total(BaseModel):
    total: int
    server: int
    worker: int


class Caller(EngineComponent):
    """Calls the tools itself, in place of a model."""

    _services: Services = PrivateAttr(default_factory=Services)

    def bind(self, services: Services) -> None:
        self._services = services

    async def evaluate(self, agent: Any, ctx: Context, inputs: EvalInputs, output_group: Any) -> EvalResult:
        asked = inputs.first_as(Sum)
        assert asked is not None and self._services.tool_servers is not None
        tools = {tool.name: tool for tool in await self._services.tool_servers.tools(agent)}
        total = int(await tools["calc__add"].call({"a": asked.a, "b": asked.b}))
        server = int(await tools["calc__pid"].call({}))
        return EvalResult.from_object(Total(total=total, server=server, worker=os.getpid()))


async def test_runs_of_a_worker_share_a_server_that_ends_with_it(new_flock: Callable[..., Flock]) -> None:
    flock = new_flock()
    flock.add_mcp("calc", program("stubborn"))
    flock.add_mcp("down", program().model_copy(update={"command": "no-such-command"}))
    flock.agent("caller").consumes(Sum).publishes(Total).with_mcps(["calc", "down"]).with_engines(Caller())

    await flock.publish_many([Sum(a=i, b=1) for i in range(20)])
    await flock.run_until_idle(timeout=60)

    totals = await flock.store.get_by_type(Total)
    assert set(range(1, 21)) == {total.total for total in totals}
    [(server, worker)] = {(total.server, total.worker) for total in totals}
    family = [server, *children(server)]
    assert is_alive(server)
    unreachable = [event async for event in _until_idle(flock) if event.kind == "mcp.unreachable"]
    assert "the command 'no-such-command' is not found" in unreachable[0].detail

    os.kill(worker, signal.SIGKILL)
    assert [True] * 3 == [await gone(member) for member in family]

    await flock.publish(Sum(a=1, b=1))
    await flock.run_until_idle(timeout=60)
    again = {total.server for total in await flock.store.get_by_type(Total)} - {server}
    [other] = again
    await flock.shutdown()
    assert await gone(other)


async def _until_idle(flock: Flock) -> AsyncIterator[EventView]:
    seen = 0
    async for event in flock.events():
        yield event
        seen += event.kind == "activation.completed"
        if seen == 20 and event.kind == "mcp.unreachable":
            return
