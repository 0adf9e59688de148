"""Router, shards and workers in one event loop: links are function calls, workers are objects."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

from flock_ray.actors.limits import ShardSettings
from flock_ray.actors.pools import RouterSettings
from flock_ray.actors.router import Router
from flock_ray.actors.shard import Shard
from flock_ray.actors.threads import Setup
from flock_ray.actors.worker import Worker
from flock_ray.adapters.memory_payloads import MemoryPayloads
from flock_ray.board import BoardLinks
from flock_ray.core import wire
from flock_ray.core.definition import AgentDefinition
from flock_ray.core.ids import owned_slots
from flock_ray.core.registry import TypeRegistry
from flock_ray.engines.services import Services
from flock_ray.ports import Clock, PeerGoneError, ShardStore
from flock_ray.testing.timeouts import LimitedRuns

FOREVER_S = 1e8
"""Instead of heartbeats and renewals: nothing dies in silence here, and each would cost a step of virtual time."""


class LocalLink:
    """Calls an object of this process as if it were another one: asynchronously, and dead objects fail."""

    def __init__(self, find: Callable[[], Any], name: str) -> None:
        """Link to whatever `find` returns at the time of a call; None is a dead one."""
        self._find = find
        self._name = name

    def __getattr__(self, method: str) -> Callable[..., Any]:
        """Return a method as a coroutine function."""
        if method.startswith("__"):
            raise AttributeError(method)

        async def call(*args: Any) -> Any:
            target = self._find()
            if target is None:
                raise PeerGoneError(f"{self._name} is dead", final=True)
            await asyncio.sleep(0)
            return sent(await getattr(target, method)(*[sent(arg) for arg in args]))

        return call


def sent(value: Any) -> Any:
    """Return what the other end gets: containers of its own, so that neither changes what the other holds."""
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, tuple):
        return tuple(sent(part) for part in value)
    return list(value) if isinstance(value, list) else value


class LocalCodec:
    """Hands definitions over by reference: what closures hold stays shared with the test."""

    def __init__(self) -> None:
        """Start empty."""
        self._definitions: list[AgentDefinition] = []

    def dump(self, definition: AgentDefinition) -> bytes:
        """Keep an agent and return its number."""
        self._definitions.append(definition)
        return str(len(self._definitions) - 1).encode()

    def load(self, data: bytes) -> AgentDefinition:
        """Return the agent of a number."""
        return self._definitions[int(data)]


@dataclass(slots=True)
class _Lane:
    runner: Any
    limit: int
    setup: Setup
    queue: deque[tuple[int, wire.Task]]
    running: int = 0


@dataclass(frozen=True, slots=True)
class _LocalLoad:
    queued: int
    agents: dict[str, Any]
    stuck_threads: int = 0
    user_loop_blocked_s: float = 0.0


_Key = tuple[bytes, int]
"""Activation and attempt: a shard that has come back hands out again what still runs here."""


def _key_of(task: wire.Task) -> _Key:
    return task.id, task.attempt


class InlineExecutor:
    """Runs user code on the one loop there is: sync functions at once, async ones as tasks."""

    def __init__(self, on_done: Callable[[list[tuple[int, wire.Completion]]], None]) -> None:
        """Report completions to `on_done`."""
        self._on_done = on_done
        self._lanes: dict[str, _Lane] = {}
        self._tasks: dict[_Key, asyncio.Task[None]] = {}
        self._open: dict[_Key, None] = {}
        """What will still be reported, in order of arrival."""
        self._limited = LimitedRuns()

    def set_agent(
        self,
        name: str,
        runner: Any,
        *,
        max_concurrency: int,
        timeout_s: float | None,
        idle_timeout_s: float | None = None,
    ) -> None:
        """Add or replace an agent."""
        setup = Setup(runner, timeout_s, idle_timeout_s)
        lane = self._lanes.get(name)
        if lane is None:
            self._lanes[name] = _Lane(runner, max_concurrency, setup, deque())
        else:
            lane.runner, lane.limit, lane.setup = runner, max_concurrency, setup

    def heartbeat(self, task: wire.Task) -> bool:
        """Take a sign of life of a run; False: nobody waits for its result."""
        self._limited.heartbeat(task)
        return _key_of(task) in self._open

    def remove_agent(self, name: str) -> None:
        """Take no more activations of an agent."""
        self._lanes.pop(name, None)

    def submit(self, shard: int, tasks: list[wire.Task]) -> None:
        """Queue activations."""
        for task in tasks:
            if _key_of(task) in self._open:
                continue
            lane = self._lanes.get(task.agent)
            if lane is None:
                error = wire.ErrorInfo(wire.NOT_RUN, task.agent, retryable=True)
                self._on_done([(shard, wire.Completion(task.id, task.attempt, task.slot, error=error))])
                continue
            self._open[_key_of(task)] = None
            lane.queue.append((shard, task))
            self._start(lane)

    def _start(self, lane: _Lane) -> None:
        while lane.queue and lane.running < lane.limit:
            shard, task = lane.queue.popleft()
            if (key := _key_of(task)) in self._open:
                lane.running += 1
                run = self._tasks[key] = asyncio.ensure_future(self._run(lane, shard, task))
                run.add_done_callback(partial(self._ended, lane, key))

    def _ended(self, lane: _Lane, key: _Key, run: asyncio.Task[None]) -> None:
        # Not in `_run`: a task that is cancelled before its first step never runs.
        lane.running -= 1
        if self._tasks.get(key) is run:
            del self._tasks[key]
        if not run.cancelled():
            run.result()
        self._start(lane)

    async def _run(self, lane: _Lane, shard: int, task: wire.Task) -> None:
        await asyncio.sleep(0)
        runner = lane.runner
        if runner.is_async:
            completion = await self._limited.within(task, runner.run_async(task), lane.setup)
        else:
            completion = runner.run_sync(task)
        if _key_of(task) in self._open:
            del self._open[_key_of(task)]
            self._on_done([(shard, completion)])

    def cancel(self, ids: Collection[bytes]) -> None:
        """Give up activations, all attempts of each."""
        wanted = set(ids)
        for key in [key for key in self._open if key[0] in wanted]:
            del self._open[key]
        for key, task in list(self._tasks.items()):
            if key[0] in wanted:
                task.cancel()

    def give_back(self) -> list[tuple[int, wire.Task]]:
        """Nothing: there is no user loop of its own that could be blocked."""
        return []

    def open_ids(self) -> set[bytes]:
        """Return what is queued or running."""
        return {activation for activation, _ in self._open}

    def load(self) -> _LocalLoad:
        """Measure how busy it is."""
        return _LocalLoad(sum(len(lane.queue) for lane in self._lanes.values()), {})

    async def drain(self, timeout_s: float) -> bool:
        """Wait until everything is finished."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while self._tasks and (left := deadline - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait(list(self._tasks.values()), timeout=left)
            await asyncio.sleep(0)
        return not self._open

    def close(self) -> None:
        """Stop everything."""
        for task in list(self._tasks.values()):
            task.cancel()
        self._open.clear()


