"""More promises that a finished run is held to: order, limits, visibility, and that nothing happens in silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from flock_ray.core.changes import workflow_row
from flock_ray.core.events import Event
from flock_ray.core.records import ForwardedIn, decode_frame
from flock_ray.core.recovery import SlotState
from flock_ray.core.rows import SHARD
from flock_ray.core.shard import ShardCore
from flock_ray.core.state import Workflow
from flock_ray.core.visibility import AgentIdentity, decode_visibility
from flock_ray.core.wire import Envelope
from tests.simulation.audit import Audit, AuditCore, differences, digest, recovered
from tests.simulation.disk import SimDisk


def check_order(disk: SimDisk) -> None:
    """G4: time and feed go forward, and what one slot tells another is applied in order, once."""
    last_us = 0
    received: Counter[tuple[int, int]] = Counter()
    for frame in map(decode_frame, disk.history):
        for record in frame.records:
            at_us = getattr(record, "at_us", frame.at_us)
            assert last_us <= at_us <= frame.at_us, f"a record of {at_us} came after {last_us}"
            last_us = at_us
            if isinstance(record, ForwardedIn):
                forward = record.forward
                received[forward.source, forward.target] += 1
                assert received[forward.source, forward.target] == forward.seq
    seqs = list(disk.artifacts)
    assert seqs == sorted(seqs)
    assert disk.last_seq == max(seqs, default=0)


async def check_recovery(disk: SimDisk, expected: ShardCore) -> None:
    """G5: what a new shard would make of the disk is what all records make."""
    again = await recovered(expected.slots, disk.copy())
    assert differences(digest(again), digest(expected)) == []
    for slot in again.slots.values():
        for workflow in slot.workflows.values():
            # Also what has settled: something new may come for it.
            known = expected.slots[slot.index].workflows[workflow.id]
            assert differences(workflow_row(workflow), workflow_row(known)) == []
            assert ids_at(again, workflow) == ids_at(expected, workflow)


def ids_at(core: ShardCore, workflow: Workflow) -> list[bytes]:
    found = [core.index.at(seq) for seq in workflow.seqs]
    return [envelope.id for envelope in found if envelope is not None]


def check_snapshots(disk: SimDisk) -> None:
    """G8: what has settled is in no snapshot, so recovery does not take longer with age."""
    for snapshot in disk.snapshots.values():
        if snapshot.slot != SHARD:
            state = msgspec.msgpack.decode(snapshot.data, type=SlotState)
            settled = [w.id for w in state.workflows if w.settled and w.counts]
            assert not settled, f"the snapshot of slot {snapshot.slot} keeps {settled}"


def check_memory(core: ShardCore) -> None:
    """G8: what has settled leaves memory when there is too much of it."""
    limit = core._max_artifacts
    if limit is None or len(core.index) <= limit:
        return
    workflows = [w for slot in core.slots.values() for w in slot.workflows.values()]
    held = {w.id: len(w.seqs) for w in workflows if w.settled and w.seqs}
    assert not held, f"{len(core.index)} artifacts in memory, of settled workflows: {held}"


def check_visibility(audit: Audit, disks: Iterable[SimDisk], agents: Sequence[str]) -> None:
    """G7: nobody gets what it may not see, and what is made of it is seen by nobody else."""
    seen_by = {e.id: {a for a in agents if may_see(e, a)} for e in audit.board.values()}
    for row in (row for disk in disks for row in disk.ended.values()):
        for key in row.inputs:
            assert row.agent in seen_by[key], f"{row.agent} got an artifact that it may not see"
    for envelope in audit.board.values():
        for parent in envelope.parents:
            assert seen_by[envelope.id] <= seen_by[parent], f"{envelope.type} is seen by more than its input"


def may_see(envelope: Envelope, agent: str) -> bool:
    if envelope.visibility is None:
        return True
    return decode_visibility(envelope.visibility).visible_after(AgentIdentity(name=agent)) is not None


def check_events(core: AuditCore) -> None:
    """G9: whatever is refused, expires, is lost or given up can be listed."""
    events: dict[str, list[Event]] = {}
    for event in events_of(core):
        events.setdefault(event.kind, []).append(event)

    def about(kind: str) -> set[bytes]:
        return {key for event in events.get(kind, ()) for key in (*event.artifact_ids, event.activation_id)}

    expired = {key for _, key in core.expired}
    assert expired <= about("gate.expired")
    refused = {posting.envelope.id for _, posting in core.decided if posting.refusals}
    assert refused & set(core.index.ids) <= about("match.refused")
    assert {key for key, _ in core.lost} <= about("activation.worker_lost")
    for envelope in core.index:
        if envelope.type == "WorkflowError" and envelope.activation_id is not None:
            failed = {envelope.activation_id, *envelope.parents}
            assert failed & (
                about("activation.failed") | about("loop.stopped") | about("aggregate.failed")
            ) or not is_ours(core, envelope)
        if envelope.type == "DeadLetter":
            assert envelope.id in about("dead_letter.created") or not is_ours(core, envelope)
    assert set(core.failures) <= about("activation.retried")
    assert {key for kind, key in core.late if kind == "run"} <= about("deadline.missed")
    assert {key for _, key in core.came_late} <= about("aggregate.late")
    assert {key for _, key in core.let_go} <= about("aggregate.failed") | about("aggregate.discarded")


def is_ours(core: AuditCore, envelope: Envelope) -> bool:
    """Say whether the run that failed was on this shard, where the event is."""
    return envelope.activation_id in core.ended


def check_live_events(live: ShardCore, audit: AuditCore) -> None:
    """G9: a shard that never died has said everything that its records say, besides what only it can know."""
    said = Counter(map(_said, events_of(live)))
    recorded = Counter(map(_said, events_of(audit)))
    assert not recorded - said


def _said(event: Event) -> tuple[str, bytes, tuple[bytes, ...], str]:
    return event.kind, event.activation_id, event.artifact_ids, event.detail


def events_of(core: ShardCore) -> list[Event]:
    events, _ = core.events.read(core.events.base - 1, 10**9)
    return events
