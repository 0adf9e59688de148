"""Shards that lose count of failures, of limits and of dead letters."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

from flock_ray.core import recovery
from flock_ray.core.breakers import Breaker
from flock_ray.core.lanes import LaneDesk
from flock_ray.core.letters import LetterDesk
from flock_ray.core.pausing import PauseDesk
from flock_ray.core.rates import RateWindow
from flock_ray.core.records import LetterRedriven, Retried
from flock_ray.core.recovery import SlotState
from flock_ray.core.shard import ShardCore
from flock_ray.core.state import Activation, Slot
from flock_ray.core.wire import BreakerSpec, Envelope, Rate


def forget_breakers() -> AbstractContextManager[object]:
    """A circuit breaker that a snapshot tells of is closed after a restart."""
    restore = recovery._restore

    def closed(core: ShardCore, slot: Slot, state: SlotState) -> list[tuple[int, Envelope]]:
        for lane in state.lanes.values():
            lane.breaker = Breaker()
        return restore(core, slot, state)

    return mock.patch.object(recovery, "_restore", closed)


def count_retries_twice() -> AbstractContextManager[object]:
    """Each failed attempt counts as two."""
    on_retried = LetterDesk._on_retried

    def twice(self: LetterDesk, record: Retried) -> None:
        on_retried(self, record)
        self.slots[record.slot].open[record.completion.id].failures += 1

    return mock.patch.object(LetterDesk, "_on_retried", twice)


def forget_retries() -> AbstractContextManager[object]:
    """Nobody wakes up for an attempt that a snapshot says is to be made again."""
    restore = recovery._restore

    def without(core: ShardCore, slot: Slot, state: SlotState) -> list[tuple[int, Envelope]]:
        state.timers = [timer for timer in state.timers if timer[2] != "due"]
        return restore(core, slot, state)

    return mock.patch.object(recovery, "_restore", without)


def retry_at_once() -> AbstractContextManager[object]:
    """After a restart nobody knows any more that an attempt has to wait for its time."""
    restore = recovery._restore

    def hasty(core: ShardCore, slot: Slot, state: SlotState) -> list[tuple[int, Envelope]]:
        for activation in state.open:
            activation.due_us = 0
        return restore(core, slot, state)

    return mock.patch.object(recovery, "_restore", hasty)


def leak_a_lane() -> AbstractContextManager[object]:
    """What is cancelled while it runs counts for the limits of its agent for ever."""
    leave = LaneDesk._leave

    def keep(self: LaneDesk, slot: Slot, activation: Activation, now_us: int, *, failed: bool | None) -> None:
        if failed is None:
            activation.admitted = False
        leave(self, slot, activation, now_us, failed=failed)

    return mock.patch.object(LaneDesk, "_leave", keep)


def redrive_twice() -> AbstractContextManager[object]:
    """A letter that was redriven is still open."""
    on_redriven = LetterDesk._on_letter_redriven

    def stays(self: LetterDesk, record: LetterRedriven) -> None:
        letters = self.slots[record.slot].letters
        letter = letters[record.letter]
        on_redriven(self, record)
        letters[record.letter] = letter

    return mock.patch.object(LetterDesk, "_on_letter_redriven", stays)


def let_one_too_many_start() -> AbstractContextManager[object]:
    """A rate of 3 is one of 4."""
    inside = RateWindow._inside

    def fewer(self: RateWindow, rate: Rate, now_us: int) -> int:
        return inside(self, rate, now_us) - 1

    return mock.patch.object(RateWindow, "_inside", fewer)


def let_one_too_many_try() -> AbstractContextManager[object]:
    """A half-open circuit breaker lets more through than it should."""
    allowance = Breaker.allowance

    def more(self: Breaker, spec: BreakerSpec, now_us: int) -> int:
        allowed = allowance(self, spec, now_us)
        return allowed + 1 if allowed or self.state == "half_open" else 0

    return mock.patch.object(Breaker, "allowance", more)


def forget_pauses() -> AbstractContextManager[object]:
    """What a snapshot says is paused goes on after a restart."""

    def nothing(self: PauseDesk, pauses: Any) -> None:
        pass

    return mock.patch.object(PauseDesk, "restore_pauses", nothing)


ALL = (
    forget_breakers,
    count_retries_twice,
    forget_retries,
    retry_at_once,
    leak_a_lane,
    redrive_twice,
    let_one_too_many_start,
    let_one_too_many_try,
    forget_pauses,
)
