"""The same inputs, the same outputs: answers of an agent that are kept for a while."""

from __future__ import annotations

import asyncio
import copy
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import timedelta
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field, PrivateAttr, field_validator
from pydantic_core import to_json

from flock_ray.artifact import Artifact
from flock_ray.components.settings import settings_digest
from flock_ray.engines.component import AgentComponent, EvalInputs, EvalResult

if TYPE_CHECKING:
    from flock_ray.core.definition import AgentDefinition, OutputGroup
    from flock_ray.engines.context import Context

__all__ = ["CacheComponent"]

ENTRY_BYTES = 500
"""What an entry costs beside its payloads, about."""


class _Entry(NamedTuple):
    until_s: float
    size: int
    result: EvalResult
    """With artifacts that nobody else holds."""


class CacheComponent(AgentComponent):
    """Answers a run from what the agent made of the same inputs before; its engines are then not called.

    Same means: agent, engines and their settings, output group, payloads and tags of the inputs in order, payloads
    of the context, and the state that other components left. Workflow, ids and producers don't count: an engine
    that looks at them, at a clock or at the outside world should not be cached. Hooks and guards run on a hit as
    well. Failed runs, results with `errors`, and what can't be written as JSON are not kept.

    It lives in the process of a replica: others have their own, and a restart or a deploy empties it.
    """

    ttl: timedelta = timedelta(minutes=10)
    max_entries: int = Field(default=1000, ge=1)
    max_bytes: int = Field(default=64 * 1024 * 1024, ge=1)
    """Most bytes of payloads that are kept; the entries not used for longest go first."""

    _entries: OrderedDict[bytes, _Entry] = PrivateAttr(default_factory=OrderedDict)
    _bytes: int = PrivateAttr(default=0)
    _hits: int = PrivateAttr(default=0)
    _misses: int = PrivateAttr(default=0)
    _loop: Any = PrivateAttr(default=None)

    @field_validator("ttl")
    @classmethod
    def _some_time(cls, ttl: timedelta) -> timedelta:
        if ttl <= timedelta(0):
            raise ValueError("ttl must be longer than nothing")
        return ttl

    def __getstate__(self) -> dict[Any, Any]:
        """Leave the answers behind: each replica fills its own cache."""
        state = super().__getstate__()
        empty = {"_entries": OrderedDict(), "_bytes": 0, "_hits": 0, "_misses": 0, "_loop": None}
        return {**state, "__pydantic_private__": empty}

    def statistics(self) -> dict[str, int]:
        """Return hits, misses, entries and bytes of this process."""
        return {
            "hits": self._hits,
            "misses": self._misses,
            "entries": len(self._entries),
            "bytes": self._bytes,
        }

    def clear(self) -> None:
        """Forget all answers of this process."""
        self._entries.clear()
        self._bytes = 0

    async def around_evaluate(
        self,
        agent: AgentDefinition,
        ctx: Context,
        inputs: EvalInputs,
        output_group: OutputGroup,
        proceed: Callable[[], Awaitable[EvalResult]],
    ) -> EvalResult:
        """Return a kept answer, or let the engines make one and keep it."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            # Another loop has another clock.
            self._loop = loop
            self.clear()
        key = _key(agent, ctx, inputs, output_group)
        if key is None:
            return await proceed()
        found = self._entries.get(key)
        if found is not None and found.until_s > loop.time():
            self._entries.move_to_end(key)
            self._hits += 1
            return _copied(found.result)
        self._misses += 1
        result = await proceed()
        self._keep(key, result, loop.time())
        return result

    def _keep(self, key: bytes, result: EvalResult, now_s: float) -> None:
        if result.errors:
            return
        try:
            kept = _copied(result)
        except Exception:
            # A state that can't be copied, or a payload without a JSON form: the run hears of that elsewhere.
            return
        size = ENTRY_BYTES + sum(len(artifact.envelope.payload) for artifact in kept.artifacts)
        old = self._entries.pop(key, None)
        self._bytes -= 0 if old is None else old.size
        if size > self.max_bytes:
            return
        self._entries[key] = _Entry(now_s + self.ttl.total_seconds(), size, kept)
        self._bytes += size
        while len(self._entries) > self.max_entries or self._bytes > self.max_bytes:
            _, gone = self._entries.popitem(last=False)
            self._bytes -= gone.size


def _copied(result: EvalResult) -> EvalResult:
    """Return a result whose artifacts and state are nobody else's; what it said of itself goes with it."""
    artifacts = [Artifact.from_envelope(artifact.envelope) for artifact in result.artifacts]
    update = {"artifacts": artifacts, "state": copy.deepcopy(result.state), "logs": [], "metrics": {}}
    return result.model_copy(update=update)


def _key(agent: AgentDefinition, ctx: Context, inputs: EvalInputs, group: OutputGroup) -> bytes | None:
    """Return what makes runs the same; None when the state has no JSON form to compare."""
    digest = blake2b(digest_size=20)
    digest.update(_agent_digest(agent))
    digest.update(repr([(one.type.__qualname__, one.count, one.fan_out) for one in group.outputs]).encode())
    digest.update(repr((group.description, ctx.is_batch, ctx.groups, ctx.trigger_type)).encode())
    for artifact in [*inputs.artifacts, None, *ctx.artifacts]:
        if artifact is None:
            digest.update(b"context")
            continue
        envelope = artifact.envelope
        head = repr((envelope.type, envelope.version, envelope.tags, len(envelope.payload)))
        digest.update(head.encode() + envelope.payload)
    try:
        digest.update(to_json(dict(sorted(inputs.state.items()))))
    except (ValueError, TypeError):
        return None
    return digest.digest()


def _agent_digest(agent: AgentDefinition) -> bytes:
    digest = blake2b(digest_size=20)
    function = getattr(agent.function, "__code__", agent.function)
    declared = (agent.name, agent.description, agent.model, agent.best_of and agent.best_of[0])
    digest.update(repr((id(agent.function), function)).encode())
    digest.update(repr(declared).encode())
    for engine in agent.engines:
        digest.update(settings_digest(engine))
    return digest.digest()
