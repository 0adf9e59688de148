"""`flock.archive`: workflows that have left the board, kept as Parquet and read with SQL."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from flock_ray.archive_files import (
    KINDS,
    ArchivePlace,
    activation_row,
    artifact_row,
    connect,
    literal,
    open_place,
    save,
    workflow_row,
    write_rows,
)
from flock_ray.artifact import Artifact
from flock_ray.core.rows import ERASED, ActivationRow, WorkflowRow
from flock_ray.core.wire import Envelope
from flock_ray.errors import ConfigurationError, StoreError

__all__ = ["Archive", "ArchiveChunk", "write_chunk"]

T = TypeVar("T")

MAX_ROWS = 10_000
"""Rows that a query returns unless it asks for more."""

IDENTITIES = {"artifacts": "id", "activations": "id", "workflows": "correlation_id, slot, created_at"}
"""What makes two rows of a kind the same thing."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class ArchiveChunk:
    """Rows that go into the archive together: many workflows, bounded by the size of their payloads."""

    def __init__(self) -> None:
        """Start empty."""
        self.rows: dict[tuple[str, str], list[tuple[Any, ...]]] = {}
        """By day and kind."""
        self.num_bytes = 0

    def add_artifact(self, flow: WorkflowRow, position: int, envelope: Envelope) -> None:
        """Add an artifact of a workflow."""
        self._put(flow, "artifacts", artifact_row(position, envelope))
        self.num_bytes += len(envelope.payload)

    def add_activation(self, flow: WorkflowRow, row: ActivationRow) -> None:
        """Add an activation of a workflow."""
        self._put(flow, "activations", activation_row(row))

    def add_workflow(self, flow: WorkflowRow) -> None:
        """Add the workflow itself; the last of its rows."""
        self._put(flow, "workflows", workflow_row(flow))

    def _put(self, flow: WorkflowRow, kind: str, row: tuple[Any, ...]) -> None:
        day = f"{_EPOCH + timedelta(microseconds=flow.updated_us):%Y-%m-%d}"
        self.rows.setdefault((day, kind), []).append(row)
        self.num_bytes += 200


def write_chunk(archive: str, board: str, shard: int, chunk: ArchiveChunk, now_us: int) -> None:
    """Write a chunk, in full before it returns; blocks. Safe to repeat: what is there twice is read once.

    Raises:
        ConfigurationError: See `open_place`.
        OSError: It can't be written there.
    """
    place = open_place(archive)
    copy = f"{now_us:020}-{uuid.uuid4().hex}"
    connection = connect()
    try:
        connection.execute("SET threads = 1")  # beside a shard
        with place.locked(board, exclusive=False):
            # The workflows last: they say that everything else is there.
            order = list(KINDS)
            for (day, kind), rows in sorted(chunk.rows.items(), key=lambda entry: order.index(entry[0][1])):

                def make(path: str, kind: str = kind, rows: list[tuple[Any, ...]] = rows) -> None:
                    write_rows(connection, path, kind, rows, now_us, copy)

                place.write(board, day, f"{kind}-{shard:04}-{copy}.parquet", make)
    finally:
        connection.close()


class Archive:
    """Reads the archived workflows of one board. Needs no running board."""

    def __init__(self, archive: str, board: str) -> None:
        """Read the archive of a board.

        Args:
            archive: Its folder or fsspec URL.
            board: Name of the board.
        """
        self._archive = archive
        self._board = board

    async def query(
        self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] | None = None, *, limit: int = MAX_ROWS
    ) -> list[dict[str, Any]]:
        """Answer one SELECT over the views `artifacts`, `activations` and `workflows`, in DuckDB's SQL.

        The query can't write, and can't read anything but these views. Times are UTC without a zone;
        `payload` is JSON text (`payload->>'$.name'`), `null` when it was erased.

        Args:
            sql: One SELECT; `?` or `$name` stand for parameters.
            parameters: Their values. Never paste values into the text.
            limit: Most rows that may come back.

        Raises:
            ConfigurationError: It is no single SELECT, fails, or has more rows than `limit`.
            StoreError: The archive can't be read.
        """
        return await self._run(lambda connection: _select(connection, sql, parameters, limit))

    async def workflow(self, correlation_id: str) -> list[Artifact]:
        """Return the artifacts of an archived workflow, the oldest first; empty when it is not archived.

        Raises:
            StoreError: The archive can't be read.
        """
        sql = (
            "SELECT * REPLACE (epoch_us(created_at) AS created_at) FROM artifacts"
            " WHERE correlation_id = ? ORDER BY epoch_us(created_at), position"
        )
        rows = await self._run(lambda connection: _rows(connection.execute(sql, [correlation_id]), None))
        return [Artifact.from_envelope(_envelope(row)) for row in rows]

    async def erase(
        self, ids: Collection[bytes], *, correlation_id: str | None = None, tags: Collection[str] = ()
    ) -> set[str]:
        """Replace the payloads of artifacts by a tombstone, rewriting the files that hold them; see `flock.erase`.

        Args:
            ids: Of these artifacts,
            correlation_id: or of this workflow; None: no workflow,
            tags: or with all of these tags; empty: no tags.

        Returns:
            Ids of those that are in the archive, erased before or now. Safe to repeat.

        Raises:
            StoreError: The archive can't be read or written.
        """
        names = [str(uuid.UUID(bytes=key)) for key in ids]
        return await self._in_thread(lambda: _erase(self._place(), self._board, names, correlation_id, tags))

    def _place(self) -> ArchivePlace:
        return open_place(self._archive)

    async def _run(self, ask: Callable[[Any], T]) -> T:
        def work() -> T:
            connection = _views(self._place(), self._board)
            try:
                return ask(connection)
            finally:
                connection.close()

        return await self._in_thread(work)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        import duckdb

        try:
            return await asyncio.to_thread(work)
        except (OSError, duckdb.Error) as error:
            raise StoreError(
                f"The archive of board {self._board!r} can't be read or written: {error}"
            ) from error


