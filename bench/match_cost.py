"""What matching one artifact costs at the edge with 1,000 subscriptions of 200 types on the board. No Ray."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, create_model

from bench.workload import TEXT
from flock_ray.agent import AgentBuilder
from flock_ray.core.definition import AgentDefinition
from flock_ray.core.matching import MatchTable
from flock_ray.core.registry import TypeRegistry
from flock_ray.edge import Edge

LISTENERS = 5
"""Subscriptions of each type, in agents of their own: 200 types make 1,000."""
NUM_TYPES = (1, 200, 1_000)
TAGS = ("even", "small")


def _positive(model: Any) -> bool:
    return bool(model.n >= 0)


def _definitions(
    types: list[type[BaseModel]], registry: TypeRegistry, *, plain: bool
) -> list[AgentDefinition]:
    definitions = []
    for number, cls in enumerate(types):
        for listener in range(LISTENERS):
            builder = AgentBuilder(f"agent-{number}-{listener}", registry=registry)
            if plain:
                builder.consumes(cls)
            else:
                builder.consumes(cls, where=_positive, tags=TAGS, from_agents={"external", "somebody"})
            definitions.append(builder.definition_checked())
    return definitions


def _cpu_us(call: Callable[[], object], count: int) -> float:
    """Return microseconds of CPU per call: the quickest of nine rounds, since noise only ever adds."""
    rounds = []
    for _ in range(9):
        gc.collect()
        started = time.process_time()
        for _ in range(count):
            call()
        rounds.append((time.process_time() - started) / count * 1e6)
    return min(rounds)


def _measure(num_types: int, *, plain: bool, count: int) -> dict[str, float]:
    registry = TypeRegistry()
    types: list[type[BaseModel]] = [
        create_model(f"BenchType{number}", n=(int, ...), text=(str, ...)) for number in range(num_types)
    ]
    table = MatchTable(1, _definitions(types, registry, plain=plain), registry)
    edge = Edge(table, registry)
    model = types[num_types // 2](n=1, text=TEXT)

    def post() -> Any:
        return edge.post(
            model, id=b"0" * 16, correlation_id="w", produced_by="external", created_us=1, tags=("even",)
        )

    envelope = post().envelope
    matched = len(table.match(envelope, model).matches)
    if matched != LISTENERS:
        raise RuntimeError(f"{matched} of {LISTENERS} subscriptions matched")
    return {
        "match_us": _cpu_us(lambda: table.match(envelope, model), count),
        "post_us": _cpu_us(post, count),
    }


def run(*, quick: bool) -> dict[str, Any]:
    """Measure tables of 5, 1,000 and 5,000 subscriptions, of which 5 listen to the artifact's type."""
    count = 2_000 if quick else 10_000
    shapes = {
        shape: {str(n * LISTENERS): _measure(n, plain=shape == "plain", count=count) for n in NUM_TYPES}
        for shape in ("plain", "conditions")
    }
    few, many = str(NUM_TYPES[0] * LISTENERS), str(NUM_TYPES[-1] * LISTENERS)
    return {
        "listeners": LISTENERS,
        "subscriptions": shapes,
        "worst_match_us": max(sizes[str(200 * LISTENERS)]["match_us"] for sizes in shapes.values()),
        "growth": max(sizes[many]["match_us"] / sizes[few]["match_us"] for sizes in shapes.values()),
    }
