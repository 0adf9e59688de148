"""What a run publishes: its outputs, or its error, with all that they inherit from the inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol

import msgspec

from flock_ray.core.fan_in_desk import PARTIAL, partial_key
from flock_ray.core.ids import output_id
from flock_ray.core.scatter import NEAR_BYTES, Gather, Part, carried, chunk_key, key_of
from flock_ray.core.system_types import WorkflowError
from flock_ray.core.visibility import PrivateVisibility, Visibility, decode_visibility, narrow
from flock_ray.core.wire import Envelope, ErrorInfo, Match, Posting, Task
from flock_ray.engines.approving import held
from flock_ray.engines.outputs import Output, resolve_visibility
from flock_ray.errors import ConfigurationError, FlockError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from flock_ray.artifact import Artifact
    from flock_ray.core.definition import OutputSpec

__all__ = ["ERROR_POSITION", "PostFn", "Poster"]

ERROR_POSITION = 2**31 - 1
"""Position of the WorkflowError of a run among its outputs: behind all others."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NOBODY = PrivateVisibility()


class PostFn(Protocol):
    """Makes an artifact of a model and decides who gets it: `Edge.post`."""

    def __call__(
        self,
        model: BaseModel,
        *,
        id: bytes,
        correlation_id: str,
        produced_by: str,
        created_us: int,
        tags: tuple[str, ...],
        visibility: Visibility | None,
        partition_key: str | None,
        parents: tuple[bytes, ...],
        activation_id: bytes | None,
        priority: int,
        via: tuple[str, ...],
        scatter: tuple[Part, ...] = (),
    ) -> Posting:
        """Return the artifact with every decision about it."""
        ...


class Warming(Protocol):
    """Embeds, in one batch, what matching some models will compare: `Edge`."""

    def warm(self, models: Iterable[tuple[BaseModel, str]]) -> Callable[[], None] | None:
        """Return a function that embeds for (model, producer) pairs and blocks; None: there is nothing to do."""
        ...

    async def warmed(self, models: Iterable[tuple[BaseModel, str]]) -> None:
        """Do it, off the event loop."""
        ...


