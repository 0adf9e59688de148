"""Appends micro-batches to a SQLite shard. Everything is encoded before the file's write lock is taken."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from zlib import crc32

from flock_ray.adapters.audit_trail import batch_facts
from flock_ray.adapters.sqlite_audit import add_facts
from flock_ray.adapters.sqlite_files import ShardFile
from flock_ray.adapters.sqlite_rows import artifact_crc, encode, encode_meta, frame_crc, id_hash, text_hash
from flock_ray.adapters.sqlite_schema import (
    ARTIFACT,
    ERA_BITS,
    OF_WORKFLOW,
    RUN_OF_INPUT,
    RUN_OF_WORKFLOW,
    WORKFLOW,
)
from flock_ray.core.rows import ActivationRow, StoreBatch, WorkflowRow, visibility_kind
from flock_ray.core.wire import Envelope
from flock_ray.errors import StaleEpochError

Kinds = dict[tuple[str, str, str], int]
"""Number of each (type, producer, visibility kind) that was ever stored."""

Posting = tuple[int, int, int]
"""(hash, what, number)"""

MAX_KNOWN = 100_000
"""Workflows whose row an appender knows where to find."""


@contextmanager
def transaction(connection: sqlite3.Connection, *, write: bool = True) -> Iterator[None]:
    """Commit what happens inside; the lane rolls back when it raises."""
    connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
    yield
    connection.execute("COMMIT")


def check_epoch(connection: sqlite3.Connection, epoch: int) -> None:
    """Refuse a writer that was replaced, or never acquired; call it inside a write transaction."""
    (current,) = connection.execute("SELECT epoch FROM journal").fetchone()
    if not epoch or epoch != current:
        raise StaleEpochError


def read_kinds(connection: sqlite3.Connection) -> Kinds:
    """Return the numbers of all kinds: they count from 0 and never change."""
    rows = connection.execute("SELECT type, produced_by, visibility, kind FROM kinds").fetchall()
    return {(type_, producer, visibility): number for type_, producer, visibility, number in rows}


class Appender:
    """Writes the batches of one epoch; remembers the numbers of kinds and workflows between them."""

    def __init__(self, file: ShardFile, epoch: int, *, audited: bool = False) -> None:
        """Say which file, in whose name, and whether the file's audit log is kept."""
        self._file = file
        self._epoch = epoch
        self._audited = audited
        self._kinds: Kinds = {}
        self._known: dict[tuple[int, str], int] = {}

    def forget(self) -> None:
        """Forget where workflows are: some were removed."""
        self._known.clear()

    def append(self, connection: sqlite3.Connection, batch: StoreBatch) -> None:
        """Store a batch, or find that it is there."""
        crc = frame_crc(batch.lsn, self._epoch, batch.frame)
        artifacts = [_artifact_row(seq, envelope) for seq, envelope in batch.artifacts]
        runs = [_activation_row(row) for row in batch.activations]
        flows = {(row.slot, row.id): _workflow_row(row) for row in batch.workflows}
        facts = batch_facts(batch) if self._audited else []
        with transaction(connection):
            check_epoch(connection, self._epoch)
            advanced = self._advance(connection, batch, crc)
            if advanced is None:
                return
            era, first_run = advanced
            fresh = self._fresh(connection, flows)
            postings = [
                *_postings(batch, first_run),
                *((text_hash(key[1]), WORKFLOW, n) for key, n in fresh.items()),
            ]
            postings.sort()  # each page of the index is then visited once
            many = connection.executemany
            connection.execute(
                "INSERT INTO frames VALUES (?, ?, ?, ?)", (batch.lsn, self._epoch, crc, batch.frame)
            )
            self._insert_artifacts(connection, batch, artifacts)
            many(
                "INSERT INTO activations VALUES (?, ?, ?, ?, ?)",
                [(n, *r) for n, r in enumerate(runs, first_run)],
            )
            many(
                "INSERT OR IGNORE INTO postings VALUES (?, ?, ?, ?)",
                [(era, *posting) for posting in postings],
            )
            many(
                "INSERT OR REPLACE INTO workflows VALUES (?, ?, ?, ?, ?, ?)",
                [(fresh.get(key) or self._known[key], *row) for key, row in flows.items()],
            )
            many(
                "INSERT INTO decisions (lsn, at_us, kind, subject, actor, detail) VALUES (?, ?, ?, ?, ?, ?)",
                [(batch.lsn, d.at_us, d.kind, d.subject, d.actor, d.detail) for d in batch.decisions],
            )
            add_facts(connection, self._file, facts)
        if len(self._known) > MAX_KNOWN:
            self._known.clear()
        self._known |= fresh

    def _advance(self, connection: sqlite3.Connection, batch: StoreBatch, crc: int) -> tuple[int, int] | None:
        """Count the batch, and return its era and the number of its first activation; None: it is there already."""
        last = connection.execute(
            "SELECT last_lsn, last_epoch, last_crc, last_seq, last_activation FROM journal"
        ).fetchone()
        if batch.lsn != last[0] + 1:
            find = "SELECT lsn, epoch, crc FROM frames WHERE lsn = ?"
            if (batch.lsn, self._epoch, crc) in (last[:3], connection.execute(find, (batch.lsn,)).fetchone()):
                return None
            raise self._file.damaged(f"batch {batch.lsn} does not follow batch {last[0]}, or is another one")
        seq = batch.artifacts[-1][0] if batch.artifacts else last[3]
        connection.execute(
            "UPDATE journal SET last_lsn = ?, last_epoch = ?, last_crc = ?, last_seq = ?, last_activation = ?",
            (batch.lsn, self._epoch, crc, seq, last[4] + len(batch.activations)),
        )
        era = (last[3] + last[4]) >> ERA_BITS
        connection.execute("INSERT OR IGNORE INTO eras VALUES (?)", (era,))
        return era, last[4] + 1

    def _fresh(
        self, connection: sqlite3.Connection, keys: Iterable[tuple[int, str]]
    ) -> dict[tuple[int, str], int]:
        """Number the workflows whose row is not known.

        One of them may have a row all the same, from before this epoch. To look for it would cost more
        than a second row does: the row with the highest number counts.
        """
        unknown = [key for key in keys if key not in self._known]
        (last,) = connection.execute("SELECT coalesce(max(number), 0) FROM workflows").fetchone()
        return {key: number for number, key in enumerate(unknown, last + 1)}

    def _insert_artifacts(
        self, connection: sqlite3.Connection, batch: StoreBatch, rows: list[tuple[Any, ...]]
    ) -> None:
        wanted = {row[1] for row in rows}
        if not wanted <= self._kinds.keys():
            self._kinds = read_kinds(connection)
        kinds = self._kinds
        if fresh := sorted(wanted - kinds.keys()):
            # They are remembered when they are read back, not before they are committed.
            numbers = {kind: number for number, kind in enumerate(fresh, len(kinds))}
            connection.executemany(
                "INSERT INTO kinds VALUES (?, ?, ?, ?)", [(number, *kind) for kind, number in numbers.items()]
            )
            kinds = kinds | numbers
        connection.executemany(
            "INSERT INTO artifacts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [(seq, kinds[kind], *row) for seq, kind, *row in rows],
        )
        connection.executemany(
            "INSERT OR IGNORE INTO tags VALUES (?, ?, ?, ?, ?)",
            [
                (tag, seq, envelope.created_us, envelope.id, kinds[_kind(envelope)])
                for seq, envelope in batch.artifacts
                for tag in envelope.tags
            ],
        )


