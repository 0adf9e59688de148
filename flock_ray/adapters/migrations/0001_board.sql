-- The tables of all boards of a schema, and the views for analysts.
-- `{schema}` is the quoted name of the schema.
-- Rows carry `shard_id`, the number of a (board, shard) pair, so that index entries stay short.
-- Text columns hold the storable form of a text (postgres_rows.column_text); `meta` holds the exact value.

CREATE TABLE {schema}.boards (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE,
    num_shards integer NOT NULL CHECK (num_shards BETWEEN 1 AND 256),
    format integer NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- One row per writer: the lock and the epoch that fence it, and what must survive truncation.
CREATE TABLE {schema}.shards (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    board_id integer NOT NULL REFERENCES {schema}.boards (id),
    shard integer NOT NULL,
    epoch bigint NOT NULL DEFAULT 0,
    epoch_lsn bigint NOT NULL DEFAULT 0,
    last_lsn bigint NOT NULL DEFAULT 0,
    last_crc bigint NOT NULL DEFAULT 0,
    last_seq bigint NOT NULL DEFAULT 0,
    truncated_lsn bigint NOT NULL DEFAULT 0,
    audit_count bigint NOT NULL DEFAULT 0,
    audit_hash bytea NOT NULL DEFAULT '',
    UNIQUE (board_id, shard)
) WITH (fillfactor = 10);

CREATE TABLE {schema}.journal (
    shard_id integer NOT NULL,
    lsn bigint NOT NULL,
    epoch bigint NOT NULL,
    frame bytea NOT NULL,
    crc bigint NOT NULL,
    PRIMARY KEY (shard_id, lsn)
);
-- Compressing every frame costs more time than writing it.
ALTER TABLE {schema}.journal ALTER COLUMN frame SET STORAGE EXTERNAL;

CREATE TABLE {schema}.snapshots (
    shard_id integer NOT NULL,
    slot integer NOT NULL,
    lsn bigint NOT NULL,
    data bytea NOT NULL,
    crc bigint NOT NULL,
    PRIMARY KEY (shard_id, slot)
);
ALTER TABLE {schema}.snapshots ALTER COLUMN data SET STORAGE EXTERNAL;

-- JSON of a payload for queries, made when asked: keeping it as well would cost a third of the rate of appends.
-- NULL where jsonb can't hold it (\u0000, lone surrogates, huge numbers, deep nesting).
CREATE FUNCTION {schema}.payload_json(body bytea) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
BEGIN
    RETURN convert_from(body, 'UTF8')::jsonb;
EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
END
$$;

CREATE TABLE {schema}.artifact_rows (
    shard_id integer NOT NULL,
    seq bigint NOT NULL,
    id bytea NOT NULL,
    slot integer NOT NULL,
    type text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    correlation_id text COLLATE "C" NOT NULL,
    produced_by text COLLATE "C" NOT NULL,
    created_us bigint NOT NULL,
    tags text[] COLLATE "C" NOT NULL,
    visibility text COLLATE "C" NOT NULL,
    partition_key text COLLATE "C",
    activation_id bytea,
    priority bigint NOT NULL,
    crc bigint NOT NULL,
    meta bytea NOT NULL,
    body bytea NOT NULL,
    PRIMARY KEY (shard_id, seq),
    UNIQUE (shard_id, id)
);
CREATE INDEX artifact_rows_created ON {schema}.artifact_rows (shard_id, created_us, id);
CREATE INDEX artifact_rows_type ON {schema}.artifact_rows (shard_id, type, seq);
CREATE INDEX artifact_rows_type_created ON {schema}.artifact_rows (shard_id, type, created_us, id);
CREATE INDEX artifact_rows_workflow ON {schema}.artifact_rows (shard_id, correlation_id, seq);

-- A GIN index can't return the first page of a frequent tag in order: this can.
CREATE TABLE {schema}.artifact_tags (
    shard_id integer NOT NULL,
    tag text COLLATE "C" NOT NULL,
    seq bigint NOT NULL,
    created_us bigint NOT NULL,
    id bytea NOT NULL,
    PRIMARY KEY (shard_id, tag, seq)
);
CREATE INDEX artifact_tags_created ON {schema}.artifact_tags (shard_id, tag, created_us, id);

CREATE TABLE {schema}.activation_rows (
    shard_id integer NOT NULL,
    id bytea NOT NULL,
    lsn bigint NOT NULL,
    position integer NOT NULL,
    slot integer NOT NULL,
    correlation_id text COLLATE "C" NOT NULL,
    agent text COLLATE "C" NOT NULL,
    subscription text COLLATE "C" NOT NULL,
    inputs bytea[] NOT NULL,
    outputs bytea[] NOT NULL,
    created_us bigint NOT NULL,
    ended_us bigint NOT NULL,
    run_us bigint NOT NULL,
    attempt bigint NOT NULL,
    status text COLLATE "C" NOT NULL,
    error_type text NOT NULL,
    error_message text NOT NULL,
    meta bytea NOT NULL,
    PRIMARY KEY (shard_id, id)
);
CREATE INDEX activation_rows_workflow ON {schema}.activation_rows (shard_id, correlation_id, lsn, position);
CREATE INDEX activation_rows_ended ON {schema}.activation_rows (shard_id, ended_us);

CREATE TABLE {schema}.consumptions (
    shard_id integer NOT NULL,
    artifact_id bytea NOT NULL,
    activation_id bytea NOT NULL,
    PRIMARY KEY (shard_id, artifact_id, activation_id)
);

CREATE TABLE {schema}.workflow_rows (
    shard_id integer NOT NULL,
    id text COLLATE "C" NOT NULL,
    slot integer NOT NULL,
    created_us bigint NOT NULL,
    updated_us bigint NOT NULL,
    open bigint NOT NULL,
    waiting bigint NOT NULL,
    delayed bigint NOT NULL,
    errors bigint NOT NULL,
    cancelled boolean NOT NULL,
    artifacts bigint NOT NULL,
    meta bytea NOT NULL,
    PRIMARY KEY (shard_id, id, slot)
) WITH (autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX workflow_rows_settled ON {schema}.workflow_rows (shard_id, updated_us)
    WHERE open = 0 AND waiting = 0 AND delayed = 0;

CREATE TABLE {schema}.audit (
    shard_id integer NOT NULL,
    number bigint NOT NULL,
    at_us bigint NOT NULL,
    kind text NOT NULL,
    subject text NOT NULL,
    actor text NOT NULL,
    detail text NOT NULL,
    hash bytea NOT NULL,
    PRIMARY KEY (shard_id, number)
);

CREATE FUNCTION {schema}.refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'The audit log is append-only: % is refused.', TG_OP USING ERRCODE = 'insufficient_privilege';
END
$$;
CREATE TRIGGER audit_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {schema}.audit
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_audit_change();
-- Also for a session that replays a replica's changes.
ALTER TABLE {schema}.audit ENABLE ALWAYS TRIGGER audit_is_append_only;

-- What analysts read. Columns are only ever added at the end.

CREATE FUNCTION {schema}.uuids(ids bytea[]) RETURNS uuid[] LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT coalesce(array_agg(encode(i.id, 'hex')::uuid ORDER BY i.n), '{}')
    FROM unnest(ids) WITH ORDINALITY AS i (id, n)
$$;

CREATE VIEW {schema}.workflows AS
SELECT b.name AS board, s.shard, w.slot, w.id AS correlation_id,
    CASE
        WHEN w.cancelled THEN 'cancelled'
        WHEN w.open > 0 OR w.delayed > 0 THEN 'running'
        WHEN w.waiting > 0 THEN 'waiting'
        ELSE 'settled'
    END AS status,
    w.open, w.waiting, w.delayed, w.errors, w.artifacts,
    to_timestamp(w.created_us / 1e6) AS created_at, to_timestamp(w.updated_us / 1e6) AS updated_at
FROM {schema}.workflow_rows w
JOIN {schema}.shards s ON s.id = w.shard_id
JOIN {schema}.boards b ON b.id = s.board_id;

CREATE VIEW {schema}.artifacts AS
SELECT b.name AS board, s.shard, a.seq AS position, encode(a.id, 'hex')::uuid AS id, a.type, a.version,
    a.correlation_id, a.slot, a.partition_key, a.produced_by, encode(a.activation_id, 'hex')::uuid AS activation_id,
    to_timestamp(a.created_us / 1e6) AS created_at, a.tags, a.visibility, a.priority,
    {schema}.payload_json(a.body) AS payload
FROM {schema}.artifact_rows a
JOIN {schema}.shards s ON s.id = a.shard_id
JOIN {schema}.boards b ON b.id = s.board_id;

CREATE VIEW {schema}.activations AS
SELECT b.name AS board, s.shard, encode(a.id, 'hex')::uuid AS id, a.agent, a.subscription, a.correlation_id, a.slot,
    a.status, a.attempt, a.error_type, a.error_message, a.run_us / 1e6 AS run_seconds,
    to_timestamp(a.created_us / 1e6) AS created_at, to_timestamp(a.ended_us / 1e6) AS ended_at,
    {schema}.uuids(a.inputs) AS inputs, {schema}.uuids(a.outputs) AS outputs
FROM {schema}.activation_rows a
JOIN {schema}.shards s ON s.id = a.shard_id
JOIN {schema}.boards b ON b.id = s.board_id;

CREATE VIEW {schema}.usage AS
SELECT b.name AS board, (to_timestamp(a.ended_us / 1e6) AT TIME ZONE 'UTC')::date AS day, a.agent,
    count(*) AS runs, count(*) FILTER (WHERE a.status = 'failed') AS failures,
    sum(a.run_us) / 1e6 AS run_seconds
FROM {schema}.activation_rows a
JOIN {schema}.shards s ON s.id = a.shard_id
JOIN {schema}.boards b ON b.id = s.board_id
GROUP BY 1, 2, 3;
