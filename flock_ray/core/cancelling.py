"""Workflows that somebody cancels: everything of theirs that runs, waits or travels is withdrawn."""

from __future__ import annotations

from collections.abc import Callable, Collection

import msgspec

from flock_ray.core.deadlines import DeadlineDesk
from flock_ray.core.records import Cancelled
from flock_ray.core.scatter import Part, slot_of_part
from flock_ray.core.scatter_state import Scatter
from flock_ray.core.state import Gate, Slot
from flock_ray.core.wire import Envelope, Forward


class CancelDesk(DeadlineDesk):
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
            letters = any(not letter.cancelled for letter in slot.letters.of_workflow(workflow))
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
        self._cancel_scatters(slot, name, now_us)
        for activation in [a for a in slot.open.values() if a.correlation_id == name]:
            self._withdraw(slot, activation, now_us)
        for letter in slot.letters.of_workflow(name):
            letter.cancelled = True
            slot.letters[letter.envelope.id] = letter
        self._recall(slot, name)
        self._drop_candidates(slot, name)
        waited = self._end_cases_of(slot, name, now_us)
        for keys in list(slot.gates.values()):
            for gate in list(keys.values()):
                self._take_out(slot, gate, lambda envelope: envelope.correlation_id == name, now_us)
        workflow = slot.workflows.get(name)
        if workflow is None:
            return  # its own record is in another slot; here were only inputs that gates had borrowed
        workflow.cancelled = True
        self._forget_kept(workflow)
        workflow.updated_us = now_us
        self._touch(workflow)
        self.events.note(now_us, "workflow.cancelled", correlation_id=name)
        workflow.waiting -= waited
        for key in [key for key in slot.held if key[1] == name]:
            for envelope, _ in slot.held.pop(key):
                workflow.waiting -= 1
                self._free_chunk_of(slot, envelope, now_us)
        for entry in [entry for entry in slot.delayed if self._correlation_of(entry[0]) == name]:
            del slot.delayed[entry]
            workflow.delayed -= 1
            self._free_chunk_of(slot, self.index.get(entry[0]), now_us)
        self._maybe_settled(workflow)

    def _recall(self, slot: Slot, workflow: str) -> None:
        """Take activations back that are on their way; what is there already hears of it there."""
        voids: dict[int, Forward] = {}
        for key, forward in slot.outbox.items():
            if forward.kind == "run" and forward.run is not None and forward.run.correlation_id == workflow:
                void = voids[id(forward)] = msgspec.structs.replace(forward, kind="void")
                slot.outbox[key] = void
        if voids:
            self.local_forwards = [f for f in self.local_forwards if id(f) not in voids]
            self.remote_forwards = [f for f in self.remote_forwards if id(f) not in voids]
            for void in voids.values():
                (self.local_forwards if void.target in self.slots else self.remote_forwards).append(void)

    # -- scatters -------------------------------------------------------------------------------

    def _cancel_scatters(self, slot: Slot, workflow: str, now_us: int) -> None:
        """End the scatters of a workflow; their chunks elsewhere hear of it."""
        known = slot.workflows.get(workflow)
        for key in (known.scatters or ()) if known is not None else ():
            scatter = slot.scatters.get(key)
            if scatter is not None and not scatter.done_us:
                self._stop_scatter(slot, scatter, now_us)
                self._end_scatter(slot, scatter, now_us)
                self._note_scatter(scatter, "scatter.cancelled", now_us, "its workflow was cancelled")

    def _stop_scatter(self, slot: Slot, scatter: Scatter, now_us: int) -> None:
        """Let nobody wait for the chunks of a scatter any more, and withdraw what is open of them."""
        slot.fan_ins.pop(scatter.id, None)
        self._stop_rest(slot, scatter, now_us)

    def _send_stop(self, slot: Slot, part: Part, now_us: int) -> None:
        home = slot_of_part(part)
        if home == slot.index:
            self._on_stop(slot, part, now_us)
        else:
            self._send(slot, home, "stop", part=part)

    def _on_stop(self, slot: Slot, part: Part, now_us: int) -> None:
        """Withdraw what is open here of the chunks of a scatter that nobody wants any more."""
        key = part.scatter
        if key not in slot.parts:
            return

        def concerns(envelope: Envelope) -> bool:
            return any(place.scatter == key for place in envelope.scatter)

        slot.stopped[key] = None
        for activation in [a for a in slot.open.values() if any(concerns(e) for e in a.inputs)]:
            self._withdraw(slot, activation, now_us)
        for inner in [s for s in slot.scatters.values() if not s.done_us]:
            if any(place.scatter == key for place in inner.outer):
                self._stop_scatter(slot, inner, now_us)
                self._maybe_over(slot, inner, now_us)
        for keys in list(slot.gates.values()):
            for gate in list(keys.values()):
                self._take_out(slot, gate, concerns, now_us)
        for held_key, held in list(slot.held.items()):
            for envelope, _ in [entry for entry in held if concerns(entry[0])]:
                self._shift(slot.workflows[held_key[1]], 0, -1, now_us)
                self._free_chunk_of(slot, envelope, now_us)
            slot.held[held_key] = [entry for entry in held if not concerns(entry[0])]
            if not slot.held[held_key]:
                del slot.held[held_key]
        for entry in list(slot.delayed):
            known = self.index.get(entry[0])
            if known is not None and concerns(known):
                del slot.delayed[entry]
                workflow = slot.workflows[known.correlation_id]
                workflow.delayed -= 1
                self._touch(workflow)
                self._free_chunk_of(slot, known, now_us)
                self._maybe_settled(workflow)

    def _free_chunk_of(self, slot: Slot, envelope: Envelope | None, now_us: int) -> None:
        if envelope is not None and envelope.scatter:
            self._free(slot, envelope.scatter[-1], now_us)

    def _correlation_of(self, artifact_id: bytes) -> str | None:
        envelope = self.index.get(artifact_id)
        return None if envelope is None else envelope.correlation_id

    def _take_out(self, slot: Slot, gate: Gate, concerns: Callable[[Envelope], bool], now_us: int) -> None:
        gone = [i for queue in gate.held.values() for i in queue if concerns(i.envelope)]
        # A complete group that has inputs of other workflows stays: they met already.
        groups = [g for g in gate.batch if all(concerns(i.envelope) for i in g)]
        gone += [item for group in groups for item in group]
        if not gone:
            return
        for queue in gate.held.values():
            for item in gone:
                if item in queue:
                    queue.remove(item)
        gate.batch = [group for group in gate.batch if group not in groups]
        gate.count = None
        if gate.empty:
            slot.drop_gate(gate)
        for item in gone:
            self._return_item(slot, item, now_us)
