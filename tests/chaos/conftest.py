from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from flock_ray import Flock


@pytest.fixture
async def new_flock(ray_cluster: str) -> AsyncIterator[Callable[..., Flock]]:
    """Make Flocks with boards of their own on the shared Ray; all are shut down, the newest first."""
    made: list[Flock] = []

    def make(**options: Any) -> Flock:
        flock = Flock(**{"max_workers": 2, **options})
        made.append(flock)
        return flock

    yield make
    for flock in reversed(made):
        await flock.shutdown(flush_batches=False)
