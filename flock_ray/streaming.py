"""Streams of artifacts and events, with cursors that a reader can keep and come back with."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel

from flock_ray.artifact import Artifact
from flock_ray.board import Board
from flock_ray.core.events import Event
from flock_ray.core.registry import TypeRegistry

__all__ = ["Cursor", "EventView", "Gap"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Cursor:
    """Where a reader is, per shard. Pass one to a stream and keep it: it moves along with the reading."""

    positions: dict[int, int] = field(default_factory=dict)
    texts: dict[int, int] = field(default_factory=dict)
    """The same of what runs stream, which a shard keeps apart."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Artifacts between the cursor and the next one were evicted before they were read."""

    shard: int
    after: int


@dataclass(frozen=True, slots=True)
class EventView:
    """One decision or incident on the board."""

    kind: str
    """Family and name: `artifact.published`, `activation.failed`, `gate.expired`, `match.refused`, `gap`, ..."""
    at: datetime
    agent: str
    correlation_id: str
    activation_id: uuid.UUID | None
    artifact_ids: tuple[uuid.UUID, ...]
    detail: str
    shard: int
    seq: int
    traceback: str = ""
    """Of `activation.failed`, if user code raised; at most 8 KiB."""
    attempt: int = 0
    """Of `stream.*`: which attempt of the run speaks, from 1; else 0."""


async def artifact_stream(
    board: Board, registry: TypeRegistry, what: type[BaseModel] | str | None, cursor: Cursor
) -> AsyncIterator[Artifact | Gap]:
    """Yield artifacts behind a cursor."""
    type_name = registry.ensure(what).name if isinstance(what, type) else None
    workflow = what if isinstance(what, str) else None
    async for shard, position, envelope in board.stream(
        cursor.positions, type_name=type_name, workflow=workflow
    ):
        yield Gap(shard, position) if envelope is None else Artifact.from_envelope(envelope)


async def event_stream(
    board: Board, kinds: Sequence[str], workflow: str | None, cursor: Cursor
) -> AsyncIterator[EventView]:
    """Yield events behind a cursor."""
    async for event in board.event_stream(cursor.positions, kinds=kinds, workflow=workflow):
        yield view(event)


def view(event: Event) -> EventView:
    """Return an event as users see it."""
    return EventView(
        event.kind,
        _EPOCH + timedelta(microseconds=event.at_us),
        event.agent,
        event.correlation_id,
        uuid.UUID(bytes=event.activation_id) if event.activation_id else None,
        tuple(uuid.UUID(bytes=artifact_id) for artifact_id in event.artifact_ids),
        event.detail,
        event.shard,
        event.seq,
        event.traceback,
    )
