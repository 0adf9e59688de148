"""The ceiling: what plain Ray async actors give on the architecture's data path with no features at all.

Shard, worker, batched hops (architecture section 5): the driver publishes batches to a shard, the shard
sends whatever queued for an agent to its worker in one call, and the results come back as that call's
return value and queue for the next agent. With `push` they come as a call of their own, a message more per
hop: so the architecture has it, as nobody waits there for work that was handed out. No ids, no matching, no
journal, no validation, no failures: anything a blackboard adds is on top of this.

What the driver's batch size is decides most of the rate, so ours is compared at the same sizes.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections import deque
from typing import Any

import msgspec
import ray

from bench.machine import Percentiles, median, percentiles
from bench.processes import CpuMeter
from bench.workload import (
    BATCHES,
    HOPS,
    ITEMS,
    LATENCY_SAMPLES,
    OUTSTANDING,
    PAYLOAD_BYTES,
    QUICK_ITEMS,
    QUICK_LATENCY_SAMPLES,
    REPS,
)

MAX_BATCH = 300
"""Keeps an argument under Ray's 100 KB limit for inline values: a larger one goes through the object store,
which cost the raylet 12-14 us of CPU per item and a fifth of the rate at 100 items per call."""
IN_FLIGHT = 2
"""Calls open from a shard for each agent."""
NUM_WORKERS = 1
"""One process for the three agents: two or three were no faster on 2 cores. Tried in turn there and not
faster either: payloads as dicts, or lists of bytes that Ray pickles instead of one msgpack blob."""


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(list[bytes]).decode


def init_ray() -> None:
    """Start a cluster of this process's own; needs RAY_AUTH_* in the environment before `import ray`."""
    ray.init(
        address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )


def step(payload: bytes) -> bytes:
    """Do the trivial work of one agent: a new payload of the same size."""
    return payload[1:] + payload[:1]


def relax_collector() -> None:
    """Collect garbage seldom, as our shards and workers do."""
    gc.set_threshold(200_000, 50, 1000)


class ToyWorker:
    """Runs a batch of one agent and returns the outputs."""

    def __init__(self) -> None:
        relax_collector()

    async def run(self, batch: bytes) -> bytes:
        return encode([step(payload) for payload in decode(batch)])


class ToyShard:
    """Holds one queue per agent and forwards what has queued, a batch per call."""

    def __init__(self) -> None:
        relax_collector()
        self._queues: list[deque[bytes]] = [deque() for _ in range(HOPS)]
        self._wake = [asyncio.Event() for _ in range(HOPS)]
        self._done = 0
        self._progress = asyncio.Event()
        self._index = 0
        self._pumps: list[asyncio.Task[None]] = []

    async def attach(self, workers: list[Any], index: int) -> None:
        self._index = index
        for hop in range(HOPS):
            for _ in range(IN_FLIGHT):
                self._pumps.append(asyncio.create_task(self._pump(hop, workers[hop % len(workers)])))

    async def publish(self, batch: bytes) -> int:
        items = decode(batch)
        self._queues[0].extend(items)
        self._wake[0].set()
        return len(items)

    async def wait_done(self, total: int) -> None:
        while self._done < total:
            self._progress.clear()
            await self._progress.wait()

    async def _pump(self, hop: int, worker: Any) -> None:
        queue = self._queues[hop]
        while True:
            batch = await self._take(hop)
            await self._do(hop, worker, encode(batch))
            if queue:
                self._wake[hop].set()

    async def _do(self, hop: int, worker: Any, batch: bytes) -> None:
        self._take_results(hop, decode(await worker.run.remote(batch)))

    def _take_results(self, hop: int, results: list[bytes]) -> None:
        if hop + 1 < HOPS:
            self._queues[hop + 1].extend(results)
            self._wake[hop + 1].set()
        else:
            self._done += len(results)
            self._progress.set()

    async def _take(self, hop: int) -> list[bytes]:
        queue, wake = self._queues[hop], self._wake[hop]
        while not queue:
            wake.clear()
            await wake.wait()
        return [queue.popleft() for _ in range(min(len(queue), MAX_BATCH))]


