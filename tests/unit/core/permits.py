from __future__ import annotations

from flock_ray.core.wire import Allowance, Grant


def permit(agent: str, worker: str, credit: int, concurrency: int = 1) -> Grant:
    """Permits of one agent on one worker."""
    return Grant((worker,), (Allowance(agent, credit, concurrency),))
