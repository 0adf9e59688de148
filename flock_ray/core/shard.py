"""The shard's state machine: commands in, records and effects out. No I/O, no clock, no randomness.

Every public command validates, appends one record and then applies that record through the same
`_on_...` method that `replay` uses: what recovery rebuilds is what ran. The host (a Ray actor,
the virtual board, the simulator) drains `records` to the journal first and acts on effects after.
"""

from __future__ import annotations

from collections.abc import Collection
from heapq import heappop, heappush

import msgspec

from flock_ray.core import gates
from flock_ray.core.changes import workflow_from
from flock_ray.core.claims import same_payload
from flock_ray.core.ids import single_prefix
from flock_ray.core.parking import Parked, input_is_newer
from flock_ray.core.records import (
    Completed,
    Flushed,
    ForwardAcked,
    ForwardedIn,
    Installed,
    Lost,
    Published,
    Record,
    Rehydrated,
    Streamed,
    Ticked,
    WorkflowFlushed,
)
from flock_ray.core.rows import WorkflowRow
from flock_ray.core.schema import merge_types
from flock_ray.core.spending import SpendDesk
from flock_ray.core.state import MATCH_AGENT, RELEASE, Activation, Item, Slot
from flock_ray.core.wire import (
    CONFLICT,
    DUPLICATE,
    NOT_RUN,
    PUBLISHED,
    WRONG_SLOT,
    Completion,
    Envelope,
    ErrorInfo,
    Forward,
    Posting,
    TableSpec,
    Task,
)


