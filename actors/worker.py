"""The worker: a process that hosts replicas. Takes batches from shards, runs them, pushes results back.

No Ray in here: user code runs in `actors.executor`, and everything else is a few queues.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec

from flock_ray.actors.arrivals import WorkerClaims
from flock_ray.actors.rematching import Rematching
from flock_ray.actors.token_stream import TokenStream
from flock_ray.claiming import Claiming
from flock_ray.context.reader import BoardReader
from flock_ray.core import wire
from flock_ray.core.definition import AgentDefinition
from flock_ray.core.matching import MatchTable
from flock_ray.core.messages import parts
from flock_ray.core.registry import TypeRegistry, type_registry
from flock_ray.core.state import MATCH_AGENT, RELEASE
from flock_ray.edge import DEFAULT_INLINE_PAYLOAD_BYTES, DEFAULT_MAX_PAYLOAD_BYTES, Edge
from flock_ray.engines.approving import released
from flock_ray.engines.failures import describe
from flock_ray.engines.fan.runners import runner_for
from flock_ray.engines.services import Services
from flock_ray.engines.wiring import services_for
from flock_ray.errors import ConfigurationError, ModelError, PayloadLostError, safe_error_text
from flock_ray.ports import Clock, DefinitionCodec, PayloadStore, PeerGoneError, Peers

logger = logging.getLogger(__name__)

RETRY_S = 0.05
BLOCKED_S = 1.0
"""A user loop that has not answered for so long is blocked."""
DIRECT_SHARD = -1
"""Stands for a caller of `invoke`, who waits for the completion himself."""


class AnyExecutor(Protocol):
    """What the worker needs of an executor; `actors.executor.Executor` runs user code in threads."""

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
        ...

    def heartbeat(self, task: wire.Task) -> bool:
        """Take a sign of life of a run; False: nobody waits for its result."""
        ...

    def remove_agent(self, name: str) -> None:
        """Take no more activations of an agent."""
        ...

    def submit(self, shard: int, tasks: list[wire.Task]) -> None:
        """Queue activations."""
        ...

    def cancel(self, ids: list[bytes]) -> None:
        """Give up activations."""
        ...

    def give_back(self) -> list[tuple[int, wire.Task]]:
        """Give up what waits for a blocked user loop, and return it with its shard."""
        ...

    def open_ids(self) -> set[bytes]:
        """Return what is queued or running."""
        ...

    def load(self) -> Any:
        """Measure how busy it is."""
        ...

    async def drain(self, timeout_s: float) -> bool:
        """Wait until everything is finished."""
        ...

    def close(self) -> None:
        """End all threads that can be ended."""
        ...


class MatchRunner:
    """Runs the board's own agent: matches artifacts that a shard had to publish itself."""

    is_async = False

    def __init__(self, edge: Edge, now_us: Callable[[], int]) -> None:
        """Match with an edge; `now_us` is the wall clock."""
        self._edge = edge
        self._now_us = now_us

    def run_sync(self, task: wire.Task) -> wire.Completion:
        """Return the artifact with its matches; of candidates those that match by now; or what was approved."""
        if task.subscription and not task.subscription.startswith(RELEASE):
            return self._offered(task)
        try:
            if task.subscription:
                return wire.Completion(
                    task.id, task.attempt, task.slot, (released(self._edge, task, self._now_us()),), run_us=1
                )
            outputs = tuple(self._edge.rematch(wire.Posting(envelope)) for envelope in task.inputs)
        except Exception as error:  # an embedder that fails, or a payload that can't be read
            return wire.Completion(task.id, task.attempt, task.slot, error=describe(error))
        return wire.Completion(task.id, task.attempt, task.slot, outputs, run_us=1)

    def _offered(self, task: wire.Task) -> wire.Completion:
        answered: list[wire.Posting] = []
        notes: list[tuple[str, str]] = []
        for envelope in task.inputs:
            posting = wire.Posting(envelope, offered=task.subscription)
            try:
                posting = self._edge.rematch(posting)
            except ModelError as error:  # nobody knows whether it matches: it is asked again
                if not notes:
                    notes.append(
                        ("candidate.failed", f"{task.subscription}: {': '.join(safe_error_text(error))}")
                    )
                continue
            except Exception as error:  # a payload that can't be read is refused, and said so
                refusal = wire.Refusal(task.subscription, "reevaluate", ": ".join(safe_error_text(error)))
                posting = msgspec.structs.replace(posting, refusals=(refusal,))
            if posting.matches or posting.refusals:
                answered.append(posting)
        return wire.Completion(
            task.id, task.attempt, task.slot, tuple(answered), run_us=1, notes=tuple(notes)
        )

    async def run_async(self, task: wire.Task) -> wire.Completion:
        """Do the same."""
        return self.run_sync(task)

    def failure(self, task: wire.Task, exc_type: str, message: str) -> wire.Completion:
        """Report that matching failed."""
        return wire.Completion(task.id, task.attempt, task.slot, error=wire.ErrorInfo(exc_type, message))


