"""What one artifact weighs: bytes per hop, and memory on a shard; the numbers of docs/scaling.md.

`python -m bench.wire_sizes` drives the pure core in one process, without Ray: 300-byte payloads, one agent that
makes one output of each input.
"""

from __future__ import annotations

import gc
import os
import time
import uuid
from pathlib import Path

from pydantic import BaseModel

from flock_ray import Flock, flock_type
from flock_ray.core import wire
from flock_ray.core.matching import MatchTable
from flock_ray.core.registry import type_registry
from flock_ray.core.shard import ShardCore
from flock_ray.edge import Edge

INPUTS = 50_000
BATCH = 500
PAYLOAD_BYTES = 300
NOW_US = 1_700_000_000_000_000


@flock_type(name="sizes.In")
class In(BaseModel):
    text: str


@flock_type(name="sizes.Out")
class Out(BaseModel):
    text: str


TEXT = "x" * (PAYLOAD_BYTES - len('{"text":""}'))


def main() -> None:
    flock = Flock()
    flock.agent("copy").consumes(In).publishes(Out).runs(lambda a: Out(text=a.text))
    table = MatchTable(1, [builder.definition for builder in flock.agents], type_registry)
    edge = Edge(table, type_registry)
    core = ShardCore(range(256), max_artifacts=None)
    core.install(table.spec, NOW_US)
    grants = [wire.Grant(("shared:0123456789ab",), (wire.Allowance("copy", BATCH, BATCH),))]
    core.dispatch.grant(wire.GrantBatch(1, 1e9, grants, ()), NOW_US)
    gc.collect()
    before = _rss_bytes()
    hops = {"publish": 0, "run": 0, "complete": 0}
    for _ in range(INPUTS // BATCH):
        _one_batch(core, edge, hops)
    gc.collect()
    print(f"payload {PAYLOAD_BYTES} bytes; bytes per artifact and hop, envelope included:")
    for hop, size in hops.items():
        print(f"  {hop:<9} {size / INPUTS:6.0f}")
    print(f"memory per artifact on a shard: {(_rss_bytes() - before) / (2 * INPUTS):.0f} bytes")
    _permits(64, 1000, 50)


def _permits(shards: int, workers: int, agents: int) -> None:
    """Say what the permits of a large cluster cost one of its shards: all, with a new worker, renewed."""
    names = [f"shared:{n:012x}" for n in range(workers + 1)]
    allowances = tuple(wire.Allowance(f"agent-number-{n}", BATCH, 16) for n in range(agents + 1))
    core = ShardCore(range(256), max_artifacts=None)
    whole = wire.GrantBatch(1, 10.0, [wire.Grant(tuple(names[:-1]), allowances)])
    grown = wire.GrantBatch(2, 10.0, [wire.Grant(tuple(names), allowances)])
    renewal = wire.GrantBatch(3, 10.0, [], renews=2)
    print(f"permits, {shards} shards, {workers} workers of {agents} agents, at one shard:")
    for label, batch in (("all", whole), ("one more worker", grown), ("a renewal", renewal)):
        started = time.perf_counter()
        blob = wire.encode(batch)
        encoded = time.perf_counter()
        assert core.dispatch.grant(wire.decode_grants(blob), NOW_US)
        taken = time.perf_counter()
        print(
            f"  {label:<16} {len(blob):7,} bytes, encoded in {(encoded - started) * 1e3:.2f} ms, decoded and "
            f"applied in {(taken - encoded) * 1e3:.2f} ms"
        )


def _one_batch(core: ShardCore, edge: Edge, hops: dict[str, int]) -> None:
    workflow = str(uuid.uuid4())
    postings = [_post(edge, In(text=TEXT), uuid.uuid4().bytes, workflow) for _ in range(BATCH)]
    blob = wire.encode(wire.PublishBatch(1, postings))
    hops["publish"] += len(blob)
    for posting in wire.decode_publish(blob).postings:
        core.publish(posting, NOW_US)
    for tasks in core.dispatch.take(NOW_US, 1).values():
        blob = wire.encode(wire.RunBatch(0, tasks, 1))
        hops["run"] += len(blob)
        done = [_complete(edge, task) for task in wire.decode_run(blob).tasks]
        blob = wire.encode(wire.CompleteBatch("shared:0123456789ab", 1, done))
        hops["complete"] += len(blob)
        for completion in wire.decode_complete(blob).completions:
            assert core.complete(completion, NOW_US)
    core.records.clear()  # what a memory board's journal keeps


def _complete(edge: Edge, task: wire.Task) -> wire.Completion:
    [source] = task.inputs
    output = edge.post(
        Out(text=TEXT),
        id=uuid.uuid4().bytes,
        correlation_id=task.correlation_id,
        produced_by=task.agent,
        created_us=NOW_US,
        parents=(source.id,),
        activation_id=task.id,
        via=(task.agent,),
    )
    return wire.Completion(task.id, task.attempt, task.slot, (output,), run_us=100)


def _post(edge: Edge, model: BaseModel, artifact_id: bytes, workflow: str) -> wire.Posting:
    return edge.post(
        model, id=artifact_id, correlation_id=workflow, produced_by="external", created_us=NOW_US
    )


def _rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
