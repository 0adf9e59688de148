"""The statements that answer an `ArtifactQuery`. Whatever a user gave is a bound parameter.

One condition drives each statement, so that the first page comes in order out of one index: a tag,
else the workflow, else the type. The others filter what that index gives.
"""

from __future__ import annotations

from flock_ray.adapters.postgres_rows import column_key
from flock_ray.core.rows import ArtifactQuery

_COLUMNS = "a.seq, a.id, a.crc, a.meta, a.body"


class _Statement:
    """The conditions of a query as SQL; `$1` is the shard."""

    def __init__(self, query: ArtifactQuery) -> None:
        self.values: list[object] = []
        self.tagged = bool(query.tags)
        self.in_workflow = query.correlation_id is not None
        conditions = ["a.shard_id = $1"]
        if query.tags:
            tags = sorted({column_key(tag) for tag in query.tags})
            conditions.append(f"t.tag = {self.bind(tags[0])}")
            if tags[1:]:
                conditions.append(f"a.tags @> {self.bind(tags[1:])}::text[]")
        if query.correlation_id is not None:
            conditions.append(f"a.correlation_id = {self.bind(column_key(query.correlation_id))}")
        self.types = sorted({column_key(type_) for type_ in query.types})
        if len(self.types) == 1:
            conditions.append(f"a.type = {self.bind(self.types[0])}")
        for column, allowed in (("produced_by", query.produced_by), ("visibility", query.visibility)):
            if allowed:
                conditions.append(
                    f"a.{column} = ANY ({self.bind([column_key(text) for text in allowed])}::text[])"
                )
        if query.start_us is not None:
            conditions.append(f"a.created_us >= {self.bind(query.start_us)}::bigint")
        if query.end_us is not None:
            conditions.append(f"a.created_us <= {self.bind(query.end_us)}::bigint")
        self.conditions = conditions

    def bind(self, value: object) -> str:
        """Add a parameter and return its name."""
        self.values.append(value)
        return f"${len(self.values) + 1}"

    def source(self) -> str:
        """Return what follows FROM."""
        if self.tagged:
            return "{schema}.artifact_tags t JOIN {schema}.artifact_rows a ON a.shard_id = t.shard_id AND a.seq = t.seq"
        return "{schema}.artifact_rows a"

    def where(self, *more: str) -> str:
        """Return every condition."""
        shard = ("t.shard_id = $1",) if self.tagged else ()
        return " AND ".join((*shard, *self.conditions, *more))

    def any_type(self) -> str:
        """Return the condition for several types."""
        return f"a.type = ANY ({self.bind(self.types)}::text[])"

    def ordered(self, columns: str, order: str, more: list[str], size: int, skipped: int = 0) -> str:
        """Return the rows in an order, `size` of them behind the first `skipped`."""
        limit, offset = (f"{self.bind(number)}::bigint" for number in (size, skipped))
        end = f"ORDER BY {order} LIMIT {limit} OFFSET {offset}"
        if len(self.types) < 2:
            return f"SELECT {columns} FROM {self.source()} WHERE {self.where(*more)} {end}"
        if self.tagged or self.in_workflow:
            return f"SELECT {columns} FROM {self.source()} WHERE {self.where(self.any_type(), *more)} {end}"
        # Several types come in order from one index scan each, but not from one scan of them all.
        types = self.bind(self.types)
        return (
            f"SELECT {columns} FROM unnest({types}::text[]) AS wanted (type), LATERAL ("
            f"SELECT a.* FROM {self.source()} WHERE {self.where('a.type = wanted.type', *more)} "
            f"ORDER BY {order} LIMIT {limit} + {offset}) AS a {end}"
        )


def read_query(query: ArtifactQuery, after: int, limit: int) -> tuple[str, list[object]]:
    """Return statement and values for the first artifacts behind a feed position."""
    statement = _Statement(query)
    position = "t.seq" if statement.tagged else "a.seq"
    behind = f"{position} > {statement.bind(after)}::bigint"
    return statement.ordered(_COLUMNS, position, [behind], limit), statement.values


def page_query(
    query: ArtifactQuery, limit: int, offset: int, behind: tuple[int, bytes] | None
) -> tuple[str, list[object]]:
    """Return statement and values for artifacts by (creation time, id), from an offset or behind the last one."""
    statement = _Statement(query)
    source = "t" if statement.tagged else "a"
    more: list[str] = []
    if behind is not None:
        created_us, id_ = (statement.bind(value) for value in behind)
        more = [f"({source}.created_us, {source}.id) > ({created_us}::bigint, {id_}::bytea)"]
    return statement.ordered(
        _COLUMNS, f"{source}.created_us, {source}.id", more, limit, offset
    ), statement.values


def newest_query(
    query: ArtifactQuery, limit: int, before: tuple[int, bytes] | None
) -> tuple[str, list[object]]:
    """Return statement and values for artifacts by (creation time, id) downward, all or those below one."""
    statement = _Statement(query)
    source = "t" if statement.tagged else "a"
    more: list[str] = []
    if before is not None:
        created_us, id_ = (statement.bind(value) for value in before)
        more = [f"({source}.created_us, {source}.id) < ({created_us}::bigint, {id_}::bytea)"]
    order = f"{source}.created_us DESC, {source}.id DESC"
    return statement.ordered(_COLUMNS, order, more, limit), statement.values


def count_query(query: ArtifactQuery) -> tuple[str, list[object]]:
    """Return statement and values for the number of artifacts."""
    statement = _Statement(query)
    more = (statement.any_type(),) if len(statement.types) > 1 else ()
    return f"SELECT count(*) FROM {statement.source()} WHERE {statement.where(*more)}", statement.values


def summary_queries(query: ArtifactQuery) -> tuple[str, str, list[object]]:
    """Return the statements that count by columns and by tag, each with the first position, and the values of both."""
    statement = _Statement(query)
    more = (statement.any_type(),) if len(statement.types) > 1 else ()
    chosen = f"FROM {statement.source()} WHERE {statement.where(*more)}"
    by_columns = (
        "SELECT a.type, a.produced_by, a.visibility, count(*), min(a.created_us), max(a.created_us), min(a.seq) "
        f"{chosen} GROUP BY a.type, a.produced_by, a.visibility"
    )
    by_tag = (
        "SELECT c.tag, count(*), min(c.seq) FROM {schema}.artifact_tags c "
        f"WHERE c.shard_id = $1 AND c.seq IN (SELECT a.seq {chosen}) GROUP BY c.tag"
    )
    return by_columns, by_tag, statement.values
