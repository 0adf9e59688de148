"""Shards that lose count of what people have decided."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

from flock_ray.core import approval_desk, recovery
from flock_ray.core.activations import ActivationDesk
from flock_ray.core.approval_desk import ApprovalDesk
from flock_ray.core.approvals import Case, refusal
from flock_ray.core.records import ApprovalDecided
from flock_ray.core.recovery import SlotState
from flock_ray.core.shard import ShardCore
from flock_ray.core.state import Slot
from flock_ray.core.visibility import PublicVisibility
from flock_ray.core.wire import Envelope
from flock_ray.engines import approving


def count_an_approval_twice() -> AbstractContextManager[object]:
    """A second vote of the same person counts."""

    def lenient(case: Case, *about: Any) -> str:
        why = refusal(case, *about)
        return "" if why in ("voted", "known") else why

    return mock.patch.object(approval_desk, "refusal", lenient)


def _restored(change: Any) -> AbstractContextManager[object]:
    restore = recovery._restore

    def changed(core: ShardCore, slot: Slot, state: SlotState) -> list[tuple[int, Envelope]]:
        change(state)
        return restore(core, slot, state)

    return mock.patch.object(recovery, "_restore", changed)


def forget_approvals() -> AbstractContextManager[object]:
    """What waits for people in a snapshot is forgotten after a restart."""

    def forget(state: SlotState) -> None:
        state.approvals = []

    return _restored(forget)


def forget_votes() -> AbstractContextManager[object]:
    """After a restart nobody has decided anything."""

    def forget(state: SlotState) -> None:
        for case in state.approvals:
            case.votes = []

    return _restored(forget)


def let_timeout_and_vote_both_win() -> AbstractContextManager[object]:
    """What was decided by a vote still waits for its time."""
    on_decided = ApprovalDesk._on_approval_decided

    def stays(self: ApprovalDesk, record: ApprovalDecided) -> str:
        slot = self.slots[record.slot]
        case = slot.approvals[record.order.case]
        outcome = on_decided(self, record)
        if outcome and not case.ask.terms.shadow:
            slot.approvals[case.id] = case
            slot.workflows[case.correlation_id].waiting += 1
        return outcome

    return mock.patch.object(ApprovalDesk, "_on_approval_decided", stays)


def drop_timers_of_approvals() -> AbstractContextManager[object]:
    """Nobody wakes up when the time of an approval is over."""
    add_timer = ActivationDesk._add_timer

    def add(self: ActivationDesk, slot: Slot, due_us: int, kind: str, first: bytes, second: bytes) -> None:
        if kind != "approval":
            add_timer(self, slot, due_us, kind, first, second)

    return mock.patch.object(ActivationDesk, "_add_timer", add)


def show_to_everybody() -> AbstractContextManager[object]:
    """What waits for approval is seen by all."""
    return mock.patch.object(approving, "narrow", return_value=PublicVisibility())


ALL = (
    count_an_approval_twice,
    forget_approvals,
    forget_votes,
    let_timeout_and_vote_both_win,
    drop_timers_of_approvals,
    show_to_everybody,
)
