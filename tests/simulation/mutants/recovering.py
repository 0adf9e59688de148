"""Shards that come back with less, or with more, than they had."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest import mock

from flock_ray.core import recovery
from flock_ray.core.activations import ActivationDesk
from flock_ray.core.recovery import Recovery, SlotState
from flock_ray.core.rows import Loaded
from flock_ray.core.shard import ShardCore
from flock_ray.core.state import Slot
from flock_ray.core.wire import Envelope


def forget_the_outbox() -> AbstractContextManager[object]:
    """What other slots have not acknowledged is not sent again."""
    ready = recovery._ready

    def without(core: ShardCore, epoch: int) -> None:
        ready(core, epoch)
        core.local_forwards, core.remote_forwards = [], []

    return mock.patch.object(recovery, "_ready", without)


def forget_delayed_matches() -> AbstractContextManager[object]:
    """A delay that a snapshot tells of never ends."""
    restore = recovery._restore

    def without(core: ShardCore, slot: Slot, state: SlotState) -> list[tuple[int, Envelope]]:
        state.delayed = []
        return restore(core, slot, state)

    return mock.patch.object(recovery, "_restore", without)


def replay_what_a_snapshot_has_seen() -> AbstractContextManager[object]:
    """Records are applied again on top of the snapshot that was made after them."""
    init = Recovery.__init__

    def blind(self: Recovery, loaded: Loaded) -> None:
        init(self, loaded)
        self._lsns = {}

    return mock.patch.object(Recovery, "__init__", blind)


def forget_the_time() -> AbstractContextManager[object]:
    """Journal time starts with the clock of whoever comes next."""
    rebuild = Recovery.rebuild

    def timeless(self: Recovery, core: ShardCore, epoch: int) -> int:
        replayed = rebuild(self, core, epoch)
        core.clock_us = 0
        return replayed

    return mock.patch.object(Recovery, "rebuild", timeless)


def restore_without_waking() -> AbstractContextManager[object]:
    """Timers of a snapshot are there, and nobody looks at them."""
    adopt = ActivationDesk.adopt

    def asleep(self: ActivationDesk, slot: Slot) -> None:
        timers, slot.timers = slot.timers, []
        adopt(self, slot)
        slot.timers = timers

    return mock.patch.object(ActivationDesk, "adopt", asleep)


def leave_open_work_alone() -> AbstractContextManager[object]:
    """What was open when the shard died is not made ready."""
    reset = ActivationDesk.reset_dispatch

    def nothing_ready(self: ActivationDesk, first_attempt: int) -> None:
        reset(self, first_attempt)
        self.dispatch.ready.clear()
        self.dispatch._hot.clear()

    return mock.patch.object(ActivationDesk, "reset_dispatch", nothing_ready)


ALL = (
    forget_the_outbox,
    forget_delayed_matches,
    replay_what_a_snapshot_has_seen,
    forget_the_time,
    restore_without_waking,
    leave_open_work_alone,
)
