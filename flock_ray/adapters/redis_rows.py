"""Names of the keys of a shard, and rows as bytes.

Every stored value begins with the CRC32 of what it belongs to and what it says, so that a changed byte and
a value under a wrong name are both noticed.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import TypeVar
from urllib.parse import quote
from zlib import crc32

import msgspec

from flock_ray.core.rows import ActivationRow, WorkflowRow
from flock_ray.core.wire import Envelope
from flock_ray.errors import StoreCorruptError

__all__ = [
    "EVERYTHING",
    "FEED",
    "FORMAT",
    "RUN",
    "TIME",
    "Keys",
    "board_key",
    "dimension",
    "dimensions",
    "id_of",
    "link",
    "member",
    "pack_activation",
    "pack_artifact",
    "pack_workflow",
    "seal",
    "settled_member",
    "unpack_activation",
    "unpack_artifact",
    "unpack_body",
    "unpack_workflow",
    "unseal",
]

FORMAT = 1
"""Version of everything that is stored; a newer one is refused."""
T = TypeVar("T")
_LONGEST_NAME = 64
_SIGN = 1 << 63
_encode = msgspec.msgpack.Encoder().encode
_decode_artifact = msgspec.msgpack.Decoder(tuple[int, Envelope]).decode
_decode_activation = msgspec.msgpack.Decoder(tuple[int, ActivationRow]).decode
_decode_workflow = msgspec.msgpack.Decoder(WorkflowRow).decode


def board_key(board: str) -> bytes:
    """Name the record of a board."""
    return b"flock:{%s}:board" % quote(board, safe="").encode()


class Keys:
    """Names of a shard's keys. The hash tag keeps all of them on one node of a cluster."""

    def __init__(self, board: str, shard: int) -> None:
        """Name the shard."""
        self.place = f"shard {shard} of board {board!r}"
        prefix = b"flock:{%s:%d}:" % (quote(board, safe="").encode(), shard)
        self._prefix = prefix
        self.head = prefix + b"head"
        self.journal = prefix + b"journal"
        self.snapshots = prefix + b"snapshots"
        self.artifacts = prefix + b"artifacts"
        self.bodies = prefix + b"bodies"
        self.counts = prefix + b"counts"
        self.activations = prefix + b"activations"
        self.consumptions = prefix + b"consumptions"
        self.settled = prefix + b"settled"
        self.audit = prefix + b"audit"

    def index(self, name: bytes) -> bytes:
        """Name the index of what shares a property; see `dimensions`."""
        return b"%bindex:%b" % (self._prefix, name)

    def workflow(self, name: str) -> bytes:
        """Name the rows of a workflow."""
        return b"%bworkflow:%b" % (self._prefix, _short(name))


def _short(name: str) -> bytes:
    """Bound the length of a key: a long name becomes its hash, which no short name looks like."""
    data = name.encode()
    if len(data) <= _LONGEST_NAME:
        return b"=" + data
    return b"#" + blake2b(data, digest_size=32).hexdigest().encode()


EVERYTHING = b"all"
"""Dimension of all artifacts."""


def dimension(kind: str, name: str) -> bytes:
    """Name what an index is about: a type, producer, workflow, tag or visibility."""
    return kind.encode() + _short(name)


def dimensions(envelope: Envelope, visibility: str) -> list[tuple[str, str]]:
    """Return what an artifact is indexed by, as (kind, name); most are public, so that is not indexed."""
    found = [
        ("type", envelope.type),
        ("producer", envelope.produced_by),
        ("workflow", envelope.correlation_id),
    ]
    if envelope.tags:
        found += [("tag", tag) for tag in set(envelope.tags)]
    if visibility != "Public":
        found.append(("visibility", visibility))
    return found


FEED, TIME, RUN = b"f", b"t", b"x"
"""First byte of a member of an index: by feed position, by creation time, or an activation by its end.

One sorted set holds all three orders, which halves the number of keys; scores are equal, so bytes decide.
"""


def settled_member(slot: int, name: str) -> bytes:
    """Make the member of the index of settled workflows."""
    return b"%d:%b" % (slot, name.encode())


def _ordered(number: int) -> bytes:
    """Encode an integer so that bytes sort as numbers do."""
    try:
        return (number + _SIGN).to_bytes(8, "big")
    except OverflowError:
        return b"\xff" * 8 if number > 0 else bytes(8)


def member(order: bytes, number: int, row_id: bytes = b"") -> bytes:
    """Make a member of an index; without an id, what is not above any member of that number."""
    return order + _ordered(number) + row_id


def id_of(member: bytes) -> bytes:
    """Return the id of the row that a member of an index stands for."""
    return member[9:]


def link(artifact_id: bytes, activation: bytes = b"") -> bytes:
    """Make the member that says which activation consumed an artifact; without one, the beginning of all."""
    return len(artifact_id).to_bytes(4, "big") + artifact_id + activation


def seal(name: bytes, data: bytes) -> bytes:
    """Put a checksum over name and data before the data."""
    return crc32(data, crc32(name)).to_bytes(4, "big") + data


def unseal(name: bytes, value: bytes, what: str) -> bytes:
    """Return the data behind a checksum.

    Raises:
        StoreCorruptError: They do not fit; says what it was.
    """
    data = value[4:]
    if crc32(data, crc32(name)).to_bytes(4, "big") != value[:4]:
        raise StoreCorruptError(
            f"{what} does not fit its checksum. Restore it from a backup; nothing was changed."
        )
    return data


def pack_artifact(seq: int, envelope: Envelope) -> bytes:
    """Encode an artifact without its payload."""
    return seal(envelope.id, _encode((seq, msgspec.structs.replace(envelope, payload=b""))))


def unpack_artifact(artifact_id: bytes, value: bytes, keys: Keys) -> tuple[int, Envelope]:
    """Decode an artifact without its payload."""
    what = f"Artifact {artifact_id.hex()} of {keys.place} ({keys.artifacts.decode()})"
    return _decoded(_decode_artifact, unseal(artifact_id, value, what), what)


def unpack_body(artifact_id: bytes, value: bytes, keys: Keys) -> bytes:
    """Check a payload."""
    what = f"The payload of artifact {artifact_id.hex()} of {keys.place} ({keys.bodies.decode()})"
    return unseal(artifact_id, value, what)


def pack_activation(order: int, row: ActivationRow) -> bytes:
    """Encode an activation with its place among all that ended."""
    return seal(row.id, _encode((order, row)))


def unpack_activation(activation: bytes, value: bytes, keys: Keys) -> tuple[int, ActivationRow]:
    """Decode an activation."""
    what = f"Activation {activation.hex()} of {keys.place} ({keys.activations.decode()})"
    return _decoded(_decode_activation, unseal(activation, value, what), what)


def pack_workflow(row: WorkflowRow) -> bytes:
    """Encode a workflow's row."""
    return seal(row.id.encode(), _encode(row))


def unpack_workflow(name: str, value: bytes, keys: Keys) -> WorkflowRow:
    """Decode a workflow's row."""
    what = f"Workflow {name[:100]!r} of {keys.place}"
    return _decoded(_decode_workflow, unseal(name.encode(), value, what), what)


def _decoded(decode: Callable[[bytes], T], data: bytes, what: str) -> T:
    try:
        return decode(data)
    except msgspec.MsgspecError:
        raise StoreCorruptError(
            f"{what} cannot be read by this version. Use the version that wrote it."
        ) from None
