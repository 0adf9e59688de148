"""Pausing: what somebody holds back on purpose, on the whole shard, until it is resumed."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from flock_ray.core.dispatch import Dispatcher
from flock_ray.core.ids import slot_of
from flock_ray.core.lanes import LaneDesk
from flock_ray.core.pauses import MAX_PAUSES, Pause, Pauses, Place, lay_aside
from flock_ray.core.records import Paused
from flock_ray.core.state import Activation

OK, FULL = "ok", "full"
"""Answers to `pause`: it is so now (or was before); there are too many pauses."""


class PauseDesk(LaneDesk):
    """Pauses of the board, of agents, of workflows and of types."""

    def __init__(self, owned: Collection[int], *, max_artifacts: int | None, durable: bool) -> None:
        """Start with nothing paused."""
        self.pauses = Pauses()
        self._kept: dict[Place, list[Activation]] = {}
        """What the limits of its agent would let through and is paused, by what pauses it."""
        super().__init__(owned, max_artifacts=max_artifacts, durable=durable)
        self._replays[Paused] = self._on_paused

    def pause(self, kind: str, name: str, *, on: bool, by: str, reason: str, now_us: int) -> str:
        """Pause or resume something; what is so already changes nothing.

        Args:
            kind: `board`, `agent`, `workflow` or `type`.
            name: Which one; empty for the board. A paused board stops what runs; of anything else, that ends.
            on: Pause it (or resume it).
            by: Who wants it.
            reason: Why.
            now_us: Now.

        Returns:
            OK, or FULL: as many are paused as can be.
        """
        known = (kind, name) in self.pauses.by_place
        if known == on:
            return OK
        if on and len(self.pauses.by_place) >= MAX_PAUSES:
            return FULL
        record = Paused(now_us, kind, name, on, by, reason=reason)
        self._log(record)
        self._on_paused(record)
        self._decide(now_us, "board.paused" if on else "board.resumed", f"{kind} {name}".strip(), by, reason)
        return OK

    def _on_paused(self, record: Paused) -> None:
        kind, name, now_us = record.kind, record.name, record.at_us
        if record.on:
            self.pauses.put(Pause(kind, name, now_us, record.by, record.reason))
            if kind == "board":
                self.cancels += self.dispatch.recall()
        else:
            self.pauses.lift(kind, name)
            self.dispatch.resumed(kind, name)
            for activation in self._kept.pop((kind, name), ()):
                slot = self.slots[activation.slot]
                if slot.open.get(activation.id) is activation:
                    self._make_ready(slot, activation)
            self.permits_changed()
        self._hold_ready()
        # All shards hear of it; one of them says so.
        if slot_of(f"{kind}:{name}") in self.slots:
            who = f" by {record.by}" if record.by else ""
            why = f": {record.reason}" if record.reason else ""
            self.events.note(
                now_us, "board.paused" if record.on else "board.resumed", agent=name if kind == "agent" else "",
                correlation_id=name if kind == "workflow" else "", detail=f"{kind} {name}".strip() + who + why,
            )  # fmt: skip

    def wanted(self, now_us: int) -> dict[str, int]:
        """Count what waits for a worker and nothing else; for what is paused, more workers are no help."""
        if self.pauses.board:
            return {}
        return {a: count for a, count in super().wanted(now_us).items() if a not in self.pauses.agents}

    def restore_pauses(self, pauses: list[Pause]) -> None:
        """Take what a snapshot says is paused."""
        for pause in pauses:
            self.pauses.put(pause)

    def reset_dispatch(self, first_attempt: int) -> None:
        """Make everything open ready, for nobody in particular; attempts are numbered above `first_attempt`."""
        self._kept.clear()
        super().reset_dispatch(first_attempt)

    def _new_dispatcher(self) -> Dispatcher:
        made = super()._new_dispatcher()
        made.pauses = self.pauses
        made.weights_of = self._weights_of
        return made

    def _weights_of(self, agent: str) -> Mapping[str, float]:
        info = self.agents.get(agent)
        return {} if info is None else dict(info.weights)

    def limits_changed(self) -> None:
        """Take the limits and the shares of tenants from a new table."""
        super().limits_changed()
        self.dispatch.weights_changed()

    def _waits(self, slot: int, activation: Activation) -> bool:
        """Say whether what a queue held still waits for its agent's limits; one that is paused is kept apart."""
        if not super()._waits(slot, activation):
            return False
        place = self.pauses.covering(activation) if self.pauses.sets_aside else None
        if place is None:
            return True
        lay_aside(self._kept, place, activation, lambda a: self.slots[a.slot].open.get(a.id) is a)
        return False
