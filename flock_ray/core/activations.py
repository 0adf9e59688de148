"""How inputs become activations and how workflows count them: the lower half of the shard's core."""

from __future__ import annotations

from collections.abc import Callable, Collection
from heapq import heappush
from typing import Any

import msgspec

from flock_ray.core import gates
from flock_ray.core.changes import Changes
from flock_ray.core.dispatch import Dispatcher
from flock_ray.core.events import EventLog
from flock_ray.core.ids import activation_id, output_id, single_activation_id, slot_of, workflow_id_for
from flock_ray.core.index import BoardIndex
from flock_ray.core.records import Record
from flock_ray.core.rows import Decision
from flock_ray.core.state import MATCH_AGENT, Activation, Item, Slot, Workflow
from flock_ray.core.visibility import decode_visibility, encode_visibility, narrow
from flock_ray.core.wire import (
    AgentInfo,
    Envelope,
    ErrorInfo,
    Forward,
    Match,
    Posting,
    Run,
    SubscriptionSpec,
    TableSpec,
)

ERROR_POSITION = 2**31 - 1
"""Output position of the WorkflowError of an activation."""


class ActivationDesk:
    """Slots, workflows' counts, gates' firings and the outbox of one shard."""

    def __init__(self, owned: Collection[int], *, max_artifacts: int | None, durable: bool) -> None:
        """Start with empty slots."""
        self.changes = Changes() if durable else None
        """Rows for the store; None on a memory board."""
        self.slots: dict[int, Slot] = {index: Slot(index) for index in owned}
        self.index = BoardIndex()
        self.events = EventLog()
        self.dispatch = self._new_dispatcher()
        self.table = TableSpec(0, (), ())
        self.subscriptions: dict[str, SubscriptionSpec] = {}
        self.agents: dict[str, AgentInfo] = {}
        self.matched_types: set[str] = set()
        self._plain: dict[str, tuple[SubscriptionSpec, bytes]] = {}
        """Subscriptions that start an activation per artifact, with the prefix of its id."""
        self.records: list[Record] = []
        """Accepted and not yet in the journal."""
        self.local_forwards: list[Forward] = []
        """From slots of this shard to slots of this shard."""
        self.remote_forwards: list[Forward] = []
        """New outbox entries for other shards."""
        self.cancels: list[tuple[str, bytes]] = []
        """(worker, activation) that a worker should stop."""
        self.num_open = 0
        """Open activations."""
        self.num_outbox = 0
        self.num_active = 0
        """Sum of all workflows' `open`."""
        self.clock_us = 0
        """Time of the newest micro-batch: a journal's time never goes back, whatever the clock does."""
        self.activity = 0
        """Grows with every accepted artifact and every change of an open count."""
        self.quiet: list[Workflow] = []
        """Workflows whose `open` fell to 0 since the host last looked."""
        self._replays: dict[type, Callable[[Any], None]] = {}
        """By kind of record: what applies it."""
        self._max_artifacts = max_artifacts
        self._settled: dict[tuple[int, str], None] = {}
        self._wake: list[tuple[int, int]] = []
        self._timer_number = 0

    def adopt(self, slot: Slot) -> None:
        """Count what a slot restored from its snapshot holds."""
        self.num_open += len(slot.open)
        self.num_outbox += len(slot.outbox)
        self.num_active += sum(workflow.open for workflow in slot.workflows.values())
        if slot.timers:
            self._timer_number = max(self._timer_number, *(timer[1] for timer in slot.timers), 0)
            heappush(self._wake, (slot.timers[0][0], slot.index))

    def reset_dispatch(self, first_attempt: int) -> None:
        """Make everything open ready, for nobody in particular; attempts are numbered above `first_attempt`."""
        self.dispatch = self._new_dispatcher()
        self.dispatch.first_attempt = first_attempt
        for slot in self.slots.values():
            for activation in slot.open.values():
                activation.worker = activation.holding = None
                if not activation.due_us:
                    self._make_ready(slot, activation)

    def _new_dispatcher(self) -> Dispatcher:
        return Dispatcher(lambda a: self.slots[a.slot].open.get(a.id) is a, salt=min(self.slots, default=0))

    # -- workflows ----------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """True when nothing runs, is ready or travels: only time or a new input can change the board."""
        return not (self.num_open or self.num_outbox or self.num_active)

    def _log(self, record: Record) -> None:
        """Append a record of a command that was accepted, before it is applied."""
        if self.changes is not None:
            self.changes.heads.append(self.index.head)
        self.records.append(record)

    def _decide(self, now_us: int, kind: str, subject: str, actor: str = "", detail: str = "") -> None:
        if self.changes is not None:
            self.changes.decisions.append(Decision(now_us, kind, subject, actor, detail))

    def _touch(self, workflow: Workflow) -> None:
        if self.changes is not None:
            self.changes.touch(workflow)

    def _shift(self, workflow: Workflow, open_: int, waiting: int, now_us: int) -> None:
        workflow.open += open_
        workflow.waiting += waiting
        workflow.updated_us = now_us
        self.num_active += open_
        self.activity += 1
        if self.changes is not None:
            self.changes.touch(workflow)
        if not workflow.open:
            self._maybe_settled(workflow)

    def _maybe_settled(self, workflow: Workflow) -> None:
        """Called whenever nothing of a workflow is open."""
        if workflow.open:
            return
        self.quiet.append(workflow)
        if self._max_artifacts is not None and workflow.settled:
            self._settled[workflow.slot, workflow.id] = None
            if self.changes is None:
                self.evict()

    def evict(self) -> None:
        """Let the oldest settled workflows leave memory until the limit holds; one that runs or waits stays.

        With a store, between micro-batches only: what a batch refers to was looked up before it.
        """
        limit = self._max_artifacts
        if limit is None:
            return
        while len(self.index) > limit and self._settled:
            slot_index, workflow_id = key = next(iter(self._settled))
            del self._settled[key]
            workflow = self.slots[slot_index].workflows.get(workflow_id)
            if workflow is not None and workflow.settled and not _only_counts_loops(workflow):
                self._drop(workflow)

    def _drop(self, workflow: Workflow) -> None:
        """Let a settled workflow leave memory; with a store it comes back when something new is for it."""
        self.index.remove(workflow.seqs, keep_counts=self.changes is not None)
        if self.changes is not None and not self.index.floor:
            self.index.floor = 1  # a workflow without artifacts, too, is only in the store now
        del self.slots[workflow.slot].workflows[workflow.id]

    def drop_settled(self, slot: int) -> None:
        """Let every settled workflow of a slot leave memory."""
        for workflow in [w for w in self.slots[slot].workflows.values() if w.settled]:
            self._settled.pop((slot, workflow.id), None)
            if not _only_counts_loops(workflow):
                self._drop(workflow)

    # -- activations --------------------------------------------------------------------------

    def _activate_single(
        self,
        slot: Slot,
        workflow: Workflow,
        spec: SubscriptionSpec,
        prefix: bytes,
        envelope: Envelope,
        now_us: int,
        lane: str | None = None,
    ) -> None:
        """Open the activation of one input; `lane` is the key of the agent's limits, None if it has none."""
        agent = spec.agent
        if agent in envelope.via and self._loop_exhausted(slot, workflow, agent, (envelope,), now_us):
            return
        key = single_activation_id(prefix, envelope.id)
        activation = Activation(
            key,
            agent,
            spec.id,
            slot.index,
            workflow.id,
            (envelope,),
            now_us,
            spec.priority + envelope.priority,
        )
        workflow.open += 1
        self.num_active += 1
        if lane is not None:
            activation.lane = lane
            self._open_limited(slot, activation, now_us)
            return
        slot.open[key] = activation
        self.num_open += 1
        self.dispatch.push(activation)

    def _open_limited(self, slot: Slot, activation: Activation, now_us: int) -> None:
        raise NotImplementedError  # LaneDesk's

    def _make_ready(self, slot: Slot, activation: Activation) -> None:
        raise NotImplementedError  # LaneDesk's

    def _leave(self, slot: Slot, activation: Activation, now_us: int, *, failed: bool | None) -> None:
        raise NotImplementedError  # LaneDesk's

    def _bury(self, slot: Slot, activation: Activation, error: ErrorInfo, now_us: int) -> bool:
        raise NotImplementedError  # LetterDesk's

    def _end(self, slot: Slot, activation: Activation, now_us: int, *, failed: bool | None) -> None:
        """Take an activation out of what is open; whoever counts it has still to be told (`_discharge`).

        Args:
            slot: Where it is open.
            activation: Which one.
            now_us: Now.
            failed: How, for its agent's circuit breaker; None: neither well nor badly.
        """
        del slot.open[activation.id]
        self.num_open -= 1
        if activation.agent in slot.lanes:
            self._leave(slot, activation, now_us, failed=failed)

    def _withdraw(self, slot: Slot, activation: Activation, now_us: int) -> None:
        """End an activation that is not wanted any more; whoever runs it is told to stop."""
        if activation.worker is not None:
            self.cancels.append((activation.worker, activation.id))
        self.dispatch.release(activation)
        self._end(slot, activation, now_us, failed=None)
        if self.changes is not None:
            self.changes.end(activation, now_us, "cancelled")
        self._discharge(slot, activation, now_us)

    def _feed(self, slot: Slot, spec: SubscriptionSpec, match: Match, item: Item, now_us: int) -> None:
        key = gates.gate_key(spec, match, item.envelope)
        firings, expired = gates.feed(slot, spec, key, item, now_us)
        for expiry in expired:
            self._expire(slot, expiry, now_us)
        for firing in firings:
            self._fire(slot, spec, firing, now_us)
        # Timers are not taken back: one that finds its gate gone or reopened later does nothing.
        keys = (key, gates.batch_key(spec, item.envelope)) if spec.kind == "join_batch" else (key,)
        for gate_key in keys:
            gate = slot.gate(spec.id, gate_key)
            if gate is None:
                continue
            if gate.deadline_us and gate.timer_us != gate.deadline_us:
                gate.timer_us = gate.deadline_us
                self._add_timer(slot, gate.deadline_us, "gate", gate_key, spec.id.encode())
            if not item.announced and any(held is item for held in gate.newest()):
                item.announced = True
                self._move(slot, item, 0 if item.home == slot.index else -1, 1, now_us)

    def _fire(self, slot: Slot, spec: SubscriptionSpec, firing: gates.Firing, now_us: int) -> None:
        inputs = tuple(item.envelope for item in firing.items)
        workflows = {envelope.correlation_id for envelope in inputs}
        key = activation_id(spec.agent, spec.id, tuple(envelope.id for envelope in inputs), firing.round)
        correlation = inputs[0].correlation_id if len(workflows) == 1 else workflow_id_for(key)
        charges: dict[tuple[int, str], int] = {}
        for item in firing.items:
            place = (item.home, item.envelope.correlation_id)
            charges[place] = charges.get(place, 0) + 1
            if item.announced:
                self._move(slot, item, 1, -1, now_us)
            elif item.home == slot.index:
                self._move(slot, item, 1, 0, now_us)
        activation = Activation(
            key, spec.agent, spec.id, slot.index, correlation, inputs, now_us,
            spec.priority + max(envelope.priority for envelope in inputs), firing.groups,
            tuple((home, workflow, count) for (home, workflow), count in charges.items()),
        )  # fmt: skip
        looping = len(workflows) == 1 and any(spec.agent in envelope.via for envelope in inputs)
        if looping and self._loop_exhausted(
            slot, self._counting_record(slot, correlation, now_us), spec.agent, inputs, now_us
        ):
            self._discharge(slot, activation, now_us)
            return
        activation.lane = firing.items[0].lane
        info = self.agents.get(spec.agent)
        if info is not None and info.limits is not None:
            self._open_limited(slot, activation, now_us)
            return
        slot.open[key] = activation
        self.num_open += 1
        self.dispatch.push(activation)

    def _counting_record(self, slot: Slot, workflow_id: str, now_us: int) -> Workflow:
        """Return the slot's record of a workflow; a gate away from the workflow's home gets one to count loops in."""
        workflow = slot.workflows.get(workflow_id)
        if workflow is None:
            workflow = slot.workflows[workflow_id] = Workflow(workflow_id, slot.index, now_us, now_us)
            self._maybe_settled(workflow)
        self._touch(workflow)
        return workflow

    def _discharge(self, slot: Slot, activation: Activation, now_us: int) -> None:
        """Tell the workflows of an activation that it is over."""
        if activation.charges is None:
            workflow = slot.workflows.get(activation.correlation_id)
            if workflow is not None:
                self._shift(workflow, -1, 0, now_us)
            return
        for home, workflow_id, count in activation.charges:
            self._tell(slot, home, workflow_id, -count, 0, now_us)

    def _give_up(self, slot: Slot, activation: Activation, now_us: int, error: str, message: str) -> None:
        """End an activation that can't be run: its error becomes an artifact, its workflow goes on."""
        info = ErrorInfo(error, message)
        self.dispatch.release(activation)
        self._end(slot, activation, now_us, failed=True)
        if self.changes is not None:
            self.changes.end(activation, now_us, "failed", error=info)
        self.events.note(now_us, "activation.failed", agent=activation.agent, activation_id=activation.id,
                         correlation_id=activation.correlation_id, detail=f"{error}: {message}")  # fmt: skip
        if activation.agent != MATCH_AGENT and not self._bury(slot, activation, info, now_us):
            self._publish_error(slot, activation.id, activation.agent, activation.correlation_id,
                                activation.inputs, error, message, now_us)  # fmt: skip
        self._discharge(slot, activation, now_us)

    def _loop_exhausted(
        self, slot: Slot, workflow: Workflow, agent: str, inputs: tuple[Envelope, ...], now_us: int
    ) -> bool:
        """Count one more run of an agent on its own descendants; True when the workflow has had enough."""
        info = self.agents.get(agent)
        limit = info.max_iterations if info is not None else 1000
        if workflow.iterations is None:
            workflow.iterations = {}
        count = workflow.iterations[agent] = workflow.iterations.get(agent, 0) + 1
        if count < limit:
            return False
        message = (
            f"agent {agent!r} ran {limit} times on artifacts that descend from its own; the loop was stopped. "
            "Give it an exit (where=, Until) or raise max_agent_iterations."
        )
        self.events.note(now_us, "loop.stopped", agent=agent, correlation_id=workflow.id,
                         artifact_ids=tuple(e.id for e in inputs), detail=message)  # fmt: skip
        if count == limit:
            key = activation_id(agent, "loop-guard", tuple(e.id for e in inputs), 0)
            self._publish_error(slot, key, agent, workflow.id, inputs, "LoopGuardError", message, now_us)
        return True

    def _publish_error(
        self,
        slot: Slot,
        activation: bytes,
        agent: str,
        correlation_id: str,
        inputs: tuple[Envelope, ...],
        error: str,
        message: str,
        now_us: int,
    ) -> None:
        """Publish a WorkflowError that no worker could make; who consumes it is matched by a worker later."""
        payload = {
            "failed_agent": agent, "error_type": error, "error_message": message,
            "timestamp": iso(now_us), "task_id": activation.hex(), "correlation_id": correlation_id,
        }  # fmt: skip
        self._publish_own(
            slot, "WorkflowError", payload, output_id(activation, ERROR_POSITION), agent, correlation_id, inputs,
            activation, now_us,
        )  # fmt: skip

    def _publish_own(
        self,
        slot: Slot,
        type_name: str,
        payload: dict[str, Any],
        artifact: bytes,
        agent: str,
        correlation_id: str,
        inputs: tuple[Envelope, ...],
        activation: bytes | None,
        now_us: int,
        tags: tuple[str, ...] = (),
    ) -> Envelope:
        """Publish an artifact of the board itself, as visible as the inputs are together."""
        keys = {envelope.partition_key for envelope in inputs}
        partition_key = keys.pop() if len(keys) == 1 else None
        visibility = encode_visibility(narrow(*(decode_visibility(e.visibility) for e in inputs)))
        envelope = Envelope(
            artifact, type_name, 1, msgspec.json.encode(payload), correlation_id,
            slot_of(partition_key if partition_key is not None else correlation_id), f"orchestrator#{agent}", now_us,
            tuple(sorted({*tags, *(tag for e in inputs for tag in e.tags)})), visibility,
            partition_key, tuple(e.id for e in inputs), activation, 0,
            tuple(sorted({name for e in inputs for name in e.via} | {agent})),
        )  # fmt: skip
        self._publish_output(slot, Posting(envelope), now_us, unmatched=True)
        return envelope

    def _publish_output(self, slot: Slot, posting: Posting, now_us: int, *, unmatched: bool = False) -> None:
        envelope = posting.envelope
        if envelope.slot != slot.index:
            self._send(
                slot, envelope.slot, "publish", posting=posting, match=_UNMATCHED if unmatched else None
            )
        elif envelope.id not in self.index.ids:
            self._accept(slot, posting, now_us)
            if unmatched:
                self._request_match(slot, envelope, now_us)

    def _request_match(self, slot: Slot, envelope: Envelope, now_us: int) -> None:
        if envelope.type not in self.matched_types:
            return
        key = activation_id(MATCH_AGENT, "", (envelope.id,), 0)
        workflow = slot.workflows[envelope.correlation_id]
        slot.open[key] = Activation(key, MATCH_AGENT, "", slot.index, workflow.id, (envelope,), now_us)
        self.num_open += 1
        self._shift(workflow, 1, 0, now_us)
        self.dispatch.push(slot.open[key])

    def _accept(self, slot: Slot, posting: Posting, now_us: int) -> None:
        raise NotImplementedError  # DeliveryDesk's

    # -- what other slots hear ----------------------------------------------------------------

    def _send(
        self, slot: Slot, target: int, kind: str, *, posting: Posting | None = None, match: Match | None = None,
        workflow: str = "", delta: tuple[int, int] = (0, 0), run: Run | None = None,
    ) -> None:  # fmt: skip
        seq = slot.out_seq[target] = slot.out_seq.get(target, 0) + 1
        forward = Forward(slot.index, target, seq, kind, posting, match, workflow, delta, run)
        slot.outbox[target, seq] = forward
        self.num_outbox += 1
        (self.local_forwards if target in self.slots else self.remote_forwards).append(forward)

    def _move(self, slot: Slot, item: Item, open_: int, waiting: int, now_us: int) -> None:
        self._tell(slot, item.home, item.envelope.correlation_id, open_, waiting, now_us)

    def _tell(self, slot: Slot, home: int, workflow_id: str, open_: int, waiting: int, now_us: int) -> None:
        if home != slot.index:
            self._send(slot, home, "settle", workflow=workflow_id, delta=(open_, waiting))
            return
        workflow = slot.workflows.get(workflow_id)
        if workflow is not None:
            self._shift(workflow, open_, waiting, now_us)

    def _return_item(self, slot: Slot, item: Item, now_us: int) -> None:
        """An input leaves its gate without an activation."""
        if item.announced:
            self._move(slot, item, 0, -1, now_us)
        elif item.home != slot.index:
            self._move(slot, item, -1, 0, now_us)

    def _expire(self, slot: Slot, expiry: gates.Expiry, now_us: int) -> None:
        missing = gates.waits_for(expiry.gate)
        waited = ", ".join(f"{count} x {name}" for name, count in missing.items())
        self.events.note(now_us, "gate.expired", agent=expiry.gate.spec.agent,
                         correlation_id=expiry.items[0].envelope.correlation_id if expiry.items else "",
                         artifact_ids=tuple(i.envelope.id for i in expiry.items),
                         detail=f"{expiry.gate.spec.id}: the window ended; still missing {waited}")  # fmt: skip
        for item in expiry.items:
            self._return_item(slot, item, now_us)

    def _unknown_subscription(self, match: Match, envelope: Envelope, now_us: int) -> None:
        self.events.note(now_us, "match.unknown_subscription", artifact_ids=(envelope.id,),
                         correlation_id=envelope.correlation_id,
                         detail=f"{match.subscription} is not in the subscription table (any more)")  # fmt: skip

    def _add_timer(self, slot: Slot, due_us: int, kind: str, first: bytes, second: bytes) -> None:
        self._timer_number += 1
        heappush(slot.timers, (due_us, self._timer_number, kind, first, second))
        heappush(self._wake, (due_us, slot.index))


def _only_counts_loops(workflow: Workflow) -> bool:
    """A workflow of another slot, counted for a gate here. Nothing new comes for it, so nothing would bring it back."""
    return bool(workflow.iterations) and not workflow.counts


_UNMATCHED = Match("")
"""On a `publish` forward: the artifact still has to be matched by a worker."""


def iso(at_us: int) -> str:
    """Write a time as artifacts have it."""
    from datetime import UTC, datetime, timedelta

    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at_us)).isoformat()
