"""How inputs become activations and how workflows count them: the lower half of the shard's core."""

from __future__ import annotations

from typing import Any

import msgspec

from flock_ray.core import gates
from flock_ray.core.fan_in_desk import FanInDesk
from flock_ray.core.ids import activation_id, output_id, single_activation_id, slot_of, workflow_id_for
from flock_ray.core.scatter import Gather, carried
from flock_ray.core.state import MATCH_AGENT, Activation, Item, Slot, Workflow
from flock_ray.core.visibility import decode_visibility, encode_visibility, narrow
from flock_ray.core.wire import (
    Envelope,
    ErrorInfo,
    InputCheck,
    Match,
    Posting,
    SubscriptionSpec,
)

ERROR_POSITION = 2**31 - 1
"""Output position of the WorkflowError of an activation."""


class ActivationDesk(FanInDesk):
    """How inputs become activations, and how those end."""

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
        if envelope.scatter:
            self._hold(slot, envelope.scatter[-1])
        if lane is not None:
            activation.lane = lane
            self._open_limited(slot, activation, now_us)
            return
        slot.open[key] = activation
        self.num_open += 1
        if self._deadlines:
            self._watch_run(activation)
        self.dispatch.push(activation)

    def _watch_run(self, run: Activation) -> None:
        raise NotImplementedError  # DeadlineDesk's

    def _open_limited(self, slot: Slot, activation: Activation, now_us: int) -> None:
        raise NotImplementedError  # LaneDesk's

    def _leave(self, slot: Slot, activation: Activation, now_us: int, *, failed: bool | None) -> None:
        raise NotImplementedError  # LaneDesk's

    def _bury(
        self, slot: Slot, activation: Activation, error: ErrorInfo, now_us: int, checks: tuple[InputCheck, ...] = ()
    ) -> bool:  # fmt: skip
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
            self._attempt_lost(slot, activation)
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
        activation = self._activation_of(slot, spec, firing, now_us)
        inputs, correlation = activation.inputs, activation.correlation_id
        looping = inputs[0].correlation_id == correlation and any(
            spec.agent in envelope.via for envelope in inputs
        )
        if looping and self._loop_exhausted(
            slot, self._counting_record(slot, correlation, now_us), spec.agent, inputs, now_us
        ):
            self._discharge(slot, activation, now_us)
            return
        info = self.agents.get(spec.agent)
        if info is not None and info.limits is not None:
            self._open_limited(slot, activation, now_us)
            return
        slot.open[activation.id] = activation
        self.num_open += 1
        if self._deadlines:
            self._watch_run(activation)
        self.dispatch.push(activation)

    def _activation_of(
        self, slot: Slot, spec: SubscriptionSpec, firing: gates.Firing, now_us: int
    ) -> Activation:
        """Make the activation of what a gate has released, and let the workflows of its inputs count it."""
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
        return Activation(
            key, spec.agent, spec.id, slot.index, correlation, inputs, now_us,
            spec.priority + max(envelope.priority for envelope in inputs), firing.groups,
            tuple((home, workflow, count) for (home, workflow), count in charges.items()),
            lane=firing.items[0].lane, decision=firing.decision,
        )  # fmt: skip

    def _counting_record(self, slot: Slot, workflow_id: str, now_us: int) -> Workflow:
        """Return the slot's record of a workflow; a gate away from the workflow's home gets one to count loops in."""
        workflow = slot.workflows.get(workflow_id)
        if workflow is None:
            workflow = slot.workflows[workflow_id] = Workflow(workflow_id, slot.index, now_us, now_us)
            self._maybe_settled(workflow)
        self._touch(workflow)
        return workflow

    def _discharge(self, slot: Slot, activation: Activation, now_us: int) -> None:
        """Tell the workflows of an activation, and the chunks that it was about, that it is over."""
        self._let_go(slot, activation, now_us)
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
                                activation.inputs, error, message, now_us, activation.gather)  # fmt: skip
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
        gather: Gather | None = None,
    ) -> None:
        """Publish a WorkflowError that no worker could make; who consumes it is matched by a worker later."""
        payload = {
            "failed_agent": agent, "error_type": error, "error_message": message,
            "timestamp": iso(now_us), "task_id": activation.hex(), "correlation_id": correlation_id,
        }  # fmt: skip
        self._publish_own(
            slot, "WorkflowError", payload, output_id(activation, ERROR_POSITION), agent, correlation_id, inputs,
            activation, now_us, gather=gather,
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
        gather: Gather | None = None,
        parents: tuple[bytes, ...] | None = None,
    ) -> Envelope:
        """Publish an artifact of the board itself, as visible as the inputs are together; they are its parents."""
        scatter, partition_key, decided = carried(inputs, gather)
        if not decided:
            keys = {envelope.partition_key for envelope in inputs}
            partition_key = keys.pop() if len(keys) == 1 else None
        visibility = encode_visibility(narrow(*(decode_visibility(e.visibility) for e in inputs)))
        envelope = Envelope(
            artifact, type_name, 1, msgspec.json.encode(payload), correlation_id,
            slot_of(partition_key if partition_key is not None else correlation_id), f"orchestrator#{agent}", now_us,
            tuple(sorted({*tags, *(tag for e in inputs for tag in e.tags)})), visibility,
            partition_key, tuple(e.id for e in inputs) if parents is None else parents, activation, 0,
            tuple(sorted({name for e in inputs for name in e.via} | {agent})), scatter,
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
        if envelope.scatter:
            self._hold(slot, envelope.scatter[-1])
        self.num_open += 1
        self._shift(workflow, 1, 0, now_us)
        self.dispatch.push(slot.open[key])

    def _accept(self, slot: Slot, posting: Posting, now_us: int) -> None:
        raise NotImplementedError  # DeliveryDesk's


_UNMATCHED = Match("")
"""On a `publish` forward: the artifact still has to be matched by a worker."""


def iso(at_us: int) -> str:
    """Write a time as artifacts have it."""
    from datetime import UTC, datetime, timedelta

    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at_us)).isoformat()
