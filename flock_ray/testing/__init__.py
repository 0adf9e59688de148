"""Test your agents in one process, with virtual time: a 30-day timeout takes microseconds.

    from flock_ray.testing import VirtualFlock, run_virtual

    def test_reminder_comes_after_a_week():
        async def scenario():
            async with VirtualFlock() as flock:
                declare_agents(flock)
                await flock.publish(Invoice(...), delay=timedelta(days=7))
                await flock.run_until_idle(include_timers=True)
                assert await flock.store.count(Reminder) == 1

        run_virtual(scenario())

It is the same core, shard, router and worker that run on Ray, without processes, threads and pickling.
"""

from __future__ import annotations

from flock_ray.adapters.memory import MemoryPersistence
from flock_ray.testing.flock import VirtualFlock
from flock_ray.testing.models import ScriptedModel
from flock_ray.testing.virtual_time import VirtualClock, VirtualTimeLoop, run_virtual

__all__ = [
    "MemoryPersistence",
    "ScriptedModel",
    "VirtualClock",
    "VirtualFlock",
    "VirtualTimeLoop",
    "run_virtual",
]