class PushingWorker:
    """Runs a batch of one agent and pushes the outputs to the shard that sent it, by a call of its own."""

    def __init__(self) -> None:
        relax_collector()
        self._shards: list[Any] = []

    async def attach(self, shards: list[Any]) -> None:
        self._shards = shards

    async def run(self, shard: int, hop: int, batch: bytes) -> None:
        self._shards[shard].completed.remote(hop, encode([step(payload) for payload in decode(batch)]))


class PushedShard(ToyShard):
    """Sends batches off without waiting for them; results come as calls."""

    def __init__(self) -> None:
        super().__init__()
        self._room = [asyncio.Semaphore(IN_FLIGHT) for _ in range(HOPS)]

    async def completed(self, hop: int, batch: bytes) -> None:
        self._room[hop].release()
        self._take_results(hop, decode(batch))

    async def _do(self, hop: int, worker: Any, batch: bytes) -> None:
        await self._room[hop].acquire()
        worker.run.remote(self._index, hop, batch)


class ToyCluster:
    """The driver's side: shards, their workers, and how many items each shard was given."""

    def __init__(self, shards: int, *, push: bool = False) -> None:
        remote_shard: Any = ray.remote(num_cpus=0)(PushedShard if push else ToyShard)
        remote_worker: Any = ray.remote(num_cpus=0)(PushingWorker if push else ToyWorker)
        self._workers = [remote_worker.remote() for _ in range(NUM_WORKERS)]
        self._shards = [remote_shard.remote() for _ in range(shards)]
        self._given = [0] * shards
        if push:
            ray.get([worker.attach.remote(self._shards) for worker in self._workers])
        ray.get([shard.attach.remote(self._workers, index) for index, shard in enumerate(self._shards)])

    def publish(self, shard: int, batch: list[bytes]) -> Any:
        self._given[shard] += len(batch)
        return self._shards[shard].publish.remote(encode(batch))

    def wait_done(self) -> None:
        ray.get(
            [shard.wait_done.remote(given) for shard, given in zip(self._shards, self._given, strict=True)],
            timeout=120,
        )

    def drive(self, items: list[bytes], batch: int) -> float:
        """Send all items through the three agents; return the seconds it took."""
        started = time.perf_counter()
        open_calls: deque[Any] = deque()
        for number, start in enumerate(range(0, len(items), batch)):
            open_calls.append(self.publish(number % len(self._shards), items[start : start + batch]))
            if len(open_calls) > OUTSTANDING * len(self._shards):
                ray.get(open_calls.popleft())
        ray.get(list(open_calls))
        self.wait_done()
        return time.perf_counter() - started

    def measure_rate(self, items: list[bytes], batch: int, reps: int) -> dict[str, Any]:
        meter = CpuMeter()
        rates = [len(items) / self.drive(items, batch) for _ in range(reps)]
        return {
            "items_per_s": median(rates),
            "items_per_s_best": max(rates),
            "items_per_s_all": rates,
            "cpu_us_per_item": meter.microseconds_per(len(items) * reps),
        }

    def latency_ms(self, samples: int) -> Percentiles:
        """Time single items on an idle shard, from the publish call to the answer of wait_done."""
        times = []
        for item in payloads(samples):
            started = time.perf_counter()
            ray.get(self.publish(0, [item]))
            self.wait_done()
            times.append((time.perf_counter() - started) * 1000)
        return percentiles(times)


def payloads(count: int) -> list[bytes]:
    """Return distinct payloads of `PAYLOAD_BYTES`."""
    return [b"%08d" % n + b"x" * (PAYLOAD_BYTES - 8) for n in range(count)]


def run(*, quick: bool, shards: int = 1, push: bool = False) -> dict[str, Any]:
    """Measure the toy on a cluster of its own; `push`: with results that come as calls."""
    init_ray()
    try:
        cluster = ToyCluster(shards, push=push)
        items = payloads(QUICK_ITEMS if quick else ITEMS)
        cluster.drive(items[:1_000], 100)
        rates = {str(batch): cluster.measure_rate(items, batch, REPS) for batch in BATCHES}
        latency = cluster.latency_ms(QUICK_LATENCY_SAMPLES if quick else LATENCY_SAMPLES)
    finally:
        ray.shutdown()
    return {
        "shards": shards,
        "workers": NUM_WORKERS,
        "items": len(items),
        "payload_bytes": PAYLOAD_BYTES,
        "batches": rates,
        "latency_ms": latency,
    }
