"""By when something must be done: the part of `AgentBuilder` that declares it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from flock_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from flock_ray.agent import AgentBuilder
    from flock_ray.core.definition import AgentDefinition

__all__ = ["DeadlineDeclaring", "deadline_us"]

MAX_DEADLINE = timedelta(days=3_660)


class DeadlineDeclaring:
    """The part of an agent's builder that knows deadlines."""

    _definition: AgentDefinition

    def deadline(self, limit: timedelta) -> AgentBuilder:
        """Say by when a run must be done, from the moment its inputs are there: waiting and retries count.

        A run that is not is said to be late, once, by the event `deadline.missed` and, if an agent consumes
        `DeadlineMissed`, by such an artifact. It is not stopped: that is what `.timeout()` does with attempts.

        Args:
            limit: Longer than nothing, at most ten years.
        """
        self._definition.deadline_us = deadline_us(limit, f"agent {self._definition.name!r}: deadline()")
        return self._changed()

    def _changed(self) -> AgentBuilder:
        """Tell the flock, and return the builder; the builder does."""
        raise NotImplementedError  # AgentBuilder's


def deadline_us(given: object, at: str) -> int:
    """Return a time limit in microseconds.

    Raises:
        ConfigurationError: It is none.
    """
    if not isinstance(given, timedelta) or not timedelta(0) < given <= MAX_DEADLINE:
        raise ConfigurationError(
            f"{at} takes a timedelta above zero and of at most ten years, got {given!r}; write timedelta(hours=1)"
        )
    return max(1, given // timedelta(microseconds=1))
