"""Shards that miscount votes, or decide too often, too early or never."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

from flock_ray.core import recovery
from flock_ray.core.aggregate_desk import AggregateDesk
from flock_ray.core.feeds import Feeds
from flock_ray.core.recovery import SlotState
from flock_ray.core.shard import ShardCore
from flock_ray.core.state import Slot
from flock_ray.core.wire import Envelope


def decide_aggregates_twice() -> AbstractContextManager[object]:
    """What was decided is forgotten at once: what comes late begins a second group."""

    def nothing(*_: Any) -> None:
        return None

    return mock.patch.object(AggregateDesk, "_known", nothing)


def forget_a_vote_in_a_restart() -> AbstractContextManager[object]:
    """A group has lost its newest vote when its shard has come back."""
    restore = recovery._restore

    def without(core: ShardCore, slot: Slot, state: SlotState) -> list[tuple[int, Envelope]]:
        for gate in state.gates:
            if state.specs[gate.spec].aggregate is not None:
                for items in gate.held.values():
                    items.pop()
        return restore(core, slot, state)

    return mock.patch.object(recovery, "_restore", without)


def forget_what_was_voted() -> AbstractContextManager[object]:
    """The inputs of a group are there after a restart, their ballots are not."""
    restore = recovery._restore

    def without(core: ShardCore, slot: Slot, state: SlotState) -> list[tuple[int, Envelope]]:
        for gate in state.gates:
            for items in gate.held.values():
                for item in items:
                    item.ballot = b""
        return restore(core, slot, state)

    return mock.patch.object(recovery, "_restore", without)


def forget_decisions_in_a_restart() -> AbstractContextManager[object]:
    """A workflow that comes back from a snapshot or from the store has decided nothing yet."""
    restore = recovery._restore

    def without(core: ShardCore, slot: Slot, state: SlotState) -> list[tuple[int, Envelope]]:
        for workflow in state.workflows:
            workflow.decided = None
        state.decided.clear()
        return restore(core, slot, state)

    return mock.patch.object(recovery, "_restore", without)


def never_notice_rest() -> AbstractContextManager[object]:
    """Nobody looks whether all other work of a workflow has ended."""

    def nothing(self: AggregateDesk, now_us: int) -> None:
        self._hushed.clear()

    return mock.patch.object(AggregateDesk, "settle_hushed", nothing)


def forget_rest_in_a_restart() -> AbstractContextManager[object]:
    """What parts of a workflow in other slots have said of their rest is lost in a restart."""
    restore = recovery._restore

    def without(core: ShardCore, slot: Slot, state: SlotState) -> list[tuple[int, Envelope]]:
        for gate in state.gates:
            gate.quiet = {}
        return restore(core, slot, state)

    return mock.patch.object(recovery, "_restore", without)


def take_work_for_rest() -> AbstractContextManager[object]:
    """A workflow counts as at rest while something of it runs."""

    def any_time(self: AggregateDesk, slot: Slot, name: str) -> bool:
        return bool(self._chosen(slot, name))

    return mock.patch.object(AggregateDesk, "_may_end", any_time)


def withdraw_what_others_want() -> AbstractContextManager[object]:
    """An early decision ends all runs of its workflow."""

    def everybody(self: Feeds, _: str) -> frozenset[str]:
        return frozenset(self._outputs)

    return mock.patch.object(Feeds, "only", everybody)


def forget_watermarks() -> AbstractContextManager[object]:
    """A window that was decided is open again for what comes late."""
    remember = AggregateDesk._remember_decided

    def without(self: AggregateDesk, slot: Slot, gate: Any, *arguments: Any) -> None:
        remember(self, slot, gate, *arguments)
        for groups in slot.decided.values():
            for known in groups.values():
                known.watermark_us = 0

    return mock.patch.object(AggregateDesk, "_remember_decided", without)


ALL = (
    decide_aggregates_twice,
    forget_a_vote_in_a_restart,
    forget_what_was_voted,
    forget_decisions_in_a_restart,
    never_notice_rest,
    forget_rest_in_a_restart,
    take_work_for_rest,
    withdraw_what_others_want,
    forget_watermarks,
)
