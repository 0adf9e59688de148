"""Agents that wait for a language model, when their workflow is cancelled or the board halted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from flock_ray.model import ModelReply, ModelRequest
from flock_ray.testing import VirtualFlock, run_virtual
from tests.unit.semantics.shop import Note, Order


class SlowModel:
    """A language model that answers nobody, and counts who has given up."""

    def __init__(self) -> None:
        self.asked = self.given_up = 0

    async def complete(
        self, request: ModelRequest, on_text: Callable[[str], None] | None = None
    ) -> ModelReply:
        self.asked += 1
        try:
            await asyncio.sleep(1e6)
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        raise AssertionError("nobody waits for so long")


@pytest.mark.parametrize("halt", [False, True])
def test_calls_to_language_models_are_cancelled_within_a_second(halt: bool) -> None:
    async def main() -> None:
        model = SlowModel()
        async with VirtualFlock(language_model=model, shards=2) as flock:
            flock.agent("asks").description("Answers.").consumes(Order).publishes(Note)
            await flock.publish_many([Order(n=n) for n in range(3)], correlation_id="w")
            await asyncio.sleep(5)
            assert (model.asked, model.given_up) == (3, 0)
            await (flock.halt() if halt else flock.cancel("w"))
            await asyncio.sleep(0.5)
            assert (model.asked, model.given_up) == (3, 3)
            await flock.resume()
            await asyncio.sleep(5)
            assert model.asked == (6 if halt else 3)

    run_virtual(main())
