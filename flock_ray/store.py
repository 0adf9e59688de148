"""`flock.store`: reading the board under upstream's names. Answers come from indexes.

Also the home of the names that upstream's documentation imports from `flock.store`.
"""

from __future__ import annotations

import builtins
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, overload

from pydantic import BaseModel

from flock_ray import searching
from flock_ray.artifact import Artifact
from flock_ray.board import Board
from flock_ray.core.index import CountQuery
from flock_ray.core.registry import TypeRegistry
from flock_ray.core.rows import ActivationRow, ArtifactQuery
from flock_ray.core.wire import Envelope
from flock_ray.errors import ConfigurationError, UnknownTypeError
from flock_ray.filters import ActivationRecord, ArtifactEnvelope, ConsumptionRecord, FilterConfig, moment

if TYPE_CHECKING:
    from flock_ray.stores import InMemoryBlackboardStore, SQLiteBlackboardStore

ModelT = TypeVar("ModelT", bound=BaseModel)

__all__ = [
    "ActivationRecord",
    "ArtifactEnvelope",
    "BlackboardStore",
    "BoardStore",
    "ConsumptionRecord",
    "FilterConfig",
    "InMemoryBlackboardStore",
    "SQLiteBlackboardStore",
]


class BoardStore:
    """Reads the board directly, past every visibility: for the application itself, not for agents.

    With persistence it shows what is durable, also what has left memory. Every call raises
    StoreUnavailableError, retryable, while a shard or its store does not answer.
    """

    def __init__(self, ready: Callable[[], Awaitable[Board]], registry: TypeRegistry) -> None:
        """Read the board that `ready` opens."""
        self._ready = ready
        self._registry = registry

    # -- artifacts -----------------------------------------------------------------------------

    async def get(self, artifact_id: uuid.UUID | str) -> Artifact | None:
        """Return an artifact; None when it is not on the board (any more)."""
        key = artifact_id if isinstance(artifact_id, uuid.UUID) else uuid.UUID(artifact_id)
        envelope = await (await self._ready()).get(key.bytes)
        return None if envelope is None else Artifact.from_envelope(envelope)

    async def list(self, *, correlation_id: str | None = None) -> builtins.list[Artifact]:
        """Return every artifact kept, of one workflow if asked; see `query_artifacts` for large boards."""
        return await self._all(ArtifactQuery(correlation_id=correlation_id))

    async def list_by_type(self, type_name: str) -> builtins.list[Artifact]:
        """Return every artifact of a type, by its registered name or `module.Class`."""
        return await self._all(ArtifactQuery((self._type_key(type_name),)))

    async def get_by_type(
        self, model: type[ModelT], *, correlation_id: str | None = None
    ) -> builtins.list[ModelT]:
        """Return every artifact of a type as models, of one workflow if asked; old versions are brought up to date.

        Raises:
            ArtifactSchemaError: A payload does not fit the class, or an upcaster is missing.
            VersionConflictError: One is of a newer version than the class: upgrade this program.
        """
        entry = self._registry.ensure(model)
        found = await self._select_all(ArtifactQuery((entry.name,), correlation_id=correlation_id))
        models = [self._registry.validate(e.type, e.version, e.payload, cls=model) for e in found]
        return models  # type: ignore[return-value]  # validate makes instances of `cls`

    async def count(self, model: type[BaseModel], *, correlation_id: str | None = None) -> int:
        """Return how many artifacts of a type there are, without reading them."""
        name = self._registry.ensure(model).name
        return (await (await self._ready()).counts([CountQuery(name, correlation_id)]))[0]

    @overload
    async def query_artifacts(
        self, filters: FilterConfig | None = None, *, limit: int = 50, offset: int = 0,
        embed_meta: Literal[False] = False,
    ) -> tuple[builtins.list[Artifact], int]: ...  # fmt: skip
    @overload
    async def query_artifacts(
        self, filters: FilterConfig | None = None, *, limit: int = 50, offset: int = 0,
        embed_meta: Literal[True],
    ) -> tuple[builtins.list[ArtifactEnvelope], int]: ...  # fmt: skip
    async def query_artifacts(
        self,
        filters: FilterConfig | None = None,
        *,
        limit: int = 50,
        offset: int = 0,
        embed_meta: bool = False,
    ) -> tuple[builtins.list[Artifact], int] | tuple[builtins.list[ArtifactEnvelope], int]:
        """Search artifacts; they come by (creation time, id).

        Args:
            filters: None is no condition.
            limit: How many; 0 or less is all.
            offset: How many to leave out first. A deep one is slow on several shards: move `start` instead.
            embed_meta: Return ArtifactEnvelopes, with who consumed each.

        Returns:
            The artifacts, and how many there are without limit and offset.

        Raises:
            ConfigurationError: The filter makes no sense.
        """
        board, query = await self._ready(), self._query(filters)
        found = await searching.select(board, query, limit=limit, offset=offset)
        total = await searching.count(board, query)
        artifacts = [Artifact.from_envelope(envelope) for envelope in found]
        if not embed_meta:
            return artifacts, total
        records = _by_artifact(await searching.consumptions(board, [e.id for e in found]))
        return [ArtifactEnvelope(artifact, records.get(artifact.id, [])) for artifact in artifacts], total

    async def fetch_graph_artifacts(
        self, filters: FilterConfig | None = None, *, limit: int = 500, offset: int = 0
    ) -> tuple[builtins.list[ArtifactEnvelope], int]:
        """Return artifacts with who consumed each: `query_artifacts(embed_meta=True)`."""
        return await self.query_artifacts(filters, limit=limit, offset=offset, embed_meta=True)

    # -- summaries -----------------------------------------------------------------------------

    async def summarize_artifacts(self, filters: FilterConfig | None = None) -> dict[str, Any]:
        """Count artifacts by several properties, without reading them.

        Returns:
            `total`, `by_type`, `by_producer`, `by_visibility`, `tag_counts`, `earliest_created_at` and
            `latest_created_at` (ISO 8601, None when there are none), `is_full_window` (no start, no end).
        """
        query = self._query(filters)
        summary = await searching.summarize(await self._ready(), query)
        return {
            "total": summary.total,
            "by_type": summary.by_type,
            "by_producer": summary.by_producer,
            "by_visibility": summary.by_visibility,
            "tag_counts": summary.tag_counts,
            "earliest_created_at": moment(summary.earliest_us).isoformat() if summary.total else None,
            "latest_created_at": moment(summary.latest_us).isoformat() if summary.total else None,
            "is_full_window": query.start_us is None and query.end_us is None,
        }

    async def agent_history_summary(
        self, agent_id: str, filters: FilterConfig | None = None
    ) -> dict[str, Any]:
        """Count what an agent made and consumed of the artifacts that the filter selects.

        Made is counted by an index; for consumed all that is selected is looked through, a page at a time.

        Returns:
            `{"produced": {"total": int, "by_type": {...}}, "consumed": {...}}`.
        """
        board, query = await self._ready(), self._query(filters)
        produced: dict[str, int] = {}
        if not query.produced_by or agent_id in query.produced_by:
            own = ArtifactQuery(query.types, (agent_id,), *_rest(query))
            produced = (await searching.summarize(board, own)).by_type
        consumed: dict[str, int] = {}
        async for page in searching.walk(board, query):
            types = {envelope.id: envelope.type for envelope in page}
            for row in await searching.consumptions(board, types):
                for key in row.inputs if row.agent == agent_id else ():
                    consumed[types[key]] = consumed.get(types[key], 0) + 1
        return {
            "produced": {"total": sum(produced.values()), "by_type": produced},
            "consumed": {"total": sum(consumed.values()), "by_type": consumed},
        }

    async def activations(self, correlation_id: str, *, limit: int = 1000) -> builtins.list[ActivationRecord]:
        """Return the runs of a workflow that ended, the oldest first.

        A memory board keeps no runs: there they are worked out from what they made, so runs that published
        nothing, and cancelled ones, are missing.

        Args:
            correlation_id: The workflow of the runs' outputs.
            limit: Most runs returned, from 1 to 1000.
        """
        if not 1 <= limit <= MAX_ACTIVATIONS:
            raise ConfigurationError(
                f"activations(limit={limit}): give a number from 1 to {MAX_ACTIVATIONS}."
            )
        rows = await searching.activations(await self._ready(), correlation_id, limit)
        return [ActivationRecord.from_row(row) for row in rows]

    # -- upstream's writing calls --------------------------------------------------------------

    async def publish(self, artifact: Artifact, *_: object) -> NoReturn:
        """Refuse: what is on a board went through it.

        Raises:
            ConfigurationError: Always; says what to call instead.
        """
        raise ConfigurationError(
            "flock.store reads; it stored past all agents in Flock. Call flock.publish(artifact), or publish before "
            "any agent is declared to fill a board without running any."
        )

    async def record_consumptions(self, records: Iterable[ConsumptionRecord]) -> None:
        """Do nothing: the board records who consumed what itself, with the run's result or not at all."""

    # -- inside --------------------------------------------------------------------------------

    def _type_key(self, name: str) -> str:
        """Return the registered name of a type; one that this program does not know stays as it is."""
        try:
            return self._registry.get(name).name
        except UnknownTypeError:
            return name

    def _query(self, filters: FilterConfig | None) -> ArtifactQuery:
        return ArtifactQuery() if filters is None else filters.query(self._type_key)

    async def _select_all(self, query: ArtifactQuery) -> builtins.list[Envelope]:
        return await searching.feed(await self._ready(), query)

    async def _all(self, query: ArtifactQuery) -> builtins.list[Artifact]:
        return [Artifact.from_envelope(envelope) for envelope in await self._select_all(query)]


MAX_ACTIVATIONS = 1000
"""Most runs that one call returns."""

BlackboardStore = BoardStore
"""Upstream's name, for annotations."""


def _rest(query: ArtifactQuery) -> tuple[Any, ...]:
    """Return a query's conditions behind types and producers."""
    return query.correlation_id, query.tags, query.visibility, query.start_us, query.end_us


def _by_artifact(rows: Sequence[ActivationRow]) -> dict[uuid.UUID, list[ConsumptionRecord]]:
    records: dict[uuid.UUID, list[ConsumptionRecord]] = {}
    for row in rows:
        for key in row.inputs:
            artifact_id = uuid.UUID(bytes=key)
            record = ConsumptionRecord(
                artifact_id, row.agent, row.id.hex(), row.correlation_id, moment(row.ended_us)
            )
            records.setdefault(artifact_id, []).append(record)
    return records


def __getattr__(name: str) -> Any:
    """Load upstream's store classes from their home, which needs the backends."""
    if name in ("InMemoryBlackboardStore", "SQLiteBlackboardStore"):
        return getattr(import_module("flock_ray.stores"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
