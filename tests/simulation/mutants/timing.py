"""Shards that forget what the clock was to do, or let it do that twice."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from unittest import mock

from flock_ray.core import recovery
from flock_ray.core.candidates import CandidateDesk
from flock_ray.core.deadlines import DeadlineDesk
from flock_ray.core.recovery import SlotState
from flock_ray.core.schedule_desk import ScheduleDesk
from flock_ray.core.shard import ShardCore
from flock_ray.core.state import Slot, Waiting


def lose_timers_of_schedules() -> AbstractContextManager[object]:
    """A schedule that comes back with its shard never fires again."""
    adopt = ScheduleDesk.adopt

    def without(self: ScheduleDesk, slot: Slot) -> None:
        with mock.patch.object(ScheduleDesk, "_await_fire"):
            adopt(self, slot)

    return mock.patch.object(ScheduleDesk, "adopt", without)


def fire_the_last_time_again() -> AbstractContextManager[object]:
    """A shard that comes back thinks that the last fire is still to come."""

    def change(slot: Slot) -> None:
        for schedule in slot.schedules.values():
            schedule.next_us = schedule.last_us or schedule.next_us

    return _restoring(change)


def match_candidates_twice() -> AbstractContextManager[object]:
    """What was delivered stays a candidate."""
    take = CandidateDesk._on_answered
    pop = CandidateDesk._pop

    def keep(self: CandidateDesk, waiting: Waiting, key: bytes) -> None:
        entry = waiting.entries.get(key)
        pop(self, waiting, key)
        if entry is not None:
            waiting.entries[key] = entry
            self.num_candidates += 1

    def answered(self: CandidateDesk, *args: object) -> None:
        with mock.patch.object(CandidateDesk, "_pop", keep):
            take(self, *args)  # type: ignore[arg-type]  # as it was called

    return mock.patch.object(CandidateDesk, "_on_answered", answered)


def snapshot_without_candidates() -> AbstractContextManager[object]:
    """What is to be offered again is only in the journal."""

    def change(slot: Slot) -> None:
        slot.candidates = {}

    return _restoring(change)


def lose_deadlines() -> AbstractContextManager[object]:
    """What was to be done by some time may take as long as it likes, once its shard has come back."""
    return mock.patch.object(DeadlineDesk, "_of", return_value=())


def forget_who_was_late() -> AbstractContextManager[object]:
    """A run that was late is late again after its shard has come back."""

    def change(slot: Slot) -> None:
        for run in slot.open.values():
            run.late = False

    return _restoring(change)


def _restoring(change: Callable[[Slot], None]) -> AbstractContextManager[object]:
    """Change a slot that has come back from its snapshot."""
    restore = recovery._restore

    def restored(core: ShardCore, slot: Slot, state: SlotState) -> object:
        with mock.patch.object(core, "adopt"):
            made = restore(core, slot, state)
        change(slot)
        core.adopt(slot)
        return made

    return mock.patch.object(recovery, "_restore", restored)


ALL = (
    lose_timers_of_schedules,
    fire_the_last_time_again,
    match_candidates_twice,
    snapshot_without_candidates,
    lose_deadlines,
    forget_who_was_late,
)
