"""The disk of a simulated shard: a model of the store that forgets nothing."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import msgspec

from flock_ray.adapters.memory import MemoryDisk
from flock_ray.core.claims import is_claim
from flock_ray.core.records import (
    LetterDiscarded,
    LetterEdited,
    LetterRedriven,
    Paused,
    Record,
    Reserved,
    decode_frame,
    envelopes_of,
)


@dataclass
class SimDisk(MemoryDisk):
    """A disk that also keeps what was truncated."""

    history: list[bytes] = field(default_factory=list)
    sent: dict[tuple[int, int], int] = field(default_factory=dict)
    """(source, target): last forward that the records speak of."""
    received: dict[tuple[int, int], int] = field(default_factory=dict)
    """(source, target): last forward that the records have applied."""
    last_at_us: int = 0
    everywhere: dict[int, SimDisk] = field(default_factory=dict)
    """The disks of all shards: what a gate holds of another shard's is stored there."""
    facts: set[tuple[object, ...]] = field(default_factory=set)
    """What operators and gateways were told is so: (kind, what, ...) of every record that says it."""

    def learn(self, frame: bytes) -> None:
        """Remember a frame, and what its records say."""
        self.history.append(frame)
        for record in decode_frame(frame).records:
            match record:
                case Reserved():
                    self.facts.add(("reserved", record.key, record.charge.account))
                case Paused():
                    self.facts.add(("paused", record.kind, record.name, record.on))
                case LetterRedriven() | LetterDiscarded():
                    self.facts.add(("closed", record.letter))
                case LetterEdited():
                    self.facts.add(("edited", record.letter, record.old, record.new))
                case _:
                    pass

    def records(self) -> list[Record]:
        """Every record ever made durable, with its payloads."""
        return self.with_payloads([r for frame in self.history for r in decode_frame(frame).records])

    def with_payloads(self, records: list[Record]) -> list[Record]:
        disks = (self, *self.everywhere.values())
        bodies = {envelope.id: envelope.payload for disk in disks for envelope in disk.artifacts.values()}
        for envelope in envelopes_of(records):
            if not envelope.payload or is_claim(envelope.payload):
                msgspec.structs.force_setattr(envelope, "payload", bodies[envelope.id])
        return records

    def copy(self) -> MemoryDisk:
        """Return what a store would keep of this, to be tried out."""

        def own(value: Any) -> Any:
            return dict(value) if isinstance(value, dict) else value

        return MemoryDisk(**{f.name: own(getattr(self, f.name)) for f in fields(MemoryDisk)})
