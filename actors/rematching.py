"""Results of runs that began under an older table: their outputs are matched again before they are committed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec

from flock_ray.core import wire
from flock_ray.engines.failures import describe, retry_ask
from flock_ray.errors import FlockError

if TYPE_CHECKING:
    from flock_ray.core.definition import AgentDefinition
    from flock_ray.edge import Edge
    from flock_ray.engines.services import Services

MATCH_TRIES = 8
"""How often outputs are matched again before their run fails: about a minute and a half."""

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0


class Rematching:
    """The part of `Worker` that matches outputs again, and keeps a result for which that can't be done just now."""

    _edge: Edge
    _offload: Callable[..., Awaitable[Any]]
    _definitions: dict[str, AgentDefinition]
    services: Services

    def __init__(self) -> None:
        """Start with nothing to match."""
        self._rematch: set[bytes] = set()
        """Activations that started under an older table: their outputs are matched again."""
        self._match_tries: dict[bytes, int] = {}
        self._unmatched: set[asyncio.Task[None]] = set()
        """Results that wait for an embedder to come back."""

    def _put(self, shard: int, completion: wire.Completion) -> None:
        raise NotImplementedError  # Worker's

    async def _match_again(self, shard: int, completions: list[wire.Completion]) -> list[wire.Completion]:
        """Match what has to be; one for which that fails now comes again later, and does not hold up the others."""
        stale = [c for c in completions if c.id in self._rematch]
        if not stale:
            return completions
        self._rematch.difference_update(c.id for c in stale)
        ids = {c.id for c in stale}
        matched: list[wire.Completion | Exception] = await self._offload(
            lambda: [self._try_match(c) if c.id in ids else c for c in completions]
        )
        ready: list[wire.Completion] = []
        for completion, found in zip(completions, matched, strict=True):
            if not isinstance(found, Exception):
                self._match_tries.pop(completion.id, None)
                ready.append(found)
            elif (pause_s := self._pause_s(completion, found)) is not None:
                task = asyncio.ensure_future(self._later(shard, completion, pause_s))
                self._unmatched.add(task)
                task.add_done_callback(self._unmatched.discard)
            else:
                self._match_tries.pop(completion.id, None)
                ready.append(self._failed_to_match(completion, found))
        return ready

    def _try_match(self, completion: wire.Completion) -> wire.Completion | Exception:
        try:
            outputs = tuple(self._edge.rematch(posting) for posting in completion.outputs)
        except Exception as error:  # an embedder, mostly; whatever it is, others of the batch are fine
            return error
        return msgspec.structs.replace(completion, outputs=outputs)

    def _pause_s(self, completion: wire.Completion, error: Exception) -> float | None:
        """Return how long to wait before the next try; None: there is none."""
        tries = self._match_tries[completion.id] = self._match_tries.get(completion.id, 0) + 1
        if tries >= MATCH_TRIES or not (isinstance(error, FlockError) and error.retryable):
            return None
        return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * float(2 ** (tries - 1)))

    async def _later(self, shard: int, completion: wire.Completion, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        self._rematch.add(completion.id)
        self._put(shard, completion)

    def _failed_to_match(self, completion: wire.Completion, error: Exception) -> wire.Completion:
        """Make a failure of a result: nobody knows who gets its outputs. A run that had failed before has failed."""
        if completion.error is not None:
            return msgspec.structs.replace(completion, outputs=())
        info, agent = describe(error), completion.outputs[0].envelope.produced_by
        definition = self._definitions.get(agent)
        ask, notes = None, list(completion.notes)
        if definition is not None and definition.retry is not None:
            ask, more = retry_ask(
                definition.retry, error, retryable=info.retryable, attempt=1, draw=self.services.draw
            )
            notes += more
        # The agent itself did well: its circuit breaker does not count this.
        return msgspec.structs.replace(
            completion, outputs=(), error=info, retry=ask, trips=False, notes=tuple(notes)
        )
