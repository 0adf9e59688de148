"""The tables of a SQLite board, and what marks its files as ours."""

from __future__ import annotations

APPLICATION_ID = 0x464C_4F43
"""`FLOC`, at byte 68 of every file."""

FORMAT = 1
"""Version of these tables (`user_version`); raise it with a migration."""

BOARD_SCHEMA = """
CREATE TABLE board (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    name       TEXT    NOT NULL,
    num_shards INTEGER NOT NULL
);
"""

ERA_BITS = 12
"""Artifacts and activations of an era, as a power of two.

Ids and names are spread like hashes: an index on them alone would change a page anywhere in the file for
each row, and those page writes were most of the cost of an append. So there is one such index, `postings`,
for all of them, and it starts with the era: a batch only changes pages of the newest one. A lookup asks
every era, the newest first. Its hashes are short: whoever follows one compares what it leads to.
"""

ARTIFACT, OF_WORKFLOW, RUN_OF_WORKFLOW, RUN_OF_INPUT, WORKFLOW = range(5)
"""What a posting leads to: artifact by id, artifact by workflow, activation by workflow, by input, workflow by id."""

SHARD_SCHEMA = """
CREATE TABLE journal (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    board      TEXT    NOT NULL,
    shard      INTEGER NOT NULL,
    epoch      INTEGER NOT NULL DEFAULT 0,
    last_lsn   INTEGER NOT NULL DEFAULT 0,
    last_epoch INTEGER NOT NULL DEFAULT 0,
    last_crc   INTEGER NOT NULL DEFAULT 0,
    last_seq   INTEGER NOT NULL DEFAULT 0,
    last_activation INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE frames (
    lsn   INTEGER PRIMARY KEY,
    epoch INTEGER NOT NULL,
    crc   INTEGER NOT NULL,
    data  BLOB    NOT NULL
);
CREATE TABLE snapshots (
    slot INTEGER PRIMARY KEY,
    lsn  INTEGER NOT NULL,
    crc  INTEGER NOT NULL,
    data BLOB    NOT NULL
);
CREATE TABLE kinds (
    kind        INTEGER PRIMARY KEY,
    type        TEXT NOT NULL,
    produced_by TEXT NOT NULL,
    visibility  TEXT NOT NULL
);
CREATE TABLE eras (era INTEGER PRIMARY KEY);
CREATE TABLE artifacts (
    seq            INTEGER PRIMARY KEY,
    kind           INTEGER NOT NULL,
    id             BLOB    NOT NULL,
    correlation_id TEXT    NOT NULL,
    slot           INTEGER NOT NULL,
    created_us     INTEGER NOT NULL,
    crc            INTEGER NOT NULL,
    meta           BLOB    NOT NULL,
    payload        BLOB    NOT NULL
);
CREATE INDEX artifacts_time ON artifacts (created_us, id);
CREATE INDEX artifacts_kind ON artifacts (kind);
CREATE INDEX artifacts_kind_time ON artifacts (kind, created_us, id);
CREATE TABLE tags (
    tag        TEXT    NOT NULL,
    seq        INTEGER NOT NULL,
    created_us INTEGER NOT NULL,
    id         BLOB    NOT NULL,
    kind       INTEGER NOT NULL,
    PRIMARY KEY (tag, seq)
) WITHOUT ROWID;
CREATE INDEX tags_time ON tags (tag, created_us, id);
CREATE TABLE activations (
    number         INTEGER PRIMARY KEY,
    slot           INTEGER NOT NULL,
    correlation_id TEXT    NOT NULL,
    crc            INTEGER NOT NULL,
    data           BLOB    NOT NULL
);
CREATE TABLE postings (
    era    INTEGER NOT NULL,
    hash   INTEGER NOT NULL,
    what   INTEGER NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (era, hash, what, number)
) WITHOUT ROWID;
CREATE TABLE workflows (
    number     INTEGER PRIMARY KEY,
    id         TEXT    NOT NULL,
    slot       INTEGER NOT NULL,
    settled_us INTEGER,
    crc        INTEGER NOT NULL,
    data       BLOB    NOT NULL
);
CREATE INDEX workflows_settled ON workflows (settled_us) WHERE settled_us IS NOT NULL;
CREATE TABLE decisions (
    number  INTEGER PRIMARY KEY,
    lsn     INTEGER NOT NULL,
    at_us   INTEGER NOT NULL,
    kind    TEXT    NOT NULL,
    subject TEXT    NOT NULL,
    actor   TEXT    NOT NULL,
    detail  TEXT    NOT NULL
);
"""
