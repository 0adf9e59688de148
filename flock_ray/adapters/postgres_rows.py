"""Rows of the store as columns of PostgreSQL, and back.

`meta` holds what a row says exactly, as msgpack behind its checksum; the columns beside it are for
indexes and analysts. Their texts are changed where PostgreSQL could not store or index them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any
from zlib import crc32

import msgspec

from flock_ray.core.rows import ActivationRow, Snapshot, WorkflowRow, visibility_kind
from flock_ray.core.wire import Envelope
from flock_ray.errors import StoreCorruptError

_MAX_KEY_CHARS = 200
"""An index entry holds at most about 2,700 bytes: 200 characters are 800 of them."""

_CRC_BYTES = 4

_encode = msgspec.msgpack.Encoder().encode
_decode_envelope = msgspec.msgpack.Decoder(Envelope).decode
_decode_activation = msgspec.msgpack.Decoder(ActivationRow).decode
_decode_workflow = msgspec.msgpack.Decoder(WorkflowRow).decode


def column_text(text: str) -> str:
    """Return a text without NUL, which PostgreSQL can't store; different texts stay different."""
    if "\x00" in text or "␀" in text:
        return text.replace("␀", "␀␀").replace("\x00", "␀0")
    return text


@lru_cache(maxsize=16_384)
def column_key(text: str) -> str:
    """Return a text as it is stored in an indexed column: one that is too long becomes its start and a hash."""
    text = column_text(text)
    if len(text) <= _MAX_KEY_CHARS:
        return text
    return f"{text[:_MAX_KEY_CHARS]}…{blake2b(text.encode(), digest_size=16).hexdigest()}"


def is_cut(column: str) -> bool:
    """Say whether an indexed column holds only the start of a text."""
    return len(column) > _MAX_KEY_CHARS


def key_text(column: str) -> str:
    """Undo `column_key`, but for texts that were cut."""
    return column.replace("␀0", "\x00").replace("␀␀", "␀") if "␀" in column else column


def array_literal(texts: Iterable[str]) -> str:
    """Write texts as an array in PostgreSQL's own notation: arrays of unequal length can't be parameters otherwise."""
    quoted = (text.replace("\\", "\\\\").replace('"', '\\"') for text in texts)
    return '{"' + '","'.join(quoted) + '"}'


def frame_crc(lsn: int, frame: bytes) -> int:
    """Return the checksum of a frame and its number."""
    return crc32(frame, crc32(lsn.to_bytes(8, "big", signed=True)))


def snapshot_crc(snapshot: Snapshot) -> int:
    """Return the checksum of a snapshot, its slot and its batch."""
    place = snapshot.slot.to_bytes(4, "big", signed=True) + snapshot.lsn.to_bytes(8, "big", signed=True)
    return crc32(snapshot.data, crc32(place))


def body_crc(artifact: bytes, body: bytes) -> int:
    """Return the checksum of a payload and the id of its artifact."""
    return crc32(body, crc32(artifact))


def _seal(data: bytes) -> bytes:
    return crc32(data).to_bytes(_CRC_BYTES, "big") + data


def _unseal(sealed: bytes, where: str) -> memoryview:
    data = memoryview(sealed)[_CRC_BYTES:]
    if len(sealed) < _CRC_BYTES or int.from_bytes(sealed[:_CRC_BYTES], "big") != crc32(data):
        raise damaged(where)
    return data


def damaged(where: str) -> StoreCorruptError:
    """Make the error for something that does not fit its checksum."""
    return StoreCorruptError(
        f"{where} does not fit its checksum: it was damaged. Restore it from a backup; nothing was changed."
    )


