"""Shards that lose count of the chunks of a fan-out."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest import mock

from flock_ray.core import recovery
from flock_ray.core.counting import CountingDesk
from flock_ray.core.fan_in_desk import FanInDesk
from flock_ray.core.records import Streamed
from flock_ray.core.recovery import SlotState
from flock_ray.core.scatter import Part
from flock_ray.core.scatter_desk import ScatterDesk
from flock_ray.core.shard import ShardCore
from flock_ray.core.state import Slot
from flock_ray.core.wire import Envelope


def forget_a_chunk_after_a_restart() -> AbstractContextManager[object]:
    """What one chunk has delivered is not in the snapshot of its fan-in."""
    restore = recovery._restore

    def without(core: ShardCore, slot: Slot, state: SlotState) -> list[tuple[int, Envelope]]:
        for fan_in in state.fan_ins:
            for index in list(fan_in.items)[:1]:
                del fan_in.items[index]
        return restore(core, slot, state)

    return mock.patch.object(recovery, "_restore", without)


def count_a_chunk_twice() -> AbstractContextManager[object]:
    """An artifact that comes to a fan-in counts as two."""
    collect = FanInDesk._collect

    def twice(
        self: FanInDesk, slot: Slot, subscription: str, part: Part, envelope: Envelope, now_us: int
    ) -> None:
        collect(self, slot, subscription, part, envelope, now_us)
        gate = slot.fan_ins.get(part.scatter, {}).get(subscription)
        if gate is not None and part.index in gate.items:
            gate.items[part.index].append(envelope)

    return mock.patch.object(FanInDesk, "_collect", twice)


def forget_open_chunks_after_a_restart() -> AbstractContextManager[object]:
    """A snapshot does not say what is open of the chunks of its slot."""
    restore = recovery._restore

    def without(core: ShardCore, slot: Slot, state: SlotState) -> list[tuple[int, Envelope]]:
        state.parts = {}
        return restore(core, slot, state)

    return mock.patch.object(recovery, "_restore", without)


def hurry() -> AbstractContextManager[object]:
    """A chunk is taken to be over as soon as the first run on it is."""
    free = ScatterDesk._free

    def at_once(self: ScatterDesk, slot: Slot, part: Part, now_us: int) -> None:
        entry = slot.parts.get(part.scatter, {}).get(part.index)
        if entry is not None and entry[0] == 2:
            entry[0] = 1
        free(self, slot, part, now_us)

    return mock.patch.object(ScatterDesk, "_free", at_once)


def begin_a_split_anew() -> AbstractContextManager[object]:
    """A fan-out that publishes in parts does not know how far it was."""
    on_streamed = ScatterDesk._on_streamed

    def forgetful(self: ScatterDesk, record: Streamed) -> None:
        on_streamed(self, record)
        self.slots[record.slot].open[record.completion.id].offset = 0

    return mock.patch.object(ScatterDesk, "_on_streamed", forgetful)


def forget_redriven_chunks() -> AbstractContextManager[object]:
    """A fan-in that waits does not hear that a dead letter was redriven."""

    def deaf(self: FanInDesk, slot: Slot, part: Part, now_us: int) -> None:
        pass

    return mock.patch.object(FanInDesk, "_reopen", deaf)


def merge_in_order_of_arrival() -> AbstractContextManager[object]:
    """A fan-in gets its chunks as they came."""
    collect = FanInDesk._collect

    def unsorted(
        self: FanInDesk, slot: Slot, subscription: str, part: Part, envelope: Envelope, now_us: int
    ) -> None:
        collect(self, slot, subscription, part, envelope, now_us)
        gate = slot.fan_ins.get(part.scatter, {}).get(subscription)
        if gate is not None and len(gate.items) > 1 and gate.rule.strategy == "merge":
            first = min(gate.items)
            gate.items[first] = [*gate.items.pop(max(gate.items)), *gate.items[first]]

    return mock.patch.object(FanInDesk, "_collect", unsorted)


def leave_fan_outs_open() -> AbstractContextManager[object]:
    """What a nested fan-out owes the one around it is never paid."""

    def nothing(self: CountingDesk, slot: Slot, part: Part, now_us: int) -> None:
        pass

    return mock.patch.object(ScatterDesk, "_release", nothing)


ALL = (
    forget_a_chunk_after_a_restart,
    count_a_chunk_twice,
    forget_open_chunks_after_a_restart,
    hurry,
    begin_a_split_anew,
    forget_redriven_chunks,
    merge_in_order_of_arrival,
    leave_fan_outs_open,
)
