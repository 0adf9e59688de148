"""Deadlines: runs and workflows that are not done in time. Each is said once, by an event and, if an agent consumes
it, by a `DeadlineMissed` artifact; nothing is stopped."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from heapq import heapify, heappop, heappush
from typing import Any

import msgspec

from flock_ray.core.activations import iso
from flock_ray.core.candidates import CandidateDesk
from flock_ray.core.ids import derive_id, slot_of
from flock_ray.core.records import Late
from flock_ray.core.state import Activation, Slot, Workflow
from flock_ray.core.visibility import decode_visibility, encode_visibility, narrow
from flock_ray.core.wire import Envelope, Posting

__all__ = ["DeadlineDesk"]

AT_ONCE = 1_000
"""Missed deadlines that one micro-batch takes note of."""

MIN_ENTRIES = 1_000

MISSED = "DeadlineMissed"


class DeadlineDesk(CandidateDesk):
    """What must be done by when, in one shard's slots."""

    def __init__(self, owned: Collection[int], *, max_artifacts: int | None, durable: bool) -> None:
        """Start with no deadlines."""
        self._due: list[tuple[int, int, bytes, str]] = []
        """Heap of (due, slot, activation, workflow), one of the last two empty. What is done is passed over."""
        self._most_due = MIN_ENTRIES
        super().__init__(owned, max_artifacts=max_artifacts, durable=durable)
        self._replays[Late] = self._on_late

    # -- commands -------------------------------------------------------------------------------

    def check_deadlines(self, now_us: int) -> None:
        """Take note of what is late. Call it in every micro-batch, before the commands."""
        late: dict[int, tuple[dict[bytes, None], dict[str, None]]] = {}
        found = 0
        while self._due and self._due[0][0] <= now_us and found < AT_ONCE:
            _, index, key, name = heappop(self._due)
            slot = self.slots[index]
            runs, workflows = late.setdefault(index, ({}, {}))
            run, workflow = slot.open.get(key), slot.workflows.get(name)
            if run is not None and 0 < self._due_us(run) <= now_us:
                runs[key] = None
                found += 1
            if workflow is not None and 0 < workflow.deadline_us <= now_us:
                workflows[name] = None
                found += 1
        for index, (runs, workflows) in late.items():
            if runs or workflows:
                record = Late(now_us, index, tuple(runs), tuple(workflows))
                self._log(record)
                self._on_late(record)

    def next_deadline_us(self) -> int | None:
        """Return when `check_deadlines` may have something next; None: nothing, as far as time goes."""
        return self._due[0][0] if self._due else None

    # -- what the records do --------------------------------------------------------------------

    def _on_late(self, record: Late) -> None:
        slot, now_us = self.slots[record.slot], record.at_us
        for key in record.runs:
            run = slot.open[key]
            due_us = self._due_us(run)
            run.late = True
            self.events.note(
                now_us, "deadline.missed", agent=run.agent, activation_id=key, correlation_id=run.correlation_id,
                artifact_ids=tuple(e.id for e in run.inputs), detail=f"the run was to be done by {iso(due_us)}",
            )  # fmt: skip
            if MISSED in self.matched_types:
                payload = {
                    "kind": "run", "correlation_id": run.correlation_id, "agent": run.agent,
                    "activation_id": key.hex(), "due": iso(due_us), "missed_at": iso(now_us),
                }  # fmt: skip
                self._publish_own(
                    slot, MISSED, payload, derive_id(b"deadline", key), run.agent, run.correlation_id, run.inputs,
                    None, now_us,
                )  # fmt: skip
        for name in record.workflows:
            self._on_late_workflow(slot, slot.workflows[name], now_us)

    def _on_late_workflow(self, slot: Slot, workflow: Workflow, now_us: int) -> None:
        due_us, workflow.deadline_us = workflow.deadline_us, 0
        counts = {"open": workflow.open, "waiting": workflow.waiting, "delayed": workflow.delayed}
        left = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        self.events.note(
            now_us, "workflow.late", correlation_id=workflow.id, detail=f"it was to be done by {iso(due_us)}: {left}"
        )  # fmt: skip
        if MISSED not in self.matched_types:
            return
        payload = {
            "kind": "workflow", "correlation_id": workflow.id, "due": iso(due_us), "missed_at": iso(now_us), **counts,
        }  # fmt: skip
        posting = Posting(self._about(workflow, payload, due_us, now_us))
        self._publish_output(slot, posting, now_us, unmatched=True)

    def _about(self, workflow: Workflow, payload: dict[str, Any], due_us: int, now_us: int) -> Envelope:
        """Make an artifact about a workflow, as visible as all its artifacts in memory are together."""
        held = (self.index.at(seq) for seq in workflow.seqs)
        seen = dict.fromkeys(envelope.visibility for envelope in held if envelope is not None)
        return Envelope(
            derive_id(b"deadline", workflow.id.encode(), b"%d" % due_us), MISSED, 1, msgspec.json.encode(payload),
            workflow.id, slot_of(workflow.id), "orchestrator", now_us,
            visibility=encode_visibility(narrow(*(decode_visibility(data) for data in seen))),
        )  # fmt: skip

    def _accept(self, slot: Slot, posting: Posting, now_us: int) -> None:
        super()._accept(slot, posting, now_us)
        if posting.deadline_us:
            workflow = slot.workflows.get(posting.envelope.correlation_id)
            if workflow is None or workflow.settled or workflow.cancelled:
                return  # there was nothing to do
            if not workflow.deadline_us or posting.deadline_us < workflow.deadline_us:
                workflow.deadline_us = posting.deadline_us
                self._await_deadline(posting.deadline_us, slot.index, workflow=workflow.id)

    def _watch_run(self, run: Activation) -> None:
        due_us = self._due_us(run)
        if due_us:
            self._await_deadline(due_us, run.slot, run=run.id)

    def _deadlines_installed(self) -> None:
        """Take the agents' deadlines from a new table; they hold for runs that are open, too."""
        self._deadlines = {name: info.deadline_us for name, info in self.agents.items() if info.deadline_us}
        self._rebuild()

    def adopt(self, slot: Slot) -> None:
        """Count what a slot restored from its snapshot holds."""
        super().adopt(slot)
        for due_us, index, key, name in self._of(slot):
            self._await_deadline(due_us, index, run=key, workflow=name)

    # -- inside ---------------------------------------------------------------------------------

    def _due_us(self, run: Activation) -> int:
        """Return by when a run must be done; 0: whenever, or it has been said that it is late."""
        limit_us = self._deadlines.get(run.agent, 0)
        return run.created_us + limit_us if limit_us and not run.late else 0

    def _await_deadline(self, due_us: int, slot: int, *, run: bytes = b"", workflow: str = "") -> None:
        if len(self._due) >= self._most_due:
            self._rebuild()  # most of what is in it has been done in time
        heappush(self._due, (due_us, slot, run, workflow))

    def _rebuild(self) -> None:
        self._due = [entry for slot in self.slots.values() for entry in self._of(slot)]
        heapify(self._due)
        self._most_due = max(MIN_ENTRIES, 2 * len(self._due))

    def _of(self, slot: Slot) -> Iterator[tuple[int, int, bytes, str]]:
        if self._deadlines:
            for run in slot.open.values():
                if due_us := self._due_us(run):
                    yield due_us, slot.index, run.id, ""
        for workflow in slot.workflows.values():
            if workflow.deadline_us:
                yield workflow.deadline_us, slot.index, b"", workflow.id
