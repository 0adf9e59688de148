"""What happened, as a bounded log that one can list: nothing is dropped in silence.

The log keeps references to what was decided anyway and builds `Event`s when somebody reads.
"""

from __future__ import annotations

from typing import Any

import msgspec

from flock_ray.core.wire import Completion, Envelope

MAX_EVENTS = 50_000
"""Events a shard keeps; a reader that is slower than that gets a `gap` event."""

MAX_COUNTED = 10_000
"""Pairs of kind and agent that are counted."""


class Event(msgspec.Struct, array_like=True, frozen=True):
    """One decision or incident."""

    seq: int
    """Position in its shard's log."""
    at_us: int
    kind: str
    agent: str = ""
    correlation_id: str = ""
    activation_id: bytes = b""
    artifact_ids: tuple[bytes, ...] = ()
    detail: str = ""
    shard: int = 0
    traceback: str = ""
    """Of `activation.failed`, if user code raised."""


class EventLog:
    """A ring of the newest events of one shard."""

    __slots__ = ("_entries", "_limit", "base", "counts")

    def __init__(self, limit: int = MAX_EVENTS) -> None:
        """Start empty, keeping at most `limit` to twice `limit` events."""
        self._limit = limit
        self._entries: list[tuple[int, str, Any, Any]] = []
        self.base = 1
        self.counts: dict[tuple[str, str], int] = {}
        """How often there was an event of a kind, by agent where that is known; since the epoch began."""

    @property
    def head(self) -> int:
        """Position of the newest event; 0 before the first."""
        return self.base + len(self._entries) - 1

    def begin_at(self, base: int) -> None:
        """Forget everything and number what comes from `base`: the log of a new epoch."""
        self._entries.clear()
        self.counts.clear()
        self.base = base

    def published(self, at_us: int, envelope: Envelope) -> None:
        """Note that an artifact was accepted."""
        self._entries.append((at_us, "artifact.published", envelope, None))
        self._count("artifact.published", "")
        if len(self._entries) > 2 * self._limit:
            self._trim()

    def completed(self, at_us: int, agent: str, correlation_id: str, completion: Completion) -> None:
        """Note that an activation ended."""
        kind = "activation.completed" if completion.error is None else "activation.failed"
        self._entries.append((at_us, kind, completion, (agent, correlation_id)))
        self._count(kind, agent)
        if len(self._entries) > 2 * self._limit:
            self._trim()

    def note(
        self,
        at_us: int,
        kind: str,
        *,
        agent: str = "",
        correlation_id: str = "",
        activation_id: bytes = b"",
        artifact_ids: tuple[bytes, ...] = (),
        detail: str = "",
    ) -> None:
        """Note anything else."""
        event = Event(0, at_us, kind, agent, correlation_id, activation_id, artifact_ids, detail)
        self._entries.append((at_us, kind, event, None))
        self._count(kind, agent)
        if len(self._entries) > 2 * self._limit:
            self._trim()

    def _count(self, kind: str, agent: str) -> None:
        key = (kind, agent)
        known = self.counts.get(key, 0)
        if known or len(self.counts) < MAX_COUNTED:
            self.counts[key] = known + 1

    def _trim(self) -> None:
        excess = len(self._entries) - self._limit
        del self._entries[:excess]
        self.base += excess

    def read(
        self,
        after: int,
        limit: int,
        *,
        kinds: frozenset[str] = frozenset(),
        correlation_id: str | None = None,
    ) -> tuple[list[Event], int]:
        """Return events behind a position and the position to go on from.

        Args:
            after: Position of the last event seen; 0 for the oldest kept. If events behind it are gone,
                the first one returned is a `gap` whose detail says how many.
            limit: At most this many events.
            kinds: Only these kinds (or their prefix before the dot); empty for all.
            correlation_id: Only this workflow; None for all.
        """
        out: list[Event] = []
        if after + 1 < self.base and after > 0:
            missed = self.base - after - 1
            out.append(
                Event(self.base - 1, 0, "gap", detail=f"{missed} events were dropped before they were read")
            )
        position = max(after + 1, self.base)
        while position <= self.head and len(out) < limit:
            at_us, kind, subject, origin = self._entries[position - self.base]
            if not kinds or kind in kinds or kind.partition(".")[0] in kinds:
                event = _event(position, at_us, kind, subject, origin)
                if correlation_id is None or event.correlation_id == correlation_id:
                    out.append(event)
            position += 1
        return out, position - 1


def _event(seq: int, at_us: int, kind: str, subject: Any, origin: Any) -> Event:
    if isinstance(subject, Envelope):
        return Event(seq, at_us, kind, subject.produced_by, subject.correlation_id, subject.activation_id or b"",
                     (subject.id,), subject.type)  # fmt: skip
    if isinstance(subject, Completion):
        error = subject.error
        detail = "" if error is None else f"{error.type}: {error.message}"
        outputs = tuple(p.envelope.id for p in subject.outputs)
        agent, correlation = origin
        trace = "" if error is None else error.traceback
        return Event(seq, at_us, kind, agent, correlation, subject.id, outputs, detail, traceback=trace)
    noted: Event = msgspec.structs.replace(subject, seq=seq)
    return noted
