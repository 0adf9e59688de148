"""Activations whose input is of a newer version than their agent's code: they wait, and are never lost.

A worker that can't read an input says so in its completion, and the shard keeps the activation aside until
code that may know the version is there: after a deploy, or when workers come and go.
Nothing of this is journaled: after a recovery everything open is tried again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from flock_ray.core.state import Activation
from flock_ray.core.wire import Completion, Envelope, ErrorInfo, Task

if TYPE_CHECKING:
    from pydantic import BaseModel

    from flock_ray.core.registry import TypeRegistry

NEWER_INPUT = "newer input"
"""Kind of the note that says so. User code can't make one, whatever it raises."""


def newer_input(task: Task, envelope: Envelope, run_us: int) -> Completion:
    """Make the completion of an attempt that could not read an input."""
    detail = f"{envelope.type} version {envelope.version} is newer than the code of agent {task.agent!r}"
    message = f"{detail}. Deploy an agent that knows it; the activation waits."
    error = ErrorInfo("VersionConflictError", message)
    return Completion(
        task.id, task.attempt, task.slot, error=error, run_us=run_us, notes=((NEWER_INPUT, detail),)
    )


def first_unread(
    task: Task, registry: TypeRegistry, classes: Mapping[str, type[BaseModel]]
) -> Envelope | None:
    """Return an input of a version that a worker's code does not know; None when it knows all."""
    reads = registry.reads
    return next((e for e in task.inputs if not reads(e.type, e.version, cls=classes.get(e.type))), None)


def input_is_newer(completion: Completion) -> bool:
    """Say whether an attempt ended because its worker can't read an input."""
    return bool(completion.notes) and completion.notes[0][0] == NEWER_INPUT


class Parked:
    """What waits for newer code, on one shard."""

    __slots__ = ("_tried", "_waiting", "_workers")

    def __init__(self) -> None:
        """Start empty."""
        self._waiting: dict[bytes, Activation] = {}
        self._tried: dict[bytes, int] = {}
        """Version of the table under which an activation was refused last."""
        self._workers: frozenset[str] = frozenset()

    def __len__(self) -> int:
        """Activations that wait."""
        return len(self._waiting)

    def park(self, activation: Activation, table_version: int) -> bool:
        """Put an activation aside; False when it should be tried once more under this table first.

        An attempt that began before a deploy may be refused by the code of before, after the deploy.
        """
        if self._tried.get(activation.id) != table_version:
            self._tried[activation.id] = table_version
            return False
        self._waiting[activation.id] = activation
        return True

    def release(self, workers: Collection[str] | None) -> list[Activation]:
        """Take out what may run now: everything, after a deploy (None) or when other workers are there than before."""
        if workers is None:
            self._tried.clear()
        else:
            known, self._workers = self._workers, frozenset(workers)
            if self._workers == known:
                return []
        released = list(self._waiting.values())
        self._waiting.clear()
        return released
