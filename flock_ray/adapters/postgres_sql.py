"""The SQL statements of the Postgres store; `{schema}` stands for the quoted name of the schema.

A write is one statement where it can be: then no lock is ever held while PostgreSQL waits for the
client, and a client that was stopped in the middle blocks nobody.
"""

from __future__ import annotations

import re
from functools import cache, partial

_PLACE = re.compile(r"@(\d+)")

FIND_SHARD = """
SELECT s.id FROM {schema}.shards s JOIN {schema}.boards b ON b.id = s.board_id WHERE b.name = $1 AND s.shard = $2
"""

ACQUIRE = """
UPDATE {schema}.shards SET epoch = epoch + 1, epoch_lsn = last_lsn, owner = (epoch + 1) || ' ' || $2 WHERE id = $1
RETURNING epoch, audit_count, audit_hash
"""

OWNER = """
SELECT CASE WHEN starts_with(owner, epoch || ' ') THEN substr(owner, length(epoch::text) + 2) ELSE '' END
FROM {schema}.shards WHERE id = $1
"""

STATE = """
SELECT id, epoch, epoch_lsn, last_lsn, last_crc, last_seq, truncated_lsn, audit_count, audit_hash
FROM {schema}.shards WHERE id = $1
"""

# `writer` comes first in every branch: it takes the row lock, waits for whoever holds it, and then
# compares the epoch of the newest committed version. Without that row nothing else has rows to write.
_APPEND = """
WITH writer AS (
    UPDATE {schema}.shards
    SET last_lsn = $3, last_crc = $5, last_seq = greatest(last_seq, $6::bigint),
        audit_count = $8, audit_hash = $9
    WHERE id = $1 AND epoch = $2 AND last_lsn = $3 - 1 AND audit_count = $7
    RETURNING id
), frame AS (
    INSERT INTO {schema}.journal (shard_id, lsn, epoch, frame, crc)
    SELECT id, $3, $2, $4, $5 FROM writer
)"""

_APPEND_VALUES = 9

_ARTIFACTS = """, accepted AS (
    INSERT INTO {schema}.artifact_rows (
        shard_id, seq, id, slot, type, version, correlation_id, produced_by, created_us, visibility,
        partition_key, activation_id, priority, crc, meta, body, tags)
    SELECT writer.id, a.seq, a.id, a.slot, a.type, a.version, a.correlation_id, a.produced_by, a.created_us,
        a.visibility, a.partition_key, a.activation_id, a.priority, a.crc, a.meta, a.body, {tags}
    FROM writer, unnest(
        @1::bigint[], @2::bytea[], @3::int[], @4::text[], @5::bigint[], @6::text[], @7::text[], @8::bigint[],
        @9::text[], @10::text[], @11::bytea[], @12::bigint[], @13::bigint[], @14::bytea[], @15::bytea[]{more}
    ) AS a (seq, id, slot, type, version, correlation_id, produced_by, created_us, visibility,
        partition_key, activation_id, priority, crc, meta, body{names})
    ON CONFLICT (shard_id, id) DO NOTHING{returning}
)"""

_PLAIN = (
    _ARTIFACTS.replace("{tags}", "'{}'")
    .replace("{more}", "")
    .replace("{names}", "")
    .replace("{returning}", "")
)

_TAGGED = (
    (
        _ARTIFACTS.replace("{tags}", "a.tags::text[]")
        .replace("{more}", ", @16::text[]")
        .replace("{names}", ", tags")
        .replace("{returning}", "\n    RETURNING shard_id, seq, created_us, id, tags")
    )
    + """, tagged AS (
    INSERT INTO {schema}.artifact_tags (shard_id, tag, seq, created_us, id)
    SELECT a.shard_id, t.tag, a.seq, a.created_us, a.id FROM accepted a, unnest(a.tags) AS t (tag)
    ON CONFLICT DO NOTHING
)"""
)

_ACTIVATIONS = """, ended AS (
    INSERT INTO {schema}.activation_rows (
        shard_id, lsn, position, id, slot, correlation_id, agent, subscription, inputs, outputs, created_us,
        ended_us, run_us, attempt, status, error_type, error_message, meta)
    SELECT writer.id, $3, e.position, e.id, e.slot, e.correlation_id, e.agent, e.subscription,
        e.inputs::bytea[], e.outputs::bytea[], e.created_us, e.ended_us, e.run_us, e.attempt, e.status,
        e.error_type, e.error_message, e.meta
    FROM writer, unnest(
        @1::bytea[], @2::int[], @3::text[], @4::text[], @5::text[], @6::text[], @7::text[], @8::bigint[],
        @9::bigint[], @10::bigint[], @11::bigint[], @12::text[], @13::text[], @14::text[], @15::bytea[]
    ) WITH ORDINALITY AS e (id, slot, correlation_id, agent, subscription, inputs, outputs, created_us,
        ended_us, run_us, attempt, status, error_type, error_message, meta, position)
    ON CONFLICT (shard_id, id) DO UPDATE SET
        inputs = excluded.inputs, outputs = excluded.outputs, ended_us = excluded.ended_us,
        run_us = excluded.run_us, attempt = excluded.attempt, status = excluded.status,
        error_type = excluded.error_type, error_message = excluded.error_message, meta = excluded.meta
    RETURNING shard_id, id, inputs
), consumed AS (
    INSERT INTO {schema}.consumptions (shard_id, artifact_id, activation_id)
    SELECT e.shard_id, i.id, e.id FROM ended e, unnest(e.inputs) AS i (id)
    ON CONFLICT DO NOTHING
)"""

