"""Checks the guarantees over what a board has stored, and explains what does not fit. Pure: rows in, findings out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

from flock_ray.core.activations import ERROR_POSITION
from flock_ray.core.ids import activation_id, output_id, owned_slots, slot_of
from flock_ray.core.lineage import ERROR_PRODUCER
from flock_ray.core.rows import ActivationRow, WorkflowRow
from flock_ray.core.wire import Envelope

MAX_ROUNDS = 64
"""Rounds of a gate that an activation's id is tried with."""

MAX_REDRIVES = 64
"""Redrives that the id of one is tried with, for a dead letter that was erased."""


class Violation(msgspec.Struct, frozen=True):
    """Something that a guarantee rules out."""

    guarantee: str
    """G1 ... G9, as in docs/guarantees.md."""
    subject: str
    """Hex id of the artifact or activation, or a workflow."""
    explanation: str


class Verifier:
    """Takes everything that a board has stored, shard by shard, and says what is wrong with it.

    Holds ids and counts, no payloads: about 400 bytes per artifact.
    """

    def __init__(self, num_shards: int, *, complete: bool = True) -> None:
        """Verify a board with this number of shards.

        Args:
            num_shards: Shards of the board.
            complete: Nothing was removed by retention: what is referred to must be there.
        """
        self._complete = complete
        self._slots = {slot: shard for shard in range(num_shards) for slot in owned_slots(shard, num_shards)}
        self._artifacts: dict[bytes, tuple[int, int, bytes | None]] = {}
        """Id: (slot, feed position, activation that made it)."""
        self._parents: list[tuple[bytes, tuple[bytes, ...]]] = []
        self._chunks: dict[bytes, int] = {}
        """Chunks of fan-outs, with their index."""
        self._ended: dict[bytes, ActivationRow] = {}
        self._redriven: set[bytes] = set()
        """Ids that redrives of the dead letters taken have, or would have."""
        self._counts: dict[tuple[int, str], Counter[str]] = {}
        self.violations: list[Violation] = []

    @property
    def num_artifacts(self) -> int:
        """Artifacts taken so far."""
        return len(self._artifacts)

    @property
    def num_activations(self) -> int:
        """Ended activations taken so far."""
        return len(self._ended)

    def _violated(self, guarantee: str, subject: bytes | str, explanation: str) -> None:
        name = subject.hex() if isinstance(subject, bytes) else subject
        self.violations.append(Violation(guarantee, name, explanation))

    def artifacts(self, shard: int, entries: Iterable[tuple[int, Envelope]]) -> None:
        """Take artifacts of a shard, by feed position."""
        for seq, envelope in entries:
            if envelope.id in self._artifacts:
                self._violated("G2", envelope.id, "the same artifact is stored twice")
                continue
            self._artifacts[envelope.id] = (envelope.slot, seq, envelope.activation_id)
            key = envelope.partition_key
            if envelope.slot != slot_of(key if key is not None else envelope.correlation_id):
                self._violated("G3", envelope.id, f"its key does not belong to slot {envelope.slot}")
            elif self._slots[envelope.slot] != shard:
                self._violated(
                    "G3", envelope.id, f"shard {shard} wrote slot {envelope.slot}, which is not its own"
                )
            if envelope.type == "DeadLetter":
                self._redriven.update(_redrives_of(envelope))
            if envelope.scatter and envelope.scatter[-1].scatter == envelope.activation_id:
                self._chunks[envelope.id] = envelope.scatter[-1].index
            if envelope.parents:
                self._parents.append((envelope.id, envelope.parents))
            counts = self._counts.setdefault((envelope.slot, envelope.correlation_id), Counter())
            counts[envelope.type] += 1

    def activations(self, rows: Iterable[ActivationRow]) -> None:
        """Take ended activations; the same one may come again."""
        for row in rows:
            self._ended[row.id] = row

    def workflows(self, rows: Iterable[WorkflowRow]) -> None:
        """Take the workflows of the artifacts taken; checks their counts."""
        for row in rows:
            found = self._counts.get((row.slot, row.id), Counter())
            if +found != +Counter(row.counts):
                self._violated(
                    "G1", row.id, f"slot {row.slot} counted {row.counts} artifacts and has {dict(found)}"
                )

    def acknowledged(self, ids: Iterable[bytes]) -> None:
        """Take what publishers were told is accepted."""
        for key in ids:
            if self._complete and key not in self._artifacts:
                self._violated("G1", key, "it was acknowledged and is not on the board")

    def finish(self) -> list[Violation]:
        """Check what needs everything, and return all violations."""
        self._check_outputs()
        self._check_inputs()
        self._check_order()
        return self.violations

    def _check_outputs(self) -> None:
        for key, (_, _, made_by) in self._artifacts.items():
            if made_by is None:
                continue
            row = self._ended.get(made_by)
            if key == output_id(made_by, ERROR_POSITION):
                continue  # an error that a shard or a worker made for the activation
            if row is None:
                self._violated("G2", key, f"it was made by activation {made_by.hex()}, which never ended")
            elif key in self._chunks:
                # A fan-out commits in parts, and only the last one is in the row of its run.
                if key != output_id(made_by, self._chunks[key]):
                    self._violated("G2", key, f"it does not have the id of chunk {self._chunks[key]}")
            elif key not in row.outputs:
                self._violated(
                    "G2", key, f"it is not among the outputs that activation {made_by.hex()} committed"
                )
        for row in self._ended.values():
            for position, key in enumerate(row.outputs):
                if key not in self._artifacts:
                    self._violated("G2", row.id, f"its output {key.hex()} is not on the board")
                elif key not in self._chunks and key not in (
                    output_id(row.id, position),
                    output_id(row.id, ERROR_POSITION),
                ):
                    self._violated(
                        "G2", row.id, f"output {key.hex()} does not have the id of position {position}"
                    )

    def _check_inputs(self) -> None:
        used: dict[tuple[str, bytes], bytes] = {}
        fan_outs: dict[tuple[bytes, ...], list[bytes]] = {}
        for row in self._ended.values():
            fan_outs.setdefault(row.inputs, []).append(row.id)
        for row in self._ended.values():
            again = row.id in self._redriven or any(
                # A fan-in of a fan-out that made nothing has the inputs of that one.
                row.id == activation_id(row.agent, row.subscription, (other,), 0)
                for other in fan_outs[row.inputs]
            )
            if not again and not any(
                row.id == activation_id(row.agent, row.subscription, row.inputs, r) for r in range(MAX_ROUNDS)
            ):
                self._violated("G2", row.id, f"it is not the activation of {row.agent!r} on its inputs")
            for key in row.inputs:
                if self._complete and key not in self._artifacts:
                    self._violated("G1", row.id, f"its input {key.hex()} is not on the board")
                other = row.id if again else used.setdefault((row.subscription, key), row.id)
                if other != row.id:
                    self._violated(
                        "G2",
                        key,
                        f"subscription {row.subscription!r} consumed it twice: {other.hex()}, {row.id.hex()}",
                    )

    def _check_order(self) -> None:
        for key, parents in self._parents:
            slot, seq, _ = self._artifacts[key]
            for parent in parents:
                known = self._artifacts.get(parent)
                if known is None:
                    if self._complete:
                        self._violated("G1", key, f"its parent {parent.hex()} is not on the board")
                elif known[0] == slot and known[1] >= seq:
                    self._violated("G4", key, f"it comes before its parent {parent.hex()} in slot {slot}")


class _LetterPayload(msgspec.Struct):
    redrives: int = 0


def _redrives_of(letter: Envelope) -> list[bytes]:
    """Return the id that the redrive of a dead letter has; of an erased one, those that it may have."""
    agent = letter.produced_by.removeprefix(ERROR_PRODUCER)
    try:
        numbers = [msgspec.json.decode(letter.payload, type=_LetterPayload).redrives]
    except msgspec.DecodeError:
        numbers = list(range(MAX_REDRIVES))
    return [activation_id(agent, "redrive", (letter.id,), number) for number in numbers]
