"""Answers about workflows and artifacts, read from a shard's state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from flock_ray.core import gates
from flock_ray.core.activations import iso
from flock_ray.core.aggregate_gates import waiting_text
from flock_ray.core.approvals import Case
from flock_ray.core.candidates import waiting_of
from flock_ray.core.changes import workflow_from
from flock_ray.core.ids import activation_id, shown_id
from flock_ray.core.limit_status import held_back
from flock_ray.core.rows import WorkflowRow
from flock_ray.core.scatter_status import fan_in_lines, fan_ins_with
from flock_ray.core.shard import ShardCore
from flock_ray.core.state import MATCH_AGENT, Gate, Slot, Workflow
from flock_ray.core.wire import Envelope


class WorkflowPart(msgspec.Struct, array_like=True):
    """What one shard knows of a workflow; parts of several shards add up."""

    id: str
    artifacts: int = 0
    errors: int = 0
    open: int = 0
    waiting: int = 0
    delayed: int = 0
    cancelled: bool = False
    created_us: int = 0
    updated_us: int = 0
    counts: dict[str, int] = {}
    waiting_for: list[str] = []
    """Sentences about gates that hold inputs of the workflow."""


class ArtifactFate(msgspec.Struct, array_like=True):
    """What a shard knows of where an artifact went."""

    envelope: Envelope | None = None
    ready: list[str] = []
    """Subscriptions whose activation with this input waits for a permit."""
    running: list[str] = []
    waiting: list[tuple[str, str]] = []
    """(subscription, what its gate still needs)."""
    delayed: list[tuple[str, int]] = []
    """(subscription, due time)."""
    children: list[tuple[bytes, str, str]] = []
    """(id, type, produced_by) of artifacts made from it on this shard."""
    held_back: list[tuple[str, str]] = []
    """(subscription, what its activation waits for): a time, or the limits of its agent."""
    candidates: list[tuple[str, int]] = []
    """(subscription, when it is offered to it again)."""
    approval: str = ""
    """What it waits for before it is published, in one sentence; of a request: what that waits for."""
    approval_of: tuple[str, str, str] = ("", "", "")
    """(type, agent, workflow) of what is not published yet."""


def workflow_part(core: ShardCore, workflow_id: str) -> WorkflowPart | None:
    """Return what this shard knows of a workflow; None when nothing."""
    part: WorkflowPart | None = None
    for slot in core.slots.values():
        workflow = slot.workflows.get(workflow_id)
        if workflow is not None:
            part = _add(part, workflow)
            part.waiting_for += [
                f"{sub}: its activation condition" for sub, name in slot.held if name == workflow_id
            ]
    waiting = [line for slot in core.slots.values() for line in _gates_of(slot, workflow_id)]
    waiting += [line for slot in core.slots.values() for line in fan_in_lines(slot, workflow_id)]
    waiting += [line for slot in core.slots.values() for line in _approvals_of(slot, workflow_id)]
    if part is None and waiting:
        part = WorkflowPart(workflow_id)
    if part is not None:
        part.waiting_for += waiting
    return part


def stored_part(
    core: ShardCore, part: WorkflowPart | None, rows: Iterable[WorkflowRow]
) -> WorkflowPart | None:
    """Add what the store knows of a workflow in slots where memory has nothing of it any more."""
    for row in rows:
        slot = core.slots.get(row.slot)
        if slot is not None and row.id not in slot.workflows:
            part = _add(part, workflow_from(row))
    return part


def stored_fate(fate: ArtifactFate, envelope: Envelope | None, made: Iterable[Envelope]) -> ArtifactFate:
    """Add the artifact itself and what was made from it, where only the store has them."""
    fate.envelope = fate.envelope or envelope
    known = {child[0] for child in fate.children}
    fate.children += [(e.id, e.type, e.produced_by) for e in made if e.id not in known]
    return fate


def _add(part: WorkflowPart | None, workflow: Workflow) -> WorkflowPart:
    part = part or WorkflowPart(workflow.id, created_us=workflow.created_us)
    part.artifacts += sum(workflow.counts.values())
    part.errors += workflow.errors
    part.open += workflow.open
    part.waiting += workflow.waiting
    part.delayed += workflow.delayed
    part.cancelled |= workflow.cancelled
    part.created_us = min(part.created_us, workflow.created_us)
    part.updated_us = max(part.updated_us, workflow.updated_us)
    for name, count in workflow.counts.items():
        part.counts[name] = part.counts.get(name, 0) + count
    return part


def _gates_of(slot: Slot, workflow_id: str) -> list[str]:
    lines = []
    for keys in slot.gates.values():
        for gate in keys.values():
            held = sum(1 for item in gate.items() if item.envelope.correlation_id == workflow_id)
            if held:
                lines.append(f"{gate.spec.id}: holds {held}, {_needs(gate)}")
    return lines


def _needs(gate: Gate) -> str:
    if gate.spec.aggregate is not None:
        return waiting_text(gate)
    missing = gates.waits_for(gate)
    return "waits for " + (", ".join(f"{n} x {name}" for name, n in missing.items()) or "its timeout")


def artifact_fate(core: ShardCore, artifact_id: bytes) -> ArtifactFate:
    """Return where an artifact went: what runs with it, which gate holds it, what was made from it."""
    fate = ArtifactFate(core.index.get(artifact_id))
    for slot in core.slots.values():
        fate.candidates += waiting_of(slot, artifact_id)
        for activation in slot.open.values():
            if activation.agent == MATCH_AGENT and activation.subscription:
                continue  # a look at candidates is no run
            if any(envelope.id == artifact_id for envelope in activation.inputs):
                if not activation.worker and (
                    reason := core.pauses.text_for(activation) or held_back(core, activation)
                ):
                    fate.held_back.append((activation.subscription, reason))
                else:
                    (fate.running if activation.worker else fate.ready).append(activation.subscription)
        for keys in slot.gates.values():
            for gate in keys.values():
                if any(item.envelope.id == artifact_id for item in gate.items()):
                    fate.waiting.append((gate.spec.id, _needs(gate)))
        fate.waiting += fan_ins_with(slot, artifact_id)
        for (sub, _), held in slot.held.items():
            if any(envelope.id == artifact_id for envelope, _ in held):
                fate.waiting.append((sub, "waits for its activation condition"))
        fate.delayed += [(sub, m.due_us) for (key, sub), m in slot.delayed.items() if key == artifact_id]
    case = _case_of(core, artifact_id, fate.envelope)
    if case is not None:
        fate.approval = approval_text(case)
        fate.approval_of = (case.ask.type, case.ask.agent, case.correlation_id)
    if fate.envelope is not None:
        workflow = core.slots[fate.envelope.slot].workflows.get(
            fate.envelope.correlation_id
        )  # may have left memory
        for seq in workflow.seqs if workflow is not None else ():
            child = core.index.at(seq)
            if child is not None and artifact_id in child.parents:
                fate.children.append((child.id, child.type, child.produced_by))
    return fate


def _approvals_of(slot: Slot, workflow_id: str) -> Iterator[str]:
    """Iterate over what a workflow waits for people to decide; it is kept where the workflow is."""
    if slot.approvals and workflow_id in slot.workflows:
        for case in slot.approvals.values():
            if case.correlation_id == workflow_id and not case.ask.terms.shadow:
                yield approval_text(case)


def _case_of(core: ShardCore, artifact_id: bytes, envelope: Envelope | None) -> Case | None:
    """Return the open case of what is not published yet, or of a request; None when there is none."""
    for slot in core.slots.values():
        if artifact_id in slot.approvals:
            return slot.approvals[artifact_id]
    if envelope is None or envelope.type != "ApprovalRequest":
        return None
    shown = core.slots[envelope.slot].approvals.values()
    return next((case for case in shown if case.request == artifact_id), None)


def approval_text(case: Case) -> str:
    """Say what an approval waits for."""
    said = [f"{vote.by} says {vote.kind}" for vote in case.current]
    said = said or ["nobody has decided"]
    what = f"{case.ask.type} {shown_id(case.id)} of agent {case.ask.agent}"
    return (
        f"approval of {what}: {case.quorum} of {', '.join(case.approvers) or 'anybody'} until {iso(case.due_us)}; "
        + ", ".join(said)
    )


def single_activation(agent: str, subscription: str, artifact_id: bytes) -> bytes:
    """Return the activation that one artifact triggers on a subscription without a gate."""
    return activation_id(agent, subscription, (artifact_id,), 0)