def _kind(envelope: Envelope) -> tuple[str, str, str]:
    return envelope.type, envelope.produced_by, visibility_kind(envelope.visibility)


def _artifact_row(seq: int, envelope: Envelope) -> tuple[Any, ...]:
    """Return the row, with the kind itself in place of its number."""
    meta, payload = encode_meta(envelope), envelope.payload
    return (
        seq,
        _kind(envelope),
        envelope.id,
        envelope.correlation_id,
        envelope.slot,
        envelope.created_us,
        artifact_crc(meta, payload),
        meta,
        payload,
    )


def _activation_row(row: ActivationRow) -> tuple[Any, ...]:
    """Return the row without its number."""
    data = encode(row)
    return row.slot, row.correlation_id, crc32(data), data


def _workflow_row(row: WorkflowRow) -> tuple[Any, ...]:
    """Return the row without its number."""
    data = encode(row)
    return row.id, row.slot, row.updated_us if row.settled else None, crc32(data), data


def _postings(batch: StoreBatch, first_run: int) -> Iterator[Posting]:
    """Yield what leads to the artifacts and activations of a batch."""
    for seq, envelope in batch.artifacts:
        yield id_hash(envelope.id), ARTIFACT, seq
        yield text_hash(envelope.correlation_id), OF_WORKFLOW, seq
    for number, row in enumerate(batch.activations, first_run):
        yield text_hash(row.correlation_id), RUN_OF_WORKFLOW, number
        for key in row.inputs:
            yield id_hash(key), RUN_OF_INPUT, number