_WORKFLOWS = """, touched AS (
    INSERT INTO {schema}.workflow_rows (
        shard_id, id, slot, created_us, updated_us, open, waiting, delayed, errors, cancelled, artifacts, meta)
    SELECT writer.id, w.* FROM writer, unnest(
        @1::text[], @2::int[], @3::bigint[], @4::bigint[], @5::bigint[], @6::bigint[], @7::bigint[],
        @8::bigint[], @9::boolean[], @10::bigint[], @11::bytea[]
    ) AS w
    ON CONFLICT (shard_id, id, slot) DO UPDATE SET
        created_us = excluded.created_us, updated_us = excluded.updated_us, open = excluded.open,
        waiting = excluded.waiting, delayed = excluded.delayed, errors = excluded.errors,
        cancelled = excluded.cancelled, artifacts = excluded.artifacts, meta = excluded.meta
)"""

_AUDITED = """, audited AS (
    INSERT INTO {schema}.audit (shard_id, number, at_us, kind, subject, actor, detail, hash)
    SELECT writer.id, a.* FROM writer, unnest(
        @1::bigint[], @2::bigint[], @3::text[], @4::text[], @5::text[], @6::text[], @7::bytea[]
    ) AS a
)"""

_PARTS = {
    "artifacts": (_PLAIN, 15),
    "tagged artifacts": (_TAGGED, 16),
    "activations": (_ACTIVATIONS, 15),
    "workflows": (_WORKFLOWS, 11),
    "audit": (_AUDITED, 7),
}
"""Text and number of values."""


@cache
def append_statement(parts: tuple[str, ...]) -> str:
    """Return the statement that appends a batch with these kinds of rows; a part left out costs nothing.

    Args:
        parts: Of `artifacts` or `tagged artifacts`, `activations`, `workflows` and `audit`. The values follow
            those of the batch itself in the same order.
    """
    text, used = _APPEND, _APPEND_VALUES
    for part in parts:
        template, size = _PARTS[part]
        text += _PLACE.sub(partial(_number, used), template)
        used += size
    return text + " SELECT 1 FROM writer"


def _number(used: int, place: re.Match[str]) -> str:
    return f"${used + int(place[1])}"


FIND_FRAME = "SELECT crc FROM {schema}.journal WHERE shard_id = $1 AND lsn = $2"

FRAMES = """
SELECT lsn, frame, crc FROM {schema}.journal WHERE shard_id = $1 AND lsn > $2 ORDER BY lsn LIMIT $3
"""

SNAPSHOTS = """
SELECT slot, lsn, data, crc FROM {schema}.snapshots WHERE shard_id = $1 AND slot > $2 ORDER BY slot LIMIT $3
"""

SAVE_SNAPSHOTS = """
WITH writer AS MATERIALIZED (
    SELECT id FROM {schema}.shards WHERE id = $1 AND epoch = $2 FOR NO KEY UPDATE
), saved AS (
    INSERT INTO {schema}.snapshots AS s (shard_id, slot, lsn, data, crc)
    SELECT writer.id, n.* FROM writer, unnest($3::int[], $4::bigint[], $5::bytea[], $6::bigint[]) AS n
    ON CONFLICT (shard_id, slot) DO UPDATE SET lsn = excluded.lsn, data = excluded.data, crc = excluded.crc
        WHERE s.lsn <= excluded.lsn
)
SELECT 1 FROM writer
"""

TRUNCATE = """
WITH writer AS (
    UPDATE {schema}.shards SET truncated_lsn = greatest(truncated_lsn, least($3::bigint, last_lsn))
    WHERE id = $1 AND epoch = $2
    RETURNING id, truncated_lsn
), dropped AS (
    DELETE FROM {schema}.journal j USING writer WHERE j.shard_id = writer.id AND j.lsn <= writer.truncated_lsn
)
SELECT 1 FROM writer
"""

LOCK_WRITER = """
SELECT audit_count, audit_hash FROM {schema}.shards WHERE id = $1 AND epoch = $2 FOR NO KEY UPDATE
"""