def _views(place: ArchivePlace, board: str) -> Any:
    """Return a connection with the views of a board, locked against everything else."""
    connection = place.connect()
    allowed: list[str] = []
    for kind, identity in IDENTITIES.items():
        files = place.files(board, kind)
        allowed += [name for file in files for name in place.allowed(file)]
        connection.execute(f"CREATE VIEW {kind} AS {_newest(kind, identity, files)}")
    if allowed:
        connection.execute(f"SET allowed_paths = [{', '.join(map(literal, allowed))}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def _newest(kind: str, identity: str, files: Sequence[str]) -> str:
    """Return the query of a view: of what was archived more than once, the newest copy."""
    if not files:
        columns = {**KINDS[kind], "archived_at": "TIMESTAMP"}
        return f"SELECT {', '.join(f'NULL::{t} AS {name}' for name, t in columns.items())} WHERE false"
    source = f"{_source(files)}"
    newest = f"(SELECT {identity}, max(copy) AS copy FROM {source} GROUP BY {identity})"
    return f"SELECT * EXCLUDE (copy) FROM {source} SEMI JOIN {newest} USING ({identity}, copy)"


def _source(files: Sequence[str], *options: str) -> str:
    given = ["union_by_name = true", "hive_partitioning = false", *options]
    return f"read_parquet([{', '.join(map(literal, files))}], {', '.join(given)})"


def _select(connection: Any, sql: str, parameters: Any, limit: int) -> list[dict[str, Any]]:
    import duckdb

    try:
        kinds = [statement.type for statement in connection.extract_statements(sql)]
        if kinds != [duckdb.StatementType.SELECT]:
            raise ConfigurationError("The archive answers one SELECT at a time and nothing else.")
        cursor = connection.execute(sql) if parameters is None else connection.execute(sql, parameters)
        rows = _rows(cursor, limit + 1)
    except duckdb.IOException:
        raise
    except duckdb.Error as error:
        raise ConfigurationError(f"The archive can't answer this query: {error}") from error
    if len(rows) > limit:
        raise ConfigurationError(f"The query has more than {limit} rows: add a LIMIT to it, or raise limit=.")
    return rows


def _rows(cursor: Any, limit: int | None) -> list[dict[str, Any]]:
    names = [column[0] for column in cursor.description]
    found = cursor.fetchall() if limit is None else cursor.fetchmany(limit)
    return [dict(zip(names, row, strict=True)) for row in found]


def _envelope(row: Mapping[str, Any]) -> Envelope:
    visibility, run = row["visibility"], row["activation_id"]
    return Envelope(
        uuid.UUID(row["id"]).bytes, row["type"], row["version"], row["payload"].encode(), row["correlation_id"],
        row["slot"], row["produced_by"], row["created_at"], tuple(row["tags"]),
        None if visibility is None else visibility.encode(), row["partition_key"],
        tuple(uuid.UUID(key).bytes for key in row["parents"]), None if run is None else uuid.UUID(run).bytes,
        row["priority"], tuple(row["via"]),
    )  # fmt: skip


_CONDITION = "(id IN (SELECT unnest($ids::VARCHAR[])) OR correlation_id = $flow OR (len($tags::VARCHAR[]) > 0"
_CONDITION += " AND list_has_all(tags, $tags::VARCHAR[])))"


def _erase(
    place: ArchivePlace, board: str, ids: list[str], correlation_id: str | None, tags: Collection[str]
) -> set[str]:
    erased: set[str] = set()
    given = {"ids": ids, "flow": correlation_id, "tags": list(tags)}
    with place.locked(board, exclusive=True):
        for file in place.files(board, "artifacts"):
            connection = place.connect()
            try:
                found = f"SELECT id, payload FROM {_source([file])} WHERE {_CONDITION}"
                rows = connection.execute(found, given).fetchall()
                erased |= {row[0] for row in rows}
                if any(payload != ERASED.decode() for _, payload in rows):
                    _rewrite(place, connection, file, given)
            finally:
                connection.close()
    return erased


def _rewrite(place: ArchivePlace, connection: Any, file: str, given: Mapping[str, Any]) -> None:
    tombstone = f"CASE WHEN {_CONDITION} THEN {literal(ERASED.decode())} ELSE payload END AS payload"
    connection.execute(f"CREATE TABLE kept AS SELECT * REPLACE ({tombstone}) FROM {_source([file])}", given)
    place.replace(file, lambda path: save(connection, "SELECT * FROM kept", path))
