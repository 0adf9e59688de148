"""Aggregates of one shard: what a group has collected, when it is decided, and what comes too late."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import cast

import msgspec

from flock_ray.core import gates
from flock_ray.core.aggregate_gates import (
    gates_of,
    is_sure,
    panes_of,
    quiet_gates,
    tally_of,
    told,
    unscattered,
    workflow_of,
)
from flock_ray.core.ballots import (
    COLLECTING,
    CORRECTION,
    COUNT,
    EARLY,
    QUIET,
    TIMEOUT,
    WINDOW,
    AggregateRule,
    Decided,
    Decision,
    decode_ballot,
    encode_decision,
)
from flock_ray.core.budget_asking import BudgetAskDesk
from flock_ray.core.feeds import Feeds
from flock_ray.core.ids import slot_of
from flock_ray.core.records import Hushed
from flock_ray.core.scatter import Part, slot_of_part
from flock_ray.core.scatter_state import Scatter
from flock_ray.core.state import Activation, Gate, Item, Slot, Workflow
from flock_ray.core.tallies import Tally
from flock_ray.core.windows import Pane
from flock_ray.core.wire import ErrorInfo, Forward, Match, SubscriptionSpec

MAX_DECIDED = 1_000
"""Groups of several workflows that a slot remembers per subscription; the oldest are forgotten first."""

INCOMPLETE = "AggregateIncompleteError"


class AggregateDesk(BudgetAskDesk):
    """Collects what aggregates wait for, decides, and remembers what was decided."""

    def __init__(self, owned: Collection[int], *, max_artifacts: int | None, durable: bool) -> None:
        """Start with nothing collected."""
        self._hushed: dict[tuple[int, str], None] = {}
        """(slot, workflow) that may have come to rest while an aggregate waits for that. May name others, too."""
        self._feeds: Feeds | None = None
        super().__init__(owned, max_artifacts=max_artifacts, durable=durable)
        self._replays[Hushed] = self._on_hushed

    def _aggregates_installed(self) -> None:
        self._feeds = None

    @property
    def feeds(self) -> Feeds:
        """Who feeds whom in the table in force."""
        if self._feeds is None:
            self._feeds = Feeds(self.table)
        return self._feeds

    def reset_dispatch(self, first_attempt: int) -> None:
        """Make everything open ready; and look again whether what aggregates wait for has come to rest."""
        super().reset_dispatch(first_attempt)
        for slot in self.slots.values():
            for workflow in slot.workflows.values():
                self._maybe_hushed(workflow)
            for gate in quiet_gates(slot, None):
                self._hushed[slot.index, workflow_of(gate)] = None

    # -- coming in ------------------------------------------------------------------------------

    def _feed(self, slot: Slot, spec: SubscriptionSpec, match: Match, item: Item, now_us: int) -> None:
        if spec.aggregate is None:
            super()._feed(slot, spec, match, item, now_us)
            return
        item.ballot = match.ballot
        key = gates.gate_key(spec, match, item.envelope)
        gate = slot.gate(spec.id, key)
        if gate is None:
            known = self._known(slot, spec, key, item.envelope.correlation_id)
            if known is not None and spec.aggregate.window is None and not spec.aggregate.repeat:
                self._too_late(slot, spec, key, known, item, now_us)
                return
            gate = Gate(spec, key, now_us, watermark_us=known.watermark_us if known is not None else 0)
        rule = gate.spec.aggregate or spec.aggregate
        if rule.window is not None:
            self._feed_windows(slot, gate, item, now_us)
        else:
            self._feed_tally(slot, gate, rule, item, now_us)
        if slot.gate(spec.id, key) is gate and any(held is item for held in gate.newest()):
            item.announced = True
            self._move(slot, item, 0 if item.home == slot.index else -1, 1, now_us)
        if rule.waits_for_quiet and spec.scope == "workflow":
            self._hushed[slot.index, item.envelope.correlation_id] = None

    def _take_ballot(self, slot: Slot, gate: Gate, item: Item, now_us: int) -> None:
        """Put an input into its gate, which is opened by the first one."""
        slot.gates.setdefault(gate.spec.id, {})[gate.key] = gate
        gate.held.setdefault(item.envelope.type, deque()).append(item)
        if not gate.quiet.get(item.home, 1):
            del gate.quiet[item.home]
        rule = gate.spec.aggregate
        if rule is not None and rule.timeout_us and (rule.window is not None or not gate.deadline_us):
            gate.deadline_us = now_us + rule.timeout_us
            if not gate.timer_us:  # one timer at a time: it is set again when it comes too early
                gate.timer_us = gate.deadline_us
                self._add_timer(slot, gate.deadline_us, "gate", gate.key, gate.spec.id.encode())

    def _feed_tally(self, slot: Slot, gate: Gate, rule: AggregateRule, item: Item, now_us: int) -> None:
        tally = tally_of(gate, rule)
        self._take_ballot(slot, gate, item, now_us)
        tally.add(decode_ballot(item.ballot))
        remaining = max(0, rule.count - tally.seen) if rule.count else None
        if remaining == 0:
            self._conclude(slot, gate, COUNT, now_us)
        elif (rule.early or rule.strategy == "first_n") and tally.state(remaining) != "undecided":
            self._conclude(slot, gate, EARLY, now_us)

    # -- deciding -------------------------------------------------------------------------------

    def _conclude(self, slot: Slot, gate: Gate, reason: str, now_us: int) -> None:
        """Decide on what a group has collected; below `min_count` it is a failure, or nothing."""
        spec, rule = gate.spec, cast(AggregateRule, gate.spec.aggregate)
        tally = tally_of(gate, rule)
        items, is_short = gate.items(), tally.voted < rule.min_count
        slot.drop_gate(gate)
        if (reason == TIMEOUT and rule.on_timeout != "partial") or (is_short and reason in (TIMEOUT, QUIET)):
            self._give_up_group(slot, gate, items, tally, reason, now_us)
        else:
            decision = tally.decide(reason, missing=max(0, rule.count - tally.seen))
            if not rule.repeat:
                self._remember_decided(slot, gate, items, decision, now_us)
            if rule.correct and any(item.home == slot.index for item in items):
                slot.kept[spec.id, gate.key] = [
                    Item(unscattered(i.envelope), slot.index, False, i.lane, i.ballot) for i in items
                ]
            self._say_decided(spec, items, decision, now_us)
            self._fire(slot, spec, gates.Firing(items, (), gate.round, encode_decision(decision)), now_us)
        if rule.early:
            self._withdraw_feeders(slot, spec, items, now_us)

    def _give_up_group(
        self, slot: Slot, gate: Gate, items: list[Item], tally: Tally, reason: str, now_us: int
    ) -> None:
        """Let a group go that did not get what it needs: its error becomes an artifact, or an event says so."""
        spec, rule = gate.spec, cast(AggregateRule, gate.spec.aggregate)
        wanted = rule.min_count if tally.voted < rule.min_count else rule.count
        when = "within its timeout" if reason == TIMEOUT else "and nothing that could bring more is left"
        message = f"{spec.id} got {tally.voted} inputs that count, {wanted or 'more'} were wanted, {when}."
        is_dropped = rule.on_timeout == "discard"
        if not rule.repeat:
            outcome = Decision("discarded" if is_dropped else "failed", "none")
            self._remember_decided(slot, gate, items, outcome, now_us)
        self.events.note(
            now_us, "aggregate.discarded" if is_dropped else "aggregate.failed", agent=spec.agent,
            correlation_id=items[0].envelope.correlation_id, artifact_ids=tuple(i.envelope.id for i in items),
            detail=message,
        )  # fmt: skip
        if is_dropped:
            for item in items:
                self._return_item(slot, item, now_us)
            return
        # As an activation that failed: its inputs are the error's parents, and a dead letter can be redriven.
        activation = self._activation_of(slot, spec, gates.Firing(items), now_us)
        info = ErrorInfo(INCOMPLETE, f"{message} Raise timeout= or lower min_count= of aggregates().")
        if not self._bury(slot, activation, info, now_us):
            self._publish_error(slot, activation.id, spec.agent, activation.correlation_id, activation.inputs,
                                info.type, info.message, now_us)  # fmt: skip
        self._discharge(slot, activation, now_us)

    def _say_decided(
        self, spec: SubscriptionSpec, items: list[Item], decision: Decision, now_us: int
    ) -> None:
        correlation = items[0].envelope.correlation_id
        kind = "aggregate.decided" if decision.reason != CORRECTION else "aggregate.corrected"
        self.events.note(
            now_us, kind, agent=spec.agent, correlation_id=correlation,
            artifact_ids=tuple(item.envelope.id for item in items), detail=f"{spec.id}: {told(decision, len(items))}",
        )  # fmt: skip

    # -- what was decided -----------------------------------------------------------------------

    def _known(self, slot: Slot, spec: SubscriptionSpec, key: bytes, workflow_id: str) -> Decided | None:
        workflow = slot.workflows.get(workflow_id) if spec.scope == "workflow" else None
        found = [slot.decided.get(spec.id, {}).get(key)]
        if workflow is not None:
            found.append((workflow.decided or {}).get((spec.id, key)))
        return max(
            (known for known in found if known is not None), key=lambda known: known.at_us, default=None
        )

    def _remember_decided(
        self, slot: Slot, gate: Gate, items: list[Item], decision: Decision, now_us: int
    ) -> None:
        """Remember that a group was decided: in its workflow's row, or in the slot when that keeps no such row."""
        spec = gate.spec
        known = Decided(now_us, decision.reason, decision.choices, decision.places, gate.watermark_us)
        if spec.scope == "workflow" and any(item.home == slot.index for item in items):
            workflow = self._counting_record(slot, workflow_of(gate), now_us)
            workflow.decided = {**(workflow.decided or {}), (spec.id, gate.key): known}
            return
        groups = slot.decided.setdefault(spec.id, {})
        groups.pop(gate.key, None)
        groups[gate.key] = known
        if len(groups) > MAX_DECIDED:
            del groups[next(iter(groups))]

    def _too_late(
        self, slot: Slot, spec: SubscriptionSpec, key: bytes, known: Decided, item: Item, now_us: int
    ) -> None:
        """Take notice of an input whose group is decided, and correct the decision where that is asked for."""
        known.late += 1
        if (workflow := slot.workflows.get(item.envelope.correlation_id)) is not None:
            self._touch(workflow)
        missed = self._corrected(slot, spec, key, known, item, now_us)
        if missed:
            self._leave_out(slot, spec, item, missed, now_us)

    def _leave_out(self, slot: Slot, spec: SubscriptionSpec, item: Item, why: str, now_us: int) -> None:
        """Let an input go that came too late."""
        self.events.note(
            now_us, "aggregate.late", agent=spec.agent, correlation_id=item.envelope.correlation_id,
            artifact_ids=(item.envelope.id,), detail=f"{spec.id}: {why}",
        )  # fmt: skip
        self._return_item(slot, item, now_us)

    def _corrected(
        self, slot: Slot, spec: SubscriptionSpec, key: bytes, known: Decided, item: Item, now_us: int
    ) -> str:
        """Decide again with an input that came late; returns why it is not counted, or nothing."""
        kept, rule = slot.kept.get((spec.id, key)), cast(AggregateRule, spec.aggregate)
        if kept is None:
            how = known.reason if known.reason in ("failed", "discarded") else f"decided (by {known.reason})"
            return f"its group had been {how} before it came; it is not counted"
        kept.append(Item(unscattered(item.envelope), slot.index, False, item.lane, item.ballot))
        decision = Tally(rule, (decode_ballot(i.ballot) for i in kept)).decide(CORRECTION)
        outcome = (decision.choices, decision.places)
        if rule.strategy not in COLLECTING and outcome == (known.choices, known.places):
            return "the decision stays as it is with it, too"
        known.revision += 1
        known.choices, known.places = outcome
        decision = msgspec.structs.replace(decision, revision=known.revision)
        # What was consumed before counts for its workflow once more while the run is open.
        items = [*(Item(i.envelope, i.home, False, i.lane) for i in kept[:-1]), item]
        self._say_decided(spec, items, decision, now_us)
        self._fire(slot, spec, gates.Firing(items, (), known.revision, encode_decision(decision)), now_us)
        return ""

    # -- time -----------------------------------------------------------------------------------

    def _aggregate_deadline(self, slot: Slot, gate: Gate, now_us: int) -> None:
        """Handle the timer of a group; with windows, inputs since have moved the deadline."""
        rule = cast(AggregateRule, gate.spec.aggregate)
        if gate.timer_us > now_us:
            return  # it was the timer of a former group
        if gate.deadline_us > now_us:
            gate.timer_us = gate.deadline_us
            self._add_timer(slot, gate.deadline_us, "gate", gate.key, gate.spec.id.encode())
        elif rule.window is not None:
            self._close_windows(slot, gate, TIMEOUT, now_us)
        else:
            self._conclude(slot, gate, TIMEOUT, now_us)

    # -- windows --------------------------------------------------------------------------------

    def _feed_windows(self, slot: Slot, gate: Gate, item: Item, now_us: int) -> None:
        panes = panes_of(gate)
        if not panes.add(decode_ballot(item.ballot).at_us, item):
            self._leave_out(
                slot, gate.spec, item, "the watermark has passed its windows; it is not counted", now_us
            )
            return
        self._take_ballot(slot, gate, item, now_us)
        gate.watermark_us = panes.watermark_us
        self._release_panes(slot, gate, panes.take_over(), WINDOW, now_us)

    def _close_windows(self, slot: Slot, gate: Gate, reason: str, now_us: int) -> None:
        """Decide on all open windows of a group: nothing more is waited for."""
        panes = panes_of(gate)
        over = panes.take_all()
        gate.watermark_us = panes.watermark_us
        self._release_panes(slot, gate, over, reason, now_us)

    def _release_panes(
        self, slot: Slot, gate: Gate, over: list[Pane[Item]], reason: str, now_us: int
    ) -> None:
        """Let windows that are over become activations; an input that is in an open one, too, stays."""
        if not over:
            return
        spec, rule = gate.spec, cast(AggregateRule, gate.spec.aggregate)
        stays = panes_of(gate).held()
        last = {id(item): place for place, pane in enumerate(over) for item in pane.things}
        for queue in gate.held.values():
            kept = [item for item in queue if id(item) in stays]
            queue.clear()
            queue.extend(kept)
        if gate.empty:
            slot.drop_gate(gate)
        self._remember_decided(slot, gate, over[0].things, Decision(reason, "decided"), now_us)
        for place, pane in enumerate(over):
            tally = Tally(rule, (decode_ballot(item.ballot) for item in pane.things))
            decision = msgspec.structs.replace(
                tally.decide(reason), from_us=pane.from_us, until_us=pane.until_us
            )
            items = [
                item
                if last[id(item)] == place and id(item) not in stays
                else self._lent_copy(slot, item, now_us)
                for item in pane.things
            ]
            self._say_decided(spec, items, decision, now_us)
            firing = gates.Firing(items, (), pane.from_us, encode_decision(decision))
            self._fire(slot, spec, firing, now_us)

    def _lent_copy(self, slot: Slot, item: Item, now_us: int) -> Item:
        """Return an input for one activation of several: it is counted as open for this one, and goes on waiting."""
        if item.home != slot.index:
            self._move(slot, item, 1, 0, now_us)
        return Item(unscattered(item.envelope), item.home, False, item.lane, item.ballot)

    # -- rest -----------------------------------------------------------------------------------

    def _maybe_settled(self, workflow: Workflow) -> None:
        if workflow.decided and workflow.settled:
            self._forget_kept(workflow)
        if not (workflow.open or workflow.waiting):
            workflow.lent = False
        self._maybe_hushed(workflow)
        super()._maybe_settled(workflow)

    def _forget_kept(self, workflow: Workflow) -> None:
        """No decision of a workflow is corrected any more: decided by its counts alone, as replay finds it, too."""
        kept = self.slots[workflow.slot].kept
        for place in workflow.decided or () if kept else ():
            kept.pop(place, None)

    def _maybe_hushed(self, workflow: Workflow) -> None:
        if not workflow.open and (workflow.lent or self.slots[workflow.slot].gates):
            self._hushed[workflow.slot, workflow.id] = None

    def _discharge(self, slot: Slot, activation: Activation, now_us: int) -> None:
        super()._discharge(slot, activation, now_us)
        if activation.charges and slot.gates:
            self._hushed[slot.index, activation.correlation_id] = None

    def _timer_ended(self, slot: Slot, gate: Gate, now_us: int) -> bool:
        """Handle the timer of a gate if it is an aggregate's; what waited for any timer is looked at again."""
        if gate.spec.scope == "workflow":
            self._hushed[slot.index, workflow_of(gate)] = None
        if gate.spec.aggregate is not None:
            self._aggregate_deadline(slot, gate, now_us)
        return gate.spec.aggregate is not None

    def settle_hushed(self, now_us: int) -> None:
        """Let aggregates decide that wait for the end of all other work; call in every micro-batch."""
        while self._hushed:
            (index, name), _ = self._hushed.popitem()
            slot = self.slots[index]
            if self._may_end(slot, name):
                record = Hushed(now_us, index, name)
                self._log(record)
                self._on_hushed(record)

    def _may_end(self, slot: Slot, name: str) -> bool:
        workflow = slot.workflows.get(name)
        if workflow is not None and (self._runs(slot, workflow) or workflow.delayed or workflow.cancelled):
            return False
        if workflow is not None and workflow.lent:
            return True
        # Runs on inputs of other slots' parts count there: here they are seen only by looking.
        return bool(self._chosen(slot, name)) and all(a.correlation_id != name for a in slot.open.values())

    def _chosen(self, slot: Slot, name: str) -> list[Gate]:
        """Return which aggregates of a workflow decide now: those to which no other one leads that will decide, too."""
        if any(gate.deadline_us and is_sure(gate) for gate in gates_of(slot, name)):
            return []  # a timer will bring more
        waiting = [
            gate for gate in quiet_gates(slot, name)
            if all(item.home == slot.index or not gate.quiet.get(item.home, 1) for item in gate.items())
            and self._chunks_rest(slot, name, gate)
        ]  # fmt: skip
        reaches = self.feeds.reaches
        first = [
            gate for gate in waiting
            if not any(other is not gate and reaches(other.spec.agent, gate.spec.id) for other in waiting)
        ]  # fmt: skip
        return first or waiting[:1]  # they lead to each other: the first of them begins

    def _scatters_of(self, slot: Slot, workflow: Workflow | None) -> list[Scatter]:
        """Return the fan-outs of a workflow that are not over: they count as open while their chunks wait in gates."""
        keys = (workflow.scatters or ()) if workflow is not None else ()
        return [one for key in keys if (one := slot.scatters.get(key)) is not None and not one.done_us]

    def _runs(self, slot: Slot, workflow: Workflow) -> bool:
        return workflow.open > len(self._scatters_of(slot, workflow))

    def _chunks_rest(self, slot: Slot, name: str, gate: Gate) -> bool:
        """Say whether what is open of the chunks of a workflow's fan-outs only waits."""
        for scatter in self._scatters_of(slot, slot.workflows.get(name)):
            if scatter.total < 0 or scatter.total - scatter.settled.count > len(gate.items()):
                return False  # it is splitting, or chunks of it have given nothing yet
            for index in range(scatter.total):
                place = slot_of_part(Part(scatter.id, index, slot.index, scatter.agent))
                if index not in scatter.settled and place != slot.index and gate.quiet.get(place, 1):
                    return False
        return True

    def _chunk_over(self, slot: Slot, part: Part, fate: int, now_us: int) -> None:
        super()._chunk_over(slot, part, fate, now_us)
        scatter = slot.scatters.get(part.scatter)
        if scatter is not None and slot.gates:
            self._hushed[slot.index, scatter.workflow] = None

    def _on_hushed(self, record: Hushed) -> None:
        slot, now_us = self.slots[record.slot], record.at_us
        workflow = slot.workflows.get(record.workflow)
        if workflow is not None and workflow.lent:
            target = slot_of(workflow.id)
            seen = (slot.inbox.get(target, 0), 0)
            self._send(slot, target, "quiet", workflow=workflow.id, delta=seen)
        for gate in self._chosen(slot, record.workflow):
            self._hushed[slot.index, record.workflow] = None  # others may have waited for this one
            if cast(AggregateRule, gate.spec.aggregate).window is not None:
                self._close_windows(slot, gate, QUIET, now_us)
            else:
                self._conclude(slot, gate, QUIET, now_us)

    def _on_quiet(self, slot: Slot, forward: Forward, now_us: int) -> None:
        """Another slot's part of a workflow has come to rest, or an aggregate there needs nothing more from here."""
        if forward.kind == "withdraw":
            if forward.match is not None:
                self._withdraw_here(slot, forward.match.subscription, forward.workflow, now_us)
            return
        for gate in quiet_gates(slot, forward.workflow):
            if forward.delta[0] >= gate.quiet.get(forward.source, 0):
                gate.quiet[forward.source] = 0
        self._hushed[slot.index, forward.workflow] = None

    def _activation_of(
        self, slot: Slot, spec: SubscriptionSpec, firing: gates.Firing, now_us: int
    ) -> Activation:
        activation = super()._activation_of(slot, spec, firing, now_us)
        # Parts elsewhere whose inputs run here are not at rest, whatever they said before they hear of it.
        for home, name, _ in activation.charges or ():
            if home != slot.index:
                for gate in quiet_gates(slot, name):
                    gate.quiet[home] = max(1, slot.out_seq.get(home, 0))
        return activation

    def _lend(self, workflow: Workflow, spec: SubscriptionSpec) -> None:
        """Note that an aggregate elsewhere has to hear when this part of a workflow has come to rest."""
        rule = spec.aggregate
        if rule is not None and spec.scope == "workflow" and rule.waits_for_quiet:
            workflow.lent = True

    # -- what is not needed any more ------------------------------------------------------------

    def _withdraw_feeders(self, slot: Slot, spec: SubscriptionSpec, items: list[Item], now_us: int) -> None:
        """Withdraw what a workflow still runs for an aggregate that is decided, and for nothing else."""
        agents, name = self.feeds.only(spec.id) - {spec.agent}, items[0].envelope.correlation_id
        if not agents or spec.scope != "workflow" or cast(AggregateRule, spec.aggregate).keyed:
            return  # with a key, nobody knows which group a run would have been for
        homes = {
            limits.home(agent, "")
            for agent in agents
            if (limits := self.limits_of(agent)) is not None and not limits.keyed
        }
        homes |= {item.home for item in items}
        for home in sorted(homes - {slot.index}):
            self._send(slot, home, "withdraw", match=Match(spec.id), workflow=name)
        self._withdraw_here(slot, spec.id, name, now_us)

    def _withdraw_here(self, slot: Slot, subscription: str, name: str, now_us: int) -> None:
        agents = self.feeds.only(subscription)
        # A slot has a few hundred open activations when its shard is full: no index by workflow is worth its upkeep.
        gone = [a for a in slot.open.values() if a.correlation_id == name and a.agent in agents]
        for activation in gone:
            self.events.note(
                now_us, "activation.withdrawn", agent=activation.agent, activation_id=activation.id,
                correlation_id=name, artifact_ids=tuple(e.id for e in activation.inputs),
                detail=f"{subscription} is decided, and nobody else consumes what this run makes",
            )  # fmt: skip
            self._withdraw(slot, activation, now_us)
