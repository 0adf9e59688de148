"""The present, for predicates and agents: `flock_ray.now()`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta

__all__ = ["as_if_at", "now"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_as_if: ContextVar[int | None] = ContextVar("flock_present", default=None)


def now() -> datetime:
    """Return the present, aware, in UTC: virtual where time is virtual, else what `datetime.now(UTC)` returns.

    Ask for it in `where=` and in agents, and what depends on time can be tested without waiting. In a predicate it is
    the time of the machine that asks it: of whoever publishes, or, when it is asked again (`reevaluate=`), of a worker.
    """
    at_us = _as_if.get()
    if at_us is None:
        try:
            present_us: Callable[[], int] | None = getattr(asyncio.get_running_loop(), "present_us", None)
        except RuntimeError:  # in a thread
            present_us = None
        if present_us is None:
            return datetime.now(UTC)
        at_us = present_us()
    return _EPOCH + timedelta(microseconds=at_us)


@contextmanager
def as_if_at(at_us: int) -> Iterator[None]:
    """Let `now()` return another time in here, in microseconds since the Unix epoch."""
    token = _as_if.set(at_us)
    try:
        yield
    finally:
        _as_if.reset(token)
