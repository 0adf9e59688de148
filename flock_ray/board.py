"""The driver's side of a board: deploys agents, publishes, reads and waits, over links to shards and router.

No Ray in here: the same client drives the cluster, the virtual board and the simulator.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from flock_ray.board_publishing import BoardPublishing
from flock_ray.claiming import Claiming, by_bytes
from flock_ray.core import wire
from flock_ray.core.claims import is_claim, payload_bytes
from flock_ray.core.definition import AgentDefinition
from flock_ray.core.events import Event
from flock_ray.core.index import CountQuery
from flock_ray.core.matching import MatchTable
from flock_ray.core.registry import TypeRegistry
from flock_ray.core.status import ArtifactFate, WorkflowPart
from flock_ray.deployment import package
from flock_ray.edge import DEFAULT_INLINE_PAYLOAD_BYTES, Edge
from flock_ray.errors import BoardClosedError, FlockError, StoreUnavailableError
from flock_ray.ports import Clock, DefinitionCodec, PayloadStore, PeerGoneError, ShardLink

LONG_CALL_S = 30.0
"""Length of one waiting call; it is repeated until the caller's own deadline."""

_envelopes = msgspec.msgpack.Decoder(list[wire.Envelope]).decode
_events = msgspec.msgpack.Decoder(list[Event]).decode


class ReaderLink(ShardLink, Protocol):
    """A shard with its reading calls (`actors.readers`)."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return any call of the shard."""
        ...


@dataclass(frozen=True, slots=True)
class BoardLinks:
    """How a client reaches a board."""

    shards: Sequence[Any]
    """One `ReaderLink` per shard."""
    router: Any
    """A `RouterLink` with the calls of `actors.router`."""
    worker: Callable[[str], Any]
    """Finds a worker by its id."""


