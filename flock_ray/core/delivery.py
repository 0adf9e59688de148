"""How artifacts that are accepted reach subscriptions: the middle layer of the shard's core."""

from __future__ import annotations

import sys
from collections.abc import Collection

from flock_ray.core import gates
from flock_ray.core.aggregate_desk import AggregateDesk
from flock_ray.core.claims import is_claim
from flock_ray.core.ids import single_prefix
from flock_ray.core.state import Item, Slot, Workflow
from flock_ray.core.when_tree import WhenTree, decode_when, eval_when, watched_types
from flock_ray.core.wire import Envelope, Match, Posting, SubscriptionSpec


class DeliveryDesk(AggregateDesk):
    """Delays, activation conditions and gates of one shard."""

    def __init__(self, owned: Collection[int], *, max_artifacts: int | None, durable: bool) -> None:
        """Start with empty slots."""
        super().__init__(owned, max_artifacts=max_artifacts, durable=durable)
        self.inline_limit = sys.maxsize
        """Payloads above it, in bytes, do not stay in memory; the host sets it."""
        self.large: list[Envelope] = []
        """Accepted with a payload above that: the host puts it elsewhere, and empties this."""
        self._conditions: dict[str, list[SubscriptionSpec]] = {}
        self._when: dict[str, WhenTree] = {}

    def _accept(self, slot: Slot, posting: Posting, now_us: int) -> None:
        envelope = posting.envelope
        seq = self.index.add(envelope)
        if len(envelope.payload) > self.inline_limit and not is_claim(envelope.payload):
            self.large.append(envelope)
        workflow = slot.workflows.get(envelope.correlation_id)
        if workflow is None:
            workflow = Workflow(envelope.correlation_id, slot.index, now_us, now_us)
            slot.workflows[envelope.correlation_id] = workflow
        workflow.updated_us = now_us
        workflow.seqs.append(seq)
        counts = workflow.counts
        name = envelope.type
        counts[name] = counts.get(name, 0) + 1
        self.activity += 1
        if self.changes is not None:
            self.changes.artifacts.append((seq, envelope))
            self.changes.touch(workflow)
        if name in ("WorkflowError", "DeadLetter"):
            workflow.errors += 1
        self.events.published(now_us, envelope)
        scatter = envelope.scatter
        if scatter:
            self._hold(slot, scatter[-1])
            if name in ("WorkflowError", "DeadLetter"):
                self._blame(slot, scatter[-1], name)
        if posting.refusals:
            self._note_refusals(posting, now_us)
        if posting.matches and not workflow.cancelled and not (scatter and self._is_stopped(slot, envelope)):
            plain = self._plain
            for match in posting.matches:
                known = plain.get(match.subscription)
                if known is not None and not match.due_us:
                    self._activate_single(slot, workflow, known[0], known[1], envelope, now_us)
                else:
                    self._deliver(slot, workflow, match, envelope, now_us)
        if name in self._conditions or posting.signals:
            self._recheck_conditions(slot, workflow, posting, now_us)
        if posting.approval is not None:
            self._open_case(slot, posting, now_us)
        if scatter:
            self._free(slot, scatter[-1], now_us)
        if not workflow.open:
            self._maybe_settled(workflow)

    def _note_refusals(self, posting: Posting, now_us: int) -> None:
        for refusal in posting.refusals:
            self.events.note(now_us, "match.refused", agent=refusal.subscription.partition("/")[0],
                             correlation_id=posting.envelope.correlation_id, artifact_ids=(posting.envelope.id,),
                             detail=f"{refusal.subscription}: {refusal.condition}: {refusal.error}")  # fmt: skip

    def _deliver_all(self, slot: Slot, posting: Posting, now_us: int) -> None:
        """Deliver an artifact that was accepted before it was matched."""
        self._note_refusals(posting, now_us)
        workflow = slot.workflows.get(posting.envelope.correlation_id)
        if workflow is not None and not workflow.cancelled:
            for match in posting.matches:
                self._deliver(slot, workflow, match, posting.envelope, now_us)
            if posting.signals:
                self._recheck_conditions(slot, workflow, posting, now_us)

    def _deliver(self, slot: Slot, workflow: Workflow, match: Match, envelope: Envelope, now_us: int) -> None:
        spec = self.subscriptions.get(match.subscription)
        if spec is None:
            self._unknown_subscription(match, envelope, now_us)
        elif match.due_us > now_us:
            slot.delayed[envelope.id, match.subscription] = match
            workflow.delayed += 1
            if envelope.scatter:
                self._hold(slot, envelope.scatter[-1])
            self._add_timer(slot, match.due_us, "match", envelope.id, match.subscription.encode())
        elif spec.when and not self._condition_holds(spec, workflow):
            slot.held.setdefault((spec.id, workflow.id), []).append((envelope, match))
            workflow.waiting += 1
            if envelope.scatter:
                self._hold(slot, envelope.scatter[-1])
        elif spec.kind == "single":
            lane = None if self.limits_of(spec.agent) is None else match.lane
            self._activate_single(
                slot, workflow, spec, single_prefix(spec.agent, spec.id), envelope, now_us, lane
            )
        elif spec.kind == "fan_in":
            self._to_scatter(slot, workflow, spec, match, envelope, now_us)
        else:
            self._to_gate(slot, workflow, spec, match, envelope, now_us)

    def _release_delayed(self, slot: Slot, artifact_id: bytes, subscription: str, now_us: int) -> None:
        match = slot.delayed.pop((artifact_id, subscription), None)
        envelope = self.index.get(artifact_id)
        if match is None or envelope is None:
            return
        workflow = slot.workflows[envelope.correlation_id]
        workflow.delayed -= 1
        self._touch(workflow)
        self.events.note(now_us, "match.due", agent=subscription.partition("/")[0], correlation_id=workflow.id,
                         artifact_ids=(artifact_id,), detail=subscription)  # fmt: skip
        if not workflow.cancelled:
            self._deliver(slot, workflow, match, envelope, now_us)
        if envelope.scatter:
            self._free(slot, envelope.scatter[-1], now_us)
        self._maybe_settled(workflow)

    def _to_gate(
        self,
        slot: Slot,
        workflow: Workflow,
        spec: SubscriptionSpec,
        match: Match,
        envelope: Envelope,
        now_us: int,
    ) -> None:
        if envelope.scatter:
            self._hold(slot, envelope.scatter[-1])
        target = gates.gate_slot(spec, match, envelope)
        if target == slot.index:
            self._feed(slot, spec, match, Item(envelope, slot.index, False, match.lane), now_us)
            return
        # Lent to another slot: open here until that slot says what became of it.
        self._shift(workflow, 1, 0, now_us)
        self._lend(workflow, spec)
        self._send(slot, target, "match", posting=Posting(envelope), match=match)

    def _gate_deadline(self, slot: Slot, subscription: str, key: bytes, now_us: int) -> None:
        gate = slot.gate(subscription, key)
        if gate is not None and self._timer_ended(slot, gate, now_us):
            return
        outcome = gates.on_deadline(slot, subscription, key, now_us)
        if gate is not None and isinstance(outcome, gates.Firing):
            self._fire(slot, gate.spec, outcome, now_us)
        elif isinstance(outcome, gates.Expiry):
            self._expire(slot, outcome, now_us)

    # -- activation conditions (When) ---------------------------------------------------------

    def _index_conditions(self) -> None:
        self._when = {s.id: decode_when(s.when) for s in self.table.subscriptions if s.when}
        self._conditions = {}
        for spec in self.table.subscriptions:
            if spec.when:
                for name in watched_types(self._when[spec.id]):
                    self._conditions.setdefault(name, []).append(spec)

    def _condition_holds(self, spec: SubscriptionSpec, workflow: Workflow) -> bool:
        flags = {flag for sub, flag in workflow.flags or () if sub == spec.id}
        return eval_when(self._when[spec.id], workflow.counts, flags)

    def _recheck_conditions(self, slot: Slot, workflow: Workflow, posting: Posting, now_us: int) -> None:
        """Release inputs whose `activation=` condition an artifact has made true."""
        touched = {spec.id: spec for spec in self._conditions.get(posting.envelope.type, ())}
        for signal in posting.signals:
            if workflow.flags is None:
                workflow.flags = set()
            workflow.flags.add(signal)
            spec = self.subscriptions.get(signal[0])
            if spec is not None:
                touched[spec.id] = spec
        for spec in touched.values():
            held = slot.held.get((spec.id, workflow.id))
            if held and self._condition_holds(spec, workflow):
                del slot.held[spec.id, workflow.id]
                for envelope, match in held:
                    workflow.waiting -= 1
                    self._deliver(slot, workflow, match, envelope, now_us)
                    if envelope.scatter:
                        self._free(slot, envelope.scatter[-1], now_us)
