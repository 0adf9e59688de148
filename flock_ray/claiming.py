"""What an edge does about large payloads: it offers them instead of sending them, and reads those that are claimed.

A shard never has the bytes in between: it has the claim (`core.claims`), and a handle of a `PayloadStore`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from flock_ray.core.claims import claim_for, is_claim, payload_bytes
from flock_ray.core.ids import shard_of
from flock_ray.core.wire import Completion, Envelope, Posting
from flock_ray.errors import PayloadLostError, StoreUnavailableError
from flock_ray.ports import PayloadStore, PeerGoneError

__all__ = ["PART_BYTES", "Claiming", "Key", "Stowed", "by_bytes"]

PART_BYTES = 64 * 1024 * 1024
"""Payloads that are read at once; one always is."""
PART = 500
"""The most of them."""
BULK = 32
"""A message carries this many times its own limit of payloads that it only claims."""
PATIENCE_S = 15.0
"""How long a shard that restarts is waited for."""
RETRY_S = 0.2
ATTEMPTS = ((False, 1.0), (False, 60.0), (True, 60.0))
"""(what was answered before is lost, seconds to wait). Ray may forget that it has an object whose reference a process
drops and gets anew at the same moment; then it never comes, until it is asked for again (0.4 % of such reads)."""

Key = tuple[bytes, bytes]
"""Artifact and claim: two attempts may make different artifacts under one id."""


class Stowed:
    """The large payloads of one message: offered, and replaced by claims."""

    __slots__ = ("_claims", "keys", "offer")

    def __init__(self, envelopes: Sequence[Envelope], claims: Sequence[bytes], offer: Any) -> None:
        """Note which envelopes are claimed."""
        self.keys: list[Key] = [(e.id, claim) for e, claim in zip(envelopes, claims, strict=True)]
        self.offer = offer
        # By identity, with the envelope so that it stays one.
        self._claims = {id(e): (e, claim) for e, claim in zip(envelopes, claims, strict=True)}

    def posting(self, posting: Posting) -> Posting:
        """Return a posting as it is sent."""
        known = self._claims.get(id(posting.envelope))
        if known is None:
            return posting
        claimed = msgspec.structs.replace(posting.envelope, payload=known[1])
        return msgspec.structs.replace(posting, envelope=claimed)

    def completion(self, completion: Completion) -> Completion:
        """Return a completion as it is sent."""
        return msgspec.structs.replace(
            completion, outputs=tuple(self.posting(posting) for posting in completion.outputs)
        )


class Claiming:
    """Offers and reads large payloads for one process."""

    def __init__(
        self,
        store: PayloadStore,
        *,
        limit: int,
        shard: Callable[[int], Any],
        num_shards: int,
        offload: Callable[..., Awaitable[Any]] = asyncio.to_thread,
    ) -> None:
        """Work for an edge.

        Args:
            store: This process's part in what holds payloads.
            limit: Larger payloads, in bytes, are claimed.
            shard: Finds the link of a shard.
            num_shards: How many there are.
            offload: Runs a blocking function off the event loop.
        """
        self._store = store
        self.limit = limit
        self._shard = shard
        self._num_shards = num_shards
        self._offload = offload

    def on_wire(self, size: int) -> int:
        """Return what a payload counts in a message; a claimed one counts less, and not nothing."""
        return size if size <= self.limit else max(1, size // BULK)

    async def stow(self, postings: Iterable[Posting], shard: int) -> Stowed | None:
        """Offer the large payloads among what is about to be sent to a shard; None: there are none.

        Those of artifacts that belong to another shard travel as they are, and are put away there.

        Raises:
            BackpressureError: There is no room for them; retryable.
        """
        large = [
            posting.envelope
            for posting in postings
            if len(posting.envelope.payload) > self.limit
            and not is_claim(posting.envelope.payload)
            and shard_of(posting.envelope.slot, self._num_shards) == shard
        ]
        if not large:
            return None
        payloads = [envelope.payload for envelope in large]
        claims: list[bytes] = await self._offload(lambda: [claim_for(payload) for payload in payloads])
        return Stowed(large, claims, await self._store.offer(payloads))

    async def whole(self, envelopes: Sequence[Envelope]) -> list[Envelope]:
        """Return artifacts with the payloads that they claim.

        Raises:
            PayloadLostError: One is lost; names it.
            StoreUnavailableError: A shard or its store does not answer; retryable.
        """
        found = await self.fetch(envelopes)
        return [self.put(envelope, found) for envelope in envelopes]

    @staticmethod
    def put(envelope: Envelope, found: dict[Key, bytes]) -> Envelope:
        """Return an artifact with the payload that it claims.

        Raises:
            PayloadLostError: It is not among those found.
        """
        if not is_claim(envelope.payload):
            return envelope
        payload = found.get((envelope.id, envelope.payload))
        if payload is None:
            raise lost(envelope)
        return msgspec.structs.replace(envelope, payload=payload)

    async def fetch(self, envelopes: Iterable[Envelope]) -> dict[Key, bytes]:
        """Return the payloads that artifacts claim; those that are lost are not among them.

        Raises:
            StoreUnavailableError: A shard or its store does not answer; retryable.
        """
        by_shard: dict[int, dict[Key, None]] = {}
        for envelope in envelopes:
            if is_claim(envelope.payload):
                place = shard_of(envelope.slot, self._num_shards)
                by_shard.setdefault(place, {})[envelope.id, envelope.payload] = None
        found: dict[Key, bytes] = {}
        for place, keys in by_shard.items():
            for part in by_bytes(list(keys), lambda key: payload_bytes(key[1])):
                for is_lost, wait_s in ATTEMPTS:
                    if part:
                        part = await self._read(place, part, found, lost=is_lost, wait_s=wait_s)
        return found

    async def _read(
        self, place: int, keys: list[Key], found: dict[Key, bytes], *, lost: bool, wait_s: float
    ) -> list[Key]:
        """Read payloads of one shard's artifacts; returns those that are lost, or did not come in time."""
        answers = await self._ask(place, keys, lost)
        handles = [answer for answer in answers if answer is not None and not isinstance(answer, bytes)]
        opened = iter(await self._store.open(handles, wait_s)) if handles else iter(())
        missing: list[Key] = []
        for key, answer in zip(keys, answers, strict=True):
            if isinstance(answer, bytes):  # erased, or there was no room to hold it
                found[key] = answer
                continue
            payload = None if answer is None else next(opened)
            if payload is None or len(payload) != payload_bytes(key[1]):
                missing.append(key)
            else:
                found[key] = payload
        return missing

    async def _ask(self, place: int, keys: list[Key], lost: bool) -> list[Any]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE_S
        while True:
            try:
                answers: list[Any] = await self._shard(place).payloads(keys, lost)
                return answers
            except PeerGoneError as gone:
                if gone.final or loop.time() >= deadline:
                    raise StoreUnavailableError(
                        f"A shard of the board does not answer ({gone}): its large payloads can't be read. Try again."
                    ) from gone
            await asyncio.sleep(RETRY_S)


def lost(envelope: Envelope) -> PayloadLostError:
    """Return the error that names what is lost."""
    import uuid

    name = str(uuid.UUID(bytes=envelope.id))
    return PayloadLostError(
        f"The payload of {envelope.type} {name} ({payload_bytes(envelope.payload)} bytes, made by "
        f"{envelope.produced_by}, workflow {envelope.correlation_id}) is lost with the node that held it. Publish it "
        "again; a board that is kept (persistence=...) reads it back.",
        artifact_id=name,
    )


def by_bytes(items: Sequence[Any], size: Callable[[Any], int]) -> Iterator[list[Any]]:
    """Split items into parts of at most `PART_BYTES` and `PART`, or one item where that is larger."""
    part: list[Any] = []
    total = 0
    for item in items:
        num_bytes = size(item)
        if part and (total + num_bytes > PART_BYTES or len(part) >= PART):
            yield part
            part, total = [], 0
        part.append(item)
        total += num_bytes
    if part:
        yield part
