"""From what users publish (models, dicts, artifacts) to postings."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json

from flock_ray.artifact import Artifact
from flock_ray.core.budget_rules import BUDGET_TAG
from flock_ray.core.ids import derive_id
from flock_ray.core.registry import TypeRegistry
from flock_ray.core.visibility import PublicVisibility, Visibility
from flock_ray.core.wire import FRESH_ID, FRESH_WORKFLOW, Posting
from flock_ray.deadlines import deadline_us
from flock_ray.edge import Edge
from flock_ray.errors import ArtifactSchemaError, ConfigurationError, FlockError
from flock_ray.ports import Clock

EXTERNAL = "external"
"""`produced_by` of what comes from outside."""

WARM_AT_ONCE = 1000
"""Objects whose texts are embedded at once: their vectors must still be remembered when they are matched."""


class Publisher:
    """Makes postings of whatever a user hands to `publish`."""

    __slots__ = ("_clock", "_edge", "_registry")

    def __init__(self, edge: Edge, registry: TypeRegistry, clock: Clock) -> None:
        """Publish through an edge."""
        self._edge = edge
        self._registry = registry
        self._clock = clock

    async def postings(self, objects: Sequence[Any], options: Sequence[Mapping[str, Any]]) -> list[Posting]:
        """Return artifacts with their matches; what those compare by meaning is embedded in batches before.

        Args:
            objects: What `posting` takes.
            options: The options of each for `posting`.

        Raises:
            ModelError: The embedder failed; `retryable` says whether to publish again. Nothing was published.
        """
        if not self._edge.table.compares:
            return [self.posting(obj, **given) for obj, given in zip(objects, options, strict=True)]
        made: list[Posting] = []
        first = self._edge.table
        for start in range(0, len(objects), WARM_AT_ONCE):
            part = slice(start, start + WARM_AT_ONCE)
            await self._edge.warmed(self._models(objects[part]))
            made += [
                self.posting(obj, **given) for obj, given in zip(objects[part], options[part], strict=True)
            ]
        while self._edge.table is not first:
            # Another publisher has learned of a deploy meanwhile: all of it must be matched by one table.
            first = self._edge.table
            made = await self._edge.matched_again(made)
        return made

    def _models(self, objects: Sequence[Any]) -> list[tuple[BaseModel, str]]:
        """Return models and producers of what can be published; `posting` says what is wrong with the rest."""
        found: list[tuple[BaseModel, str]] = []
        for obj in objects:
            with contextlib.suppress(FlockError):
                if isinstance(obj, Artifact):
                    model = self._load(obj.type, obj.envelope.payload, obj.version)
                    found.append((model, obj.produced_by or EXTERNAL))
                elif isinstance(obj, Mapping):
                    found.append((self._from_dict(obj), EXTERNAL))
                elif isinstance(obj, BaseModel):
                    found.append((obj, EXTERNAL))
        return found

    def posting(
        self,
        obj: Any,
        *,
        visibility: Visibility | None = None,
        correlation_id: str | None = None,
        partition_key: str | None = None,
        tags: Iterable[str] | None = None,
        idempotency_key: str | None = None,
        priority: int = 0,
        delay: timedelta | None = None,
        deadline: timedelta | None = None,
        produced_by: str = EXTERNAL,
        marks: tuple[str, ...] = (),
    ) -> Posting:
        """Return an artifact with its matches; parameters as for `Flock.publish`, `marks` are more tags of it."""
        now_us = self._clock.now_us()
        _check_options(visibility, priority)
        correlation_id, partition_key = (
            _text("correlation_id", correlation_id),
            _text("partition_key", partition_key),
        )
        idempotency_key = _text("idempotency_key", idempotency_key)
        not_before_us = 0 if delay is None else _not_before_us(delay, now_us)
        artifact_id = uuid.uuid4().bytes
        given_id = idempotency_key is not None or isinstance(obj, Artifact)
        parents: tuple[bytes, ...] = ()
        if isinstance(obj, Artifact):
            model = self._load(obj.type, obj.envelope.payload, obj.version)
            artifact_id, parents = obj.id.bytes, obj.envelope.parents
            correlation_id = obj.correlation_id or correlation_id
            partition_key = obj.partition_key or partition_key
            tags = obj.tags if obj.tags else tags
            visibility = obj.visibility if not isinstance(obj.visibility, PublicVisibility) else visibility
            produced_by = obj.produced_by or produced_by
        elif isinstance(obj, BaseModel):
            model = obj
        elif isinstance(obj, Mapping):
            model = self._from_dict(obj)
        else:
            raise ArtifactSchemaError(
                f"Can't publish a {type(obj).__name__}: publish an instance of a @flock_type model, "
                'a dict with a "type", or an Artifact.'
            )
        if idempotency_key is not None:
            artifact_id = derive_id(b"idempotency", idempotency_key.encode())
            # The key decides the slot too, or a retry could land on another shard.
            correlation_id = correlation_id or str(uuid.UUID(bytes=artifact_id))
        return self._edge.post(
            model,
            id=artifact_id,
            correlation_id=correlation_id or str(uuid.uuid4()),
            produced_by=produced_by,
            created_us=now_us,
            tags=_tags(tags, marks),
            visibility=visibility,
            partition_key=partition_key,
            parents=parents,
            priority=priority,
            not_before_us=not_before_us,
            deadline_us=0 if deadline is None else now_us + deadline_us(deadline, "publish(deadline=)"),
            idempotent=idempotency_key is not None,
            fresh=(0 if given_id else FRESH_ID) | (0 if given_id or correlation_id else FRESH_WORKFLOW),
        )

    def _from_dict(self, obj: Mapping[str, Any]) -> BaseModel:
        name = obj.get("type")
        if not isinstance(name, str):
            raise ArtifactSchemaError('A dict needs a "type": {"type": "Order", "payload": {...}}.')
        payload = obj.get("payload")
        if not isinstance(payload, Mapping):
            payload = {key: value for key, value in obj.items() if key != "type"}
        return self._load(name, to_json(dict(payload)), self._registry.get(name).version)

    def _load(self, name: str, payload: bytes, version: int) -> BaseModel:
        model: BaseModel = self._registry.validate(self._registry.get(name).name, version, payload)
        return model


def new_workflow(idempotency_key: str | None) -> str:
    """Name a workflow: at random, or by the key, so that a retry lands in the same one."""
    if idempotency_key is None:
        return str(uuid.uuid4())
    return str(uuid.UUID(bytes=derive_id(b"idempotency", str(idempotency_key).encode())))


def item_key(idempotency_key: str | None, position: int) -> str | None:
    """Return the key of one of several artifacts that are published under one key."""
    return None if idempotency_key is None else f"{idempotency_key}#{position}"


def _check_options(visibility: object, priority: object) -> None:
    if visibility is not None and not isinstance(visibility, Visibility):
        raise ConfigurationError(
            f"publish(visibility={visibility!r}): give a visibility, such as PublicVisibility()."
        )
    if type(priority) is not int:
        raise ConfigurationError(f"publish(priority={priority!r}): give a whole number; higher runs earlier.")


def _text(name: str, value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, uuid.UUID):
        return str(value)
    raise ConfigurationError(f"publish({name}={value!r}): give a string.")


def _not_before_us(delay: object, now_us: int) -> int:
    if not isinstance(delay, timedelta):
        raise ConfigurationError(f"publish(delay={delay!r}): give a timedelta, as in timedelta(seconds=5).")
    if delay < timedelta(0):
        raise ConfigurationError(f"publish(delay={delay}): a delay can't be negative.")
    return now_us + delay // timedelta(microseconds=1) if delay else 0


def _tags(tags: Iterable[str] | None, marks: tuple[str, ...]) -> tuple[str, ...]:
    if not tags:
        return marks if len(marks) < 2 else tuple(sorted(marks))
    found = {tags, *marks} if isinstance(tags, str) else {*tags, *marks}
    if not all(isinstance(tag, str) for tag in found):
        raise ConfigurationError(f"publish(tags={tags!r}): tags are strings, as in tags={{'urgent'}}.")
    if any(tag.startswith(BUDGET_TAG) and tag not in marks for tag in found):
        raise ConfigurationError(
            f"publish(tags={tags!r}): say publish(budget=Budget(...)) instead of {BUDGET_TAG}..."
        )
    return tuple(sorted(found))
