"""What of a board is paused: durable, the same on every shard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from flock_ray.core.state import Activation

Kind = Literal["board", "agent", "workflow", "type"]

KINDS: tuple[Kind, ...] = ("board", "agent", "workflow", "type")

MAX_PAUSES = 10_000
"""Agents, workflows and types that can be paused at the same time."""

Place = tuple[str, str]
"""(kind, name)"""


class Pause(msgspec.Struct, array_like=True, frozen=True):
    """One thing that somebody has paused."""

    kind: str
    name: str
    """Empty for the board."""
    at_us: int
    by: str = ""
    reason: str = ""


def lay_aside(
    kept: dict[Place, list[Activation]],
    place: Place,
    activation: Activation,
    is_open: Callable[[Activation], bool],
) -> None:
    """Keep what is paused, and forget what has ended meanwhile now and then: there is at most twice what is open."""
    there = kept.setdefault(place, [])
    if len(there) >= 64 and not len(there) & (len(there) - 1):
        there[:] = [one for one in there if is_open(one)]
    there.append(activation)


class Pauses:
    """Everything that is paused on a shard."""

    __slots__ = ("agents", "board", "by_place", "sets_aside", "types", "workflows")

    def __init__(self) -> None:
        """Start with nothing paused."""
        self.by_place: dict[Place, Pause] = {}
        self.board = False
        self.agents: set[str] = set()
        self.workflows: set[str] = set()
        self.types: set[str] = set()
        self.sets_aside = False
        """Whether single activations of an agent may be paused, while others of it run."""

    def put(self, pause: Pause) -> None:
        """Pause something."""
        self.by_place[pause.kind, pause.name] = pause
        names = self._names(pause.kind)
        if names is None:
            self.board = True
        else:
            names.add(pause.name)
        self.sets_aside = bool(self.workflows or self.types)

    def lift(self, kind: str, name: str) -> None:
        """Pause something no more."""
        self.by_place.pop((kind, name), None)
        names = self._names(kind)
        if names is None:
            self.board = False
        else:
            names.discard(name)
        self.sets_aside = bool(self.workflows or self.types)

    def _names(self, kind: str) -> set[str] | None:
        return {"agent": self.agents, "workflow": self.workflows, "type": self.types}.get(kind)

    def text_for(self, activation: Activation) -> str:
        """Say what holds an activation back, by whom and why; empty when nothing is paused that does."""
        place: Place | None = ("board", "") if self.board else None
        if place is None and activation.agent in self.agents:
            place = "agent", activation.agent
        pause = self.by_place.get(place or self.covering(activation) or ("", ""))
        if pause is None:
            return ""
        what = "the board is halted" if pause.kind == "board" else f"{pause.kind} {pause.name!r} is paused"
        return what + (f" by {pause.by}" if pause.by else "") + (f": {pause.reason}" if pause.reason else "")

    def covering(self, activation: Activation) -> Place | None:
        """Return which pause of a workflow or type an activation falls under; None when it may run."""
        if activation.correlation_id in self.workflows:
            return "workflow", activation.correlation_id
        if self.types:
            for envelope in activation.inputs:
                if envelope.type in self.types:
                    return "type", envelope.type
        return None
