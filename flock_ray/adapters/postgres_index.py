"""Questions about what a shard has stored in PostgreSQL: the reading half of its store."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

from flock_ray.adapters import postgres_sql as sql
from flock_ray.adapters.postgres_journal import PostgresJournal
from flock_ray.adapters.postgres_queries import (
    count_query,
    newest_query,
    page_query,
    read_query,
    summary_queries,
)
from flock_ray.adapters.postgres_rows import (
    body_crc,
    column_key,
    damaged,
    is_cut,
    key_text,
    restore_activation,
    restore_artifact,
    restore_envelope,
    restore_workflow,
)
from flock_ray.core.rows import ActivationRow, ArtifactQuery, SettledPlace, Summary, WorkflowRow
from flock_ray.core.wire import Envelope

T = TypeVar("T")

_IDS_PER_READ = 5_000
_ARTIFACTS_PER_READ = 5_000


class PostgresStore(PostgresJournal):
    """The `ShardStore` of one shard in PostgreSQL.

    Every question raises StoreUnavailableError (retryable) while the server does not answer, and
    StoreCorruptError when a row does not fit its checksum.
    """

    async def _fetch(self, statement: str, *values: object) -> Sequence[Any]:
        async with self._connections.read() as connection:
            return await connection.fetch(self._sql(statement), await self._id(connection), *values)

    async def bodies(self, ids: Collection[bytes], near: Collection[int] = ()) -> dict[bytes, bytes]:
        """Return payloads by artifact id; unknown ids are left out."""
        found: dict[bytes, bytes] = {}
        for some in _parts(set(ids), _IDS_PER_READ):
            for id_, crc, body in await self._fetch(sql.BODIES, some):
                if body_crc(id_, body) != crc:
                    raise damaged(f"{self._where}, payload of artifact {id_.hex()},")
                found[id_] = body
        return found

    async def get(self, ids: Collection[bytes]) -> list[tuple[int, Envelope]]:
        """Return (feed position, artifact) of those that are known."""
        found: list[tuple[int, Envelope]] = []
        for some in _parts(set(ids), _IDS_PER_READ):
            found += self._artifacts(await self._fetch(sql.ARTIFACTS, some))
        return found

    async def recent_ids(self, limit: int) -> list[bytes]:
        """Return the ids of the newest artifacts, the oldest of them first."""
        ((ids,),) = await self._fetch(sql.RECENT_IDS, limit)
        return list(ids)

    def _artifacts(self, rows: Iterable[Any]) -> list[tuple[int, Envelope]]:
        return [restore_artifact(row, self._where) for row in rows]

    async def read(self, query: ArtifactQuery, after: int, limit: int) -> list[tuple[int, Envelope]]:
        """Return the first artifacts behind a feed position that the query selects, by position."""
        statement, values = read_query(query, after, limit)
        return self._artifacts(await self._fetch(statement, *values))

    async def page(self, query: ArtifactQuery, limit: int, offset: int) -> list[tuple[int, Envelope]]:
        """Return artifacts that the query selects by (creation time, id); a limit of 0 is all of them."""
        found: list[tuple[int, Envelope]] = []
        behind: tuple[int, bytes] | None = None
        while not limit or len(found) < limit:
            size = min(limit - len(found), _ARTIFACTS_PER_READ) if limit else _ARTIFACTS_PER_READ
            statement, values = page_query(query, size, 0 if behind else offset, behind)
            entries = self._artifacts(await self._fetch(statement, *values))
            found += entries
            if len(entries) < size:
                break
            behind = (entries[-1][1].created_us, entries[-1][1].id)
        return found

    async def newest(
        self, query: ArtifactQuery, limit: int, before: tuple[int, bytes] | None = None
    ) -> list[tuple[int, Envelope]]:
        """Return artifacts that the query selects by (creation time, id), the newest first."""
        statement, values = newest_query(query, limit, before)
        return self._artifacts(await self._fetch(statement, *values))

    async def count(self, query: ArtifactQuery) -> int:
        """Return how many artifacts the query selects."""
        statement, values = count_query(query)
        return int((await self._fetch(statement, *values))[0][0])

    async def summarize(self, query: ArtifactQuery) -> Summary:
        """Count what the query selects by type, producer, visibility kind and tag."""
        by_columns, by_tag, values = summary_queries(query)
        async with self._connections.read() as connection:
            shard_id = await self._id(connection)
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                groups = await connection.fetch(self._sql(by_columns), shard_id, *values)
                tags = await connection.fetch(self._sql(by_tag), shard_id, *values)
        summary = Summary(0, {}, {}, {}, {})
        for type_, producer, visibility, total, _, _, seq in groups:
            summary.total += total
            for counts, key in (
                (summary.by_type, await self._text(type_, seq)),
                (summary.by_producer, await self._text(producer, seq)),
                (summary.by_visibility, visibility),
            ):
                counts[key] = counts.get(key, 0) + total
        summary.tag_counts = {await self._text(tag, seq): total for tag, total, seq in tags}
        summary.earliest_us = min((row[4] for row in groups), default=0)
        summary.latest_us = max((row[5] for row in groups), default=0)
        return summary

    async def _text(self, column: str, seq: int) -> str:
        """Return the text behind an indexed column; one that was cut is in the artifact at `seq`."""
        if not is_cut(column):
            return key_text(column)
        for (meta,) in await self._fetch(sql.META, seq):
            envelope = restore_envelope(meta, f"{self._where}, the artifact at position {seq}")
            for text in (envelope.type, envelope.produced_by, *envelope.tags):
                if column_key(text) == column:
                    return text
        return column

    async def workflows(self, ids: Collection[str]) -> list[WorkflowRow]:
        """Return what is known of workflows, one row per slot that has one."""
        found: list[WorkflowRow] = []
        for some in _parts({column_key(id_) for id_ in ids}, _IDS_PER_READ):
            found += self._workflows(await self._fetch(sql.WORKFLOWS, some))
        return found

    def _workflows(self, rows: Iterable[Any]) -> list[WorkflowRow]:
        return [restore_workflow(row[0], self._where) for row in rows]

    def _activations(self, rows: Iterable[Any]) -> list[ActivationRow]:
        return [restore_activation(row[0], self._where) for row in rows]

    async def activations(self, workflow: str, limit: int) -> list[ActivationRow]:
        """Return activations of a workflow that ended, the oldest first."""
        return self._activations(await self._fetch(sql.ACTIVATIONS, column_key(workflow), limit))

    async def consumptions(self, ids: Collection[bytes]) -> list[ActivationRow]:
        """Return the activations that had one of these artifacts among their inputs, the oldest first."""
        return self._activations(await self._fetch(sql.CONSUMPTIONS, list(set(ids))))

    async def settled_before(
        self, before_us: int, limit: int, after: SettledPlace | None = None
    ) -> list[WorkflowRow]:
        """Return workflows that settled and were not touched since a time, the longest ago first."""
        updated_us, slot, name = after or (-(2**63), 0, "")
        return self._workflows(
            await self._fetch(sql.SETTLED, before_us, limit, updated_us, slot, column_key(name))
        )


def _parts(items: Collection[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part
