"""The large payloads of a worker: those of its inputs are fetched before it runs, those of its outputs are offered."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from flock_ray.claiming import Claiming, Key, Stowed, by_bytes
from flock_ray.core import wire
from flock_ray.core.claims import is_claim, payload_bytes
from flock_ray.errors import BackpressureError, FlockError, PayloadLostError

if TYPE_CHECKING:
    from flock_ray.actors.worker import AnyExecutor
    from flock_ray.ports import Peers

logger = logging.getLogger(__name__)

FULL_RETRY_S = 0.5
"""Pause before a result is offered again when there was no room for it."""


def claims_inputs(task: wire.Task) -> bool:
    """Say whether a task can't run before payloads are fetched."""
    inputs = task.inputs
    return is_claim(inputs[0].payload) if len(inputs) == 1 else any(is_claim(e.payload) for e in inputs)


class WorkerClaims:
    """The part of `Worker` that knows large payloads."""

    _claiming: Claiming | None
    _executor: AnyExecutor
    _peers: Peers
    _offload: Callable[..., Awaitable[Any]]
    _runners: dict[str, Any]
    _closed: bool

    def __init__(self) -> None:
        """Start with nothing on its way."""
        super().__init__()
        self._fetching: dict[tuple[bytes, int], None] = {}
        """Attempts whose inputs are fetched."""
        self._fetches: dict[asyncio.Task[None], None] = {}

    def _on_done(self, batch: list[tuple[int, wire.Completion]]) -> None:
        raise NotImplementedError  # Worker's

    # -- inputs --------------------------------------------------------------------------------

    def _take_tasks(self, shard: int, tasks: list[wire.Task]) -> None:
        """Queue tasks; those with large inputs as soon as they are here."""
        if self._claiming is None:
            self._executor.submit(shard, tasks)
            return
        large = [task for task in tasks if claims_inputs(task)]
        if not large:
            self._executor.submit(shard, tasks)
            return
        if len(large) < len(tasks):
            self._executor.submit(shard, [task for task in tasks if not claims_inputs(task)])
        large = [task for task in large if (task.id, task.attempt) not in self._fetching]
        self._fetching.update(((task.id, task.attempt), None) for task in large)
        fetch = asyncio.ensure_future(self._fetch(shard, large))
        self._fetches[fetch] = None
        fetch.add_done_callback(self._fetches.pop)

    async def _fetch(self, shard: int, tasks: list[wire.Task]) -> None:
        """Fetch inputs, so much at a time, and queue each task as soon as it has all of its own."""
        assert self._claiming is not None
        try:
            for part in by_bytes(tasks, lambda task: sum(payload_bytes(e.payload) for e in task.inputs)):
                wanted = [task for task in part if (task.id, task.attempt) in self._fetching]
                found: dict[Key, bytes] = {}
                failure: FlockError | None = None
                try:
                    found = await self._claiming.fetch([e for task in wanted for e in task.inputs])
                except FlockError as error:
                    failure = error
                await self._hand_over(shard, wanted, found, failure)
        finally:
            for task in tasks:
                self._fetching.pop((task.id, task.attempt), None)

    async def _hand_over(
        self, shard: int, tasks: Sequence[wire.Task], found: dict[Key, bytes], failure: FlockError | None
    ) -> None:
        ready: list[wire.Task] = []
        failed: list[tuple[wire.Task, FlockError]] = []
        for task in tasks:
            if self._fetching.pop((task.id, task.attempt), 0) == 0:
                continue  # it was cancelled meanwhile
            if failure is not None:
                failed.append((task, failure))
                continue
            try:
                inputs = tuple(Claiming.put(e, found) for e in task.inputs)
            except PayloadLostError as error:
                failed.append((task, error))
            else:
                ready.append(msgspec.structs.replace(task, inputs=inputs))
        if ready:
            self._executor.submit(shard, ready)
        if failed:
            # A failure is matched against subscriptions, by their predicates: user code.
            done: list[wire.Completion] = await self._offload(
                lambda: [self._unread(task, error) for task, error in failed]
            )
            self._on_done([(shard, completion) for completion in done])

    def _unread(self, task: wire.Task, error: FlockError) -> wire.Completion:
        """Report a task whose inputs can't be read: for good when one is lost, else somebody tries again."""
        runner = self._runners.get(task.agent)
        if runner is None or not isinstance(error, PayloadLostError):
            info = wire.ErrorInfo(wire.NOT_RUN, f"its inputs could not be read: {error}", retryable=True)
            return wire.Completion(task.id, task.attempt, task.slot, error=info)
        completion: wire.Completion = runner.failure(task, "PayloadLostError", str(error))
        return completion

    def _forget_fetches(self, ids: Collection[bytes]) -> None:
        """Give up attempts that have not begun because their inputs are on their way."""
        for key in [key for key in self._fetching if key[0] in ids]:
            del self._fetching[key]

    async def _fetched(self, timeout_s: float) -> bool:
        """Wait until nothing is fetched any more."""
        if self._fetches:
            await asyncio.wait(list(self._fetches), timeout=timeout_s)
        return not self._fetches

    # -- outputs -------------------------------------------------------------------------------

    def _on_wire(self, completion: wire.Completion) -> int:
        """Return what a completion's payloads count in a message."""
        outputs = completion.outputs
        if self._claiming is None:
            return sum(len(p.envelope.payload) for p in outputs)
        on_wire = self._claiming.on_wire
        if len(outputs) == 1:
            return on_wire(len(outputs[0].envelope.payload))
        return sum(on_wire(len(p.envelope.payload)) for p in outputs)

    async def _stow(self, shard: int, completions: Sequence[wire.Completion]) -> Stowed | None:
        """Offer the large payloads of results until there is room for them; None: there are none."""
        claiming = self._claiming
        if claiming is None or not any(
            len(p.envelope.payload) > claiming.limit for c in completions for p in c.outputs
        ):
            return None
        warned = False
        while True:
            try:
                return await claiming.stow([p for c in completions for p in c.outputs], shard)
            except BackpressureError as error:
                if not warned:
                    warned = True
                    logger.warning("results wait for room in the object store: %s", error)
            await asyncio.sleep(FULL_RETRY_S)

    async def _send_completions(
        self, link: Any, version: int, worker: str, completions: list[wire.Completion], stowed: Stowed | None
    ) -> bytes:
        """Send a CompleteBatch; answers with the CompleteReply."""
        if stowed is None:
            answer: bytes = await link.complete(wire.encode(wire.CompleteBatch(worker, version, completions)))
            return answer
        claimed = [stowed.completion(completion) for completion in completions]
        blob = wire.encode(wire.CompleteBatch(worker, version, claimed))
        try:
            answer = await link.complete_large(blob, stowed.keys, stowed.offer)
        except BackpressureError as error:
            logger.warning("results wait for room in the object store: %s", error)
            return wire.encode(wire.CompleteReply("busy", version, FULL_RETRY_S))
        return answer
