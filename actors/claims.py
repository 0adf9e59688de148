"""Large payloads of one shard: the shard has their claims and handles, never, for longer than an append, the bytes."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from flock_ray.core import wire
from flock_ray.core.claims import claim_for, is_claim, payload_bytes
from flock_ray.core.rows import ERASED
from flock_ray.errors import BackpressureError, PayloadLostError
from flock_ray.ports import PayloadStore

if TYPE_CHECKING:
    from flock_ray.actors.keeping import Keeper
    from flock_ray.core.shard import ShardCore

logger = logging.getLogger(__name__)

ROOM_BYTES = 16 * 1024 * 1024
"""Payloads on their way to or from the store that a shard has in memory; one always fits."""

OPEN_S = 60.0
"""Longest wait for a payload that was just adopted."""

Key = tuple[bytes, bytes]
"""Artifact and claim."""
Holding = tuple[bytes, Any]
"""Claim and handle."""


class ByteRoom:
    """Lets so many bytes in at a time, in order of arrival; what is larger goes alone."""

    def __init__(self, limit: int) -> None:
        """Start empty."""
        self._limit = limit
        self._used = 0
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def take(self, size: int) -> AsyncIterator[None]:
        """Hold a share; waits until there is one."""
        if self._queue or not self._has(size):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._queue.append((size, turn))
            try:
                await turn
            except BaseException:
                if turn.done() and not turn.cancelled():
                    self._give(size)
                elif (size, turn) in self._queue:
                    self._queue.remove((size, turn))
                raise
        else:
            self._used += size
        try:
            yield
        finally:
            self._give(size)

    def _has(self, size: int) -> bool:
        return not self._used or self._used + size <= self._limit

    def _give(self, size: int) -> None:
        self._used -= size
        while self._queue and self._has(self._queue[0][0]):
            size, turn = self._queue.popleft()
            if not turn.done():
                self._used += size
                turn.set_result(None)


class _Arriving:
    """A payload that an open call brings."""

    __slots__ = ("body", "calls", "handle")

    def __init__(self, handle: Any, body: bytes | None) -> None:
        self.handle = handle
        self.body = body
        """The bytes, for the store; None on a memory board."""
        self.calls = 0


class ShardClaims:
    """The part of `Shard` that knows where the payloads are that its envelopes only claim."""

    core: ShardCore
    _keeper: Keeper | None
    _payloads: PayloadStore | None

    def __init__(self) -> None:
        """Start without large payloads."""
        super().__init__()
        self._held: dict[bytes, Holding] = {}
        """By artifact in the index: its claim and the handle. Forgetting a handle is what frees the bytes."""
        self._arriving: dict[Key, _Arriving] = {}
        self._room = ByteRoom(ROOM_BYTES)
        self._putting_away = asyncio.Lock()

    async def ready(self) -> None:
        """Wait until the shard has recovered; raises when it can't."""
        raise NotImplementedError  # Shard's

    def _enqueue(self, kind: str, subject: Any, size: int) -> asyncio.Future[Any]:
        raise NotImplementedError  # Shard's

    def _refusal(self) -> wire.PublishReply | None:
        raise NotImplementedError  # Shard's

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        raise NotImplementedError  # Shard's

    def _now_us(self) -> int:
        raise NotImplementedError  # Shard's

    # -- coming in -----------------------------------------------------------------------------

    async def publish_large(self, blob: bytes, keys: Sequence[Key], offer: Any) -> bytes:
        """Take a PublishBatch whose large payloads are claimed; answers once they are held and it is in the journal.

        Raises:
            PayloadLostError: Its payloads can't be read (any more), or are not what was claimed.
            BackpressureError: There is no room for them; retryable.
        """
        refusal = self._refusal()
        return await self._bring("publish", blob, keys, offer) if refusal is None else wire.encode(refusal)

    async def complete_large(self, blob: bytes, keys: Sequence[Key], offer: Any) -> bytes:
        """Take a CompleteBatch whose large payloads are claimed; otherwise like `publish_large`."""
        return await self._bring("complete", blob, keys, offer)

    async def _bring(self, kind: str, blob: bytes, keys: Sequence[Key], offer: Any) -> bytes:
        """Hold what is offered, then do the command: nobody hears of an artifact whose payload could go."""
        await self.ready()
        if self._payloads is None:
            raise PayloadLostError(
                "This board holds no payloads outside its shards. Publish them in the message."
            )
        keys = [(key, claim) for key, claim in keys]
        handles = await self._payloads.adopt(offer, [claim for _, claim in keys])
        if self._keeper is None:
            return await self._deliver_with(kind, blob, keys, handles, [None] * len(keys), 0)
        size = sum(payload_bytes(claim) for _, claim in keys)
        async with self._room.take(size):
            bodies = await self._payloads.open(handles, OPEN_S)
            if None in bodies:
                raise PayloadLostError("A payload was lost before the store had it. Publish it again.")
            return await self._deliver_with(kind, blob, keys, handles, bodies, size)

    async def _deliver_with(
        self,
        kind: str,
        blob: bytes,
        keys: Sequence[Key],
        handles: Sequence[Any],
        bodies: Sequence[bytes | None],
        size: int,
    ) -> bytes:
        for key, handle, body in zip(keys, handles, bodies, strict=True):
            self._arriving.setdefault(key, _Arriving(handle, body)).calls += 1
        try:
            answer: bytes = await self._enqueue(kind, blob, len(blob) + size)
            return answer
        finally:
            for key in keys:
                self._arrived(key)

    def _arrived(self, key: Key) -> None:
        """Keep the handle of a payload whose artifact was accepted, and let the others go."""
        arriving = self._arriving[key]
        envelope = self.core.index.get(key[0])
        accepted = envelope is not None and envelope.payload == key[1]
        if accepted and self._held.get(key[0], (b"", None))[0] != key[1]:
            self._held[key[0]] = (key[1], arriving.handle)
        arriving.calls -= 1
        if not arriving.calls:
            del self._arriving[key]

    def _check_claims(self, postings: Iterable[wire.Posting]) -> None:
        """Refuse a claim for which there is nothing: it would be an artifact that nobody can read."""
        for posting in postings:
            envelope = posting.envelope
            if is_claim(envelope.payload) and not self._is_known(envelope):
                raise PayloadLostError(
                    f"{envelope.type} claims a payload that was not offered. Publish it with its payload.",
                    artifact_id=envelope.id.hex(),
                )

    def _is_known(self, envelope: wire.Envelope) -> bool:
        """Say whether the payload is here, or the artifact, with which it is only compared."""
        core, key = self.core, envelope.id
        return (
            self._handle_of((key, envelope.payload)) is not None
            or key in core.index.ids
            or key in core.stored
        )

    def _handle_of(self, key: Key) -> Any:
        claim, handle = self._held.get(key[0], (b"", None))
        if claim == key[1]:
            return handle
        arriving = self._arriving.get(key)
        return None if arriving is None else arriving.handle

    def _body_of(self, envelope: wire.Envelope) -> bytes | None:
        """Return the bytes of a claimed payload that is about to be stored."""
        arriving = self._arriving.get((envelope.id, envelope.payload))
        return None if arriving is None else arriving.body

    # -- staying -------------------------------------------------------------------------------

    def _tidy_payloads(self) -> None:
        """Let go of what has left the index, and put away what came in too large; call between micro-batches."""
        core = self.core
        if core.index.released:
            released, core.index.released = core.index.released, []
            for key in released:
                if key not in core.index.ids:
                    self._held.pop(key, None)
        if core.large:
            large, core.large = core.large, []
            if self._payloads is not None:
                self._spawn(self._put_away(large))

    async def _put_away(self, envelopes: Sequence[wire.Envelope]) -> None:
        """Replace payloads that came in a message, such as those of shards themselves, by claims."""
        async with self._putting_away:  # one at a time: each is a copy
            for envelope in envelopes:
                payload = envelope.payload
                if self.core.index.get(envelope.id) is not envelope or is_claim(payload) or payload == ERASED:
                    continue
                claim = claim_for(payload)
                if self._keeper is None and not await self._hold(envelope, claim, payload):
                    continue
                msgspec.structs.force_setattr(envelope, "payload", claim)

    async def _hold(self, envelope: wire.Envelope, claim: bytes, payload: bytes) -> bool:
        """Hold a payload that only memory has; False when that is not possible, or not wanted any more."""
        assert self._payloads is not None
        try:
            [handle] = await self._payloads.keep([payload])
        except BackpressureError as error:
            logger.warning("a payload of %d bytes stays in the shard: %s", len(payload), error)
            return False
        if self.core.index.get(envelope.id) is not envelope or envelope.payload is not payload:
            return False  # it was evicted or erased meanwhile
        self._held[envelope.id] = (claim, handle)
        return True

    def _let_go(self, ids: Iterable[bytes]) -> None:
        """Free the payloads of artifacts that were erased."""
        for key in ids:
            self._held.pop(key, None)

    # -- going out -----------------------------------------------------------------------------

    async def payloads(self, keys: Sequence[Key], lost: bool) -> list[Any]:
        """Return what leads to claimed payloads: a handle, the bytes themselves, or None for what is lost.

        Args:
            keys: Artifacts of this shard, with their claims.
            lost: What was answered before can't be opened: a durable board reads them back from its store.
        """
        await self.ready()
        wanted = [(key, claim) for key, claim in keys]
        if lost:
            for key, claim in wanted:
                if self._held.get(key, (b"", None))[0] == claim:
                    del self._held[key]
                    if self._keeper is None:
                        self._note_lost(key)
        answers: list[Any] = [self._handle_of(claimed) for claimed in wanted]
        for place, claimed in enumerate(wanted):
            envelope = self.core.index.get(claimed[0])
            if envelope is not None and envelope.payload == ERASED:
                answers[place] = ERASED
            elif (lost or answers[place] is None) and self._keeper is not None:
                answers[place] = await self._read_back(self._keeper, claimed)
        return answers

    def _note_lost(self, artifact_id: bytes) -> None:
        envelope = self.core.index.get(artifact_id)
        self.core.events.note(
            self._now_us(), "payload.lost", artifact_ids=(artifact_id,),
            correlation_id="" if envelope is None else envelope.correlation_id,
            detail="the node or process that held it is gone, and a board in memory has no copy",
        )  # fmt: skip

    async def _read_back(self, keeper: Keeper, key: Key) -> Any:
        """Get a payload from the store, and hold it again for whoever asks next."""
        assert self._payloads is not None
        async with self._room.take(payload_bytes(key[1])):
            claim, known = self._held.get(key[0], (b"", None))
            if claim == key[1]:
                return known  # somebody else was faster
            body = (await keeper.store.bodies([key[0]])).get(key[0])
            if body is None or body == ERASED or len(body) != payload_bytes(key[1]):
                return body if body == ERASED else None
            try:
                [handle] = await self._payloads.keep([body])
            except BackpressureError:
                return body
            envelope = self.core.index.get(key[0])
            if envelope is not None and envelope.payload == key[1]:
                self._held[key[0]] = (key[1], handle)
            return handle
