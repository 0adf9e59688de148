"""What a shard hands to its store with every micro-batch, and what a store answers: rows, no records.

The journal's truth are the records (`core.records`), framed and without payloads; an artifact's
payload is stored once, in its row. Everything else here is derived and serves questions.
"""

from __future__ import annotations

import msgspec

from flock_ray.core.ballots import Decided
from flock_ray.core.model_calls import ModelCall
from flock_ray.core.usage import UsageRow
from flock_ray.core.visibility import decode_visibility
from flock_ray.core.wire import Envelope

SHARD = -1
"""Slot number of a snapshot that belongs to the whole shard."""


SettledPlace = tuple[int, int, str]
"""Where a settled workflow stands in the order of last changes: (time of it in microseconds, slot, id)."""


class ActivationRow(msgspec.Struct, array_like=True, frozen=True):
    """An activation that ended: which inputs were consumed by whom, and what came of it."""

    id: bytes
    agent: str
    subscription: str
    slot: int
    correlation_id: str
    inputs: tuple[bytes, ...]
    outputs: tuple[bytes, ...]
    created_us: int
    ended_us: int
    run_us: int = 0
    """Time in user code; 0 when nothing ran."""
    attempt: int = 0
    status: str = "completed"
    """completed, failed or cancelled."""
    error_type: str = ""
    error_message: str = ""
    calls: tuple[ModelCall, ...] = ()
    """Calls to language models in the attempt that was committed."""


class WorkflowRow(msgspec.Struct, array_like=True, frozen=True):
    """The state of a workflow in one slot after a micro-batch that touched it."""

    slot: int
    id: str
    created_us: int
    updated_us: int
    open: int = 0
    waiting: int = 0
    delayed: int = 0
    errors: int = 0
    cancelled: bool = False
    counts: dict[str, int] = {}
    """Artifacts by type, erased and archived ones among them."""
    iterations: dict[str, int] = {}
    flags: tuple[tuple[str, int], ...] = ()
    usage: tuple[UsageRow, ...] = ()
    """Calls to language models by agent and model."""
    decided: tuple[tuple[str, bytes, Decided], ...] = ()
    """(subscription, gate key) of its aggregates that were decided."""

    @property
    def settled(self) -> bool:
        """True when nothing runs, waits or is due."""
        return not (self.open or self.waiting or self.delayed)

    @property
    def place(self) -> SettledPlace:
        """Where it stands among settled workflows."""
        return self.updated_us, self.slot, self.id


class Decision(msgspec.Struct, array_like=True, frozen=True):
    """Something that an operator or client decided, for the audit log."""

    at_us: int
    kind: str
    """For example `workflow.cancelled`, `table.installed`, `artifact.erased`, `access.denied`."""
    subject: str
    """What it was about: a workflow, an artifact, an agent."""
    actor: str = ""
    detail: str = ""


class StoreBatch(msgspec.Struct):
    """One micro-batch: everything in it becomes durable together, or nothing does."""

    lsn: int
    """Number of the batch in its shard: counts from 1 without gaps."""
    at_us: int
    frame: bytes
    """The records, framed (`core.frames`); opaque to stores."""
    artifacts: list[tuple[int, Envelope]]
    """(feed position, artifact) accepted in this batch, payload included; positions ascend for ever."""
    activations: list[ActivationRow]
    workflows: list[WorkflowRow]
    decisions: list[Decision]


class Snapshot(msgspec.Struct, array_like=True, frozen=True):
    """The state of one slot (or, slot `SHARD`, of what all slots share) after batch `lsn`."""

    slot: int
    lsn: int
    data: bytes


class Loaded(msgspec.Struct):
    """What `Journal.load` found."""

    snapshots: list[Snapshot]
    frames: list[tuple[int, bytes]]
    """(lsn, frame) of every batch that was not truncated, ascending and without gaps."""
    last_lsn: int
    """Of the newest batch ever appended; 0 for a new shard."""
    last_seq: int
    """Feed position of the newest artifact ever accepted; 0 for none."""


class ArtifactQuery(msgspec.Struct, array_like=True, frozen=True):
    """Which artifacts: those that fulfil every condition given."""

    types: tuple[str, ...] = ()
    """Any of them; empty for every type."""
    produced_by: tuple[str, ...] = ()
    """Any of them; empty for every producer."""
    correlation_id: str | None = None
    tags: tuple[str, ...] = ()
    """All must be present."""
    visibility: tuple[str, ...] = ()
    """Any of these kinds (`Public`, `Private`, ...); empty for all."""
    start_us: int | None = None
    """Created at or after."""
    end_us: int | None = None
    """Created at or before."""

    def selects(self, envelope: Envelope) -> bool:
        """Say whether an artifact fulfils the query."""
        return (
            (not self.types or envelope.type in self.types)
            and (not self.produced_by or envelope.produced_by in self.produced_by)
            and (self.correlation_id is None or envelope.correlation_id == self.correlation_id)
            and (not self.tags or set(self.tags) <= set(envelope.tags))
            and (not self.visibility or visibility_kind(envelope.visibility) in self.visibility)
            and (self.start_us is None or envelope.created_us >= self.start_us)
            and (self.end_us is None or envelope.created_us <= self.end_us)
        )


class Summary(msgspec.Struct, array_like=True):
    """Counts of the artifacts that a query selects; summaries of several shards add up."""

    total: int = 0
    by_type: dict[str, int] = {}
    by_producer: dict[str, int] = {}
    by_visibility: dict[str, int] = {}
    tag_counts: dict[str, int] = {}
    earliest_us: int = 0
    latest_us: int = 0


def visibility_kind(data: bytes | None) -> str:
    """Name the kind of an encoded visibility; None is public."""
    return "Public" if data is None else str(decode_visibility(data).kind)  # type: ignore[attr-defined]  # every kind has it


ERASED = b"null"
"""Payload of an artifact whose content was erased."""
