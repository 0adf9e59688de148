"""The board's classes as Ray actors: what is wired to Ray and nothing else."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import time
import uuid
import warnings
from dataclasses import dataclass, field
from typing import Any

import ray

from flock_ray.actors.clock import SystemClock
from flock_ray.actors.executor import Executor
from flock_ray.actors.gateway_process import embeddings_link, model_link, recorded
from flock_ray.actors.handles import ActorLink, RayPeers, actor_name
from flock_ray.actors.limits import ShardSettings
from flock_ray.actors.meters import RayMeter
from flock_ray.actors.payloads import RayPayloads
from flock_ray.actors.pools import RouterSettings
from flock_ray.actors.router import Router
from flock_ray.actors.shard import Shard
from flock_ray.actors.worker import Worker
from flock_ray.core.ids import owned_slots
from flock_ray.deployment import CloudpickleCodec
from flock_ray.edge import DEFAULT_INLINE_PAYLOAD_BYTES
from flock_ray.embeddings import set_default
from flock_ray.errors import PoolSaturatedError
from flock_ray.gateway.settings import GatewayPlan
from flock_ray.mcp.hub import McpHub
from flock_ray.ports import PeerGoneError, Persistence

SHARD_GC_THRESHOLDS = (200_000, 50, 1000)
"""With the defaults the rate falls by a third as the index grows (measured)."""

WORKER_GC_THRESHOLDS = (50_000, 20, 50)
"""Models of one batch die together by reference count; user code that makes cycles is still cleaned up often."""

START_TIMEOUT_S = 60.0
TOOL_SERVERS_END_S = 3.0
"""What MCP servers have to end politely with their worker; nothing of them outlives it for long."""
GONE_AFTER_S = 20.0
"""A worker that finds no router for so long ends itself: its board is gone."""

MAX_PENDING = 20_000
"""Concurrent calls of one actor: long reading calls count, work does not pile up here."""


@dataclass(frozen=True, slots=True)
class BoardPlan:
    """What every process of a board must know."""

    namespace: str
    num_shards: int
    detached: bool
    shard: ShardSettings
    router: RouterSettings
    max_payload_bytes: int
    persistence: Persistence | None = None
    """None: a memory board, which lives as long as its shards' processes."""
    models: GatewayPlan = field(default_factory=GatewayPlan)
    default_model: str | None = None
    inline_payload_bytes: int = DEFAULT_INLINE_PAYLOAD_BYTES
    """Larger payloads are held in object stores."""
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Of this start of the board: what its shards are told from those of another start by."""
    embeds_with: str | None = None
    """A model that publishers need before anything else; its gateway starts with the board."""

    @property
    def durable(self) -> bool:
        """Whether shards come back after they died."""
        return self.persistence is not None


def was_restarted() -> bool:
    """Say whether Ray has started this actor before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray warns of what its own property uses
        return bool(ray.get_runtime_context().was_current_actor_reconstructed)


class RayShard(Shard):
    """A shard in its own process."""

    def __init__(self, index: int, plan: BoardPlan) -> None:
        """Create the shard and set it to work: Ray may restart it while nobody calls."""
        owned = owned_slots(index, plan.num_shards)
        super().__init__(
            index, plan.num_shards, owned,
            store=None if plan.persistence is None else plan.persistence.store(plan.namespace, index, owned),
            clock=SystemClock(), peers=RayPeers(plan.namespace), settings=plan.shard,
            payloads=RayPayloads(plan.namespace, gives_back=True), run_id=plan.run_id,
        )  # fmt: skip
        peers = RayPeers(plan.namespace)
        self.gateways = lambda: [peers.gateway(number) for number in range(plan.models.num_gateways)]
        gc.set_threshold(*SHARD_GC_THRESHOLDS)
        gc.freeze()  # what start-up made stays: no collection looks at it again
        self.start()
        self.measure_into(RayMeter(plan.namespace))

    def outrun(self) -> None:
        """End at once, unanswered: Ray starts a new process, and callers wait for it."""
        os._exit(1)

    def broken(self) -> None:
        """Let Ray start a new process, which rebuilds the shard from its store; a memory board has nothing to gain."""
        if self._keeper is not None:
            asyncio.get_running_loop().call_later(1.0, os._exit, 1)

    async def start_up(self) -> int:
        """Wait until the shard has recovered. Returns the process id.

        Raises:
            StoreCorruptError: What is stored can't be read.
        """
        await self.ready()
        return os.getpid()


