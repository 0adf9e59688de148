"""Workflows that somebody cancels: everything of theirs that runs, waits or travels is withdrawn."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from flock_ray.core.candidates import CandidateDesk
from flock_ray.core.records import Cancelled
from flock_ray.core.state import Gate, Slot


class CancelDesk(CandidateDesk):
    """Cancels workflows in the slots of one shard."""

    def __init__(self, owned: Collection[int], *, max_artifacts: int | None, durable: bool) -> None:
        """Start with nothing cancelled."""
        super().__init__(owned, max_artifacts=max_artifacts, durable=durable)
        self._replays[Cancelled] = self._on_cancelled

    def cancel(self, workflow: str, now_us: int) -> int:
        """Cancel a workflow in the slots of this shard; returns how many of its activations were open."""
        cancelled = 0
        for index, slot in self.slots.items():
            known = slot.workflows.get(workflow)
            running = sum(1 for a in slot.open.values() if a.correlation_id == workflow)
            travel = any(f.run is not None and f.run.correlation_id == workflow for f in slot.outbox.values())
            letters = any(
                not one.cancelled and one.envelope.correlation_id == workflow for one in slot.letters.values()
            )
            if (
                (known is not None and not known.cancelled)
                or running or travel or slot.holds_inputs_of(workflow)
                or letters
            ):  # fmt: skip
                cancelled += running
                record = Cancelled(now_us, index, workflow)
                self._log(record)
                self._on_cancelled(record)
                detail = f"{running} activations were open in slot {index}"
                self._decide(now_us, "workflow.cancelled", workflow, detail=detail)
        return cancelled

    def _on_cancelled(self, record: Cancelled) -> None:
        slot, now_us = self.slots[record.slot], record.at_us
        name = record.workflow
        for activation in [a for a in slot.open.values() if a.correlation_id == name]:
            self._withdraw(slot, activation, now_us)
        for letter in slot.letters.values():
            if letter.envelope.correlation_id == name:
                letter.cancelled = True
        self._recall(slot, name)
        self._drop_candidates(slot, name)
        for keys in list(slot.gates.values()):
            for gate in list(keys.values()):
                self._cancel_items(slot, gate, name, now_us)
        workflow = slot.workflows.get(name)
        if workflow is None:
            return  # its own record is in another slot; here were only inputs that gates had borrowed
        workflow.cancelled = True
        workflow.updated_us = now_us
        self._touch(workflow)
        self.events.note(now_us, "workflow.cancelled", correlation_id=name)
        for key in [key for key in slot.held if key[1] == name]:
            workflow.waiting -= len(slot.held.pop(key))
        for entry in [entry for entry in slot.delayed if self._correlation_of(entry[0]) == name]:
            del slot.delayed[entry]
            workflow.delayed -= 1
        self._maybe_settled(workflow)

    def _recall(self, slot: Slot, workflow: str) -> None:
        """Take activations back that are on their way to other slots; one that is there already hears of it there."""
        for key, forward in list(slot.outbox.items()):
            if forward.kind == "run" and forward.run is not None and forward.run.correlation_id == workflow:
                void = msgspec.structs.replace(forward, kind="void")
                slot.outbox[key] = void
                for sending in (self.local_forwards, self.remote_forwards):
                    if forward in sending:
                        sending.remove(forward)
                (self.local_forwards if forward.target in self.slots else self.remote_forwards).append(void)

    def _correlation_of(self, artifact_id: bytes) -> str | None:
        envelope = self.index.get(artifact_id)
        return None if envelope is None else envelope.correlation_id

    def _cancel_items(self, slot: Slot, gate: Gate, workflow_id: str, now_us: int) -> None:
        gone = [i for queue in gate.held.values() for i in queue if i.envelope.correlation_id == workflow_id]
        # A complete group that has inputs of other workflows stays: they met already.
        groups = [g for g in gate.batch if all(i.envelope.correlation_id == workflow_id for i in g)]
        gone += [item for group in groups for item in group]
        if not gone:
            return
        for queue in gate.held.values():
            for item in gone:
                if item in queue:
                    queue.remove(item)
        gate.batch = [group for group in gate.batch if group not in groups]
        if gate.empty:
            slot.drop_gate(gate)
        for item in gone:
            self._return_item(slot, item, now_us)