def artifact_columns(artifacts: Sequence[tuple[int, Envelope]]) -> list[list[Any]]:
    """Return the columns of `artifact_rows`, in the order of the statements."""
    envelopes = [envelope for _, envelope in artifacts]
    return [
        [seq for seq, _ in artifacts],
        [e.id for e in envelopes],
        [e.slot for e in envelopes],
        [column_key(e.type) for e in envelopes],
        [e.version for e in envelopes],
        [column_key(e.correlation_id) for e in envelopes],
        [column_key(e.produced_by) for e in envelopes],
        [e.created_us for e in envelopes],
        [visibility_kind(e.visibility) for e in envelopes],
        [None if e.partition_key is None else column_key(e.partition_key) for e in envelopes],
        [e.activation_id for e in envelopes],
        [e.priority for e in envelopes],
        [body_crc(e.id, e.payload) for e in envelopes],
        [_seal(_encode(msgspec.structs.replace(e, payload=b""))) for e in envelopes],
        [e.payload for e in envelopes],
    ]


def tag_column(artifacts: Sequence[tuple[int, Envelope]]) -> list[str]:
    """Return the tags of artifacts, each as one text."""
    return [array_literal(map(column_key, e.tags)) if e.tags else "{}" for _, e in artifacts]


def restore_artifact(row: Any, where: str) -> tuple[int, Envelope]:
    """Return (feed position, artifact) of a row with `seq`, `id`, `crc`, `meta` and `body`.

    Raises:
        StoreCorruptError: The row was damaged; names it.
    """
    seq, id_, crc, meta, body = row
    if body_crc(id_, body) != crc:
        raise damaged(f"{where}, payload of artifact {id_.hex()},")
    envelope = restore_envelope(meta, f"{where}, envelope of artifact {id_.hex()},")
    return seq, msgspec.structs.replace(envelope, payload=body)


def restore_envelope(meta: bytes, where: str) -> Envelope:
    """Return an artifact without its payload from its `meta`.

    Raises:
        StoreCorruptError: The row was damaged.
    """
    return _decode_envelope(_unseal(meta, where))


def activation_columns(activations: Iterable[ActivationRow]) -> list[list[Any]]:
    """Return the columns of `activation_rows`; of two rows with one id, the later."""
    rows = list({row.id: row for row in activations}.values())
    return [
        [row.id for row in rows],
        [row.slot for row in rows],
        [column_key(row.correlation_id) for row in rows],
        [column_key(row.agent) for row in rows],
        [column_key(row.subscription) for row in rows],
        [_ids(row.inputs) for row in rows],
        [_ids(row.outputs) for row in rows],
        [row.created_us for row in rows],
        [row.ended_us for row in rows],
        [row.run_us for row in rows],
        [row.attempt for row in rows],
        [column_key(row.status) for row in rows],
        [column_text(row.error_type) for row in rows],
        [column_text(row.error_message) for row in rows],
        [_seal(_encode(row)) for row in rows],
    ]


def _ids(ids: Iterable[bytes]) -> str:
    return "{" + ",".join(f'"\\\\x{id_.hex()}"' for id_ in ids) + "}"


def restore_activation(meta: bytes, where: str) -> ActivationRow:
    """Return an activation from its `meta`.

    Raises:
        StoreCorruptError: The row was damaged.
    """
    return _decode_activation(_unseal(meta, f"{where}, an activation"))


def workflow_columns(workflows: Iterable[WorkflowRow]) -> list[list[Any]]:
    """Return the columns of `workflow_rows`; of two rows of one workflow and slot, the later."""
    rows = list({(row.slot, row.id): row for row in workflows}.values())
    return [
        [column_key(row.id) for row in rows],
        [row.slot for row in rows],
        [row.created_us for row in rows],
        [row.updated_us for row in rows],
        [row.open for row in rows],
        [row.waiting for row in rows],
        [row.delayed for row in rows],
        [row.errors for row in rows],
        [row.cancelled for row in rows],
        [sum(row.counts.values()) for row in rows],
        [_seal(_encode(row)) for row in rows],
    ]


def restore_workflow(meta: bytes, where: str) -> WorkflowRow:
    """Return a workflow from its `meta`.

    Raises:
        StoreCorruptError: The row was damaged.
    """
    return _decode_workflow(_unseal(meta, f"{where}, a workflow"))
