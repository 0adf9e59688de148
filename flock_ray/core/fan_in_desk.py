"""Fan-ins of one shard: what the chunks of a scatter delivered, and when it is merged.

A fan-in decides when nothing is open of any chunk any more, or when its time is over: by then everything that a
chunk delivers is here. Inputs are merged in the order of their chunks, whatever the order in which they came.
"""

from __future__ import annotations

from flock_ray.core.ids import activation_id
from flock_ray.core.scatter import REASONS, SPREAD, Gather, Part, shown
from flock_ray.core.scatter_desk import ScatterDesk
from flock_ray.core.scatter_state import FanIn, Place, Scatter
from flock_ray.core.state import Activation, Slot, Workflow
from flock_ray.core.wire import Envelope, Match, Posting, SubscriptionSpec

PARTIAL = "FanInPartial"
"""Type of what a run of a reduce merged that is not the result yet."""

MIN_TOLD = 10
"""Scatters with fewer chunks send no progress events."""


class FanInDesk(ScatterDesk):
    """Collects, decides, merges."""

    # -- what comes -----------------------------------------------------------------------------

    def _to_scatter(
        self, slot: Slot, workflow: Workflow, spec: SubscriptionSpec, match: Match, envelope: Envelope,
        now_us: int,
    ) -> None:  # fmt: skip
        """Bring an artifact to the scatter that a fan-in closes with it."""
        if match.key:
            self._take_partial(slot, match, envelope, now_us)
            return
        closes = () if spec.fan_in is None else spec.fan_in.closes
        part = next((p for p in reversed(envelope.scatter) if not closes or p.agent in closes), None)
        if part is None:
            self.events.note(
                now_us, "fan_in.stray", agent=spec.agent, correlation_id=workflow.id, artifact_ids=(envelope.id,),
                detail=f"{envelope.type} descends from no open fan-out of {', '.join(closes) or 'any agent'}",
            )  # fmt: skip
        elif part.home == slot.index:
            self._collect(slot, spec.id, part, envelope, now_us)
        else:
            self._send(slot, part.home, "gather", posting=Posting(envelope), match=match, part=part)
            if self._coalescing and part == envelope.scatter[-1]:
                self._delivering = slot.outbox[part.home, slot.out_seq[part.home]]

    def _on_gather(
        self, slot: Slot, part: Part, match: Match | None, envelope: Envelope | None, fate: int, now_us: int
    ) -> None:
        if match is not None and envelope is not None:
            self._collect(slot, match.subscription, part, envelope, now_us)
        if fate >= 0:
            self._chunk_over(slot, part, fate, now_us)

    def _collect(self, slot: Slot, subscription: str, part: Part, envelope: Envelope, now_us: int) -> None:
        gate = slot.fan_ins.get(part.scatter, {}).get(subscription)
        if gate is None:
            self.events.note(
                now_us, "fan_in.late", agent=subscription.partition("/")[0], correlation_id=envelope.correlation_id,
                artifact_ids=(envelope.id,), detail=f"chunk {part.index} of {part.agent}: its fan-in is over",
            )  # fmt: skip
            return
        if (
            gate.rule.strategy == "reduce"
            and gate.resolved.get((0, part.index // gate.rule.width), 0) >= MERGED
        ):
            self._note_scatter(
                slot.scatters[part.scatter], "fan_in.late", now_us,
                f"chunk {part.index}: its part of the tree is merged", gate.spec.agent,
            )  # fmt: skip
            return
        known = gate.items.setdefault(part.index, [])
        if any(item.id == envelope.id for item in known):
            return
        known.append(envelope)
        gate.delivered.add(part.index)
        self.activity += 1
        scatter = slot.scatters[part.scatter]
        if gate.rule.strategy == "first_success":
            self._merge_all(slot, gate, scatter, now_us)
            self._stop_rest(slot, scatter, now_us)

    def _chunk_over(self, slot: Slot, part: Part, fate: int, now_us: int) -> None:
        """Take notice that nothing is open of a chunk any more."""
        scatter = slot.scatters.get(part.scatter)
        if scatter is None or scatter.done_us or not scatter.settled.add(part.index):
            return
        if fate:
            scatter.reasons[part.index] = fate
        self.activity += 1
        gates = list(slot.fan_ins.get(scatter.id, {}).values())
        for gate in gates:
            if gate.rule.strategy == "reduce" and scatter.total >= 0:
                self._resolve(slot, gate, scatter, (0, part.index // gate.rule.width), part.index, now_us)
        if scatter.total >= MIN_TOLD:
            tenths = scatter.settled.count * 10 // scatter.total
            if tenths > scatter.told:
                scatter.told = tenths
                self._note_scatter(scatter, "scatter.progress", now_us, _progress(scatter, now_us))
        if scatter.ended:
            self._judge_all(slot, scatter, now_us)

    def _reopen(self, slot: Slot, part: Part, now_us: int) -> None:
        """Take notice that something runs again for a chunk: a dead letter was redriven."""
        scatter = slot.scatters.get(part.scatter)
        if scatter is None or scatter.done_us or not scatter.settled.discard(part.index):
            return
        scatter.reasons.pop(part.index, None)
        for gate in slot.fan_ins.get(scatter.id, {}).values():
            place = (0, part.index // gate.rule.width)
            counted = gate.rule.on_failure != "wait" or part.index in gate.delivered
            if counted and 0 < gate.resolved.get(place, 0) < MERGED:
                gate.resolved[place] -= 1
        if scatter.waiting:
            scatter.waiting = False
            self._shift(self._counting_record(slot, scatter.workflow, now_us), 1, -1, now_us)

    # -- opening and deciding -------------------------------------------------------------------

    def _open_fan_in(self, slot: Slot, spec: SubscriptionSpec, scatter: Scatter, now_us: int) -> None:
        gate = FanIn(spec, scatter.id)
        slot.fan_ins.setdefault(scatter.id, {})[spec.id] = gate
        if gate.rule.timeout_us:
            gate.deadline_us = now_us + gate.rule.timeout_us
            self._add_timer(slot, gate.deadline_us, "fan_in", scatter.id, spec.id.encode())

    def _after_split(self, slot: Slot, scatter: Scatter, now_us: int) -> None:
        """Begin to merge: now it is known how many chunks there are."""
        for gate in list(slot.fan_ins.get(scatter.id, {}).values()):
            if gate.rule.strategy == "reduce":
                for index in range(scatter.total):
                    if index in scatter.settled:
                        place = (0, index // gate.rule.width)
                        self._resolve(slot, gate, scatter, place, index, now_us)
        if scatter.ended:
            self._judge_all(slot, scatter, now_us)

    def _judge_all(self, slot: Slot, scatter: Scatter, now_us: int) -> None:
        for gate in list(slot.fan_ins.get(scatter.id, {}).values()):
            self._judge(slot, gate, scatter, now_us)
        self._maybe_over(slot, scatter, now_us)

    def _judge(self, slot: Slot, gate: FanIn, scatter: Scatter, now_us: int) -> None:
        """Decide about a fan-in to which nothing comes any more."""
        rule, got, total = gate.rule, gate.delivered.count, max(scatter.total, scatter.made)
        if scatter.failed and rule.on_failure != "partial":
            self._refuse(slot, gate, scatter, now_us, f"the split failed: {scatter.failed}")
        elif rule.strategy == "first_success":
            self._miss(slot, gate, scatter, now_us)
        elif got == total or (got and (got >= rule.min_fraction * total or rule.on_failure == "partial")):
            self._merge_all(slot, gate, scatter, now_us)
        else:
            self._miss(slot, gate, scatter, now_us)

    def _miss(self, slot: Slot, gate: FanIn, scatter: Scatter, now_us: int) -> None:
        if gate.rule.on_failure == "wait" and not gate.expired and not scatter.failed:
            if scatter.ended:
                self._note_scatter(scatter, "fan_in.waiting", now_us, lack_of(gate, scatter), gate.spec.agent)
            return
        self._refuse(slot, gate, scatter, now_us, lack_of(gate, scatter))

    def _fan_in_deadline(self, slot: Slot, scatter_id: bytes, subscription: str, now_us: int) -> None:
        """End the wait of a fan-in; what still runs for nobody else is withdrawn."""
        gate = slot.fan_ins.get(scatter_id, {}).get(subscription)
        if gate is None or not gate.deadline_us or gate.deadline_us > now_us:
            return
        gate.expired = True
        scatter = slot.scatters[scatter_id]
        self._note_scatter(scatter, "fan_in.expired", now_us, lack_of(gate, scatter), gate.spec.agent)
        if scatter.total < 0:
            self._refuse(slot, gate, scatter, now_us, "its time was over before the split was")
        else:
            self._judge(slot, gate, scatter, now_us)
        self._stop_rest(slot, scatter, now_us)
        self._maybe_over(slot, scatter, now_us)

    def _refuse(self, slot: Slot, gate: FanIn, scatter: Scatter, now_us: int, reason: str) -> None:
        """End a fan-in without a result: its error is an artifact."""
        self._close(slot, gate)
        self._note_scatter(scatter, "fan_in.failed", now_us, reason, gate.spec.agent)
        key = activation_id(gate.spec.agent, gate.spec.id, (scatter.id,), RUN_FAILED)
        message = (
            f"Fan-in {gate.spec.agent!r} has no result: {reason}. Give it min_fraction=, on_failure=\"partial\", or "
            'on_failure="wait" and redrive the dead letters.'
        )  # fmt: skip
        self._publish_error(
            slot,
            key,
            gate.spec.agent,
            scatter.workflow,
            scatter.source,
            "FanInIncompleteError",
            message,
            now_us,
        )

    @staticmethod
    def _close(slot: Slot, gate: FanIn) -> None:
        gates = slot.fan_ins.get(gate.scatter, {})
        gates.pop(gate.spec.id, None)
        if not gates:
            slot.fan_ins.pop(gate.scatter, None)

    def _maybe_over(self, slot: Slot, scatter: Scatter, now_us: int) -> None:
        """End a scatter of which nothing is open any more."""
        if scatter.done_us or not scatter.ended or scatter.runs:
            return
        for gate in list(slot.fan_ins.get(scatter.id, {}).values()):
            if gate.rule.strategy == "reduce" and self._may_finish(gate, scatter):
                self._close(
                    slot, gate
                )  # nothing runs, and it has no result: a run failed, which it said itself
        if scatter.id in slot.fan_ins:
            waits = all(gate.rule.on_failure == "wait" for gate in slot.fan_ins[scatter.id].values())
            if waits and not scatter.waiting:
                scatter.waiting = True
                self._shift(self._counting_record(slot, scatter.workflow, now_us), -1, 1, now_us)
            return
        self._end_scatter(slot, scatter, now_us)
        failed = len(scatter.reasons)
        self._note_scatter(scatter, "scatter.finished", now_us,
                           f"{scatter.total} chunks, {failed} with a failed run")  # fmt: skip

    def _end_scatter(self, slot: Slot, scatter: Scatter, now_us: int) -> None:
        scatter.done_us, owed = now_us, scatter.owed
        scatter.owed, scatter.source, scatter.settled.bits = (), (), bytearray()
        for part in owed:
            self._release(slot, part, now_us)
        workflow = self._counting_record(slot, scatter.workflow, now_us)
        self._shift(workflow, 0 if scatter.waiting else -1, -1 if scatter.waiting else 0, now_us)
        scatter.waiting = False

    # -- merging --------------------------------------------------------------------------------

    def _merge_all(self, slot: Slot, gate: FanIn, scatter: Scatter, now_us: int) -> None:
        """Merge what has come, in the order of the chunks: in one run, or by what is left of the tree."""
        total = max(scatter.total, scatter.made)
        missing = gate.delivered.missing(total)
        if missing and gate.rule.strategy != "first_success":
            self._note_scatter(scatter, "fan_in.partial", now_us, lack_of(gate, scatter), gate.spec.agent)
        if gate.rule.strategy == "reduce" and total:
            self._resolve_rest(slot, gate, scatter, now_us)
            return
        inputs = tuple(e for index in sorted(gate.items) for e in gate.items[index])
        if gate.rule.strategy == "first_success":
            inputs, missing = inputs[:1], ()
        self._close(slot, gate)
        self._open_run(slot, gate, scatter, inputs, Gather(scatter.id, scatter.agent, total, missing), now_us)

    def _open_run(
        self, slot: Slot, gate: FanIn, scatter: Scatter, inputs: tuple[Envelope, ...], gather: Gather,
        now_us: int,
    ) -> None:  # fmt: skip
        empty = not inputs
        inputs = inputs or tuple(self.index.get(envelope.id) or envelope for envelope in scatter.source)
        gather = Gather(
            gather.scatter, gather.agent, gather.total, gather.missing, gather.final, gather.level, gather.node, empty,
            scatter.outer, scatter.partition_key, slot.index,
        )  # fmt: skip
        workflow = self._counting_record(slot, scatter.workflow, now_us)
        priority = gate.spec.priority + max((e.priority for e in inputs), default=0)
        activation = Activation(
            run_id(gate, gather, inputs), gate.spec.agent, gate.spec.id, slot.index, scatter.workflow, inputs, now_us,
            priority, gather=gather,
        )  # fmt: skip
        scatter.runs += 1
        self._shift(workflow, 1, 0, now_us)
        if gather.final:
            detail = f"{gather.total} chunks" if not gather.missing else lack_of(gate, scatter)
            self._note_scatter(scatter, "fan_in.fired", now_us, detail, gate.spec.agent)
        self._open_limited(slot, activation, now_us)

    def _resolve(
        self, slot: Slot, gate: FanIn, scatter: Scatter, place: Place, index: int, now_us: int
    ) -> None:
        """Count one child of a node that will not change any more, and merge the node if it was the last one."""
        if place[0] == 0 and gate.rule.on_failure == "wait" and index not in gate.delivered:
            return  # it may be redriven
        known = gate.resolved.get(place, 0)
        if known >= MERGED:
            return
        gate.resolved[place] = known + 1
        if known + 1 >= scatter.size(*place, gate.rule.width):
            self._merge_node(slot, gate, scatter, place, now_us)

    def _merge_node(self, slot: Slot, gate: FanIn, scatter: Scatter, place: Place, now_us: int) -> None:
        rule, (level, node) = gate.rule, place
        final = scatter.is_root(level, rule.width)
        if final and not self._may_finish(gate, scatter):
            return  # what is decided at the end decides
        gate.resolved[place] = MERGED
        inputs = _children(gate, place)
        if final:
            missing = gate.delivered.missing(scatter.total)
            self._close(slot, gate)
            gather = Gather(scatter.id, scatter.agent, scatter.total, missing, True, level, node)
            self._open_run(slot, gate, scatter, inputs, gather, now_us)
        elif not inputs or (len(inputs) == 1 and level):
            self._keep_partial(slot, gate, scatter, place, inputs[0] if inputs else None, now_us)
        else:
            gather = Gather(scatter.id, scatter.agent, scatter.total, (), False, level, node)
            self._open_run(slot, gate, scatter, inputs, gather, now_us)

    @staticmethod
    def _may_finish(gate: FanIn, scatter: Scatter) -> bool:
        got, rule = gate.delivered.count, gate.rule
        enough = got == scatter.total or (
            got > 0 and (got >= rule.min_fraction * scatter.total or rule.on_failure == "partial")
        )
        return enough and (not scatter.failed or rule.on_failure == "partial")

    def _keep_partial(
        self, slot: Slot, gate: FanIn, scatter: Scatter, place: Place, made: Envelope | None, now_us: int
    ) -> None:
        level, node = place
        gate.partials[place] = made
        self._resolve(slot, gate, scatter, (level + 1, node // gate.rule.width), node, now_us)

    def _resolve_rest(self, slot: Slot, gate: FanIn, scatter: Scatter, now_us: int) -> None:
        """Take what is missing as missing: every node of the lowest level that waits for it is merged without."""
        width = gate.rule.width
        for node in range(-(-scatter.total // width)):
            place = (0, node)
            if gate.resolved.get(place, 0) < MERGED:
                self._merge_node(slot, gate, scatter, place, now_us)

    def _take_partial(self, slot: Slot, match: Match, envelope: Envelope, now_us: int) -> None:
        """Take what a run of the tree has merged."""
        scatter_id, level, node = match.key[:16], match.key[16], int.from_bytes(match.key[17:], "big")
        gate = slot.fan_ins.get(scatter_id, {}).get(match.subscription)
        if gate is not None:
            self._keep_partial(slot, gate, slot.scatters[scatter_id], (level, node), envelope, now_us)

    def _run_ended(self, slot: Slot, scatter_id: bytes, now_us: int) -> None:
        scatter = slot.scatters.get(scatter_id)
        if scatter is not None and not scatter.done_us:
            scatter.runs -= 1
            self._maybe_over(slot, scatter, now_us)

    # -- what nobody wants any more -------------------------------------------------------------

    def _stop_rest(self, slot: Slot, scatter: Scatter, now_us: int) -> None:
        """Withdraw what is open of the chunks, once no fan-in waits for them."""
        if scatter.id in slot.fan_ins or scatter.ended:
            return
        for index in range(min(SPREAD, scatter.made)):
            part = Part(scatter.id, index, slot.index, scatter.agent)
            self._send_stop(slot, part, now_us)

    # -- what others do -------------------------------------------------------------------------

    def _send_stop(self, slot: Slot, part: Part, now_us: int) -> None:
        raise NotImplementedError  # CancelDesk's

    def _publish_error(
        self, slot: Slot, activation: bytes, agent: str, correlation_id: str, inputs: tuple[Envelope, ...],
        error: str, message: str, now_us: int, gather: Gather | None = None,
    ) -> None:  # fmt: skip
        raise NotImplementedError  # ActivationDesk's

    def _open_limited(self, slot: Slot, activation: Activation, now_us: int) -> None:
        raise NotImplementedError  # LaneDesk's


RUN_FAILED = 2**62
"""Stands for the place in the tree in the id of a fan-in's error."""

MERGED = 1 << 30
"""In `FanIn.resolved`: the node is merged, or is being merged."""


def run_id(gate: FanIn, gather: Gather, inputs: tuple[Envelope, ...]) -> bytes:
    """Name a run of a fan-in: by what it merges, or by the fan-out that made nothing."""
    named = (gather.scatter,) if gather.empty else tuple(envelope.id for envelope in inputs)
    return activation_id(gate.spec.agent, gate.spec.id, named, 0)


def partial_key(gather: Gather) -> bytes:
    """Return the key of the match that brings what a run of the tree has merged to its fan-in."""
    return gather.scatter + bytes((gather.level,)) + gather.node.to_bytes(4, "big")


def _children(gate: FanIn, place: Place) -> tuple[Envelope, ...]:
    """Take what a node merges, in order."""
    level, node = place
    first = node * gate.rule.width
    if not level:
        chunks = range(first, first + gate.rule.width)
        return tuple(e for index in chunks for e in gate.items.pop(index, ()))
    below = [gate.partials.pop((level - 1, child), None) for child in range(first, first + gate.rule.width)]
    return tuple(envelope for envelope in below if envelope is not None)


def lack_of(gate: FanIn, scatter: Scatter) -> str:
    """Say what has come and what is missing, and why."""
    total = max(scatter.total, scatter.made)
    missing = gate.delivered.missing(total)
    if not missing:
        return f"all {total} chunks"
    running = total - scatter.settled.count
    why: dict[str, int] = {}
    for first, last in missing:
        for index in range(first, last + 1):
            if index in scatter.settled:
                reason = REASONS[scatter.reasons.get(index, 0)]
                why[reason] = why.get(reason, 0) + 1
    if running:
        why["still running"] = running
    told = ", ".join(f"{count} {reason}" for reason, count in why.items())
    return f"{gate.delivered.count} of {total} chunks; missing {shown(missing)} ({told})"


def _progress(scatter: Scatter, now_us: int) -> str:
    done, total = scatter.settled.count, scatter.total
    left_s = (now_us - scatter.opened_us) / done * (total - done) / 1e6
    failed = f", {len(scatter.reasons)} failed" if scatter.reasons else ""
    return f"{done}/{total} chunks{failed}, about {left_s:.3g} s left"
