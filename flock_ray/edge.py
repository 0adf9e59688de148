"""The edge: turns models into postings. Whatever publishes has one: driver, worker, API replica."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import msgspec
from pydantic import BaseModel

from flock_ray.core.approval_types import ApprovalRequest
from flock_ray.core.fan_in_desk import PARTIAL
from flock_ray.core.ids import slot_of
from flock_ray.core.matching import Check, Matched, MatchTable
from flock_ray.core.registry import TypeRegistry, to_json
from flock_ray.core.scatter import Part
from flock_ray.core.similarity import Vectors
from flock_ray.core.visibility import Visibility, encode_visibility
from flock_ray.core.wire import Envelope, Posting, Task
from flock_ray.embeddings import Embeddings, through
from flock_ray.errors import PayloadTooLargeError, UnknownTypeError

DEFAULT_MAX_PAYLOAD_BYTES = 32 * 1024 * 1024
DEFAULT_INLINE_PAYLOAD_BYTES = 100_000
"""Larger payloads are claimed: they are held outside the shards."""


class Edge:
    """Validates, serialises and matches with one version of the subscription table."""

    __slots__ = ("_known", "_registry", "embeddings", "max_payload_bytes", "offload", "table")

    def __init__(
        self,
        table: MatchTable,
        registry: TypeRegistry,
        *,
        max_payload_bytes: int = DEFAULT_MAX_PAYLOAD_BYTES,
        offload: Callable[..., Awaitable[Any]] = asyncio.to_thread,
    ) -> None:
        """Start with a table; it is replaced by assigning `table`.

        Args:
            table: Who listens to what.
            registry: Names of types.
            max_payload_bytes: Largest payload accepted, in bytes of JSON.
            offload: Runs what may block, embedding for one, off the event loop.
        """
        self.offload = offload
        self.embeddings: Embeddings | None = None
        """Where its embedders send requests; None: where the process says, or nowhere in particular."""
        self.table = table
        self._registry = registry
        self._known: dict[type[BaseModel], tuple[str, int]] = {ApprovalRequest: ("ApprovalRequest", 1)}
        """Name and version of the classes published so far. That of requests is never registered here: consumers may
        have one of their own."""
        self.max_payload_bytes = max_payload_bytes

    def post(
        self,
        model: BaseModel,
        *,
        id: bytes,
        correlation_id: str,
        produced_by: str,
        created_us: int,
        tags: tuple[str, ...] = (),
        visibility: Visibility | None = None,
        partition_key: str | None = None,
        parents: tuple[bytes, ...] = (),
        activation_id: bytes | None = None,
        priority: int = 0,
        via: tuple[str, ...] = (),
        scatter: tuple[Part, ...] = (),
        not_before_us: int = 0,
        idempotent: bool = False,
        fresh: int = 0,
        deadline_us: int = 0,
    ) -> Posting:
        """Make an artifact of a model and decide who gets it.

        Args:
            model: An instance of a registered type.
            id: 16 bytes; derived for outputs, so that a second execution makes the same artifact.
            correlation_id: The workflow.
            produced_by: Name of the agent, `external` for publishers outside.
            created_us: Now, in microseconds since the Unix epoch.
            tags: Sorted tags.
            visibility: Who may see it; None is everybody.
            partition_key: Decides the slot; None: the correlation id does.
            parents: Ids of the artifacts it was made from.
            activation_id: Of the run that made it; None from outside.
            priority: Added to the subscription's; higher runs earlier.
            via: Agents among its ancestors.
            scatter: Its places in fan-outs.
            not_before_us: Earliest delivery; 0 is at once.
            idempotent: The id comes from an idempotency key.
            fresh: `wire.FRESH_ID` and `wire.FRESH_WORKFLOW`, for what was drawn at random.
            deadline_us: By when its workflow must be done; 0 is whenever.

        Raises:
            UnknownTypeError: The model's class is not registered.
            PayloadTooLargeError: The JSON is larger than the limit.
            ModelError: A subscription compares meanings and the embedder failed; nothing was published.
        """
        name, version, payload = self._serialise(model)
        envelope = Envelope(
            id,
            name,
            version,
            payload,
            correlation_id,
            slot_of(partition_key if partition_key is not None else correlation_id),
            produced_by,
            created_us,
            tags,
            None if visibility is None else encode_visibility(visibility),
            partition_key,
            parents,
            activation_id,
            priority,
            via,
            scatter,
        )
        seen = None if type(model) is ApprovalRequest else model
        matched = self._matched(envelope, seen, not_before_us)
        return Posting(
            envelope, matched.matches, matched.signals, matched.refusals, idempotent, not_before_us, fresh,
            matched.later, deadline_us=deadline_us,
        )  # fmt: skip

    def output(
        self, model: BaseModel, task: Task, id: bytes, produced_by: str, created_us: int, via: tuple[str, ...]
    ) -> Posting:
        """Do what `post` does for the output of a run with one public, untagged input: most artifacts are that.

        Args:
            model: An instance of a registered type.
            task: The run; its output stays in the workflow, and so in the slot, of its input.
            id: Of the output.
            produced_by: Name of the agent.
            created_us: Now.
            via: Agents among its ancestors.
        """
        name, version, payload = self._serialise(model)
        source = task.inputs[0]
        envelope = Envelope(
            id, name, version, payload, source.correlation_id, source.slot, produced_by, created_us, (), None,
            source.partition_key, (source.id,), task.id, source.priority, via, source.scatter,
        )  # fmt: skip
        plain = self.table.plain(name, produced_by)
        if plain is not None:
            return Posting(envelope, plain)
        matched = self._matched(envelope, model)
        return Posting(envelope, matched.matches, matched.signals, matched.refusals, candidates=matched.later)

    def _matched(self, envelope: Envelope, model: BaseModel | None, not_before_us: int = 0) -> Matched:
        if not self.table.compares:
            return self.table.match(envelope, model, not_before_us)
        with through(self.embeddings, envelope.produced_by):
            return self.table.match(envelope, model, not_before_us)

    def _serialise(self, model: BaseModel) -> tuple[str, int, bytes]:
        cls = type(model)
        known = self._known.get(cls)
        if known is None:
            known = self._known[cls] = (self._registry.name_for(cls), self._registry.version_for(cls))
        payload = to_json(model)
        if len(payload) > self.max_payload_bytes:
            raise PayloadTooLargeError(
                f"{cls.__name__}: the payload is {len(payload)} bytes, the limit {self.max_payload_bytes}. "
                "Store large data elsewhere and publish a reference, or raise max_payload_bytes."
            )
        return *known, payload

    def rematch(self, posting: Posting) -> Posting:
        """Match again, with the table that is current now; one that is offered again, with its subscription alone."""
        if posting.envelope.type == PARTIAL:
            return posting  # it is on its way to the run of a fan-in that waits for it
        if posting.offered:
            with through(self.embeddings, posting.envelope.produced_by):
                matched = self.table.match_again(posting.envelope, posting.offered)
        else:
            matched = self._matched(posting.envelope, None, posting.not_before_us)
        return msgspec.structs.replace(
            posting, matches=matched.matches, signals=matched.signals, refusals=matched.refusals,
            candidates=matched.later,
        )  # fmt: skip

    def warm(self, models: Iterable[tuple[BaseModel, str]]) -> Callable[[], None] | None:
        """Look for texts that matching these models will compare and that nobody has embedded yet.

        Args:
            models: What is about to be posted, each with its producer.

        Returns:
            A function that embeds them, one batch per embedder, and blocks meanwhile; None: there is nothing to do.
        """
        if not self.table.compares:
            return None
        models = list(models)
        wanted: dict[int, tuple[Vectors, list[str]]] = {}
        for model, produced_by in models:
            name = self._known.get(type(model), (None,))[0] or self._name_of(type(model))
            if name is None:
                continue
            for vectors, texts in self.table.texts(name, produced_by, model):
                wanted.setdefault(id(vectors), (vectors, []))[1].extend(texts)
        batches = [
            (vectors, missing) for vectors, texts in wanted.values() if (missing := vectors.missing(texts))
        ]
        if not batches:
            return None
        agent = next((produced_by for _, produced_by in models), "")
        return lambda: self._embed(batches, agent)

    async def warmed(self, models: Iterable[tuple[BaseModel, str]]) -> None:
        """Embed, off the event loop, what matching these models will compare.

        Raises:
            ModelError: The embedder failed.
        """
        embed = self.warm(models)
        if embed is not None:
            await self.offload(embed)

    async def matched_again(self, postings: Sequence[Posting]) -> list[Posting]:
        """Match again, with the table that is current now; off the event loop if that may block.

        Raises:
            ModelError: A subscription compares meanings and the embedder failed.
        """
        if not self.table.compares:
            return [self.rematch(posting) for posting in postings]
        again: list[Posting] = await self.offload(lambda: [self.rematch(posting) for posting in postings])
        return again

    async def explain(self, envelope: Envelope) -> dict[str, list[Check]]:
        """Evaluate every condition on an artifact, as `MatchTable.explain`; off the event loop if that may block."""
        if not self.table.compares:
            return self.table.explain(envelope)
        with through(self.embeddings):
            answers: dict[str, list[Check]] = await self.offload(self.table.explain, envelope)
        return answers

    def _embed(self, batches: Sequence[tuple[Vectors, list[str]]], agent: str) -> None:
        with through(self.embeddings, agent):
            for vectors, texts in batches:
                vectors.embed(texts)

    def _name_of(self, cls: type[BaseModel]) -> str | None:
        try:
            return self._registry.name_for(cls)
        except UnknownTypeError:
            return None  # whoever posts it hears of that

    def decode(self, envelope: Envelope) -> Any:
        """Return the payload of an artifact as a model of its current version."""
        return self._registry.validate(envelope.type, envelope.version, envelope.payload)