class RaySpawner:
    """Starts workers as detached actors: they outlive a router that restarts, and end with their board."""

    def __init__(self, plan: BoardPlan) -> None:
        """Start workers of one board."""
        self._plan = plan

    async def start(
        self, worker: str, *, num_cpus: float, num_gpus: float, resources: dict[str, float]
    ) -> Any:
        """Start a worker process; returns when it answers.

        Raises:
            PoolSaturatedError: The cluster has no room for it; retryable.
        """
        namespace = self._plan.namespace
        name = actor_name(namespace, "worker", worker)
        handle = WorkerActor.options(
            name=name, namespace=namespace, lifetime="detached", num_cpus=num_cpus, num_gpus=num_gpus,
            resources=resources or None, max_restarts=0, max_concurrency=MAX_PENDING,
        ).remote(worker, self._plan)  # fmt: skip
        link = ActorLink(name, namespace, handle)
        try:
            await asyncio.wait_for(link.start_up(), START_TIMEOUT_S)
        except TimeoutError as error:
            ray.kill(handle, no_restart=True)
            raise PoolSaturatedError(
                f"No room for worker {worker} within {START_TIMEOUT_S:g} s: it asks for {num_cpus:g} CPUs, "
                f"{num_gpus:g} GPUs, {resources}. Add nodes, or ask for less with .pool().",
                retry_after_s=5.0,
            ) from error
        return link

    async def stop(self, worker: str) -> None:
        """End a worker process at once."""
        name = actor_name(self._plan.namespace, "worker", worker)
        await asyncio.to_thread(ActorLink(name, self._plan.namespace).kill)


class RayRouter(Router):
    """The router in its own process. Ray restarts it; it begins to work at the first call."""

    def __init__(self, plan: BoardPlan) -> None:
        """Create the router."""
        super().__init__(
            plan.num_shards, peers=RayPeers(plan.namespace), spawner=RaySpawner(plan),
            monotonic=time.monotonic, settings=plan.router,
        )  # fmt: skip
        self._plan = plan
        self._started = False

    def _begin(self) -> None:
        if not self._started:
            self._started = True
            self.start(first=not was_restarted())

    async def describe(self) -> BoardPlan:
        """Return what a second driver must know to join the board."""
        self._begin()
        return self._plan

    async def exchange(self, blob: bytes) -> bytes:
        """Take a report and answer with permits."""
        self._begin()
        return await super().exchange(blob)

    async def attach(self, worker: str, version: int) -> None:
        """Register a worker."""
        self._begin()
        await super().attach(worker, version)

    async def attend(self, known: str) -> str:
        """Answer once the router is another than the one that is known."""
        self._begin()
        return await super().attend(known)

    async def deploy(self, packages: list[bytes], replace: bool) -> tuple[int, dict[str, bytes]]:
        """Add or change agents."""
        self._begin()
        return await super().deploy(packages, replace)

    async def pid(self) -> int:
        """Return the process id."""
        return os.getpid()


class RayWorker(Worker):
    """A worker in its own process; ends itself when its board is gone."""

    def __init__(self, worker: str, plan: BoardPlan) -> None:
        """Create the worker."""
        super().__init__(
            worker, clock=SystemClock(), monotonic=time.monotonic, peers=RayPeers(plan.namespace),
            codec=CloudpickleCodec(), executor=lambda on_done: Executor(on_done=on_done),
            max_payload_bytes=plan.max_payload_bytes, num_shards=plan.num_shards,
            payloads=RayPayloads(plan.namespace), inline_payload_bytes=plan.inline_payload_bytes,
        )  # fmt: skip
        self._tool_servers = self.services.tool_servers = McpHub()
        self._models = model_link(worker, plan.namespace, plan.models)
        self.services.model = recorded(self._models, plan.models)
        self.services.default_model = plan.default_model
        set_default(embeddings_link(worker, plan.namespace, plan.models))
        self._attached: asyncio.Task[None] | None = None
        # Who started it may die before the next call: then nobody else knows of this process.
        self._orphaned = threading.Timer(START_TIMEOUT_S, os._exit, (0,))
        self._orphaned.daemon = True
        self._orphaned.start()

    async def start_up(self) -> int:
        """Begin to work; safe to repeat. Returns the process id."""
        self._orphaned.cancel()
        if self._attached is None:
            gc.freeze()
            gc.set_threshold(*WORKER_GC_THRESHOLDS)
            self._models.begin()
            self._attached = asyncio.ensure_future(self._stay_attached())
        return os.getpid()

    async def _stay_attached(self) -> None:
        """Keep one call open to the router; when there is no router any more, the board is gone."""
        alone_since: float | None = None
        while True:
            try:
                await self._peers.router().attach(self.id, self._edge.table.version)
                break  # dismissed
            except PeerGoneError as gone:
                now = time.monotonic()
                alone_since = alone_since if alone_since is not None else now
                if gone.final or now - alone_since > GONE_AFTER_S:
                    break
                await asyncio.sleep(0.2)
        await asyncio.to_thread(self._tool_servers.close, TOOL_SERVERS_END_S)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # user threads may run for ever: nothing less ends them


ShardActor: Any = ray.remote(RayShard)
RouterActor: Any = ray.remote(RayRouter)
WorkerActor: Any = ray.remote(RayWorker)