class Poster:
    """Turns what runs of one agent made into postings."""

    __slots__ = ("_errors_by", "_name", "_now_us", "_post", "_warming")

    def __init__(
        self, agent: str, post: PostFn, now_us: Callable[[], int], warming: Warming | None = None
    ) -> None:
        """Keep what is the same for every run.

        Args:
            agent: Whose runs.
            post: Makes an artifact of a model and matches it.
            now_us: Wall clock in microseconds.
            warming: Embeds for the matching, in batches; None: `post` embeds by itself, if it has to.
        """
        self._name = agent
        self._post = post
        self._now_us = now_us
        self._warming = warming
        self._errors_by = f"orchestrator#{agent}"

    async def warmed(self, outputs: list[Output]) -> None:
        """Embed what matching the outputs will compare, so that `outputs` does not block the event loop.

        Raises:
            ModelError: The embedder failed.
        """
        if self._warming is not None and outputs:
            await self._warming.warmed((model, self._name) for _, _, model in outputs)

    async def warmed_error(self, task: Task, info: ErrorInfo) -> None:
        """Do the same for the error of a run; an embedder that fails is reported by `error`."""
        if self._warming is not None:
            with suppress(FlockError):
                await self._warming.warmed([(self._error(task, info, 0), self._errors_by)])

    def outputs(
        self, task: Task, outputs: list[Output], history: Sequence[Artifact] = ()
    ) -> tuple[Posting, ...]:
        """Post the outputs of a run; see `resolve_visibility` for who sees them: the context counts as input.

        Tags, the explicit partition key that the inputs share, and their highest priority carry over.
        """
        if not outputs:
            return ()
        if self._warming is not None and len(outputs) > 1:
            embed = self._warming.warm((model, self._name) for _, _, model in outputs)
            if embed is not None:
                embed()
        inputs = task.inputs
        created_us = self._now_us()
        tags, partition_key, parents, via, scatter = _inherited(inputs, self._name, task.gather)
        priority = max([e.priority for e in inputs], default=0)
        # Public inputs, the usual case, need no decoding.
        closed = [decode_visibility(e.visibility) for e in inputs if e.visibility is not None]
        closed += [a.visibility for a in history if not a.is_public]
        postings: list[Posting] = []
        for position, spec, model in outputs:
            posting = self._post(
                model,
                id=output_id(task.id, position),
                correlation_id=task.correlation_id,
                produced_by=self._name,
                created_us=created_us,
                tags=tags,
                visibility=resolve_visibility(spec, model, closed)
                if closed or spec.visibility is not None
                else None,
                partition_key=partition_key,
                parents=parents,
                activation_id=task.id,
                priority=priority,
                via=via,
                scatter=scatter,
            )
            if spec.approval is None:
                postings.append(posting)
            else:
                postings += held(spec, model, posting, closed, self._post)
        return tuple(postings)

    def error(self, task: Task, info: ErrorInfo, history: Sequence[Artifact] = ()) -> Posting:
        """Post the WorkflowError of a run, visible to nobody who could not see all of its inputs and context."""
        created_us = self._now_us()
        tags, partition_key, parents, via, scatter = _inherited(task.inputs, self._name, task.gather)
        return self._post(
            self._error(task, info, created_us),
            id=output_id(task.id, ERROR_POSITION),
            correlation_id=task.correlation_id,
            produced_by=self._errors_by,
            created_us=created_us,
            tags=tags,
            visibility=_narrowest(task.inputs, history),
            partition_key=partition_key,
            parents=parents,
            activation_id=task.id,
            priority=0,
            via=via,
            scatter=scatter,
        )

    def chunks(self, task: Task) -> Callable[[OutputSpec, BaseModel, int], Posting]:
        """Return a function that posts a chunk of a fan-out, given its declaration and its index.

        Chunks live in slots of their own, whatever the partition key of what was split: the fan-in gives it back.
        """
        inputs = task.inputs
        created_us = self._now_us()
        tags, partition_key, parents, via, outer = _inherited(inputs, self._name)
        priority = max([e.priority for e in inputs], default=0)
        closed = [decode_visibility(e.visibility) for e in inputs if e.visibility is not None]
        own_key = None if outer else partition_key

        def post(spec: OutputSpec, model: BaseModel, index: int) -> Posting:
            scatter = (*outer, Part(task.id, index, task.slot, self._name, own_key))
            posting = self._post(
                model,
                id=output_id(task.id, index),
                correlation_id=task.correlation_id,
                produced_by=self._name,
                created_us=created_us,
                tags=tags,
                visibility=resolve_visibility(spec, model, closed)
                if closed or spec.visibility is not None
                else None,
                partition_key=key_of(scatter),
                parents=parents,
                activation_id=task.id,
                priority=priority,
                via=via,
                scatter=scatter,
            )
            if len(posting.envelope.payload) < NEAR_BYTES:
                return posting
            near = (*outer, msgspec.structs.replace(scatter[-1], near=True))
            envelope = msgspec.structs.replace(
                posting.envelope, slot=task.slot, partition_key=key_of(near), scatter=near
            )
            return msgspec.structs.replace(posting, envelope=envelope)

        return post

    @staticmethod
    def partial(task: Task, gather: Gather, posting: Posting) -> Posting:
        """Return what a run of a reduce has merged, on its way to the next run: no other agent gets it."""
        key = chunk_key(gather.home)
        envelope = msgspec.structs.replace(
            posting.envelope, type=PARTIAL, version=1, slot=gather.home, partition_key=key, scatter=()
        )
        return Posting(envelope, (Match(task.subscription, partial_key(gather)),))

    def _error(self, task: Task, info: ErrorInfo, created_us: int) -> WorkflowError:
        return WorkflowError(
            failed_agent=self._name,
            error_type=info.type,
            error_message=info.message,
            timestamp=_EPOCH + timedelta(microseconds=created_us),
            task_id=task.id.hex(),
            correlation_id=task.correlation_id,
        )


def _inherited(
    inputs: tuple[Envelope, ...], agent: str, gather: Gather | None = None
) -> tuple[tuple[str, ...], str | None, tuple[bytes, ...], tuple[str, ...], tuple[Part, ...]]:
    """Return what outputs inherit: tags, explicit partition key, parents, ancestors' agents, places in fan-outs.

    The key is the one that all inputs have, or None when one has none or they differ; in a fan-out, that of the chunk.
    """
    if len(inputs) == 1 and gather is None:
        only = inputs[0]
        via = only.via if agent in only.via else _sorted({agent, *only.via})
        return only.tags and _sorted(only.tags), only.partition_key, (only.id,), via, only.scatter
    tags = _sorted({tag for envelope in inputs for tag in envelope.tags})
    scatter, key, decided = carried(inputs, gather)
    if not decided:
        keys = {envelope.partition_key for envelope in inputs}
        key = keys.pop() if len(keys) == 1 else None
    via = _sorted({name for envelope in inputs for name in envelope.via} | {agent})
    return tags, key, tuple([e.id for e in inputs]), via, scatter


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(names))


def _narrowest(inputs: tuple[Envelope, ...], history: Sequence[Artifact]) -> Visibility:
    """Return who may see an error: its message may quote any input, and anything of the context."""
    try:
        closed = [artifact.visibility for artifact in history if not artifact.is_public]
        return narrow(*(decode_visibility(envelope.visibility) for envelope in inputs), *closed)
    except ConfigurationError:
        # A visibility that this process cannot read; the failure may well be about just that.
        return _NOBODY
