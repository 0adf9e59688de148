"""A run sees at least everything that its inputs came from, wherever on the board that is."""

from __future__ import annotations

import random
import uuid
from itertools import pairwise
from typing import Any

import pytest
from pydantic import BaseModel

from flock_ray import Context, EngineComponent, EvalInputs, EvalResult, flock_type
from flock_ray.context_provider import CorrelatedContextProvider, DefaultContextProvider
from flock_ray.testing import MemoryPersistence, VirtualFlock, run_virtual


def chain_of_types(length: int) -> list[type[BaseModel]]:
    types: list[type[BaseModel]] = []
    for n in range(length):
        cls = type(f"Step{n}", (BaseModel,), {"__annotations__": {"n": int}, "__module__": __name__})
        types.append(flock_type(name=f"causal.Step{n}")(cls))
    return types


class Looking(EngineComponent):
    """Makes the next step, and keeps what it got and saw."""

    makes: Any
    seen: Any

    async def evaluate(self, agent: Any, ctx: Context, inputs: EvalInputs, output_group: Any) -> EvalResult:
        self.seen.append(([a.id for a in inputs.artifacts], {a.id for a in ctx.artifacts}))
        return EvalResult.from_object(self.makes(n=inputs.artifacts[0].payload["n"]), agent=agent)


async def missing_ancestors(seed: int, options: dict[str, Any]) -> tuple[int, set[uuid.UUID]]:
    """Run chains with gates over several shards; return the number of runs, and ancestors that no run saw."""
    rng = random.Random(seed)
    steps = chain_of_types(5)
    seen: list[tuple[list[uuid.UUID], set[uuid.UUID]]] = []
    async with VirtualFlock(shards=4, **options) as flock:
        for n, (consumed, made) in enumerate(pairwise(steps)):
            provider = rng.choice([CorrelatedContextProvider(), DefaultContextProvider()])
            # Every other step waits for a join of what is on several shards.
            join: dict[str, Any] = {"join": {"by": lambda step: step.n, "within": 100}} if n % 2 else {}
            types = (consumed, steps[0]) if n % 2 else (consumed,)
            (
                flock.agent(f"a{n}").consumes(*types, **join).publishes(made)
                .with_context(provider).with_engines(Looking(makes=made, seen=seen))
            )  # fmt: skip
        for n in range(10):
            key = rng.choice([None, f"key-{rng.randrange(5)}"])
            await flock.publish(steps[0](n=n), correlation_id="w", partition_key=key)
        await flock.run_until_idle()
        parents = {a.id: set(a.parents) for a in await flock.store.list()}
    missing: set[uuid.UUID] = set()
    for inputs, context in seen:
        past, open_ids = set(inputs), list(inputs)
        while open_ids:
            new = parents[open_ids.pop()] - past
            past |= new
            open_ids += new
        missing |= past - set(inputs) - context
    return len(seen), missing


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("durable", [False, True], ids=["memory", "durable"])
def test_a_context_has_the_causal_past_of_the_inputs(seed: int, durable: bool) -> None:
    options = {"persistence": MemoryPersistence()} if durable else {}
    runs, missing = run_virtual(missing_ancestors(seed, options))
    assert runs >= 40
    assert missing == set()
