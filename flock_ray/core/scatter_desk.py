"""Fan-outs and fan-ins of one shard: which chunks there are, what is open of each, and when all are there.

Everything that is made of a chunk lives in the chunk's slot, which counts what is open of it: runs, inputs that
wait in a gate, what travels. When that falls to nothing, the slot tells the home of the scatter. So the home knows,
for every chunk and without a timeout, that it delivers nothing any more. What was delivered is there by then: it
took the same way.
"""

from __future__ import annotations

import msgspec

from flock_ray.core.counting import CountingDesk
from flock_ray.core.records import Streamed
from flock_ray.core.scatter import BURIED, FAILED, Part, carried, slot_of_part
from flock_ray.core.scatter_state import Scatter
from flock_ray.core.state import Activation, Slot, Workflow
from flock_ray.core.wire import Completion, Envelope, Forward, Posting, SubscriptionSpec

RUN_ENDED = -1
"""Index on a `settle`: not a chunk, a run of a fan-in has ended."""

MAX_PARTS_ON_WAY = 20_000
"""Forwards in the outboxes of a shard past which a fan-out makes a pause."""

PAUSE_US = 20_000


class ScatterDesk(CountingDesk):
    """Counts what is open of every chunk, and keeps scatters in their home slots."""

    _delivering: Forward | None = None
    """A delivery that the record at hand has sent: what becomes of its chunk in the same record travels with it."""
    _coalescing = False

    # -- what is open of a chunk ----------------------------------------------------------------

    def _hold(self, slot: Slot, part: Part) -> None:
        """Count one thing more that is open of a chunk of this slot."""
        chunks = slot.parts.get(part.scatter)
        if chunks is None:
            chunks = slot.parts[part.scatter] = {}
        entry = chunks.get(part.index)
        if entry is None:
            chunks[part.index] = [1, 0]
        else:
            entry[0] += 1

    def _free(self, slot: Slot, part: Part, now_us: int) -> None:
        """Count one thing less; the last one is told to the home of the scatter."""
        chunks = slot.parts.get(part.scatter)
        entry = None if chunks is None else chunks.get(part.index)
        if chunks is None or entry is None:
            return
        entry[0] -= 1
        if entry[0] > 0:
            return
        del chunks[part.index]
        if not chunks:
            del slot.parts[part.scatter]
            slot.stopped.pop(part.scatter, None)
        self._say_fate(slot, part, entry[1], now_us)

    def _blame(self, slot: Slot, part: Part, type_name: str) -> None:
        """Remember that a run on a chunk failed."""
        entry = slot.parts.get(part.scatter, {}).get(part.index)
        if entry is not None:
            entry[1] = BURIED if type_name == "DeadLetter" else FAILED

    def _say_fate(self, slot: Slot, part: Part, fate: int, now_us: int) -> None:
        if part.home == slot.index:
            self._chunk_over(slot, part, fate, now_us)
            return
        sent = self._delivering
        if sent is not None and sent.part == part:
            self._delivering = None
            whole = msgspec.structs.replace(sent, fate=fate)
            slot.outbox[sent.target, sent.seq] = whole
            sending = self.local_forwards if sent.target in self.slots else self.remote_forwards
            for place in range(len(sending) - 1, -1, -1):  # it is among the last few
                if sending[place] is sent:
                    sending[place] = whole
                    break
            return
        self._send(slot, part.home, "gather", part=part, fate=fate)

    def _tokens(self, activation: Activation) -> list[Part]:
        """Return the chunks that count an activation as open, once for each time."""
        if activation.gather is not None:
            return []
        if activation.redrives:
            outer = carried(activation.inputs, None)[0]
            return [outer[-1]] if outer else []
        return [envelope.scatter[-1] for envelope in activation.inputs if envelope.scatter]

    def _release(self, slot: Slot, part: Part, now_us: int) -> None:
        """Count one thing less of a chunk, wherever it lives."""
        home = slot_of_part(part)
        if home == slot.index:
            self._free(slot, part, now_us)
        else:
            self._send(slot, home, "settle", part=part)

    def _let_go(self, slot: Slot, activation: Activation, now_us: int) -> None:
        """Tell the chunks of an activation, or the scatter of a fan-in's run, that it is over."""
        gather = activation.gather
        if gather is not None:
            home = slot.index if activation.charges is None else activation.charges[0][0]
            if home == slot.index:
                self._run_ended(slot, gather.scatter, now_us)
            else:
                part = Part(gather.scatter, RUN_ENDED, home, gather.agent)
                self._send(slot, home, "settle", part=part)
            return
        scatter = slot.scatters.get(activation.id)
        if scatter is not None and scatter.total >= 0:
            return  # the scatter is open in its place
        if scatter is not None:
            scatter.total = scatter.made
            if not scatter.done_us:
                scatter.owed = tuple(self._tokens(activation))
                scatter.failed = scatter.failed or "it was withdrawn, or its workers died"
                self._after_split(slot, scatter, now_us)
                return
        for envelope in activation.inputs:
            if envelope.scatter:
                for part in self._tokens(activation):
                    self._release(slot, part, now_us)
                return

    def _take_up(self, slot: Slot, part: Part, now_us: int) -> None:
        """Count one thing more of a chunk that was over, wherever it lives: a dead letter was redriven."""
        home = slot_of_part(part)
        if home == slot.index:
            self._take_up_here(slot, part, now_us)
        else:
            self._send(slot, home, "settle", part=part, reopened=True)

    def _take_up_here(self, slot: Slot, part: Part, now_us: int) -> None:
        known = part.index in slot.parts.get(part.scatter, {})
        self._hold(slot, part)
        if known:
            return
        if part.home == slot.index:
            self._reopen(slot, part, now_us)
        else:
            self._send(slot, part.home, "gather", part=part, reopened=True)

    def _on_settled_part(self, slot: Slot, part: Part, reopened: bool, now_us: int) -> None:
        if reopened:
            self._take_up_here(slot, part, now_us)
        elif part.index == RUN_ENDED:
            self._run_ended(slot, part.scatter, now_us)
        else:
            self._free(slot, part, now_us)

    def _is_stopped(self, slot: Slot, envelope: Envelope) -> bool:
        return bool(slot.stopped) and any(part.scatter in slot.stopped for part in envelope.scatter)

    # -- fan-outs -------------------------------------------------------------------------------

    def _stream(self, activation: Activation, completion: Completion, now_us: int) -> bool:
        """Publish a part of the chunks of a fan-out that goes on; False when it comes too late."""
        split = completion.split
        current = activation.worker is not None and completion.attempt == activation.attempt
        if split is None or not current or split.first != activation.offset:
            self.events.note(
                now_us, "activation.late", agent=activation.agent, activation_id=completion.id,
                correlation_id=activation.correlation_id,
                detail=f"attempt {completion.attempt} brought chunks that are there",
            )  # fmt: skip
            return False
        self.dispatch.release(activation, completion.run_us or 1, completion.calls)
        due_us = now_us + PAUSE_US if self.num_outbox > MAX_PARTS_ON_WAY else 0
        record = Streamed(now_us, completion, due_us)
        self._log(record)
        self._on_streamed(record)
        if not due_us:
            self.dispatch.push(activation, front=True)
        return True

    def _on_streamed(self, record: Streamed) -> None:
        slot, completion = self.slots[record.slot], record.completion
        activation = slot.open[completion.id]
        self._extend(slot, activation, completion, record.at_us)
        activation.offset += len(completion.outputs)
        activation.begun = True
        if record.due_us:
            self._wait_until(slot, activation, record.due_us)

    @staticmethod
    def _rest_of(activation: Activation, completion: Completion) -> Completion:
        """Return the end of a split without the chunks that former parts have brought."""
        split = completion.split
        if split is None or split.first == activation.offset:
            return completion
        known = max(0, activation.offset - split.first)
        return msgspec.structs.replace(
            completion, outputs=completion.outputs[known:],
            split=msgspec.structs.replace(split, first=activation.offset),
        )  # fmt: skip

    def _extend(self, slot: Slot, activation: Activation, completion: Completion, now_us: int) -> None:
        """Publish chunks, and open their scatter if these are the first."""
        scatter = slot.scatters.get(activation.id)
        if scatter is None:
            scatter = self._open_scatter(slot, activation, now_us)
        scatter.made += len(completion.outputs)
        for posting in completion.outputs:
            self._publish_output(slot, posting, now_us)

    def _open_scatter(self, slot: Slot, activation: Activation, now_us: int) -> Scatter:
        source = tuple(msgspec.structs.replace(e, payload=b"") for e in activation.inputs)
        outer, key, decided = carried(source, None)
        if not decided:
            keys = {envelope.partition_key for envelope in source}
            key = keys.pop() if len(keys) == 1 else None
        scatter = Scatter(
            activation.id, activation.agent, activation.correlation_id, now_us, source, outer, key
        )
        slot.scatters[activation.id] = scatter
        workflow = self._counting_record(slot, scatter.workflow, now_us)
        workflow.scatters = [*(workflow.scatters or ()), scatter.id]
        self._shift(workflow, 1, 0, now_us)
        for spec in self._fan_ins.get(activation.agent, ()):
            self._open_fan_in(slot, spec, scatter, now_us)
        return scatter

    def _split_ended(self, slot: Slot, activation: Activation, completion: Completion, now_us: int) -> None:
        """Learn how many chunks there are; call before the activation is discharged."""
        scatter = slot.scatters.get(activation.id)
        if scatter is None:
            return
        scatter.total, scatter.owed = scatter.made, tuple(self._tokens(activation))
        if completion.error is not None:
            scatter.failed = f"{completion.error.type}: {completion.error.message}"
        self._note_scatter(
            scatter, "scatter.started", now_us, f"{scatter.total} chunks, to {self._closers(slot, scatter)}"
        )
        self._after_split(slot, scatter, now_us)

    def _closers(self, slot: Slot, scatter: Scatter) -> str:
        gates = slot.fan_ins.get(scatter.id, {}).values()
        return ", ".join(gate.spec.agent for gate in gates) or "no fan-in"

    def _note_scatter(self, scatter: Scatter, kind: str, now_us: int, detail: str, agent: str = "") -> None:
        self.events.note(now_us, kind, agent=agent or scatter.agent, correlation_id=scatter.workflow,
                         activation_id=scatter.id, detail=detail)  # fmt: skip

    # -- what others do -------------------------------------------------------------------------

    _fan_ins: dict[str, list[SubscriptionSpec]]
    """By fan-out: the fan-ins that close its scatters."""

    def _open_fan_in(self, slot: Slot, spec: SubscriptionSpec, scatter: Scatter, now_us: int) -> None:
        raise NotImplementedError  # FanInDesk's

    def _after_split(self, slot: Slot, scatter: Scatter, now_us: int) -> None:
        raise NotImplementedError  # FanInDesk's

    def _chunk_over(self, slot: Slot, part: Part, fate: int, now_us: int) -> None:
        raise NotImplementedError  # FanInDesk's

    def _reopen(self, slot: Slot, part: Part, now_us: int) -> None:
        raise NotImplementedError  # FanInDesk's

    def _run_ended(self, slot: Slot, scatter: bytes, now_us: int) -> None:
        raise NotImplementedError  # FanInDesk's

    def _wait_until(self, slot: Slot, activation: Activation, due_us: int) -> None:
        raise NotImplementedError  # LaneDesk's

    def _counting_record(self, slot: Slot, workflow_id: str, now_us: int) -> Workflow:
        raise NotImplementedError  # ActivationDesk's

    def _publish_output(self, slot: Slot, posting: Posting, now_us: int, *, unmatched: bool = False) -> None:
        raise NotImplementedError  # ActivationDesk's
