"""Erasing content for good: which artifacts, the copies that a shard's memory holds, and all shards together.

What is erased is the payload: a tombstone takes its place. Envelopes, lineage and audit stay.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from flock_ray.artifact import Artifact
from flock_ray.core.rows import ERASED, ArtifactQuery
from flock_ray.core.shard import ShardCore
from flock_ray.core.wire import Completion, Envelope, Forward, Posting
from flock_ray.errors import ConfigurationError, StoreUnavailableError
from flock_ray.ports import PeerGoneError

if TYPE_CHECKING:
    from flock_ray.archive import Archive
    from flock_ray.board import Board

IDS_PER_CALL = 5_000
"""Artifacts erased between two micro-batches."""


class Selection(msgspec.Struct, array_like=True, frozen=True):
    """What is to be erased: one of the three."""

    ids: tuple[bytes, ...] = ()
    correlation_id: str | None = None
    tags: tuple[str, ...] = ()
    """All of them."""

    @property
    def query(self) -> ArtifactQuery:
        """What is asked of a store when no ids are given."""
        return ArtifactQuery(correlation_id=self.correlation_id, tags=self.tags)

    def among(self, envelopes: Iterable[Envelope]) -> set[bytes]:
        """Return the ids of those that are meant."""
        if self.query == ArtifactQuery():
            return set(self.ids).intersection(envelope.id for envelope in envelopes)
        return {envelope.id for envelope in envelopes if self.query.selects(envelope)}


class Selected(msgspec.Struct, array_like=True):
    """What a shard has of a selection, or a part of it."""

    own: list[bytes]
    """Artifacts that live there."""
    copies: list[bytes]
    """Artifacts of other shards, or on the way to them."""
    after: int | None = None
    """Where the next part begins; None: this was the last."""


class EraseOrder(msgspec.Struct, array_like=True, frozen=True):
    """What a shard has to erase."""

    own: list[bytes]
    """Those that live there: the audit log names them."""
    ids: list[bytes]
    """All of them: copies may be anywhere."""
    reason: str


encode = msgspec.msgpack.Encoder().encode
decode_selection = msgspec.msgpack.Decoder(Selection).decode
decode_selected = msgspec.msgpack.Decoder(Selected).decode
decode_order = msgspec.msgpack.Decoder(EraseOrder).decode


def selection(
    artifacts: Iterable[Artifact | uuid.UUID | str] | None,
    correlation_id: str | None,
    tags: Iterable[str] | None,
    reason: str,
) -> Selection:
    """Return what the arguments of `flock.erase` mean.

    Raises:
        ConfigurationError: Not exactly one way to select is given, it selects nothing, or there is no reason.
    """
    if sum(given is not None for given in (artifacts, correlation_id, tags)) != 1:
        raise ConfigurationError("erase() takes one of artifacts=, correlation_id= and tags=.")
    if not reason.strip():
        raise ConfigurationError("erase() needs a reason=: it is all that the audit log will say.")
    if isinstance(tags, str) or isinstance(artifacts, str | Artifact):
        raise ConfigurationError("erase() takes a collection: tags={...}, artifacts=[...].")
    try:
        ids = tuple({_id_of(artifact) for artifact in artifacts or ()})
    except ValueError as error:
        raise ConfigurationError(f"erase(artifacts=...) takes artifacts or their ids: {error}.") from None
    chosen = Selection(ids, correlation_id or None, tuple(sorted(set(tags or ()))))
    if chosen == Selection() and artifacts is None:
        raise ConfigurationError("erase() would select the whole board: name a workflow, tags or artifacts.")
    return chosen


def _id_of(artifact: Artifact | uuid.UUID | str) -> bytes:
    if isinstance(artifact, Artifact):
        return artifact.id.bytes
    return (artifact if isinstance(artifact, uuid.UUID) else uuid.UUID(artifact)).bytes


# -- in a shard's memory -----------------------------------------------------------------------


def copies(core: ShardCore, forwards: Iterable[Forward]) -> Iterator[tuple[int | None, Envelope]]:
    """Iterate over every envelope outside the index: (slot that holds it, None for none; the envelope).

    Args:
        core: Whose.
        forwards: What is on its way to other shards.
    """
    for slot in core.slots.values():
        for activation in slot.open.values():
            yield from ((slot.index, envelope) for envelope in activation.inputs)
        for keys in slot.gates.values():
            yield from ((slot.index, item.envelope) for gate in keys.values() for item in gate.items())
        for held in slot.held.values():
            yield from ((slot.index, envelope) for envelope, _ in held)
        for items in slot.kept.values():
            yield from ((slot.index, item.envelope) for item in items)
        yield from ((slot.index, f.posting.envelope) for f in slot.outbox.values() if f.posting is not None)
    yield from ((None, forward.posting.envelope) for forward in forwards if forward.posting is not None)


def put_tombstones(
    core: ShardCore, ids: Collection[bytes], forwards: Iterable[Forward]
) -> tuple[set[int], set[bytes]]:
    """Replace payloads wherever a shard's memory has them.

    Envelopes are immutable to everybody else; here the object itself changes, since who holds it is not known.

    Returns:
        Slots whose snapshots may hold a copy, and the ids found in the index.
    """
    slots: set[int] = set()
    indexed: set[bytes] = set()
    for key in ids:
        envelope = core.index.get(key)
        if envelope is not None:
            put_tombstone(envelope)
            indexed.add(key)
    for slot, envelope in copies(core, forwards):
        if envelope.id in ids:
            put_tombstone(envelope)
            if slot is not None:
                slots.add(slot)
    for envelope in _logged(core):
        if envelope.id in ids:
            put_tombstone(envelope)
    return slots, indexed


def put_tombstone(envelope: Envelope) -> None:
    """Replace the payload of an envelope."""
    msgspec.structs.force_setattr(envelope, "payload", ERASED)


def _logged(core: ShardCore) -> Iterator[Envelope]:
    """Iterate over what the event log refers to: readers never see payloads there, but it keeps them."""
    for _, _, subject, _ in core.events._entries:
        if isinstance(subject, Envelope):
            yield subject
        elif isinstance(subject, Completion):
            yield from (posting.envelope for posting in subject.outputs)


def scrub(posting: Posting | None, erased: Collection[bytes]) -> None:
    """Replace the payload of something that was on its way here when it was erased."""
    if posting is not None and posting.envelope.id in erased:
        put_tombstone(posting.envelope)


# -- on the whole board ------------------------------------------------------------------------


async def erase(board: Board, archive: Archive | None, chosen: Selection, reason: str) -> int:
    """Erase on every shard and in the archive; see `flock.erase`. Safe to repeat after any failure.

    Returns:
        How many artifacts there were, erased now or before.
    """
    blob = encode(chosen)
    own: list[set[bytes]] = []
    everything = set(chosen.ids)
    for shard in range(board.num_shards):
        found = await _find(board, shard, blob)
        own.append(set(found.own))
        everything.update(found.own, found.copies)
    if everything:
        for part in _parts(sorted(everything)):
            orders = [EraseOrder(sorted(mine.intersection(part)), part, reason) for mine in own]
            for shard, order in enumerate(orders):
                await _ask(board, shard, "erase", encode(order))
        await board.each("seal_erased")
    erased = {str(uuid.UUID(bytes=key)) for mine in own for key in mine}
    if archive is not None:
        erased |= await archive.erase(everything, correlation_id=chosen.correlation_id, tags=chosen.tags)
    return len(erased)


async def _find(board: Board, shard: int, blob: bytes) -> Selected:
    total = Selected([], [], 0)
    while total.after is not None:
        part = decode_selected(await _ask(board, shard, "find_erasable", blob, total.after))
        total.own += part.own
        total.copies += part.copies
        total.after = part.after
    return total


async def _ask(board: Board, shard: int, method: str, *args: Any) -> Any:
    try:
        return await getattr(board.shard(shard), method)(*args)
    except PeerGoneError as gone:
        raise StoreUnavailableError(
            f"Shard {shard} went away while it erased ({gone}): call erase() again, it goes on where it was."
        ) from gone


def _parts(ids: list[bytes]) -> Iterator[list[bytes]]:
    return (ids[start : start + IDS_PER_CALL] for start in range(0, len(ids), IDS_PER_CALL))
