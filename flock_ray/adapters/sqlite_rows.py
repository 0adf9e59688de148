"""How rows are encoded in SQLite, each with its checksum."""

from __future__ import annotations

from typing import TypeVar
from zlib import crc32

import msgspec

from flock_ray.adapters.sqlite_files import ShardFile
from flock_ray.core.rows import ActivationRow, WorkflowRow
from flock_ray.core.wire import Envelope

Row = TypeVar("Row", ActivationRow, WorkflowRow)

encode = msgspec.msgpack.Encoder().encode
_envelope = msgspec.msgpack.Decoder(Envelope)
_replace = msgspec.structs.replace


def encode_meta(envelope: Envelope) -> bytes:
    """Encode an envelope without its payload."""
    return encode(_replace(envelope, payload=b""))


def artifact_crc(meta: bytes, payload: bytes) -> int:
    """Checksum an artifact: what is known about it (its id too), then its payload."""
    return crc32(payload, crc32(meta))


def decode_artifact(file: ShardFile, seq: int, meta: bytes, payload: bytes, crc: int) -> Envelope:
    """Restore an envelope.

    Raises:
        StoreCorruptError: The checksum does not fit.
    """
    if artifact_crc(meta, payload) != crc:
        raise file.damaged(f"table artifacts: {_name(meta)} at feed position {seq} does not fit its checksum")
    return _replace(_envelope.decode(meta), payload=payload)


def decode_row(file: ShardFile, kind: type[Row], data: bytes, crc: int) -> Row:
    """Restore an activation or workflow.

    Raises:
        StoreCorruptError: The checksum does not fit.
    """
    if crc32(data) != crc:
        raise file.damaged(f"a row of {kind.__name__} does not fit its checksum")
    return msgspec.msgpack.decode(data, type=kind)


def frame_crc(lsn: int, epoch: int, data: bytes) -> int:
    """Checksum a frame with its number and its writer's epoch."""
    return crc32(data, crc32(b"%d %d" % (lsn, epoch)))


def id_hash(key: bytes) -> int:
    """Shorten an id for `postings`."""
    return int.from_bytes(key[:4], "big")


def text_hash(text: str) -> int:
    """Shorten a name for `postings`."""
    return crc32(text.encode())


def snapshot_crc(slot: int, lsn: int, data: bytes) -> int:
    """Checksum a snapshot with its slot and number."""
    return crc32(data, crc32(b"%d %d" % (slot, lsn)))


def _name(meta: bytes) -> str:
    try:
        return f"artifact {_envelope.decode(meta).id.hex()}"
    except msgspec.DecodeError:
        return "an artifact whose id is not readable"