async def inline(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function on the loop itself, where others use a thread."""
    return function(*args)


class LocalBoard:
    """A whole board in one event loop, and the peers and the spawner of its parts."""

    def __init__(
        self,
        num_shards: int,
        *,
        clock: Clock,
        registry: TypeRegistry,
        shard_settings: ShardSettings,
        max_workers: int,
        max_payload_bytes: int,
        store: Callable[[int], ShardStore | None] | None = None,
        router_settings: RouterSettings | None = None,
        services: Services | None = None,
        payloads: Callable[[], MemoryPayloads] | None = None,
    ) -> None:
        """Make router and shards; `begin` sets them to work.

        Args:
            num_shards: How many.
            clock: Wall time.
            registry: Artifact types.
            shard_settings: Limits of each shard.
            max_workers: Shared workers.
            max_payload_bytes: Largest payload.
            store: Opens the store of a shard, again for each shard that is made under its number; None: no store.
            router_settings: Times; None: nothing ever times out.
            services: What the workers offer to engines, each a copy; None: nothing.
            payloads: Makes what holds the large payloads of a process; None: in memory.
        """
        self.codec = LocalCodec()
        self.payloads_of = payloads or MemoryPayloads
        self._clock = clock
        self._registry = registry
        self._max_payload_bytes = max_payload_bytes
        self.num_shards = num_shards
        self._shard_settings = shard_settings
        self._router_settings = router_settings or RouterSettings(
            permit_ttl_s=10 * FOREVER_S, renew_every_s=FOREVER_S, heartbeat_s=FOREVER_S,
            heartbeat_deadline_s=FOREVER_S, max_shared_workers=max_workers,
        )  # fmt: skip
        self._store = store or (lambda _: None)
        self.services = services or Services(draw=Random(0).random)
        self.workers: dict[str, Worker] = {}
        self._attached: dict[str, asyncio.Task[Any]] = {}
        self.shards: list[Shard | None] = [self._make_shard(i) for i in range(num_shards)]
        self.the_router: Router | None = self._make_router()

    def _make_shard(self, index: int) -> Shard:
        return Shard(
            index, self.num_shards, owned_slots(index, self.num_shards),
            store=self._store(index), clock=self._clock, peers=self, settings=self._shard_settings,
            payloads=self.payloads_of(),
        )  # fmt: skip

    def _make_router(self) -> Router:
        return Router(
            self.num_shards, peers=self, spawner=self,
            monotonic=lambda: asyncio.get_running_loop().time(), settings=self._router_settings,
        )  # fmt: skip

    def links(self) -> BoardLinks:
        """Return what a client needs."""
        return BoardLinks([self.shard(i) for i in range(self.num_shards)], self.router(), self.worker)

    def begin(self) -> None:
        """Set router and shards to work."""
        for shard in self.shards:
            if shard is not None:
                shard.start()
        if self.the_router is not None:
            self.the_router.start()

    async def close(self) -> None:
        """Stop everything."""
        if self.the_router is not None:
            await self.the_router.close()
        for shard in self.shards:
            if shard is not None:
                await shard.close()

    # the Peers port

    def shard(self, index: int) -> Any:
        """Return a shard."""
        return LocalLink(lambda: self.shards[index], f"shard {index}")

    def worker(self, worker: str) -> Any:
        """Return a worker."""
        return LocalLink(lambda: self.workers.get(worker), f"worker {worker}")

    def router(self) -> Any:
        """Return the router."""
        return LocalLink(lambda: self.the_router, "router")

    # the Spawner port

    async def start(
        self, worker: str, *, num_cpus: float, num_gpus: float, resources: dict[str, float]
    ) -> Any:
        """Make a worker and attach it."""
        made = Worker(
            worker, clock=self._clock, monotonic=lambda: asyncio.get_running_loop().time(), peers=self,
            codec=self.codec, executor=InlineExecutor, registry=self._registry,
            max_payload_bytes=self._max_payload_bytes, offload=inline,
            services=dataclasses.replace(self.services), num_shards=self.num_shards,
            payloads=self.payloads_of(), inline_payload_bytes=self._shard_settings.inline_payload_bytes,
        )  # fmt: skip
        self.workers[worker] = made
        self._attached[worker] = asyncio.ensure_future(self._stay_attached(worker))
        return self.worker(worker)

    async def _stay_attached(self, worker: str) -> None:
        while worker in self.workers:
            try:
                await self.router().attach(worker, 0)
                return
            except PeerGoneError:
                await asyncio.sleep(0.2)

    async def stop(self, worker: str) -> None:
        """End a worker at once."""
        made = self.workers.pop(worker, None)
        attached = self._attached.pop(worker, None)
        if made is not None:
            made.close()
        if attached is not None and attached is not asyncio.current_task():
            attached.cancel()
