"""Schedules on real processes that are killed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import pytest

from flock_ray import Flock, IntervalTrigger, SQLitePersistence, TimerTick
from flock_ray.errors import StoreUnavailableError
from tests.integration.models import Job

pytestmark = pytest.mark.timeout(180)

T = TypeVar("T")


async def test_a_schedule_fires_each_time_once_while_its_shard_is_killed_again_and_again(
    new_flock: Callable[..., Flock], tmp_path: Path
) -> None:
    # Given a stored board with a schedule that fires every half a second, and makes up for what it missed
    flock = new_flock(persistence=SQLitePersistence(tmp_path))
    flock.schedule(
        trigger=IntervalTrigger(timedelta(seconds=0.5)),
        publish=Job(n=1),
        misfire="catch_up",
        max_repeats=16,
        name="s",
    )
    await flock.start()

    # When its shard dies at instants of firing
    for _ in range(2):
        view = await patiently(lambda: flock.schedules.get("s"))
        if view.next_fire is not None:
            await asyncio.sleep(max(0.0, view.next_fire.timestamp() - time.time()))
        await kill_shard(flock)

    # Then in the end every time has fired once, in steps of half a second
    deadline = time.monotonic() + 90
    while len(await patiently(lambda: flock.store.get_by_type(Job))) < 16:
        assert time.monotonic() < deadline, await flock.schedules.list()
        await asyncio.sleep(0.2)
    ticks = sorted(await flock.store.get_by_type(TimerTick), key=lambda tick: tick.iteration)
    assert [tick.iteration for tick in ticks] == list(range(16))
    first = ticks[0].fire_time
    assert [tick.fire_time for tick in ticks] == [first + n * timedelta(seconds=0.5) for n in range(16)]
    assert len(await flock.store.get_by_type(Job)) == 16
    assert (await flock.schedules.get("s")).next_fire is None


async def kill_shard(flock: Flock) -> None:
    board = await flock._ready_board()
    os.kill(await board.shard(0).start_up(), signal.SIGKILL)


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask again while a shard is on its way back."""
    deadline = time.monotonic() + 90
    while True:
        try:
            return await ask()
        except StoreUnavailableError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
