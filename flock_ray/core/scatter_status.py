"""Answers about fan-outs and fan-ins, read from a shard's state."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from flock_ray.core.fan_in_desk import lack_of
from flock_ray.core.shard import ShardCore
from flock_ray.core.state import Slot

MAX_MISSING = 1_000
"""Ranges of missing chunks that an answer names."""


class ScatterRow(msgspec.Struct, array_like=True):
    """What a shard knows of one fan-out."""

    id: bytes
    agent: str
    workflow: str
    opened_us: int
    done_us: int
    """0: it is not over."""
    total: int
    """-1: it is still being cut."""
    made: int
    done: int
    """Chunks of which nothing is open any more."""
    failed: int
    """Chunks of which a run failed."""
    depth: int
    """Fan-outs around it."""
    waiting: bool
    """Everything has ended, and a fan-in waits for dead letters to be redriven."""
    fan_ins: list[tuple[str, int]]
    """(agent, chunks that have delivered) of the fan-ins that are not over."""


def scatter_rows(core: ShardCore, workflow: str) -> list[ScatterRow]:
    """Return the fan-outs of a workflow whose home is here, as long as the workflow is in memory."""
    rows = []
    for slot in core.slots.values():
        known = slot.workflows.get(workflow)
        for key in (known.scatters or ()) if known is not None else ():
            scatter = slot.scatters.get(key)
            if scatter is not None:
                rows.append(
                    ScatterRow(
                        scatter.id, scatter.agent, scatter.workflow, scatter.opened_us, scatter.done_us, scatter.total,
                        scatter.made, scatter.settled.count, len(scatter.reasons), len(scatter.outer), scatter.waiting,
                        [(g.spec.agent, g.delivered.count) for g in slot.fan_ins.get(key, {}).values()],
                    )
                )  # fmt: skip
    return rows


def fan_in_lines(slot: Slot, workflow: str) -> Iterator[str]:
    """Say what the fan-ins of a workflow wait for."""
    known = slot.workflows.get(workflow)
    for key in (known.scatters or ()) if known is not None else ():
        for gate in slot.fan_ins.get(key, {}).values():
            yield f"{gate.spec.id}: {lack_of(gate, slot.scatters[key])}"


def fan_ins_with(slot: Slot, artifact: bytes) -> Iterator[tuple[str, str]]:
    """Return (subscription, what it waits for) of the fan-ins that hold an artifact."""
    for gates in slot.fan_ins.values():
        for gate in gates.values():
            if any(e.id == artifact for found in gate.items.values() for e in found):
                yield gate.spec.id, lack_of(gate, slot.scatters[gate.scatter])
