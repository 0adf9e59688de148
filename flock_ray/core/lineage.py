"""What was made from what, for boards without a store: an index that is built only when somebody asks."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from flock_ray.core.index import BoardIndex
from flock_ray.core.rows import ActivationRow
from flock_ray.core.wire import Envelope

ERROR_PRODUCER = "orchestrator#"
"""`produced_by` of a WorkflowError starts with it; the agent's name follows."""

_MIN_ENTRIES = 10_000


class Lineage:
    """Outputs by input. Publishing pays nothing for it: each question first reads what is new in the feed."""

    __slots__ = ("_anew", "_entries", "_index", "_limit", "_made", "_seen")

    def __init__(self, index: BoardIndex) -> None:
        """Index a shard's artifacts; nothing is read yet."""
        self._index = index
        self._limit = _MIN_ENTRIES
        self._anew = False
        self._forget()

    def _forget(self) -> None:
        self._seen = self._entries = 0
        self._made: dict[bytes, list[int]] = {}

    def catch_up(self, limit: int) -> bool:
        """Read at most so many artifacts that are new; True when none is left."""
        if self._entries > self._limit and not self._anew:
            # What was evicted is only found out by reading anew; twice the size pays for it.
            self._forget()
            self._anew = True
        chunk = list(islice(self._index.read(self._seen), limit))
        for seq, envelope in chunk:
            self._seen = seq
            if envelope.activation_id is not None:
                self._entries += len(envelope.parents)
                for parent in envelope.parents:
                    self._made.setdefault(parent, []).append(seq)
        if len(chunk) == limit:
            return False
        if self._anew:
            self._limit, self._anew = max(_MIN_ENTRIES, 2 * self._entries), False
        return True

    def made_from(self, ids: Iterable[bytes]) -> list[Envelope]:
        """Return the outputs that have one of these among their inputs, by feed position."""
        seqs = sorted({seq for key in ids for seq in self._made.get(key, ())})
        return [envelope for seq in seqs if (envelope := self._index.at(seq)) is not None]


def runs_of(outputs: Iterable[Envelope]) -> list[ActivationRow]:
    """Return the activations that made these artifacts, as far as the artifacts say, in order of their first output."""
    by_run: dict[bytes, list[Envelope]] = {}
    for envelope in outputs:
        if envelope.activation_id is not None:
            by_run.setdefault(envelope.activation_id, []).append(envelope)
    return [_run(key, made) for key, made in by_run.items()]


def _run(key: bytes, made: list[Envelope]) -> ActivationRow:
    first = made[0]
    failed = first.produced_by.startswith(ERROR_PRODUCER)
    return ActivationRow(
        key, first.produced_by.removeprefix(ERROR_PRODUCER), "", first.slot, first.correlation_id, first.parents,
        tuple(envelope.id for envelope in made), 0, first.created_us, status="failed" if failed else "completed",
    )  # fmt: skip
