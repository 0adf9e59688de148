"""Who may start another workflow: an answer at once, never a queue."""

from __future__ import annotations

from typing import Protocol

from flock_ray.application.errors import ContractError

__all__ = ["AdmissionController", "CountingAdmission"]


class AdmissionController(Protocol):
    """Decides whether another workflow may start; one may be shared by several applications of a process."""

    def try_acquire(self) -> bool:
        """Take a place for a workflow; False when there is none now."""
        ...

    def release(self) -> None:
        """Give the place of a workflow back that is over."""
        ...


class CountingAdmission:
    """Admits a number of workflows at a time."""

    def __init__(self, limit: int | None = None) -> None:
        """Admit at most `limit` workflows at a time; None is no limit.

        Raises:
            ContractError: The limit is below 1.
        """
        if limit is not None and limit < 1:
            raise ContractError(
                f"A limit of {limit} workflows admits none: give at least 1, or None for no limit."
            )
        self.limit = limit
        self.active = 0
        """Places taken."""

    def try_acquire(self) -> bool:
        """Take a place; False when all are taken."""
        if self.limit is not None and self.active >= self.limit:
            return False
        self.active += 1
        return True

    def release(self) -> None:
        """Give a place back."""
        self.active = max(0, self.active - 1)
