"""Decisions that the journal does not tell, or tells wrongly."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager
from unittest import mock

from flock_ray.actors import keeping
from flock_ray.actors.keeping import Keeper
from flock_ray.actors.shard import Shard
from flock_ray.core import recovery, wire
from flock_ray.core.activations import ActivationDesk
from flock_ray.core.records import Rehydrated
from flock_ray.core.rows import WorkflowRow
from flock_ray.core.shard import ShardCore
from flock_ray.core.state import Workflow


def forget_to_journal_what_was_brought_back() -> AbstractContextManager[object]:
    """A settled workflow comes back, and the journal does not know."""

    def rehydrate(self: ShardCore, row: WorkflowRow, now_us: int) -> None:
        if row.id not in self.slots[row.slot].workflows:
            self._on_rehydrated(Rehydrated(now_us, row))

    return mock.patch.object(ShardCore, "rehydrate", rehydrate)


def leave_settled_workflows_in_the_store() -> AbstractContextManager[object]:
    """What comes for a settled workflow finds none and starts one anew."""

    async def look_up(
        self: Keeper,
        published: Collection[wire.Posting],
        made: Iterable[wire.Posting],
        workflows: Collection[str],
        now_us: int,
    ) -> None:
        ids = {posting.envelope.id for posting in published} - self._core.index.ids.keys()
        found = await self.patiently(lambda: self.store.get(ids))
        self._core.stored = {envelope.id: envelope for _, envelope in found}

    return mock.patch.object(Keeper, "look_up", look_up)


def evict_within_a_batch() -> AbstractContextManager[object]:
    """A workflow may leave memory between its look-up and its use."""
    maybe_settled = ActivationDesk._maybe_settled

    def at_once(self: ActivationDesk, workflow: Workflow) -> None:
        maybe_settled(self, workflow)
        self.evict()

    return mock.patch.object(ActivationDesk, "_maybe_settled", at_once)


def evict_never() -> AbstractContextManager[object]:
    """Memory grows with age."""
    return mock.patch.object(ActivationDesk, "evict", return_value=None)


def _changed_snapshots(drop: str) -> AbstractContextManager[object]:
    take = recovery.snapshot_slot

    def without(core: ShardCore, index: int) -> bytes:
        state = recovery._decode_slot(take(core, index))
        if drop == "gates":
            for gate in state.gates:
                for queue in gate.held.values():
                    del queue[1:]
        elif getattr(state, drop):
            setattr(state, drop, type(getattr(state, drop))())
        return recovery._encode(state)

    return mock.patch.object(keeping, "snapshot_slot", without)


def snapshot_without_all_gate_items() -> AbstractContextManager[object]:
    """Of each type that a gate holds, only the first is kept."""
    return _changed_snapshots("gates")


def snapshot_without_held_inputs() -> AbstractContextManager[object]:
    """Inputs whose condition does not hold yet are forgotten."""
    return _changed_snapshots("held")


def snapshot_without_inbox() -> AbstractContextManager[object]:
    """What other slots have sent already is forgotten."""
    return _changed_snapshots("inbox")


def snapshot_keeps_settled_workflows() -> AbstractContextManager[object]:
    """Snapshots grow with age."""
    take = recovery.snapshot_slot

    def keep(core: ShardCore, index: int) -> bytes:
        with mock.patch.object(ShardCore, "drop_settled", return_value=None):
            return take(core, index)

    return mock.patch.object(keeping, "snapshot_slot", keep)


def follow_the_wall_clock() -> AbstractContextManager[object]:
    """Journal time goes back with the clock."""

    def now_us(self: Shard) -> int:
        self.core.clock_us = self._clock.now_us()
        return self.core.clock_us

    return mock.patch.object(Shard, "_now_us", now_us)


ALL = (
    forget_to_journal_what_was_brought_back,
    leave_settled_workflows_in_the_store,
    evict_within_a_batch,
    evict_never,
    snapshot_without_all_gate_items,
    snapshot_without_held_inputs,
    snapshot_without_inbox,
    snapshot_keeps_settled_workflows,
    follow_the_wall_clock,
)