REMOVE_WORKFLOWS = """
WITH gone AS (
    DELETE FROM {schema}.workflow_rows w USING unnest($2::int[], $3::text[]) AS r (slot, id)
    WHERE w.shard_id = $1 AND w.id = r.id AND w.slot = r.slot
        AND w.open = 0 AND w.waiting = 0 AND w.delayed = 0
    RETURNING w.id, w.slot
), artifacts AS (
    DELETE FROM {schema}.artifact_rows a USING gone
    WHERE a.shard_id = $1 AND a.correlation_id = gone.id AND a.slot = gone.slot
    RETURNING a.seq, a.tags, a.correlation_id, a.slot
), tags AS (
    DELETE FROM {schema}.artifact_tags t USING (SELECT seq, unnest(tags) AS tag FROM artifacts) AS a
    WHERE t.shard_id = $1 AND t.tag = a.tag AND t.seq = a.seq
), activations AS (
    DELETE FROM {schema}.activation_rows a USING gone
    WHERE a.shard_id = $1 AND a.correlation_id = gone.id AND a.slot = gone.slot
    RETURNING a.id, a.inputs
), consumptions AS (
    DELETE FROM {schema}.consumptions c USING (SELECT id, unnest(inputs) AS artifact FROM activations) AS a
    WHERE c.shard_id = $1 AND c.artifact_id = a.artifact AND c.activation_id = a.id
)
SELECT gone.id, gone.slot, count(artifacts.seq) AS artifacts
FROM gone LEFT JOIN artifacts ON artifacts.correlation_id = gone.id AND artifacts.slot = gone.slot
GROUP BY gone.id, gone.slot ORDER BY gone.id, gone.slot
"""

ERASE = """
UPDATE {schema}.artifact_rows a SET body = $4, crc = e.crc
FROM unnest($2::bytea[], $3::bigint[]) AS e (id, crc)
WHERE a.shard_id = $1 AND a.id = e.id
RETURNING a.id
"""

AUDIT = """
WITH head AS (
    UPDATE {schema}.shards SET audit_count = $2, audit_hash = $3 WHERE id = $1
)
INSERT INTO {schema}.audit (shard_id, number, at_us, kind, subject, actor, detail, hash)
SELECT $1, a.* FROM unnest(
    $4::bigint[], $5::bigint[], $6::text[], $7::text[], $8::text[], $9::text[], $10::bytea[]
) AS a
"""

BODIES = "SELECT id, crc, body FROM {schema}.artifact_rows WHERE shard_id = $1 AND id = ANY ($2::bytea[])"

ARTIFACTS = """
SELECT seq, id, crc, meta, body FROM {schema}.artifact_rows WHERE shard_id = $1 AND id = ANY ($2::bytea[])
"""

# One array: a hundred thousand rows take the client ten times as long.
RECENT_IDS = """
SELECT coalesce(array_agg(id ORDER BY seq), '{}') FROM (
    SELECT id, seq FROM {schema}.artifact_rows WHERE shard_id = $1 ORDER BY seq DESC LIMIT $2) AS recent
"""

META = "SELECT meta FROM {schema}.artifact_rows WHERE shard_id = $1 AND seq = $2"

WORKFLOWS = """
SELECT meta FROM {schema}.workflow_rows WHERE shard_id = $1 AND id = ANY ($2::text[]) ORDER BY id, slot
"""

ACTIVATIONS = """
SELECT meta FROM {schema}.activation_rows WHERE shard_id = $1 AND correlation_id = $2
ORDER BY lsn, position LIMIT $3
"""

CONSUMPTIONS = """
SELECT a.meta FROM {schema}.activation_rows a
WHERE a.shard_id = $1 AND a.id IN (
    SELECT c.activation_id FROM {schema}.consumptions c WHERE c.shard_id = $1 AND c.artifact_id = ANY ($2::bytea[]))
ORDER BY a.lsn, a.position
"""

SETTLED = """
SELECT meta FROM {schema}.workflow_rows
WHERE shard_id = $1 AND open = 0 AND waiting = 0 AND delayed = 0 AND updated_us < $2
    AND updated_us >= $4 AND (updated_us, slot, id) > ($4, $5, $6)
ORDER BY updated_us, slot, id LIMIT $3
"""

FIND_BOARD = "SELECT id, num_shards, format FROM {schema}.boards WHERE name = $1"

CREATE_BOARD = """
INSERT INTO {schema}.boards (name, num_shards, format) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING
"""

CREATE_SHARDS = """
INSERT INTO {schema}.shards (board_id, shard) SELECT $1, n FROM generate_series(0, $2::int - 1) AS n
ON CONFLICT (board_id, shard) DO NOTHING
"""

AUDIT_HEADS = """
SELECT b.num_shards, s.id, s.shard, s.audit_count, s.audit_hash
FROM {schema}.boards b JOIN {schema}.shards s ON s.board_id = b.id WHERE b.name = $1 ORDER BY s.shard
"""

AUDIT_ENTRIES = """
SELECT number, at_us, kind, subject, actor, detail, hash FROM {schema}.audit
WHERE shard_id = $1 AND number > $2 AND number <= $3 ORDER BY number LIMIT $4
"""

AUDIT_BEYOND = """
SELECT min(a.number) FROM {schema}.shards s JOIN {schema}.audit a ON a.shard_id = s.id AND a.number > s.audit_count
WHERE s.id = $1
"""
