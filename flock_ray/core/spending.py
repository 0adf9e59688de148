"""Calls to language models that no result of a run brings along: of attempts that were lost, and of publishers."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import msgspec

from flock_ray.core.cancelling import CancelDesk
from flock_ray.core.model_calls import ModelCall
from flock_ray.core.records import Spent
from flock_ray.core.usage import HOUR_US, added, book, rows_of

if TYPE_CHECKING:
    from flock_ray.core.state import Activation, Slot
    from flock_ray.core.wire import Completion

__all__ = ["LostAttempt", "SpendDesk"]

MAX_LOST = 10_000
"""Attempts that wait for somebody to find out what they used; the oldest are forgotten."""


class LostAttempt(msgspec.Struct, array_like=True, frozen=True):
    """An attempt of which no result will be committed; what it asked of models is to be found out."""

    slot: int
    activation: bytes
    attempt: int
    agent: str
    workflow: str


class SpendDesk(CancelDesk):
    """Counts calls without a result in the slots of one shard."""

    def __init__(self, owned: Collection[int], *, max_artifacts: int | None, durable: bool) -> None:
        """Start with nothing to count."""
        super().__init__(owned, max_artifacts=max_artifacts, durable=durable)
        self.lost_attempts: list[LostAttempt] = []
        """For the host to take, like `cancels`; not durable: with its shard it is forgotten, and not counted."""
        self._fates: dict[tuple[bytes, int], str] = {}
        """Of lost attempts: `asked`, then `counted`, or `committed` when their result came after all."""
        self._replays[Spent] = self._on_spent

    def spent(
        self, slot: int, agent: str, workflow: str, calls: tuple[ModelCall, ...], now_us: int,
        *, lost: tuple[bytes, int] | None = None,
    ) -> bool:  # fmt: skip
        """Count calls that no result of a run brings along; False for a slot of another shard.

        Args:
            slot: Where they are counted.
            agent: Who made them; `external` for publishers.
            workflow: For which; empty when they were for none, or for several.
            calls: The calls.
            now_us: The time.
            lost: The activation and attempt that made them; None: no run did.
        """
        if slot not in self.slots:
            return False
        if lost is not None:
            if self._fates.get(lost) != "asked":
                return True  # its result was committed after all, with its calls; or this is a repetition
            self._fates[lost] = "counted"
        if calls:
            record = Spent(now_us, slot, agent, workflow, calls)
            self._log(record)
            self._on_spent(record)
        return True

    def _on_spent(self, record: Spent) -> None:
        slot, now_us = self.slots[record.slot], record.at_us
        book(slot.usage, rows_of(record.agent, record.calls, now_us - now_us % HOUR_US))
        workflow = slot.workflows.get(record.workflow)
        if workflow is not None:  # one that has left memory for good is not brought back for this
            workflow.usage = added([*(workflow.usage or ()), *rows_of(record.agent, record.calls, 0)])
            self._touch(workflow)

    def _counted_once(self, completion: Completion) -> Completion:
        """Return a result without the calls that were counted when its attempt was given up for lost."""
        fate = self._fates.get((completion.id, completion.attempt))
        if fate == "counted":
            return msgspec.structs.replace(completion, calls=())
        if fate == "asked":
            self._fates[completion.id, completion.attempt] = "committed"
        return completion

    def _attempt_lost(self, slot: Slot, activation: Activation) -> None:
        if len(self.lost_attempts) >= MAX_LOST:
            del self.lost_attempts[0]
        if len(self._fates) >= MAX_LOST:
            del self._fates[next(iter(self._fates))]
        self._fates[activation.id, activation.attempt] = "asked"
        self.lost_attempts.append(
            LostAttempt(
                slot.index, activation.id, activation.attempt, activation.agent, activation.correlation_id
            )
        )
