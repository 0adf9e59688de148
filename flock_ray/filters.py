"""What one asks `flock.store` with, and what it answers besides artifacts: upstream's names, and activations."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from flock_ray.artifact import Artifact
from flock_ray.core.rows import ActivationRow, ArtifactQuery
from flock_ray.errors import ConfigurationError

__all__ = ["ActivationRecord", "ArtifactEnvelope", "ConsumptionRecord", "FilterConfig"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(slots=True)
class FilterConfig:
    """Which artifacts: those that fulfil every condition given. None, and an empty set, is no condition."""

    type_names: set[str] | None = None
    """Any of these types, by registered name or as `module.Class`."""
    produced_by: set[str] | None = None
    """Any of these producers; `external` is whoever publishes from outside."""
    correlation_id: str | None = None
    tags: set[str] | None = None
    """All must be present."""
    visibility: set[str] | None = None
    """Any of these kinds: `Public`, `Private`, `Labelled`, `Tenant`, `After`, `AllOf`."""
    start: datetime | None = None
    """Created at or after; aware."""
    end: datetime | None = None
    """Created at or before; aware."""

    def query(self, type_key: Callable[[str], str] = str) -> ArtifactQuery:
        """Return the filter as shards and stores read it.

        Args:
            type_key: Gives the registered name of a type, however it is named here.

        Raises:
            ConfigurationError: A datetime is naive, or a string stands where a set of strings belongs.
        """
        return ArtifactQuery(
            tuple(sorted({type_key(name) for name in _names("type_names", self.type_names)})),
            _names("produced_by", self.produced_by),
            self.correlation_id,
            _names("tags", self.tags),
            _names("visibility", self.visibility),
            _microseconds("start", self.start),
            _microseconds("end", self.end),
        )


@dataclass(slots=True)
class ConsumptionRecord:
    """A run that used an artifact as input and completed."""

    artifact_id: uuid.UUID
    consumer: str
    """Name of the agent."""
    run_id: str | None = None
    """Of the activation: what the run saw as `ctx.task_id`."""
    correlation_id: str | None = None
    """Workflow of the run's outputs."""
    consumed_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    """When the run's result was committed; on a memory board when its first output was made."""


@dataclass(slots=True)
class ArtifactEnvelope:
    """An artifact with who consumed it."""

    artifact: Artifact
    consumptions: list[ConsumptionRecord] = field(default_factory=list)
    """The oldest first."""


@dataclass(frozen=True, slots=True)
class ActivationRecord:
    """One run of one agent that ended."""

    id: uuid.UUID
    agent: str
    subscription: str
    """Empty on a memory board, which does not keep it."""
    correlation_id: str
    inputs: tuple[uuid.UUID, ...]
    outputs: tuple[uuid.UUID, ...]
    created_at: datetime | None
    """When its inputs were complete; None on a memory board."""
    ended_at: datetime
    run_s: float
    """Seconds in user code; 0 when nothing ran, and on a memory board."""
    attempt: int
    """Number of the attempt that counted; grows over restarts, so it is no count of tries."""
    status: str
    """completed, failed or cancelled."""
    error_type: str = ""
    error_message: str = ""

    @classmethod
    def from_row(cls, row: ActivationRow) -> ActivationRecord:
        """Return a stored activation as users see it."""
        return cls(
            uuid.UUID(bytes=row.id), row.agent, row.subscription, row.correlation_id,
            tuple(uuid.UUID(bytes=key) for key in row.inputs), tuple(uuid.UUID(bytes=key) for key in row.outputs),
            moment(row.created_us) if row.created_us else None, moment(row.ended_us), row.run_us / 1e6, row.attempt,
            row.status, row.error_type, row.error_message,
        )  # fmt: skip


def moment(at_us: int) -> datetime:
    """Return microseconds since the Unix epoch as an aware datetime."""
    return _EPOCH + timedelta(microseconds=at_us)


def _names(what: str, values: Iterable[str] | None) -> tuple[str, ...]:
    if isinstance(values, str):
        raise ConfigurationError(f"FilterConfig({what}={values!r}): give a set of strings, {{{values!r}}}.")
    return tuple(sorted(set(values or ())))


def _microseconds(what: str, at: datetime | None) -> int | None:
    if at is None:
        return None
    if at.tzinfo is None:
        raise ConfigurationError(
            f"FilterConfig({what}={at!r}) is a naive datetime: give it a time zone, as in datetime.now(UTC)."
        )
    return (at - _EPOCH) // _MICROSECOND
