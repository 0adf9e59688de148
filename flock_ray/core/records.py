"""Records of the journal: every command that a slot accepted, with the time at which it did.

A record holds every decision that was taken outside the shard (matches, attempts' results), and
what the shard makes of it is a pure function of its state: replaying the records of a slot gives
the same state, whatever host runs it. A field is only ever added at the end, with a default.

The journal keeps records in frames, one per micro-batch, without the payloads of artifacts that live
on this shard: those are in the artifacts' own rows, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec

from flock_ray.core.rows import SHARD, WorkflowRow
from flock_ray.core.wire import Completion, Envelope, Forward, Posting, TableSpec
from flock_ray.errors import StoreCorruptError

FRAME_FORMAT = 1
"""Raised when an old program could misread new frames: it refuses them then."""


class Published(msgspec.Struct, array_like=True, tag="P", frozen=True):
    """An artifact from outside was accepted."""

    at_us: int
    posting: Posting

    @property
    def slot(self) -> int:
        """The slot whose journal keeps the record."""
        return self.posting.envelope.slot


class Completed(msgspec.Struct, array_like=True, tag="C", frozen=True):
    """The first result of an activation was committed."""

    at_us: int
    completion: Completion

    @property
    def slot(self) -> int:
        """The slot whose journal keeps the record."""
        return self.completion.slot


class Ticked(msgspec.Struct, array_like=True, tag="T", frozen=True):
    """Timers of the slot that were due at this time have fired."""

    at_us: int
    slot: int


class ForwardedIn(msgspec.Struct, array_like=True, tag="I", frozen=True):
    """Something from another slot's outbox was applied."""

    at_us: int
    forward: Forward

    @property
    def slot(self) -> int:
        """The slot whose journal keeps the record."""
        return self.forward.target


class ForwardAcked(msgspec.Struct, array_like=True, tag="A", frozen=True):
    """The receiver has an outbox entry: forget it."""

    slot: int
    target: int
    seq: int


class Lost(msgspec.Struct, array_like=True, tag="L", frozen=True):
    """A worker died while it had these activations."""

    at_us: int
    slot: int
    blamed: tuple[bytes, ...]
    worker: str


class Flushed(msgspec.Struct, array_like=True, tag="F", frozen=True):
    """Somebody asked for partial batches to run now."""

    at_us: int
    slot: int


class WorkflowFlushed(msgspec.Struct, array_like=True, tag="B", frozen=True):
    """Somebody asked for the partial batches of one workflow to run now."""

    at_us: int
    slot: int
    workflow: str


class Cancelled(msgspec.Struct, array_like=True, tag="X", frozen=True):
    """A workflow was cancelled."""

    at_us: int
    slot: int
    workflow: str


class Installed(msgspec.Struct, array_like=True, tag="S", frozen=True):
    """A version of the subscription table took effect on the whole shard."""

    at_us: int
    table: TableSpec
    slot: int = SHARD


class Rehydrated(msgspec.Struct, array_like=True, tag="W", frozen=True):
    """A settled workflow that had left memory was brought back, because something new came for it."""

    at_us: int
    row: WorkflowRow

    @property
    def slot(self) -> int:
        """The slot whose journal keeps the record."""
        return self.row.slot


Record = (
    Published
    | Completed
    | Ticked
    | ForwardedIn
    | ForwardAcked
    | Lost
    | Flushed
    | WorkflowFlushed
    | Cancelled
    | Installed
    | Rehydrated
)

encode_record = msgspec.msgpack.Encoder().encode
decode_record = msgspec.msgpack.Decoder(Record).decode


class Frame(msgspec.Struct, array_like=True, frozen=True):
    """The records of one micro-batch, in order."""

    format: int
    at_us: int
    heads: list[int]
    """Position of the newest artifact before each record."""
    records: list[Record]


class _Format(msgspec.Struct, array_like=True, frozen=True):
    format: int


_set = msgspec.structs.force_setattr
_decode_format = msgspec.msgpack.Decoder(_Format).decode
_decode_frame = msgspec.msgpack.Decoder(Frame).decode


def encode_frame(
    at_us: int, heads: list[int], records: list[Record], is_stored: Callable[[Envelope], bool]
) -> bytes:
    """Encode records without the payloads that `is_stored` says are in rows of this store.

    The payloads are taken out of the envelopes for the moment of encoding: copies without them would cost
    three times as much as all the rest. Nothing else may look at the envelopes meanwhile.
    """
    stripped = [(envelope, envelope.payload) for envelope in envelopes_of(records) if is_stored(envelope)]
    try:
        for envelope, _ in stripped:
            _set(envelope, "payload", b"")
        return encode_record(Frame(FRAME_FORMAT, at_us, heads, records))
    finally:
        for envelope, payload in stripped:
            _set(envelope, "payload", payload)


def decode_frame(data: bytes) -> Frame:
    """Decode a frame; payloads that are stored elsewhere are empty.

    Raises:
        StoreCorruptError: It is no frame, or of a version that this program does not know.
    """
    try:
        found = _decode_format(data).format
        if found == FRAME_FORMAT:
            return _decode_frame(data)
    except msgspec.DecodeError as error:
        raise StoreCorruptError(f"A journal frame can't be read: {error}.") from error
    raise StoreCorruptError(
        f"The journal was written by a newer version of flock_ray (frame format {found}, this one knows "
        f"{FRAME_FORMAT}). Start it with that version or a later one."
    )


def envelopes_of(records: Iterable[Record]) -> Iterator[Envelope]:
    """Iterate over every artifact in records."""
    for record in records:
        if isinstance(record, Published):
            yield record.posting.envelope
        elif isinstance(record, Completed):
            yield from (posting.envelope for posting in record.completion.outputs)
        elif isinstance(record, ForwardedIn) and record.forward.posting is not None:
            yield record.forward.posting.envelope
