"""What the clock does on real processes, while shards and routers are killed at the very instants of it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
from pydantic import BaseModel

from flock_ray import (
    DeadlineMissed,
    Flock,
    IntervalTrigger,
    SlidingWindowTrigger,
    SQLitePersistence,
    TimerTick,
    flock_type,
    now,
)
from flock_ray.core.ids import shard_of
from flock_ray.core.schedules import home_of_schedule
from flock_ray.errors import StoreUnavailableError

pytestmark = pytest.mark.timeout(300)

T = TypeVar("T")
NAMES = ("s0", "s1", "s2", "windows")
REPEATS = 12
STEP = timedelta(seconds=0.5)


@flock_type(name="ChaosTimeDocument")
class Document(BaseModel):
    n: int
    ripe: datetime
    gate: str = ""


@flock_type(name="ChaosTimeAlert")
class Alert(BaseModel):
    n: int
    kind: str


@flock_type(name="ChaosTimeWindow")
class Window(BaseModel):
    window_start: datetime | None = None
    window_end: datetime | None = None


def alert(document: Document) -> Alert:
    return Alert(n=document.n, kind="ripe")


def wait_at_the_gate(document: Document) -> Alert:
    while not Path(document.gate).exists():
        time.sleep(0.01)
    return Alert(n=document.n, kind="done")


def complain(missed: DeadlineMissed) -> Alert:
    return Alert(n=0, kind=f"late {missed.kind}")


def declare(flock: Flock) -> None:
    for name in NAMES[:3]:
        flock.schedule(
            flock.agent(name).runs(lambda tick: None),
            trigger=IntervalTrigger(STEP), misfire="catch_up", max_repeats=REPEATS, name=name,
        )  # fmt: skip
    flock.schedule(
        trigger=SlidingWindowTrigger(2 * STEP, STEP), publish=Window(), misfire="catch_up", max_repeats=REPEATS,
        name="windows",
    )  # fmt: skip
    flock.agent("asking").consumes(
        Document, where=lambda document: now() >= document.ripe, reevaluate=timedelta(seconds=0.5)
    ).publishes(Alert).runs(alert)
    flock.agent("slow").consumes(Document, where=lambda document: bool(document.gate)).publishes(Alert).runs(
        wait_at_the_gate
    ).deadline(timedelta(seconds=2))
    flock.agent("boss").consumes(DeadlineMissed).publishes(Alert).runs(complain)


async def test_everything_happens_once_while_shards_and_routers_are_killed_at_the_instants_of_it(
    new_flock: Callable[..., Flock], tmp_path: Path
) -> None:
    # Given a stored board on which the clock has much to do
    flock = new_flock(persistence=SQLitePersistence(tmp_path / "board"), shards=2)
    declare(flock)
    gate = tmp_path / "gate"
    await flock.start()
    later = datetime.now(UTC) + timedelta(seconds=4)
    for n in range(20):
        await flock.publish(Document(n=n, ripe=later), idempotency_key=f"{n}")
    await flock.publish(Document(n=99, ripe=later, gate=str(gate)), deadline=timedelta(seconds=2))

    # When the shards that fire, and the router, are killed at instants of firing
    board = await flock._ready_board()
    for name in ("s0", "windows", "s1"):
        view = await patiently(partial(flock.schedules.get, name))
        if view.next_fire is not None:
            await asyncio.sleep(max(0.0, view.next_fire.timestamp() - time.time()))
        os.kill(await patiently(board.router.pid), signal.SIGKILL)
        shard = board.shard(shard_of(home_of_schedule(name), 2))
        os.kill(await patiently(shard.start_up), signal.SIGKILL)

    # Then in the end every schedule has fired each of its times once
    deadline = time.monotonic() + 150
    while [v for v in await patiently(flock.schedules.list) if v.next_fire is not None]:
        assert time.monotonic() < deadline, await flock.schedules.list()
        await asyncio.sleep(0.2)
    # and every document was matched once, and what was late was said once
    while (found := Counter(a.kind for a in await patiently(lambda: flock.store.get_by_type(Alert))))[
        "ripe"
    ] < 21:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.2)
    while found["late run"] + found["late workflow"] < 2:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.2)
        found = Counter(a.kind for a in await patiently(lambda: flock.store.get_by_type(Alert)))
    gate.touch()
    await flock.run_until_idle(timeout=120)
    alerts = Counter((a.kind, a.n) for a in await flock.store.get_by_type(Alert))
    assert alerts == Counter(
        [("ripe", n) for n in (*range(20), 99)] + [("done", 99), ("late run", 0), ("late workflow", 0)]
    )
    ticks = await flock.store.get_by_type(TimerTick)
    for name in NAMES:
        fires = sorted(tick.fire_time for tick in ticks if tick.timer_name == name)
        assert fires == [fires[0] + n * STEP for n in range(REPEATS)], name
    windows = await flock.store.get_by_type(Window)
    assert len({window.window_start for window in windows}) == len(windows) == REPEATS


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask again while a process is on its way back."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return await ask()
        except (StoreUnavailableError, ConnectionError):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
