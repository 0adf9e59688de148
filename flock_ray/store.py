"""`flock.store`: reading the board under upstream's names. Answers come from indexes."""

from __future__ import annotations

import builtins
import uuid
from collections.abc import Awaitable, Callable
from typing import TypeVar

from pydantic import BaseModel

from flock_ray.artifact import Artifact
from flock_ray.board import Board
from flock_ray.core.index import CountQuery
from flock_ray.core.registry import TypeRegistry

ModelT = TypeVar("ModelT", bound=BaseModel)

__all__ = ["BoardStore"]


class BoardStore:
    """Reads the board directly, past every visibility: for the application itself, not for agents."""

    def __init__(self, ready: Callable[[], Awaitable[Board]], registry: TypeRegistry) -> None:
        """Read the board that `ready` opens."""
        self._ready = ready
        self._registry = registry

    async def get(self, artifact_id: uuid.UUID | str) -> Artifact | None:
        """Return an artifact; None when it is not on the board (any more)."""
        key = artifact_id if isinstance(artifact_id, uuid.UUID) else uuid.UUID(artifact_id)
        envelope = await (await self._ready()).get(key.bytes)
        return None if envelope is None else Artifact.from_envelope(envelope)

    async def list(self, *, correlation_id: str | None = None) -> builtins.list[Artifact]:
        """Return every artifact kept, of one workflow if asked."""
        envelopes = await (await self._ready()).read(workflow=correlation_id)
        return [Artifact.from_envelope(envelope) for envelope in envelopes]

    async def list_by_type(self, type_name: str) -> builtins.list[Artifact]:
        """Return every artifact of a type, by its registered name."""
        envelopes = await (await self._ready()).read(type_name=type_name)
        return [Artifact.from_envelope(envelope) for envelope in envelopes]

    async def get_by_type(
        self, model: type[ModelT], *, correlation_id: str | None = None
    ) -> builtins.list[ModelT]:
        """Return every artifact of a type as models, of one workflow if asked."""
        entry = self._registry.ensure(model)
        envelopes = await (await self._ready()).read(type_name=entry.name, workflow=correlation_id)
        found = [self._registry.validate(e.type, e.version, e.payload) for e in envelopes]
        return found  # type: ignore[return-value]  # the registry's class of that name is `model`

    async def count(self, model: type[BaseModel], *, correlation_id: str | None = None) -> int:
        """Return how many artifacts of a type there are, without reading them."""
        name = self._registry.ensure(model).name
        return (await (await self._ready()).counts([CountQuery(name, correlation_id)]))[0]
