"""How long settled workflows are kept: parameters only; who applies them reads them from the persistence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from types import MappingProxyType

from flock_ray.errors import ConfigurationError

__all__ = ["Retention", "RetentionPolicy"]


class RetentionPolicy(StrEnum):
    """What happens to workflows that settled and whose time is over."""

    KEEP_ALL = "keep_all"
    """They stay; a `ttl` must not be given."""
    DELETE_COMPLETED = "delete_completed"
    """They are deleted with artifacts and activations."""
    ARCHIVE_COMPLETED = "archive_completed"
    """They are written to the archive, then deleted."""


@dataclass(frozen=True)
class Retention:
    """When workflows may go. A workflow that still runs or waits never does, whatever its age."""

    ttl: timedelta | None = None
    """Age since the last change; None: with DELETE_COMPLETED and ARCHIVE_COMPLETED as soon as settled."""
    policy: RetentionPolicy = RetentionPolicy.KEEP_ALL
    per_type: Mapping[str, timedelta] = field(default_factory=dict[str, timedelta])
    """By artifact type: a workflow that holds one is kept at least so long."""
    archive: str | None = None
    """Folder or URL that ARCHIVE_COMPLETED writes to, and `flock.archive` reads; None: there is none."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            ConfigurationError: A time is negative or no timedelta, a policy is unknown, or times come
                with a policy that keeps everything.
        """
        try:
            object.__setattr__(self, "policy", RetentionPolicy(self.policy))
        except ValueError:
            known = ", ".join(f"RetentionPolicy.{policy.name}" for policy in RetentionPolicy)
            raise ConfigurationError(
                f"retention_policy={self.policy!r} is unknown. Use one of {known}."
            ) from None
        if self.ttl is not None:
            _check_time("ttl", self.ttl)
        for name, time in self.per_type.items():
            _check_time(f"per_type[{name!r}]", time)
        if self.policy is RetentionPolicy.KEEP_ALL and (self.ttl is not None or self.per_type):
            raise ConfigurationError(
                "RetentionPolicy.KEEP_ALL keeps everything for ever: "
                "remove ttl and per_type, or use DELETE_COMPLETED or ARCHIVE_COMPLETED."
            )
        object.__setattr__(self, "per_type", MappingProxyType(dict(self.per_type)))

    def __reduce__(
        self,
    ) -> tuple[type[Retention], tuple[timedelta | None, RetentionPolicy, dict[str, timedelta], str | None]]:
        """Pickle without the read-only view, which cannot be pickled."""
        return Retention, (self.ttl, self.policy, dict(self.per_type), self.archive)

    def due_us(self, updated_us: int, types: Iterable[str]) -> int:
        """Return when a workflow may go that was touched last at a time and holds artifacts of these types."""
        base = self.ttl or timedelta(0)
        times = [self.per_type.get(name, base) for name in types]
        return updated_us + max(times, default=base) // _MICROSECOND

    @property
    def shortest_us(self) -> int:
        """How long every workflow is kept at least, whatever it holds."""
        return min([self.ttl or timedelta(0), *self.per_type.values()]) // _MICROSECOND


_MICROSECOND = timedelta(microseconds=1)


def _check_time(name: str, value: object) -> None:
    if not isinstance(value, timedelta):
        raise ConfigurationError(f"{name} must be a timedelta, for example timedelta(days=30).")
    if value < timedelta(0):
        raise ConfigurationError(f"{name} is negative. Use a timedelta of zero or more.")