class Board(BoardPublishing):
    """A client of one board."""

    def __init__(
        self,
        links: BoardLinks,
        *,
        owner: str,
        registry: TypeRegistry,
        codec: DefinitionCodec,
        clock: Clock,
        monotonic: Callable[[], float],
        max_payload_bytes: int,
        publish_timeout_s: float,
        long_call_s: float = LONG_CALL_S,
        payloads: PayloadStore | None = None,
        inline_payload_bytes: int = DEFAULT_INLINE_PAYLOAD_BYTES,
    ) -> None:
        """Connect to a board.

        Args:
            links: Shards and router.
            owner: Names this client: agents may be changed by who deployed them.
            registry: Artifact types of this process.
            codec: Packs agent definitions.
            clock: Wall time.
            monotonic: A clock in seconds that never goes back.
            max_payload_bytes: Largest payload accepted.
            publish_timeout_s: How long `publish` waits on a full board before it raises BackpressureError.
            long_call_s: Length of one waiting call.
            payloads: This process's part in what holds large payloads; None: they travel through the shards.
            inline_payload_bytes: Larger payloads are held there.
        """
        self.claiming: Claiming | None = None
        if payloads is not None:
            self.claiming = Claiming(
                payloads, limit=inline_payload_bytes, shard=self.shard, num_shards=len(links.shards),
                offload=self._offload,
            )  # fmt: skip
        self.long_call_s = long_call_s
        self._links = links
        self._owner = owner
        self._registry = registry
        self._codec = codec
        self.clock = clock
        self._monotonic = monotonic
        self._publish_timeout_s = publish_timeout_s
        self._mine: dict[str, AgentDefinition] = {}
        self.edge = Edge(MatchTable(0, (), registry), registry, max_payload_bytes=max_payload_bytes)
        self.closed = False
        self._attending: asyncio.Task[None] | None = None

    async def _offload(self, function: Callable[..., Any], *args: Any) -> Any:
        return await self.edge.offload(function, *args)

    async def whole(self, envelopes: list[wire.Envelope]) -> list[wire.Envelope]:
        """Return artifacts with the large payloads that they only claim.

        Raises:
            PayloadLostError: One is lost; names it.
            StoreUnavailableError: A shard or its store does not answer; retryable.
        """
        if self.claiming is None or not any(is_claim(e.payload) for e in envelopes):
            return envelopes
        return await self.claiming.whole(envelopes)

    async def whole_parts(self, envelopes: list[wire.Envelope]) -> AsyncIterator[list[wire.Envelope]]:
        """Do what `whole` does, so much at a time that it fits into memory."""
        for part in by_bytes(envelopes, lambda e: payload_bytes(e.payload)):
            yield await self.whole(part)

    @property
    def num_shards(self) -> int:
        """Shards of the board."""
        return len(self._links.shards)

    @property
    def router(self) -> Any:
        """The router's link."""
        return self._links.router

    def shard(self, index: int) -> Any:
        """Return a shard's link."""
        return self._links.shards[index]

    def worker(self, worker: str) -> Any:
        """Return a worker's link."""
        return self._links.worker(worker)

    # -- deploying -----------------------------------------------------------------------------

    async def deploy(self, definitions: Sequence[AgentDefinition], *, replace: bool = False) -> None:
        """Put agents on the board, or change them; returns when every shard and worker knows them.

        Raises:
            AgentNotPicklableError: An agent refers to something that can't leave this process.
            DeployConflictError: Another driver has a different agent of that name there.
        """
        packages = [package(d, self._registry, self._codec, self._owner) for d in definitions]
        version, blobs = await self._deploy([wire.encode(p) for p in packages], replace)
        self._mine = {definition.name: definition for definition in definitions}
        self._compile(version, blobs)
        if self._attending is None:
            self._attending = asyncio.ensure_future(self._attend())

    async def _attend(self) -> None:
        """Deploy again when there is a new router: it may know nothing of the agents' code."""
        known = ""
        while not self.closed:
            try:
                router = await self._links.router.attend(known)
            except PeerGoneError as gone:
                if gone.final:
                    return
                await asyncio.sleep(0.5)
                continue
            if router != known:  # the first one too: it need not be the one that took the deploy
                packages = [package(d, self._registry, self._codec, self._owner) for d in self._mine.values()]
                with contextlib.suppress(FlockError):  # whoever publishes next hears of it
                    self._compile(*await self._deploy([wire.encode(p) for p in packages], False))
            known = router

    def let_go(self) -> None:
        """Stop attending; safe to repeat."""
        self.closed = True
        if self._attending is not None:
            self._attending.cancel()

    async def _deploy(self, packages: list[bytes], replace: bool) -> tuple[int, dict[str, bytes]]:
        """Deploy; a router that restarts meanwhile is asked again."""
        deadline = self._monotonic() + self._publish_timeout_s
        while True:
            try:
                answer: tuple[int, dict[str, bytes]] = await self._links.router.deploy(packages, replace)
                return answer
            except PeerGoneError as gone:
                if gone.final or self._monotonic() >= deadline:
                    raise StoreUnavailableError(
                        f"The board's router does not answer ({gone}). Try again."
                    ) from gone
                await asyncio.sleep(0.1)

    async def ask_router(self, method: str, *args: Any) -> Any:
        """Call a method of the router.

        Raises:
            StoreUnavailableError: It does not answer; retryable.
        """
        try:
            return await getattr(self._links.router, method)(*args)
        except PeerGoneError as gone:
            raise StoreUnavailableError(f"The board's router does not answer ({gone}). Try again.") from gone

    def _compile(self, version: int, blobs: dict[str, bytes]) -> None:
        definitions = []
        for name in sorted(blobs):
            mine = self._mine.get(name)
            definitions.append(mine or self._codec.load(wire.decode_package(blobs[name]).definition))
        for definition in definitions:
            for sub in definition.subscriptions:
                for cls in sub.types:
                    self._registry.ensure(cls)
        self.edge.table = MatchTable(version, definitions, self._registry)

    async def _refresh(self, shard: int) -> None:
        version, blobs = await self._call(self.shard(shard).table())
        if (
            not blobs
        ):  # it has come back from its journal, which has no code: the router brings that in a moment
            await asyncio.sleep(0.05)
        elif version > self.edge.table.version:
            self._compile(version, blobs)

    async def _call(self, call: Any) -> Any:
        if self.closed:
            raise BoardClosedError("This Flock was shut down. Create a new one to go on.")
        try:
            return await call
        except PeerGoneError as gone:
            raise StoreUnavailableError(
                f"A shard of the board is gone ({gone}). A memory board is lost with its shard's process; "
                "one with persistence comes back: try again."
            ) from gone

    # -- waiting -------------------------------------------------------------------------------

    async def wait_idle(
        self, *, timeout_s: float | None, workflow: str | None = None, timers: bool = False
    ) -> bool:
        """Wait until nothing runs, is ready or travels; False when the time is over.

        Two rounds with equal activity counters prove that nothing moved from one shard to another
        while the shards were asked one after the other.
        """
        deadline = None if timeout_s is None else self._monotonic() + timeout_s
        while True:
            heads = [await self._call(link.stats()) for link in self._links.shards] if timers else []
            first = await self._round(workflow, deadline)
            if first is None:
                return False
            if self.num_shards > 1:
                again = await asyncio.gather(
                    *(self._call(s.wait_quiet(workflow, 0)) for s in self._links.shards)
                )
                if [tuple(entry) for entry in again] != first:
                    continue
            if not timers:
                return True
            if not sum(await asyncio.gather(*(self._call(s.timers()) for s in self._links.shards))):
                return True
            if not await self._any_event([head["events"] for head in heads], deadline):
                return False

    async def _round(self, workflow: str | None, deadline: float | None) -> list[tuple[bool, int]] | None:
        async def until_quiet(link: Any) -> tuple[bool, int]:
            while True:
                left = self._left(deadline)
                quiet, activity = await self._call(link.wait_quiet(workflow, left))
                if quiet or (deadline is not None and self._monotonic() >= deadline):
                    return quiet, activity

        states = list(await asyncio.gather(*(until_quiet(link) for link in self._links.shards)))
        return states if all(quiet for quiet, _ in states) else None

    def _left(self, deadline: float | None) -> float:
        return (
            self.long_call_s
            if deadline is None
            else max(0.0, min(self.long_call_s, deadline - self._monotonic()))
        )

    async def _any_event(self, heads: list[int], deadline: float | None) -> bool:
        """Wait until any shard has an event behind these positions; False when the time is over."""
        while (left := self._left(deadline)) > 0:
            calls = [
                asyncio.ensure_future(self._call(link.event_list(head, [], None, 1, left)))
                for link, head in zip(self._links.shards, heads, strict=True)
            ]
            done = await first_of(calls, left)
            if any(_events(call.result()[0]) for call in done):
                return True
        return False

    async def counts(self, queries: Sequence[CountQuery]) -> list[int]:
        """Count artifacts on the whole board."""
        blob = msgspec.msgpack.encode(list(queries))
        parts = await asyncio.gather(*(self._call(link.counts(blob, None, 0)) for link in self._links.shards))
        return [sum(column) for column in zip(*parts, strict=True)] if queries else []

    # -- reading -------------------------------------------------------------------------------

    async def get(self, artifact_id: bytes) -> wire.Envelope | None:
        """Find an artifact on any shard; None when there is none."""
        parts = await asyncio.gather(*(self._call(link.get([artifact_id])) for link in self._links.shards))
        found = [envelope for part in parts for envelope in _envelopes(part)]
        return (await self.whole(found[:1]))[0] if found else None

    async def read(self, *, type_name: str | None = None, workflow: str | None = None) -> list[wire.Envelope]:
        """Return all artifacts of a type or workflow, in order per shard and by creation overall."""

        async def from_shard(link: Any) -> list[wire.Envelope]:
            out: list[wire.Envelope] = []
            after = 0
            while True:
                blob, after, _ = await self._call(link.read(after, type_name, workflow, 1000, 0))
                part = _envelopes(blob)
                if not part:
                    return out
                out += await self.whole(part)

        parts = await asyncio.gather(*(from_shard(link) for link in self._links.shards))
        if len(parts) == 1:
            return parts[0]
        return sorted((e for part in parts for e in part), key=lambda e: e.created_us)

    async def stream(
        self, cursor: dict[int, int], *, type_name: str | None, workflow: str | None
    ) -> AsyncIterator[tuple[int, int, wire.Envelope | None]]:
        """Yield (shard, position, artifact) behind a cursor, for ever; the artifact is None for a gap.

        The cursor moves with every artifact that is handed over.
        """

        async def next_of(shard: int) -> tuple[int, list[int], list[wire.Envelope], int, bool]:
            after = cursor.get(shard, 0)
            blob, positions, position, gap = await self._call(
                self.shard(shard).read_at(after, type_name, workflow, 500, self.long_call_s)
            )
            return shard, positions, _envelopes(blob), position, gap

        async for shard, positions, found, position, gap in self.merge(next_of):
            if gap:
                yield shard, cursor.get(shard, 0), None
            seqs = iter(positions)
            async for part in self.whole_parts(found):
                for envelope in part:
                    cursor[shard] = seq = next(seqs)
                    yield shard, seq, envelope
            cursor[shard] = position

    async def event_stream(
        self, cursor: dict[int, int], *, kinds: Sequence[str], workflow: str | None
    ) -> AsyncIterator[Event]:
        """Yield events behind a cursor, for ever."""

        async def next_of(shard: int) -> tuple[int, list[Event], int, bool]:
            blob, position = await self._call(
                self.shard(shard).event_list(
                    cursor.get(shard, 0), list(kinds), workflow, 500, self.long_call_s
                )
            )
            return shard, _events(blob), position, False

        async for shard, found, position, _ in self.merge(next_of):
            for event in found:
                cursor[shard] = event.seq
                yield event
            cursor[shard] = position

    async def merge(self, next_of: Callable[[int], Any]) -> AsyncIterator[Any]:
        """Keep one reading call open per shard and yield whichever answers."""
        calls = {asyncio.ensure_future(next_of(shard)): shard for shard in range(self.num_shards)}
        try:
            while calls:
                done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
                for call in done:
                    shard = calls.pop(call)
                    yield call.result()
                    calls[asyncio.ensure_future(next_of(shard))] = shard
        finally:
            for call in calls:
                call.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*calls, return_exceptions=True)

    async def status(self, workflow: str) -> WorkflowPart | None:
        """Return what all shards together know of a workflow; None when nobody knows it."""
        blobs = await asyncio.gather(*(self._call(link.status(workflow)) for link in self._links.shards))
        parts = [msgspec.msgpack.decode(blob, type=WorkflowPart) for blob in blobs if blob is not None]
        if not parts:
            return None
        total = parts[0]
        for part in parts[1:]:
            total = WorkflowPart(
                workflow,
                total.artifacts + part.artifacts,
                total.errors + part.errors,
                total.open + part.open,
                total.waiting + part.waiting,
                total.delayed + part.delayed,
                total.cancelled or part.cancelled,
                min(t for t in (total.created_us, part.created_us) if t)
                if total.created_us or part.created_us
                else 0,
                max(total.updated_us, part.updated_us),
                {k: total.counts.get(k, 0) + part.counts.get(k, 0) for k in total.counts | part.counts},
                total.waiting_for + part.waiting_for,
            )
        return total

    async def fates(self, artifact_id: bytes) -> list[ArtifactFate]:
        """Return what every shard knows of where an artifact went."""
        blobs = await asyncio.gather(*(self._call(link.fate(artifact_id)) for link in self._links.shards))
        return [msgspec.msgpack.decode(blob, type=ArtifactFate) for blob in blobs]

    async def ask_shard(self, shard: int, method: str, *args: Any) -> Any:
        """Call a method of one shard."""
        return await self._call(getattr(self.shard(shard), method)(*args))

    async def each(self, method: str, *args: Any) -> list[Any]:
        """Call a method of every shard."""
        return list(
            await asyncio.gather(*(self._call(getattr(s, method)(*args)) for s in self._links.shards))
        )


async def first_of(calls: Sequence[asyncio.Future[Any]], wait_s: float) -> set[asyncio.Future[Any]]:
    """Wait for the first of several calls and give up the others, also when the wait itself is cancelled."""
    try:
        done, _ = await asyncio.wait(calls, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        return done
    finally:
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