class ShardCore(SpendDesk):
    """State of all slots that one shard owns."""

    def __init__(
        self, owned: Collection[int], *, max_artifacts: int | None = None, durable: bool = False
    ) -> None:
        """Start with empty slots.

        Args:
            owned: Slots of this shard.
            max_artifacts: Artifacts in memory; past it the oldest settled workflows leave. None: no limit.
            durable: Collect `changes` for a store, from which what has left memory can be had again.
        """
        super().__init__(owned, max_artifacts=max_artifacts, durable=durable)
        self.stored: dict[bytes, Envelope] = {}
        """Artifacts of the batch at hand that the store has and memory has not."""
        self.parked = Parked()
        self._replays |= {
            Published: lambda r: self._on_published(r),
            Completed: lambda r: self._on_completed(r, self.slots[r.slot].open[r.completion.id]),
            Ticked: lambda r: self._on_ticked(r),
            ForwardedIn: lambda r: self._on_forwarded(r),
            ForwardAcked: lambda r: self._on_forward_acked(r),
            Lost: lambda r: self._on_lost(r),
            Flushed: lambda r: self._on_flushed(r),
            WorkflowFlushed: lambda r: self._on_workflow_flushed(r),
            Installed: lambda r: self._on_installed(r),
            Rehydrated: lambda r: self._on_rehydrated(r),
            Streamed: lambda r: self._on_streamed(r),
        }

    def replay_table(self, table: TableSpec) -> None:
        """Take the subscription table of a snapshot."""
        self._on_installed(Installed(0, table))

    def replay(self, record: Record) -> None:
        """Apply a record from the journal, as it was applied when it was written."""
        self._replays[type(record)](record)

    # -- commands ---------------------------------------------------------------------------

    def install(self, table: TableSpec, now_us: int) -> bool:
        """Take a newer version of the subscription table; an older or equal one changes nothing (False)."""
        if table.version <= self.table.version:
            return False
        # Types of agents that are gone stay known: their artifacts are still here.
        types = merge_types(table.types, self.table.types)
        record = Installed(now_us, msgspec.structs.replace(table, types=types))
        self._log(record)
        self._on_installed(record)
        self.try_again()
        self._decide(now_us, "table.installed", f"version {table.version}")
        self.limits_changed()
        return True

    def rehydrate(self, row: WorkflowRow, now_us: int) -> None:
        """Bring a workflow back that the store knows; one that is here stays as it is."""
        if row.id not in self.slots[row.slot].workflows:
            record = Rehydrated(now_us, row)
            self._log(record)
            self._on_rehydrated(record)

    def publish(self, posting: Posting, now_us: int) -> int:
        """Accept an artifact from outside; returns PUBLISHED, DUPLICATE, CONFLICT or WRONG_SLOT."""
        envelope = posting.envelope
        if envelope.slot not in self.slots:
            return WRONG_SLOT
        if envelope.id in self.index.ids or envelope.id in self.stored:
            return self._compare(posting)
        record = Published(now_us, posting)
        self._log(record)
        self._on_published(record)
        return PUBLISHED

    def _compare(self, posting: Posting) -> int:
        new = posting.envelope
        known = self.index.get(new.id) or self.stored.get(new.id)
        same = known is not None and known.type == new.type and same_payload(known.payload, new.payload)
        return DUPLICATE if same or posting.idempotent else CONFLICT

    def complete(self, completion: Completion, now_us: int) -> bool:
        """Commit the result of an attempt; False for an activation that is not open (any more)."""
        slot = self.slots.get(completion.slot)
        activation = None if slot is None else slot.open.get(completion.id)
        if activation is None:
            self.events.note(
                now_us, "activation.late", activation_id=completion.id,
                detail=f"attempt {completion.attempt} reported a result after another one was committed",
            )  # fmt: skip
            return False
        if completion.error is not None and completion.error.type == NOT_RUN:
            # A late answer of a former attempt must not make ready what runs, or is ready, elsewhere.
            if activation.worker is not None and completion.attempt == activation.attempt:
                self.dispatch.release(activation)
                self._again(activation)
            return False
        worker = ""
        if completion.error is not None:
            if input_is_newer(completion):
                self._wait_for_code(activation, completion, now_us)
                return False
            if completion.retry is not None and (
                activation.worker is None or completion.attempt != activation.attempt
            ):
                self._say(activation, "activation.late", now_us, f"attempt {completion.attempt} had failed")
                return False  # another attempt is due, or runs
            worker = activation.worker or ""
        elif completion.split is not None:
            if completion.split.more:
                return self._stream(activation, completion, now_us)
            completion = self._rest_of(activation, completion)
        if completion.calls:
            completion = self._counted_once(completion)
        if completion.retry is not None and self._retry(activation, completion, now_us):
            return True
        if activation.worker is not None and completion.attempt != activation.attempt:
            self.cancels.append((activation.worker, activation.id))
            self._attempt_lost(self.slots[activation.slot], activation)
        self.dispatch.release(activation, completion.run_us or 1, completion.calls)
        record = Completed(now_us, completion, worker)
        self._log(record)
        self._on_completed(record, activation)
        return True

    def _wait_for_code(self, activation: Activation, completion: Completion, now_us: int) -> None:
        """Keep an activation whose worker can't read its input: it waits for a deploy, or for newer workers."""
        if activation.worker is None or completion.attempt != activation.attempt:
            return  # a late answer of a former attempt
        self.dispatch.release(activation)
        if self.parked.park(activation, self.table.version):
            self.events.note(
                now_us, "activation.needs_code", agent=activation.agent, activation_id=activation.id,
                correlation_id=activation.correlation_id,
                artifact_ids=tuple(e.id for e in activation.inputs), detail=completion.notes[0][1],
            )  # fmt: skip
        else:
            self._again(activation)

    def try_again(self, workers: Collection[str] | None = None) -> None:
        """Make ready what waits for newer code: after a deploy, or when other workers are there than before.

        Args:
            workers: Those that can get work now; None: there was a deploy.
        """
        for activation in self.parked.release(workers):
            self._again(activation)  # one that was cancelled meanwhile is not handed out

    def tick(self, now_us: int) -> None:
        """Fire every timer that is due."""
        due: set[int] = set()
        while self._wake and self._wake[0][0] <= now_us:
            due.add(heappop(self._wake)[1])
        for index in sorted(due):
            timers = self.slots[index].timers
            if timers and timers[0][0] <= now_us:
                record = Ticked(now_us, index)
                self._log(record)
                self._on_ticked(record)

    def next_timer_us(self) -> int | None:
        """Return when `tick`, `admit`, `fire_due` or `offers_due` is due next, or something is late; None: nothing."""
        times = [self._wake[0][0]] if self._wake else []
        if (admission_us := self.next_admission_us()) is not None:
            times.append(admission_us)
        if (fire_us := self.next_fire_us()) is not None:
            times.append(fire_us)
        if (offer_us := self.next_offer_us()) is not None:
            times.append(offer_us)
        if (deadline_us := self.next_deadline_us()) is not None:
            times.append(deadline_us)
        return min(times, default=None)

    def forward_in(self, forward: Forward, now_us: int) -> bool:
        """Apply something from another slot; True when it is applied now or was before.

        Forwards of one source are applied in order: one that comes too early is refused, and its
        sender repeats it.
        """
        slot = self.slots.get(forward.target)
        if slot is None:
            return False
        last = slot.inbox.get(forward.source, 0)
        if forward.seq <= last:
            return True
        if forward.seq != last + 1:
            return False
        record = ForwardedIn(now_us, forward)
        self._log(record)
        self._on_forwarded(record)
        return True

    def forward_acked(self, source: int, target: int, seq: int) -> None:
        """Forget an outbox entry that its receiver has made durable."""
        slot = self.slots.get(source)
        if slot is not None and (target, seq) in slot.outbox:
            record = ForwardAcked(source, target, seq)
            self._log(record)
            self._on_forward_acked(record)

    def settle_local_forwards(self, now_us: int) -> None:
        """Apply what slots of this shard owe each other, as shards do; then aggregates decide that wait for rest."""
        while self.local_forwards or self._hushed:
            batch, self.local_forwards = self.local_forwards, []
            for forward in batch:
                if self.forward_in(forward, now_us):
                    self.forward_acked(forward.source, forward.target, forward.seq)
            if not self.local_forwards:
                self.settle_hushed(now_us)

    def worker_lost(self, worker: str, now_us: int) -> int:
        """Make everything that a dead worker held ready again; returns how much that was."""
        held = self.dispatch.revoke(worker)
        blamed = {a.id for a in self.dispatch.blamed(held)}
        by_slot: dict[int, list[Activation]] = {}
        for activation in held:
            by_slot.setdefault(activation.slot, []).append(activation)
        for index, activations in by_slot.items():
            for activation in activations:
                self._attempt_lost(self.slots[index], activation)
            record = Lost(now_us, index, tuple(a.id for a in activations if a.id in blamed), worker)
            self._log(record)
            self._on_lost(record)
        open_ = [a for a in held if self.slots[a.slot].open.get(a.id) is a]
        for activation in reversed(open_):
            self._again(activation)
        return len(open_)

    def handed_back(self, tasks: list[Task]) -> None:
        """Make attempts ready again that a worker did not take."""
        for task in reversed(tasks):
            activation = self.slots[task.slot].open.get(task.id)
            if (
                activation is not None
                and activation.attempt == task.attempt
                and activation.worker is not None
            ):
                self.dispatch.release(activation)
                self._again(activation)

    def flush_batches(self, now_us: int) -> int:
        """Run every partial batch now; returns how many there were."""
        flushed = 0
        for index, slot in self.slots.items():
            batches = [g for keys in slot.gates.values() for g in keys.values() if g.batch]
            if batches:
                flushed += len(batches)
                record = Flushed(now_us, index)
                self._log(record)
                self._on_flushed(record)
        return flushed

    def flush_workflow(self, workflow: str, now_us: int) -> int:
        """Run every partial batch that holds inputs of this workflow alone; returns how many there were."""
        flushed = 0
        for index, slot in self.slots.items():
            if batches := slot.batches_of(workflow):
                flushed += len(batches)
                record = WorkflowFlushed(now_us, index, workflow)
                self._log(record)
                self._on_workflow_flushed(record)
        return flushed

    # -- what the records do ----------------------------------------------------------------

    def _on_installed(self, record: Installed) -> None:
        self.table = record.table
        self.subscriptions = {spec.id: spec for spec in record.table.subscriptions}
        self.agents = {info.name: info for info in record.table.agents}
        self._limits_installed()
        self._aggregates_installed()
        self._plain = {
            spec.id: (spec, single_prefix(spec.agent, spec.id))
            for spec in record.table.subscriptions
            if spec.kind == "single" and not spec.when and self.limits_of(spec.agent) is None
        }
        self._fan_ins = {}
        for spec in record.table.subscriptions:
            for agent in spec.fan_in.closes if spec.fan_in is not None else ():
                self._fan_ins.setdefault(agent, []).append(spec)
        self._index_conditions()
        self._retime_candidates(record.at_us)
        self._deadlines_installed()
        self.matched_types = {name for spec in record.table.subscriptions for name in spec.types}

    def _on_rehydrated(self, record: Rehydrated) -> None:
        workflow = workflow_from(record.row)
        if self.slots[record.slot].workflows.setdefault(workflow.id, workflow) is workflow:
            self._maybe_settled(workflow)

    def _on_published(self, record: Published) -> None:
        self._accept(self.slots[record.slot], record.posting, record.at_us)

    def _on_completed(self, record: Completed, activation: Activation) -> None:
        completion, now_us = record.completion, record.at_us
        slot, error = self.slots[activation.slot], completion.error
        self._coalescing, self._delivering = True, None
        self._count_first(slot, activation, now_us)
        self._end(slot, activation, now_us, failed=error is not None and (completion.trips or None))
        if self.changes is not None:
            status = "completed" if error is None else "failed"
            self.changes.end(activation, now_us, status, completion)
        if activation.agent == MATCH_AGENT:
            if error is not None:
                self.events.note(now_us, "match.refused", agent=MATCH_AGENT, activation_id=activation.id,
                                 correlation_id=activation.correlation_id,
                                 artifact_ids=tuple(e.id for e in activation.inputs),
                                 detail=f"{error.type}: {error.message}")  # fmt: skip
            if activation.subscription:
                if activation.subscription.startswith(RELEASE):
                    self._on_released(slot, activation, completion, now_us)
                    self._discharge(slot, activation, now_us)
                else:
                    self._on_answered(slot, activation, record)
                return
            for posting in completion.outputs:
                self._deliver_all(slot, posting, now_us)
        else:
            self.events.completed(now_us, activation.agent, activation.correlation_id, completion)
            if completion.calls:
                self._count_calls(slot, activation, completion.calls, now_us)
            for kind, detail in completion.notes:
                self.events.note(now_us, kind, agent=activation.agent, correlation_id=activation.correlation_id,
                                 activation_id=activation.id, detail=detail)  # fmt: skip
            if error is None and completion.split is not None:
                self._extend(slot, activation, completion, now_us)
            elif error is None or not self._buried(slot, activation, record, now_us):
                for posting in completion.outputs:
                    self._publish_output(slot, posting, now_us)
                if error is not None and not completion.outputs:
                    # The worker could not make it, or was certain of another attempt under an older declaration.
                    self._publish_error(slot, activation.id, activation.agent, activation.correlation_id,
                                        activation.inputs, error.type, error.message, now_us,
                                        activation.gather)  # fmt: skip
            self._split_ended(slot, activation, completion, now_us)
        self._discharge(slot, activation, now_us)
        self._coalescing, self._delivering = False, None

    def _buried(self, slot: Slot, activation: Activation, record: Completed, now_us: int) -> bool:
        """Make a dead letter of an activation whose last attempt failed; False: its agent has none."""
        info, error = self.agents.get(activation.agent), record.completion.error
        if info is None or info.dead_letter is None or error is None:
            return False
        self._remember(activation, record.completion, error, now_us, record.worker, 0)
        return self._bury(slot, activation, error, now_us, record.completion.checks)

    def _on_forwarded(self, record: ForwardedIn) -> None:
        forward, now_us = record.forward, record.at_us
        slot = self.slots[forward.target]
        slot.inbox[forward.source] = forward.seq
        if forward.kind == "publish" and forward.posting is not None:
            if forward.posting.envelope.id not in self.index:
                self._accept(slot, forward.posting, now_us)
                if forward.match is not None:
                    self._request_match(slot, forward.posting.envelope, now_us)
        elif forward.kind == "match" and forward.posting is not None and forward.match is not None:
            spec = self.subscriptions.get(forward.match.subscription)
            item = Item(forward.posting.envelope, forward.source, False, forward.match.lane)
            if spec is None:
                self._return_item(slot, item, now_us)
                self._unknown_subscription(forward.match, forward.posting.envelope, now_us)
            else:
                self._feed(slot, spec, forward.match, item, now_us)
        elif forward.kind == "gather" and forward.part is not None:
            if forward.reopened:
                self._reopen(slot, forward.part, now_us)
            else:
                envelope = None if forward.posting is None else forward.posting.envelope
                self._on_gather(slot, forward.part, forward.match, envelope, forward.fate, now_us)
        elif forward.kind == "stop" and forward.part is not None:
            self._on_stop(slot, forward.part, now_us)
        elif forward.kind == "run" and forward.run is not None:
            self._on_run(slot, forward.run, now_us)
        elif forward.kind == "void" and forward.run is not None:
            self._on_void(slot, forward.run, now_us)
        elif forward.kind in ("quiet", "withdraw"):
            self._on_quiet(slot, forward, now_us)
        elif forward.kind == "settle":
            if forward.part is not None:
                self._on_settled_part(slot, forward.part, forward.reopened, now_us)
            workflow = slot.workflows.get(forward.workflow)
            if workflow is None and forward.delta[0] > 0:  # a redrive for one that has left memory for good
                workflow = self._counting_record(slot, forward.workflow, now_us)
            if workflow is not None:
                self._shift(workflow, forward.delta[0], forward.delta[1], now_us, forward.errors)

    def _on_forward_acked(self, record: ForwardAcked) -> None:
        if self.slots[record.slot].outbox.pop((record.target, record.seq), None) is not None:
            self.num_outbox -= 1

    def _on_lost(self, record: Lost) -> None:
        slot = self.slots[record.slot]
        for activation_id in record.blamed:
            activation = slot.open.get(activation_id)
            if activation is None:
                continue
            activation.crashes += 1
            died = ErrorInfo("WorkerDiedError", "its worker died")
            self._add_attempt(activation, died, record.at_us, record.worker)
            info = self.agents.get(activation.agent)
            limit = info.max_crashes if info is not None else 3
            self.events.note(
                record.at_us, "activation.worker_lost", agent=activation.agent, activation_id=activation.id,
                correlation_id=activation.correlation_id,
                detail=f"worker {record.worker} died while it had this activation ({activation.crashes} of {limit})",
            )  # fmt: skip
            if activation.crashes >= limit:
                self._give_up(
                    slot, activation, record.at_us, "AgentCrashedError",
                    f"{activation.crashes} workers died while they ran this activation; it is not tried again. "
                    f"Look for os._exit, a native crash or too much memory in agent {activation.agent!r}.",
                )  # fmt: skip

    def _on_flushed(self, record: Flushed) -> None:
        slot = self.slots[record.slot]
        for gate in [g for keys in slot.gates.values() for g in keys.values() if g.batch]:
            if slot.gate(gate.spec.id, gate.key) is gate:  # what another one set off may have run it
                self._fire(slot, gate.spec, gates.flush(slot, gate), record.at_us)

    def _on_workflow_flushed(self, record: WorkflowFlushed) -> None:
        slot = self.slots[record.slot]
        for gate in slot.batches_of(record.workflow):
            if slot.gate(gate.spec.id, gate.key) is gate:  # what another one set off may have run it
                self._fire(slot, gate.spec, gates.flush(slot, gate), record.at_us)

    def _on_ticked(self, record: Ticked) -> None:
        slot, now_us = self.slots[record.slot], record.at_us
        while slot.timers and slot.timers[0][0] <= now_us:
            _, _, kind, first, second = heappop(slot.timers)
            if kind == "match":
                self._release_delayed(slot, first, second.decode(), now_us)
            elif kind == "due":
                self._on_due(slot, first, now_us)
            elif kind == "fan_in":
                self._fan_in_deadline(slot, first, second.decode(), now_us)
            elif kind == "approval":
                self._on_approval_due(slot, first, now_us)
            else:
                self._gate_deadline(slot, second.decode(), first, now_us)
        if slot.timers:
            heappush(self._wake, (slot.timers[0][0], slot.index))
