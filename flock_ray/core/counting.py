"""The state of one shard: its slots, how workflows count what is open, what other slots hear, timers.

The lowest layer of the shard's core; what becomes of inputs is `core.activations`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from heapq import heappush
from typing import Any

from flock_ray.core import gates
from flock_ray.core.changes import Changes
from flock_ray.core.dispatch import Dispatcher
from flock_ray.core.events import EventLog
from flock_ray.core.index import BoardIndex
from flock_ray.core.records import Record
from flock_ray.core.rows import Decision
from flock_ray.core.scatter import Part
from flock_ray.core.state import Activation, Item, Slot, Workflow
from flock_ray.core.wire import (
    AgentInfo,
    Envelope,
    Forward,
    Match,
    Posting,
    Run,
    SubscriptionSpec,
    TableSpec,
)


class CountingDesk:
    """Slots, workflows' counts, timers and the outbox of one shard."""

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
        self._deadlines: dict[str, int] = {}
        """By agent, for those that have one: within what time a run must be done."""
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

    def _attempt_lost(self, slot: Slot, activation: Activation) -> None:
        """Hear that an attempt that was handed out will have no result."""

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

    def _shift(self, workflow: Workflow, open_: int, waiting: int, now_us: int, errors: int = 0) -> None:
        workflow.open += open_
        workflow.waiting += waiting
        # Of one that had left a memory board for good, nobody knows any more what it had.
        workflow.errors = max(0, workflow.errors + errors)
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
        if workflow.deadline_us and workflow.settled:
            workflow.deadline_us = 0  # done in time
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
        slot = self.slots[workflow.slot]
        for key in workflow.scatters or ():
            slot.scatters.pop(key, None)
        del slot.workflows[workflow.id]

    def drop_settled(self, slot: int) -> None:
        """Let every settled workflow of a slot leave memory."""
        for workflow in [w for w in self.slots[slot].workflows.values() if w.settled]:
            self._settled.pop((slot, workflow.id), None)
            if not _only_counts_loops(workflow):
                self._drop(workflow)

    def _make_ready(self, slot: Slot, activation: Activation) -> None:
        raise NotImplementedError  # LaneDesk's

    def _release(self, slot: Slot, part: Part, now_us: int) -> None:
        raise NotImplementedError  # ScatterDesk's

    # -- what other slots hear ----------------------------------------------------------------

    def _send(
        self, slot: Slot, target: int, kind: str, *, posting: Posting | None = None, match: Match | None = None,
        workflow: str = "", delta: tuple[int, int] = (0, 0), run: Run | None = None, errors: int = 0,
        part: Part | None = None, fate: int = -1, reopened: bool = False,
    ) -> None:  # fmt: skip
        seq = slot.out_seq[target] = slot.out_seq.get(target, 0) + 1
        forward = Forward(
            slot.index, target, seq, kind, posting, match, workflow, delta, run, errors, part, fate, reopened
        )
        slot.outbox[target, seq] = forward
        self.num_outbox += 1
        (self.local_forwards if target in self.slots else self.remote_forwards).append(forward)

    def _move(self, slot: Slot, item: Item, open_: int, waiting: int, now_us: int) -> None:
        self._tell(slot, item.home, item.envelope.correlation_id, open_, waiting, now_us)

    def _tell(
        self,
        slot: Slot,
        home: int,
        workflow_id: str,
        open_: int,
        waiting: int,
        now_us: int,
        *,
        errors: int = 0,
    ) -> None:
        if home != slot.index:
            self._send(slot, home, "settle", workflow=workflow_id, delta=(open_, waiting), errors=errors)
            return
        workflow = slot.workflows.get(workflow_id)
        if workflow is not None:
            self._shift(workflow, open_, waiting, now_us, errors)

    def _return_item(self, slot: Slot, item: Item, now_us: int) -> None:
        """An input leaves its gate without an activation."""
        if item.envelope.scatter:
            self._release(slot, item.envelope.scatter[-1], now_us)
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
    """A workflow of another slot, with what gates here have to know. Nothing new for it comes and brings it back."""
    return bool(workflow.iterations or workflow.decided) and not workflow.counts