def pool_of(worker: str) -> str:
    """Return the pool that a worker id names."""
    return worker.partition(":")[0]


class Worker(WorkerClaims, Rematching):
    """One worker process."""

    def __init__(
        self,
        worker: str,
        *,
        clock: Clock,
        monotonic: Callable[[], float],
        peers: Peers,
        codec: DefinitionCodec,
        executor: Callable[[Callable[[list[tuple[int, wire.Completion]]], None]], AnyExecutor],
        registry: TypeRegistry = type_registry,
        max_payload_bytes: int = DEFAULT_MAX_PAYLOAD_BYTES,
        offload: Callable[..., Awaitable[Any]] = asyncio.to_thread,
        services: Services | None = None,
        num_shards: int | None = None,
        payloads: PayloadStore | None = None,
        inline_payload_bytes: int = DEFAULT_INLINE_PAYLOAD_BYTES,
    ) -> None:
        """Create a worker without agents.

        Args:
            worker: Its id, `<pool>:<unique>`.
            clock: Wall time.
            monotonic: A clock in seconds that never goes back.
            peers: Finds shards.
            codec: Loads agent definitions.
            executor: Makes the executor, given where completions go.
            registry: Artifact types of this process.
            max_payload_bytes: Largest output payload.
            offload: Runs a function that loads or calls user code off the control loop.
            services: What engines, components and context providers may use; None: nothing.
            num_shards: Shards of the board, which get what runs stream and have their contexts; None: neither.
            payloads: This process's part in what holds large payloads; None: they travel through the shards.
            inline_payload_bytes: Larger payloads are held there.
        """
        super().__init__()
        self._claiming: Claiming | None = None
        self._runners: dict[str, Any] = {}
        self.id = worker
        self.pool = pool_of(worker)
        self._clock = clock
        self._monotonic = monotonic
        self._peers = peers
        self._codec = codec
        self._registry = registry
        self.services = services or Services()
        self._texts: TokenStream | None = None
        if payloads is not None and num_shards is not None:
            self._claiming = Claiming(
                payloads, limit=inline_payload_bytes, shard=peers.shard, num_shards=num_shards,
                offload=offload,
            )  # fmt: skip
        if num_shards is not None:
            self._texts = TokenStream(lambda shard, blob: peers.shard(shard).take_texts(blob), num_shards)
            self.services.stream = self.services.stream or self._texts
            self.services.reader = self.services.reader or BoardReader(
                peers.shard, num_shards, claiming=self._claiming
            )
        self._edge = Edge(
            MatchTable(0, (), registry), registry, max_payload_bytes=max_payload_bytes, offload=offload
        )
        self._executor = executor(self._on_done)
        self.services.heartbeat = self.services.heartbeat or self._executor.heartbeat
        self._definitions: dict[str, AgentDefinition] = {}
        self._packages: dict[str, bytes] = {}
        self._hosted: set[str] = set()
        self._out: dict[int, list[wire.Completion]] = {}
        self._sending: dict[int, asyncio.Task[None]] = {}
        self._direct: dict[bytes, asyncio.Future[wire.Completion]] = {}
        self._installing = asyncio.Lock()
        self._offload = offload
        self._closed = False

    # -- calls from shards and router ----------------------------------------------------------

    async def run(self, blob: bytes) -> bool:
        """Queue a RunBatch; False when this worker takes no more."""
        if self._closed:
            return False
        batch = wire.decode_run(blob)
        if self._texts is not None:
            self._texts.begin()
            self._texts.heard(batch.shard, batch.listened)
        self._take_tasks(batch.shard, batch.tasks)
        return True

    async def invoke(self, blob: bytes) -> bytes:
        """Run one task for a caller that waits: msgpack of its Completion. Nothing is committed."""
        task = msgspec.msgpack.decode(blob, type=wire.Task)
        future: asyncio.Future[wire.Completion] = asyncio.get_running_loop().create_future()
        self._direct[task.id] = future
        if self._texts is not None:
            self._texts.begin()
        try:
            self._executor.submit(DIRECT_SHARD, [task])
            return wire.encode(await future)
        finally:
            del self._direct[task.id]

    async def cancel(self, ids: list[bytes]) -> None:
        """Stop activations."""
        self._executor.cancel(ids)
        if self._fetching:
            self._forget_fetches(ids)
        if self._texts is not None:
            self._texts.cancelled(ids)
        for activation in ids:
            future = self._direct.get(activation)
            if future is not None and not future.done():
                error = wire.ErrorInfo("CancelledError", "the caller gave it up")
                future.set_result(wire.Completion(activation, 1, 0, error=error))
        self._rematch.difference_update(ids)

    async def install(self, version: int, agents: dict[str, bytes]) -> int:
        """Take a version of the board's agents; an older one changes nothing, nor does one without code.

        A router that has come back knows the version from the shards before it has any code: who matched with an empty
        table under that number would find that nobody gets anything, and the shards would believe it.

        Raises:
            Exception: Whatever loading an agent raised, for instance a missing module.
        """
        async with self._installing:
            if version > self._edge.table.version and agents:
                table, changed = await self._offload(self._load, version, agents)
                self._switch(table, agents, changed)
        return self._edge.table.version

    async def packages(self) -> tuple[int, dict[str, bytes]]:
        """Return the version of the table that this worker has, and its agents' packages."""
        return self._edge.table.version, self._packages

    async def check(self, agents: dict[str, bytes]) -> None:
        """Try to load agents without keeping them.

        Raises:
            ConfigurationError: One can't be loaded here; says which and why.
        """
        await self._offload(self._try_load, agents)

    def _try_load(self, agents: dict[str, bytes]) -> None:
        for name, blob in agents.items():
            try:
                self._codec.load(wire.decode_package(blob).definition)
            except Exception as error:
                kind, text = safe_error_text(error)
                raise ConfigurationError(
                    f"Agent {name!r} can't be loaded on the workers: {kind}: {text}. Is everything it imports "
                    "installed on the cluster, or in the job's working_dir?"
                ) from None

    def _load(self, version: int, agents: dict[str, bytes]) -> tuple[MatchTable, set[str]]:
        changed = {name for name, blob in agents.items() if self._packages.get(name) != blob}
        for name in changed:
            self._definitions[name] = self._codec.load(wire.decode_package(agents[name]).definition)
            self._learn_types(self._definitions[name])
        definitions = [self._definitions[name] for name in sorted(agents)]
        return MatchTable(version, definitions, self._registry), changed

    def _learn_types(self, definition: AgentDefinition) -> None:
        for sub in definition.subscriptions:
            for cls in sub.types:
                self._registry.ensure(cls)
        for group in definition.output_groups:
            for output in group.outputs:
                self._registry.ensure(output.type)

    def _switch(self, table: MatchTable, agents: dict[str, bytes], changed: set[str]) -> None:
        self._rematch |= self._executor.open_ids()
        for pending in self._out.values():
            self._rematch |= {completion.id for completion in pending}
        self._edge.table = table
        self._packages = agents
        hosted = {name for name, blob in agents.items() if wire.decode_package(blob).pool.name == self.pool}
        for name in self._hosted - hosted:
            self._executor.remove_agent(name)
            self._runners.pop(name, None)
        for name in sorted(hosted & (changed | (hosted - self._hosted))):
            definition = self._definitions[name]
            runner = runner_for(
                definition, self._registry, self._edge.post,
                now_us=self._clock.now_us, monotonic=self._monotonic, output=self._edge.output,
                services=services_for(definition, self.services), warming=self._edge, offload=self._offload,
            )  # fmt: skip
            self._runners[name] = runner
            limit = definition.effective_concurrency()
            self._executor.set_agent(
                name, runner, max_concurrency=limit, timeout_s=definition.timeout_s,
                idle_timeout_s=definition.idle_timeout_s,
            )  # fmt: skip
        self._runners[MATCH_AGENT] = MatchRunner(self._edge, self._clock.now_us)
        self._executor.set_agent(MATCH_AGENT, self._runners[MATCH_AGENT], max_concurrency=1, timeout_s=None)
        self._hosted = hosted

    async def watch(self, wait_s: float) -> bytes:
        """Answer with a WorkerLoad after `wait_s` seconds: the heartbeat."""
        await asyncio.sleep(wait_s)
        return wire.encode(self._load_report())

    def _load_report(self) -> wire.WorkerLoad:
        load = self._executor.load()
        stuck = load.stuck_threads
        if load.user_loop_blocked_s > BLOCKED_S:
            stuck += sum(agent.stuck_tasks for agent in load.agents.values())
        return wire.WorkerLoad(
            self.id,
            load.queued,
            {name: agent.running for name, agent in load.agents.items() if agent.running},
            {name: int(agent.mean_run_s * 1e6) for name, agent in load.agents.items()},
            stuck,
            load.user_loop_blocked_s,
        )

    async def drain(self, timeout_s: float) -> bool:
        """Finish everything queued, report it and take no more; False when the time was not enough."""
        if self._executor.load().user_loop_blocked_s > BLOCKED_S:
            self._closed = True
            self._hand_back()
        done = await self._fetched(timeout_s) and await self._executor.drain(timeout_s)
        self._closed = True
        done = done and await self._executor.drain(1.0)
        if self._unmatched:
            await asyncio.wait(list(self._unmatched), timeout=timeout_s)
        if self._sending:
            await asyncio.wait(list(self._sending.values()), timeout=timeout_s)
        if self._texts is not None:
            await self._texts.flush(1.0)
        return done and not self._sending and not self._unmatched

    def _hand_back(self) -> None:
        """Return to the shards what a blocked user loop would never run; they give it to other workers."""
        error = wire.ErrorInfo(wire.NOT_RUN, "handed back: the worker's user loop is blocked", retryable=True)
        self._on_done(
            [
                (shard, wire.Completion(task.id, task.attempt, task.slot, error=error))
                for shard, task in self._executor.give_back()
            ]
        )

    def close(self) -> None:
        """Stop at once."""
        self._closed = True
        self._executor.close()
        if self._texts is not None:
            self._texts.close()
        for task in (*self._sending.values(), *self._fetches, *self._unmatched):
            task.cancel()

    # -- results -------------------------------------------------------------------------------

    def _on_done(self, batch: list[tuple[int, wire.Completion]]) -> None:
        if self._texts is not None:
            self._texts.ended(batch)
        for shard, completion in batch:
            if shard == DIRECT_SHARD:
                future = self._direct.get(completion.id)
                if future is not None and not future.done():
                    future.set_result(completion)
                continue
            self._put(shard, completion)

    def _put(self, shard: int, completion: wire.Completion) -> None:
        pending = self._out.get(shard)
        if pending is None:
            self._out[shard] = [completion]
        else:
            pending.append(completion)
        if shard not in self._sending:
            self._sending[shard] = asyncio.ensure_future(self._send(shard))

    async def _send(self, shard: int) -> None:
        """Push completions to a shard until none is left; what piles up meanwhile is the next batch."""
        try:
            while pending := self._out.pop(shard, None):
                matched = self._edge.table.version
                for part in parts(pending, [self._on_wire(completion) for completion in pending]):
                    await self._commit(shard, part, matched)
        finally:
            del self._sending[shard]

    async def _commit(self, shard: int, completions: list[wire.Completion], matched: int) -> None:
        """Send completions that were matched with one version of the table until the shard has them."""
        link = self._peers.shard(shard)
        stowed = await self._stow(shard, completions)
        while True:
            version = self._edge.table.version
            if matched != version:
                self._rematch |= {completion.id for completion in completions}
            if self._rematch:
                ready = await self._match_again(shard, completions)
                if len(ready) < len(completions):
                    if not ready:
                        return
                    stowed = await self._stow(shard, ready)
                completions = ready
            matched = version
            if version != self._edge.table.version:
                continue
            try:
                reply = wire.decode_complete_reply(
                    await self._send_completions(link, version, self.id, completions, stowed)
                )
            except PayloadLostError as error:  # of what was offered; the payloads themselves are here
                logger.warning("worker %s: results are offered again: %s", self.id, error)
                await asyncio.sleep(RETRY_S * 10)
                stowed = await self._stow(shard, completions)
                continue
            except PeerGoneError:
                # A shard that comes back gives the work out again; until then the results are kept.
                await asyncio.sleep(RETRY_S * 10)
                continue
            if reply.status == "ok":
                return
            if reply.status == "stale_table":
                self._rematch |= {completion.id for completion in completions}
                await self._refresh(shard)
            else:
                await asyncio.sleep(reply.retry_after_s or RETRY_S)

    async def _refresh(self, shard: int) -> None:
        try:
            version, agents = await self._peers.shard(shard).table()
        except PeerGoneError:
            return
        if not agents:
            # It has come back from its journal, which has no code: the router brings that in a moment.
            await asyncio.sleep(RETRY_S * 10)
            return
        await self.install(version, agents)
